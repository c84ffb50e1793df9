"""Teaching: the logits that a student learns, by a teacher or given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._logits import canonical_logits
from sklearn_kd._progress import FitTask
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.rows._labels import ClassHints
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.rows._views import rows_of_teacher
from sklearn_kd.teachers._cross_fitting import (
    LabelledRows,
    Splits,
    cross_fitted_logits,
    fit_teacher,
    nested_logits,
    with_unlabelled,
)
from sklearn_kd.teachers._logits_of import Logits, logits_of
from sklearn_kd.teachers._torch_teacher import TorchTeacher


class Taught(NamedTuple):
    """A teacher, and its logits for the student of all rows and for those of the folds."""

    teacher: Any  # fitted; None if logits stand in for it
    logits: Logits
    by_fold: list[Tensor] | None  # None: every student learns the same logits


def is_fitted(teacher: Any, cv: Any) -> bool:
    """Whether a teacher is used as it is, and not cross-fitted by ``cv``."""
    return cv == "prefit" or isinstance(teacher, FrozenEstimator | TorchTeacher)


def class_hints(teacher: Any, cv: Any, teacher_logits: Any) -> ClassHints:
    """Return what a student's ``teacher`` or given logits tell about the classes of y."""
    classes = getattr(teacher, "classes_", None) if is_fitted(teacher, cv) else None
    shape = getattr(teacher_logits, "shape", None)
    if shape is None and isinstance(teacher_logits, (list, tuple)) and teacher_logits:
        shape = (len(teacher_logits), *np.shape(teacher_logits[0]))
    n_columns = shape[1] if shape is not None and len(shape) == 2 else None
    return ClassHints(None if classes is None else np.asarray(classes), n_columns)


def teach(
    teacher: Any,
    X: Any,
    rows: TrainingRows,
    teacher_logits: Any,
    *,
    cv: Any,
    default: Callable[[], Any],
    progress: FitTask,
) -> tuple[Any, Logits]:
    """Return the fitted teacher (None if logits stand in for it) and its logits on ``X``.

    Parameters
    ----------
    teacher : classifier or None
        A student's parameter. Frozen ones are used as they are, others are cross-fitted.
    X : array-like of shape (n, d)
        Rows as the user gave them.
    rows : TrainingRows
        The same, checked.
    teacher_logits : array-like of shape (n,) or (n, K), or None
        Logits that replace the teacher's.
    cv : int, splitter, iterable or "prefit"
        Folds of the cross-fitting.
    default : callable
        Returns the teacher that None stands for.
    progress : FitTask

    Raises
    ------
    ValueError
        If ``teacher_logits`` do not match the rows, or come with an unfitted teacher; if there is
        no teacher with ``cv="prefit"``; if the teacher is unfitted and the rows are not in memory.
    NotFittedError
        If a teacher is frozen, or taken as fitted by ``cv="prefit"``, and is not fitted.
    """
    is_taught = is_fitted(teacher, cv)
    if is_taught:
        if teacher is None:
            raise ValueError("cv='prefit' needs a fitted teacher, but teacher is None.")
        check_is_fitted(teacher)
    if teacher_logits is not None:
        if teacher is not None and not is_taught:
            raise ValueError(
                "teacher_logits was passed to fit, but teacher is an unfitted "
                f"{type(teacher).__name__}; set teacher=None, or wrap a fitted teacher "
                "in FrozenEstimator to keep it for scoring."
            )
        return teacher, given_logits(teacher_logits, len(rows.labels), len(rows.classes))
    if is_taught:
        with progress.stage("logits-of-teacher"):
            return teacher, logits_of(teacher, X, rows.classes)
    teacher, labelled = _to_cross_fit(teacher, X, rows, default)
    z_t = cross_fitted_logits(teacher, labelled, cv=cv, progress=progress)
    fitted = fit_teacher(teacher, labelled, progress.leaf("fit-teacher"))
    return fitted, with_unlabelled(z_t, fitted, labelled)


def teach_folds(
    teacher: Any,
    X: Any,
    rows: TrainingRows,
    *,
    splits: Splits,
    cv: Any,
    default: Callable[[], Any],
    progress: FitTask,
    n_jobs: int | None,
) -> Taught:
    """Return an unfitted teacher, fitted on ``X``, and its logits nested in the folds ``splits``.

    The parameters are those of `teach` and `nested_logits`.
    """
    teacher, labelled = _to_cross_fit(teacher, X, rows, default)
    whole, by_fold = nested_logits(
        teacher, labelled, splits, cv=cv, progress=progress, n_jobs=n_jobs
    )
    fitted = fit_teacher(teacher, labelled, progress.leaf("fit-teacher"))
    return Taught(fitted, with_unlabelled(whole, fitted, labelled), by_fold)


def _to_cross_fit(
    teacher: Any, X: Any, rows: TrainingRows, default: Callable[[], Any]
) -> tuple[Any, LabelledRows]:
    """Return a teacher to be fitted, and its rows."""
    if rows.stream is not None and not isinstance(X, np.ndarray):
        raise ValueError(
            "The teacher is unfitted, and cannot be cross-fitted on rows that are read block "
            "by block; fit it on some of them in memory and pass FrozenEstimator(teacher), or "
            "pass teacher_logits to fit."
        )
    return default() if teacher is None else clone(teacher), LabelledRows.of(X, rows)


def given_logits(teacher_logits: Any, n_rows: int, n_classes: int) -> Logits:
    """Return logits that a user gave, checked and in the gauge of ``decision_function``."""
    values = canonical_logits(teacher_logits, n_rows, n_classes, name="teacher_logits")
    return Logits(values, n_clipped=0)


def logits_on_new_rows(
    teacher: Any, X: Any, n_rows: int, classes: np.ndarray, teacher_logits: Any
) -> Tensor:
    """Return the logits of a student's fitted teacher on other rows; given ones replace them.

    Raises
    ------
    ValueError
        If there is neither a teacher nor logits, or the logits do not match the rows.
    """
    if teacher_logits is not None:
        return given_logits(teacher_logits, n_rows, len(classes)).values
    if teacher is not None:
        return logits_of(teacher, rows_of_teacher(X), classes).values
    raise ValueError(
        "This student was fitted on teacher_logits and has no teacher to ask about other "
        "rows. Pass teacher_logits for these rows too; in a search, enable metadata "
        "routing and use scorer.set_score_request(teacher_logits=True), or give the "
        "student a FrozenEstimator as teacher."
    )


def warn_if_saturated(teacher: Any, z_t: Logits) -> None:
    """Warn with `SaturatedTeacherWarning` if probabilities of 0 were clipped."""
    if z_t.n_clipped > 0:
        warn(
            f"teacher={type(teacher).__name__} gives some class a probability of 0 on "
            f"{z_t.n_clipped} of {len(z_t.values)} rows. Its log-odds were clipped at the "
            "resolution of the dtype and are far larger than what it knows; calibrate it "
            "first, such as by CalibratedClassifierCV.",
            SaturatedTeacherWarning,
        )
