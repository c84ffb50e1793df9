"""The teacher of a student: fitted with it, frozen, or known by its logits alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd._array import like, to_tensor
from sklearn_kd._kernel_machine import kernel_to_use
from sklearn_kd._logits import canonical_logits
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import move_to
from sklearn_kd._warnings import warn
from sklearn_kd.distillation._effective_logits_of_rows import root_of_eq_3
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.teachers._logits_of import Logits, cross_fitted_logits, fit_teacher, logits_of
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._torch_teacher import TorchTeacher


class TaughtMixin:
    """A student that fits its teacher, and asks it about other rows."""

    def _teach(
        self: Any, X: Any, rows: TrainingRows, teacher_logits: Any, progress: FitTask
    ) -> tuple[Any, Logits]:
        """Return the fitted teacher (None if logits stand in for it) and its logits on ``X``."""
        is_fitted = self.cv == "prefit" or isinstance(self.teacher, FrozenEstimator | TorchTeacher)
        if is_fitted:
            if self.teacher is None:
                raise ValueError("cv='prefit' needs a fitted teacher, but teacher is None.")
            check_is_fitted(self.teacher)
        if teacher_logits is not None:
            if self.teacher is not None and not is_fitted:
                raise ValueError(
                    "teacher_logits was passed to fit, but teacher is an unfitted "
                    f"{type(self.teacher).__name__}; set teacher=None, or wrap a fitted teacher "
                    "in FrozenEstimator to keep it for scoring."
                )
            given = canonical_logits(
                teacher_logits, len(rows.labels), len(rows.classes), name="teacher_logits"
            )
            return self.teacher, Logits(given, n_clipped=0)
        if is_fitted:
            with progress.stage("logits-of-teacher"):
                return self.teacher, logits_of(self.teacher, X, rows.classes)
        if rows.stream is not None and not isinstance(X, np.ndarray):
            raise ValueError(
                "The teacher is unfitted, and cannot be cross-fitted on rows that are read block "
                "by block; fit it on some of them in memory and pass FrozenEstimator(teacher), or "
                "pass teacher_logits to fit."
            )
        teacher = self._default_teacher() if self.teacher is None else clone(self.teacher)
        z_t = cross_fitted_logits(
            teacher,
            X,
            rows.labels,
            rows.classes,
            cv=self.cv,
            sample_weight=rows.sample_weight,
            progress=progress,
        )
        y = rows.classes[rows.labels]
        return fit_teacher(teacher, X, y, rows.sample_weight, progress, "fit-teacher"), z_t

    def _warn_if_saturated(self: Any, z_t: Logits) -> None:
        if z_t.n_clipped > 0:
            warn(
                f"teacher={type(self.teacher).__name__} gives some class a probability of 0 on "
                f"{z_t.n_clipped} of {len(z_t.values)} rows. Its log-odds were clipped at the "
                "resolution of the dtype and are far larger than what it knows; calibrate it "
                "first, such as by CalibratedClassifierCV.",
                SaturatedTeacherWarning,
            )

    def _default_teacher(self: Any) -> NTKTeacher:
        return NTKTeacher(
            kernel_to_use(self.kernel),
            device=self.device,
            dtype=self.dtype,
            memory_limit=self.memory_limit,
        )

    def effective_decision_function(self: Any, X: Any, y: Any, teacher_logits: Any = None) -> Any:
        """Return the effective logits of new rows: what the student would fit them to (Eq. 3).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, training rows or others.
        y : array-like of shape (n_samples,)
            Their hard labels, among ``classes_``.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``. None: those of ``teacher_``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Effective logits, in the gauge of ``decision_function``.
        """
        given = self.teacher_decision_function(X, teacher_logits)
        z_t, labels = to_tensor(given), self._class_indices(y)
        hard = labels if z_t.ndim == 1 else one_hot(labels, len(self.classes_))
        return like(root_of_eq_3(z_t, hard.to(z_t.dtype), **self._recipe()), given)

    def teacher_decision_function(self: Any, X: Any, teacher_logits: Any = None) -> Any:
        """Return the teacher's logits on new rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            Logits to check and bring into the gauge of ``decision_function``, for a student that
            was fitted on logits and has no teacher. None: ask ``teacher_``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            The teacher's logits.
        """
        checked = self._check_new_rows(X, "teacher_decision_function")
        if teacher_logits is not None:
            n_rows, n_classes = checked.shape[0], len(self.classes_)
            z_t = canonical_logits(teacher_logits, n_rows, n_classes, name="teacher_logits")
        elif self.teacher_ is not None:
            z_t = logits_of(self.teacher_, X, self.classes_).values
        else:
            raise ValueError(
                "This student was fitted on teacher_logits and has no teacher to ask about other "
                "rows. Pass teacher_logits for these rows too; in a search, enable metadata "
                "routing and use scorer.set_score_request(teacher_logits=True), or give the "
                "student a FrozenEstimator as teacher."
            )
        return like(z_t, checked)

    def _class_indices(self: Any, y: Any) -> Tensor:
        y = column_or_1d(move_to(y, xp=np, device="cpu"))
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            raise ValueError(
                f"y holds the label {y[unknown][:1].tolist()} (row {unknown.argmax()}), which the "
                f"student was not fitted on; its classes are {self.classes_.tolist()}."
            )
        return torch.as_tensor(np.searchsorted(self.classes_, y))
