"""What a student knows of its teachers: their logits, and the effective ones, of any rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sklearn_kd._array import like, to_tensor
from sklearn_kd._kernel_machine import TangentKernelClassifier
from sklearn_kd.distillation._effective_logits_of_rows import (
    RECIPE,
    effective_logits_of_each,
    mixed_logits,
)
from sklearn_kd.rows._checking import row_labels
from sklearn_kd.students._labelled_score import ScoresLabelledRows
from sklearn_kd.teachers._teaching import logits_on_new_rows


class KnowsTeachers(ScoresLabelledRows):
    """A fitted student that can be asked about its teachers."""

    def effective_decision_function(
        self, X: Any, y: Any, teacher_logits: Any = None, teacher_trust: Any = None
    ) -> Any:
        """Return the effective logits of new rows, to which the student would be fitted (Eq. 3).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, training rows or others.
        y : array-like of shape (n_samples,)
            Their hard labels, among ``classes_``; -1, or a missing value, where there is none.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``. None: those of ``teacher_``.
        teacher_trust : array-like of shape (n_samples,), default=None
            As in ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Effective logits, in the gauge of ``decision_function``.
        """
        z_t = self.teacher_decision_function(X, teacher_logits)
        labels = row_labels(y, self.classes_, teacher_trust)
        return like(effective_logits_of_each(to_tensor(z_t)[None], labels, self._recipe()), z_t)

    def teacher_decision_function(self, X: Any, teacher_logits: Any = None) -> Any:
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
        members = self._members_on(X, checked.shape[0], teacher_logits)
        return like(mixed_logits(members, self._recipe()), checked)

    def _members_on(self, X: Any, n_rows: int, teacher_logits: Any) -> Tensor:
        """Return the logits of each teacher on new rows, (M, m) or (M, m, K)."""
        return logits_on_new_rows(
            self.teacher_, X, n_rows, self.classes_, teacher_logits, self._readings
        )

    def _member_logits(self) -> Tensor:
        """Return the logits of each teacher on the rows of the fit, (M, n) or (M, n, K)."""
        own = self.teacher_logits_[None] if self._members is None else self._members
        return to_tensor(own)

    def _recipe(self) -> dict[str, Any]:
        """Return what the effective logits of this fit depended on."""
        return {name: self.fit_report_[name] for name in RECIPE}


class StudentOfTeachers(KnowsTeachers, TangentKernelClassifier):
    """A student that is a kernel expansion."""
