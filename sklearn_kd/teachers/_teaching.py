"""Teaching: the logits that a student learns, by a teacher or given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._logits import canonical_logits
from sklearn_kd._progress import FitTask
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.rows._labels import ClassHints
from sklearn_kd.rows._splits import about_n_splits
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.rows._views import rows_of_teacher
from sklearn_kd.teachers._cross_fitting import (
    LabelledRows,
    Splits,
    cross_fitted_logits,
    fit_teacher,
    n_nested_fits,
    nested_logits,
    with_unlabelled,
)
from sklearn_kd.teachers._logits_of import Logits, logits_of
from sklearn_kd.teachers._several import is_list, members_of
from sklearn_kd.teachers._torch_teacher import TorchTeacher


class Taught(NamedTuple):
    """Teachers, and their logits for the student of all rows and for those of the folds."""

    teacher: Any  # fitted; a list of several; None if logits stand in for it
    logits: Logits  # (M, n) or (M, n, K) of M teachers
    by_fold: list[Tensor] | None  # the same for each fold; None: all students learn the same


def is_fitted(teacher: Any, cv: Any) -> bool:
    """Whether all teachers are used as they are, and none is cross-fitted by ``cv``."""
    frozen = FrozenEstimator | TorchTeacher
    return cv == "prefit" or all(isinstance(one, frozen) for one in members_of(teacher))


def class_hints(teacher: Any, cv: Any, teacher_logits: Any) -> ClassHints:
    """Return what a student's ``teacher`` or given logits tell about the classes of y."""
    fitted = [one for one in members_of(teacher) if is_fitted(one, cv)]
    classes = next((one.classes_ for one in fitted if hasattr(one, "classes_")), None)
    shape = getattr(teacher_logits, "shape", None)
    if shape is None and isinstance(teacher_logits, (list, tuple)) and teacher_logits:
        shape = (len(teacher_logits), *np.shape(teacher_logits[0]))
    n_columns = shape[1] if shape is not None and len(shape) == 2 else None
    return ClassHints(None if classes is None else np.asarray(classes), n_columns)


def n_teaching_steps(
    teacher: Any, teacher_logits: Any, *, cv: Any, n_rows: int, splits: Splits | None = None
) -> int:
    """Return about how many steps `teach` announces or, with ``splits``, `teach_folds`."""
    if teacher_logits is not None:
        return 0
    n_unfitted = (
        about_n_splits(cv, n_rows)
        if splits is None
        else n_nested_fits(splits, cv=cv, n_rows=n_rows)
    )
    return sum(1 if is_fitted(one, cv) else n_unfitted + 1 for one in members_of(teacher))


def teach(
    teacher: Any,
    X: Any,
    rows: TrainingRows,
    teacher_logits: Any,
    *,
    cv: Any,
    default: Callable[[], Any],
    progress: FitTask,
) -> Taught:
    """Return the fitted teachers (None if logits stand in for them) and their logits on ``X``.

    Parameters
    ----------
    teacher : classifier, list of them, or None
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
    for one in members_of(teacher):
        if is_fitted(one, cv):
            if one is None:
                raise ValueError("cv='prefit' needs a fitted teacher, but teacher is None.")
            check_is_fitted(one)
        elif one is not None and teacher_logits is not None:
            raise ValueError(
                "teacher_logits was passed to fit, but teacher is an unfitted "
                f"{type(one).__name__}; set teacher=None, or wrap a fitted teacher "
                "in FrozenEstimator to keep it for scoring."
            )
    if teacher_logits is not None:
        given = given_logits(teacher_logits, len(rows.labels), len(rows.classes))
        return Taught(teacher, given._replace(values=given.values[None]), by_fold=None)

    def taught(one: Any) -> Taught:
        if is_fitted(one, cv):
            return _as_it_is(one, X, rows, progress)
        one, labelled = _to_cross_fit(one, X, rows, default)
        z_t = cross_fitted_logits(one, labelled, cv=cv, progress=progress)
        fitted = fit_teacher(one, labelled, progress.leaf("fit-teacher"))
        return Taught(fitted, with_unlabelled(z_t, fitted, labelled), by_fold=None)

    return _mixture(teacher, [taught(one) for one in members_of(teacher)])


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
    """Return the teachers, fitted on ``X``, and their logits nested in the folds ``splits``.

    The parameters are those of `teach` and `nested_logits`. Logits of frozen teachers are the same
    in all folds.
    """

    def taught(one: Any) -> Taught:
        if is_fitted(one, cv):
            check_is_fitted(one)
            return _as_it_is(one, X, rows, progress)
        one, labelled = _to_cross_fit(one, X, rows, default)
        whole, by_fold = nested_logits(
            one, labelled, splits, cv=cv, progress=progress, n_jobs=n_jobs
        )
        fitted = fit_teacher(one, labelled, progress.leaf("fit-teacher"))
        return Taught(fitted, with_unlabelled(whole, fitted, labelled), by_fold)

    return _mixture(teacher, [taught(one) for one in members_of(teacher)])


def _as_it_is(teacher: Any, X: Any, rows: TrainingRows, progress: FitTask) -> Taught:
    """Return a fitted teacher with its logits."""
    with progress.step("logits-of-teacher"):
        return Taught(teacher, logits_of(teacher, X, rows.classes), by_fold=None)


def _mixture(teacher: Any, members: list[Taught]) -> Taught:
    """Return teachers, each with logits of its own, together; warn of those that are saturated."""
    for one in members:
        warn_if_saturated(one.teacher, one.logits)
    logits = Logits(
        torch.stack([one.logits.values for one in members]),
        n_clipped=sum(one.logits.n_clipped for one in members),
        cross_fitted=any(one.logits.cross_fitted for one in members),
    )
    n_folds = max(0 if one.by_fold is None else len(one.by_fold) for one in members)
    by_fold = [
        torch.stack([o.logits.values if o.by_fold is None else o.by_fold[k] for o in members])
        for k in range(n_folds)
    ]
    fitted = [one.teacher for one in members]
    return Taught(fitted if is_list(teacher) else fitted[0], logits, by_fold or None)


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
    """Return the logits of a student's fitted teachers on other rows; given ones replace them.

    Returns
    -------
    Tensor of shape (M, m) or (M, m, K)
        Of M teachers; one for given logits.

    Raises
    ------
    ValueError
        If there is neither a teacher nor logits, or the logits do not match the rows.
    """
    if teacher_logits is not None:
        return given_logits(teacher_logits, n_rows, len(classes)).values[None]
    if teacher is not None:
        return torch.stack(
            [logits_of(one, rows_of_teacher(X), classes).values for one in members_of(teacher)]
        )
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
