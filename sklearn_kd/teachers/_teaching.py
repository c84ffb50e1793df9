"""Teaching: the logits that a student learns, by a teacher or given."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import PredefinedSplit
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.exceptions import NoTeacherError
from sklearn_kd.rows._labels import NO_LABEL, ClassHints
from sklearn_kd.rows._splits import about_n_splits
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.rows._views import rows_of_teacher
from sklearn_kd.teachers._cross_fitting import (
    LabelledRows,
    Splits,
    cross_fitted_logits,
    fit_teacher,
    folds_among,
    n_nested_fits,
    nested_logits,
    with_unlabelled,
)
from sklearn_kd.teachers._doubts import (
    warn_if_fitted,
    warn_if_memorised,
    warn_if_weights_are_lost,
    warn_of,
)
from sklearn_kd.teachers._given_logits import given_logits, warn_if_large
from sklearn_kd.teachers._logits_of import Logits, Reading, logits_of
from sklearn_kd.teachers._several import is_list, members_of
from sklearn_kd.teachers._torch_teacher import TorchTeacher


class Taught(NamedTuple):
    """Teachers, and their logits for the student of all rows and for those of the folds."""

    teacher: Any  # fitted; a list of several; None if logits stand in for it
    logits: Logits  # (M, n) or (M, n, K) of M teachers
    by_fold: list[Tensor] | None  # the same for each fold; None: all students learn the same
    readings: list[Reading]  # of the answers of each about other rows


def is_fitted(teacher: Any, cv: Any) -> bool:
    """Whether all teachers are used as they are, and none is cross-fitted by ``cv``."""
    frozen = FrozenEstimator | TorchTeacher
    is_named = isinstance(cv, str) and cv == "prefit"  # not an array of folds
    return is_named or all(isinstance(one, frozen) for one in members_of(teacher))


def class_hints(teacher: Any, cv: Any, teacher_logits: Any, classes: Any) -> ClassHints:
    """Return what a student's ``teacher``, given logits and named classes tell about those of y.

    Raises
    ------
    ValueError
        If ``classes`` are not sorted and distinct, or not those of the fitted teacher.
    """
    shape = getattr(teacher_logits, "shape", None)
    if shape is None and isinstance(teacher_logits, (list, tuple)) and teacher_logits:
        shape = (len(teacher_logits), *np.shape(teacher_logits[0]))
    n_columns = shape[1] if shape is not None and len(shape) == 2 else None
    return ClassHints(_known_classes(teacher, cv, classes), n_columns)


def _known_classes(teacher: Any, cv: Any, classes: Any) -> np.ndarray | None:
    """Return the classes of a fitted teacher or those named in fit, sorted; None if unknown."""
    fitted = [one for one in members_of(teacher) if is_fitted(one, cv)]
    known = next((one.classes_ for one in fitted if hasattr(one, "classes_")), None)
    if classes is None:
        return None if known is None else np.unique(np.asarray(known))
    named = np.asarray(classes)
    if named.ndim != 1 or len(named) < 2 or not np.array_equal(np.unique(named), named):
        raise ValueError(
            f"classes={named.tolist()} must be two or more labels, each once and in sorted order, "
            "which is that of the columns of teacher_logits; sort both."
        )
    if known is not None and set(known) != set(named.tolist()):
        raise ValueError(
            f"classes={named.tolist()}, but the fitted teacher knows "
            f"{np.asarray(known).tolist()}; leave classes out, they are those of the teacher."
        )
    return named


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
    reading: Reading,
    default: Callable[[], Any],
    progress: FitTask,
) -> Taught:
    """Return the fitted teachers (None if logits stand in for them) and their logits on ``X``.

    Parameters
    ----------
    teacher : classifier, list of them, or None
        A student's parameter. Frozen ones are used as they are, others are cross-fitted on the
        rows of positive weight.
    X : array-like of shape (n, d)
        Rows as the user gave them.
    rows : TrainingRows
        The same, checked.
    teacher_logits : array-like of shape (n,) or (n, K), or None
        Logits that replace the teacher's.
    cv : int, splitter, iterable or "prefit"
        Folds of the cross-fitting.
    reading : Reading
        How the teachers' answers become logits: parameters of the student.
    default : callable
        Returns the teacher that None stands for.
    progress : FitTask

    Raises
    ------
    ValueError
        If ``teacher_logits`` do not match the rows, are no logits, or come with an unfitted
        teacher; if there is no teacher with ``cv="prefit"``; if the teacher is unfitted and the
        rows are not in memory; if the teacher's answers cannot be read as logits.
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
    pupil = _Pupil(X, rows, reading, default, progress)
    if teacher_logits is not None:
        given = given_logits(teacher_logits, len(rows.labels), rows.classes)
        warn_if_large(given)
        readings = [pupil.reading_of_frozen] * len(members_of(teacher))
        return Taught(teacher, Logits(given[None]), None, readings)
    return _mixture(
        teacher,
        [
            pupil.taught_by_frozen(one) if is_fitted(one, cv) else pupil.taught_by(one, cv)
            for one in members_of(teacher)
        ],
    )


def teach_folds(
    teacher: Any,
    X: Any,
    rows: TrainingRows,
    *,
    splits: Splits,
    cv: Any,
    reading: Reading,
    default: Callable[[], Any],
    progress: FitTask,
    n_jobs: int | None,
) -> Taught:
    """Return the teachers, fitted on ``X``, and their logits nested in the folds ``splits``.

    The parameters are those of `teach` and `nested_logits`. Logits of frozen teachers are the same
    in all folds.
    """
    pupil, members = _Pupil(X, rows, reading, default, progress), []
    for one in members_of(teacher):
        if is_fitted(one, cv):
            check_is_fitted(one)
            members.append(pupil.taught_by_frozen(one))
        else:
            members.append(pupil.taught_by(one, cv, splits, n_jobs))
    return _mixture(teacher, members)


class _Pupil(NamedTuple):
    """Rows to be taught, and how."""

    X: Any  # as the user gave them
    rows: TrainingRows
    reading: Reading
    default: Callable[[], Any]
    progress: FitTask

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the rows of positive weight."""
        weights = self.rows.sample_weight
        return np.arange(len(self.rows.labels)) if weights is None else np.flatnonzero(weights)

    @property
    def reading_of_frozen(self) -> Reading:
        """How a teacher is read that was fitted to other rows."""
        return self.reading._replace(n_rows=len(self.kept), is_frozen=True)

    def taught_by_frozen(self, teacher: Any) -> Taught:
        """Return a fitted teacher with its logits."""
        reading = self.reading_of_frozen
        with self.progress.step("logits-of-teacher"):
            z_t = logits_of(teacher, self.X, self.rows.classes, reading)
        warn_of(teacher, z_t, reading)
        warn_if_memorised(teacher, z_t, self.rows, self.kept)
        return Taught(teacher, z_t, None, [_settled(reading, z_t)])

    def taught_by(
        self, teacher: Any, cv: Any, splits: Splits | None = None, n_jobs: int | None = None
    ) -> Taught:
        """Return a teacher, fitted on the rows, with cross-fitted logits, or nested in ``splits``.

        Rows of weight 0 are not there when it is fitted, and folds drawn.
        """
        rows, kept = self._to_fit(teacher), self.kept
        teacher = self.default() if teacher is None else clone(teacher)
        some = rows
        if len(kept) < len(rows.labels):
            some = rows.only(kept)
            cv = _folds_among_kept(cv, kept, len(rows.labels))
            splits = None if splits is None else folds_among(splits, kept, len(rows.labels))
        by_fold: list[Tensor] = []
        if splits is None:
            z_t = cross_fitted_logits(teacher, some, cv=cv, progress=self.progress)
        else:
            z_t, by_fold = nested_logits(
                teacher, some, splits, cv=cv, progress=self.progress, n_jobs=n_jobs
            )
        fitted = fit_teacher(teacher, some, self.progress.leaf("fit-teacher"))
        z_t = with_unlabelled(z_t, fitted, some)
        warn_of(teacher, z_t, rows.reading)
        values, *by_fold = _on_all_rows(fitted, rows, kept, [z_t.values, *by_fold])
        z_t = z_t._replace(values=values)
        return Taught(fitted, z_t, by_fold or None, [_settled(rows.reading, z_t)])

    def _to_fit(self, teacher: Any) -> LabelledRows:
        """Return the rows for a teacher that is to be fitted; warn of what will be lost.

        Raises
        ------
        ValueError
            If they are not in memory.
        """
        if self.rows.stream is not None and not isinstance(self.X, np.ndarray):
            raise ValueError(
                "The teacher is unfitted, and cannot be cross-fitted on rows that are read block "
                "by block; fit it on some of them in memory and pass FrozenEstimator(teacher), or "
                "pass teacher_logits to fit."
            )
        n_labelled = int((self.rows.labels[self.kept] != NO_LABEL).sum())
        if teacher is not None:
            warn_if_fitted(teacher, n_labelled)
            warn_if_weights_are_lost(teacher, self.rows.sample_weight)
        return LabelledRows.of(self.X, self.rows, self.reading._replace(n_rows=n_labelled))


def _mixture(teacher: Any, members: list[Taught]) -> Taught:
    """Return teachers, each with logits of its own, together."""
    logits = Logits(
        torch.stack([one.logits.values for one in members]),
        members[0].logits.method,
        n_clipped=sum(one.logits.n_clipped for one in members),
        cross_fitted=any(one.logits.cross_fitted for one in members),
    )
    n_folds = max(0 if one.by_fold is None else len(one.by_fold) for one in members)
    by_fold = [
        torch.stack([o.logits.values if o.by_fold is None else o.by_fold[k] for o in members])
        for k in range(n_folds)
    ]
    fitted = [one.teacher for one in members]
    readings = [one.readings[0] for one in members]
    return Taught(fitted if is_list(teacher) else fitted[0], logits, by_fold or None, readings)


def _folds_among_kept(cv: Any, kept: np.ndarray, n_rows: int) -> Any:
    """Return ``cv`` for the rows of positive weight alone: listed folds are of all rows."""
    if cv is None or isinstance(cv, Integral):
        return cv
    if isinstance(cv, PredefinedSplit):
        cv = cv.split()
    return cv if hasattr(cv, "split") else folds_among(list(cv), kept, n_rows)


def _on_all_rows(
    fitted: Any, rows: LabelledRows, kept: np.ndarray, of_kept: list[Tensor]
) -> list[Tensor]:
    """Return logits of all rows from those of the rows of positive weight.

    The others take no part in anything; the fitted teacher, which has not seen them, says theirs.
    """
    left_out = np.setdiff1d(np.arange(len(rows.labels)), kept)
    if not len(left_out):
        return of_kept
    others = rows.only(kept).logits_of(fitted, safe_indexing(rows.X, left_out)).values
    everywhere = []
    for values in of_kept:
        z_t = rows.no_logits()
        z_t[kept], z_t[left_out] = values, others
        everywhere.append(z_t)
    return everywhere


def _settled(reading: Reading, z_t: Logits) -> Reading:
    """Return how the teacher is read from now on: by the method that was found."""
    return reading._replace(method=z_t.method or reading.method)


def logits_on_new_rows(
    teacher: Any,
    X: Any,
    n_rows: int,
    classes: np.ndarray,
    teacher_logits: Any,
    readings: list[Reading],
) -> Tensor:
    """Return the logits of a student's fitted teachers on other rows; given ones replace them.

    Returns
    -------
    Tensor of shape (M, m) or (M, m, K)
        Of M teachers; one for given logits.

    Raises
    ------
    NoTeacherError
        If there is neither a teacher nor logits.
    ValueError
        If the logits do not match the rows.
    """
    if teacher_logits is not None:
        return given_logits(teacher_logits, n_rows, classes)[None]
    if teacher is not None:
        members, X = zip(members_of(teacher), readings, strict=True), rows_of_teacher(X)
        return torch.stack([logits_of(one, X, classes, how).values for one, how in members])
    raise NoTeacherError(
        "This student was fitted on teacher_logits and has no teacher to ask about other "
        "rows. Pass teacher_logits for these rows too; in a search, enable metadata "
        "routing and use scorer.set_score_request(teacher_logits=True), or give the "
        "student a FrozenEstimator as teacher."
    )
