"""The logits of an unfitted teacher on rows it has not seen: cross-fitted, and nested in folds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import indexable
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.rows._splits import splits_of
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.teachers._logits_of import Logits, logits_of

# The inner folds of a student in a search, as those of a student alone.
INNER_FOLDS = 5

Splits = Sequence[tuple[np.ndarray, np.ndarray]]  # (train, test) row numbers


class LabelledRows(NamedTuple):
    """What a teacher is fitted to."""

    X: Any  # as the user gave them
    labels: np.ndarray  # (n,) indices into classes
    classes: np.ndarray  # (K,)
    sample_weight: np.ndarray | None  # (n,)

    @classmethod
    def of(cls, X: Any, rows: TrainingRows) -> Self:
        """Return rows as given, with the labels and weights that were checked."""
        (X,) = indexable(X)
        return cls(X, rows.labels, rows.classes, rows.sample_weight)

    def only(self, numbers: np.ndarray) -> Self:
        """Return some of the rows."""
        weights = None if self.sample_weight is None else self.sample_weight[numbers]
        X = safe_indexing(self.X, numbers)
        return self._replace(X=X, labels=self.labels[numbers], sample_weight=weights)

    def no_logits(self) -> Tensor:
        """Return NaN for the logits of every row, (n,) or (n, K)."""
        width = () if len(self.classes) == 2 else (len(self.classes),)
        shape = (len(self.labels), *width)
        return torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")


class NestedLogits(NamedTuple):
    """The teacher's logits for the student of all rows, and for that of each fold."""

    whole: Logits
    by_fold: list[Tensor]  # one for each fold, of all rows: (n,) or (n, K)


def fit_teacher(teacher: Any, rows: LabelledRows, progress: FitTask, name: str) -> Any:
    """Fit ``teacher``, with the sample weights where its ``fit`` takes them."""
    takes_weights = has_fit_parameter(teacher, "sample_weight")
    is_weighted = rows.sample_weight is not None and takes_weights
    weights = {"sample_weight": rows.sample_weight} if is_weighted else {}
    with progress.fit_of(teacher, name):
        return teacher.fit(rows.X, rows.classes[rows.labels], **weights)


def cross_fitted_logits(teacher: Any, rows: LabelledRows, *, cv: Any, progress: FitTask) -> Logits:
    """Return logits on each row by a clone of ``teacher`` that was not fitted on it.

    ``cv`` is what `sklearn.model_selection.check_cv` takes, and its test folds must cover every
    row once.
    """
    z_t, n_clipped = rows.no_logits(), 0
    splits = splits_of(check_cv(cv, rows.labels, classifier=True), rows.labels, cv=cv)
    remedy = "use fewer folds or a stratified splitter"
    with progress.stage("cross-fit-teacher", len(splits)) as task:
        for train, test in splits:
            unseen = _logits_of_unseen(
                teacher, rows, train, test, task, how=f"with cv={cv!r}", remedy=remedy
            )
            z_t[test] = unseen.values
            n_clipped += unseen.n_clipped
    uncovered = z_t.reshape(len(z_t), -1).isnan().any(dim=1)
    if uncovered.any():
        raise ValueError(
            f"Cross-fitting the teacher with cv={cv!r} leaves row {int(uncovered.nonzero()[0, 0])} "
            "in no test fold; use a splitter whose test folds cover every row."
        )
    return Logits(z_t, n_clipped)


def nested_logits(
    teacher: Any, rows: LabelledRows, splits: Splits, *, cv: Any, progress: FitTask
) -> NestedLogits:
    """Return logits by which no label of a fold reaches the student that is scored on it.

    In the logits of a fold, those of a training row come from a clone of ``teacher`` that has seen
    neither the row nor the fold, those of all other rows from one that has seen the training rows.

    Parameters
    ----------
    teacher : classifier
        Left as it is.
    rows : LabelledRows
    splits : sequence of (train, test)
        The folds, as row numbers.
    cv : int, splitter, iterable or None
        Cross-fitting inside the training rows of each fold. An iterable is of folds of all rows,
        as it serves the student of all rows too. None: three folds or more that part the rows
        share a teacher for each pair of them; others are cross-fitted by five.
    progress : FitTask
    """
    if cv is None and has_pairs(splits, len(rows.labels)):
        return _logits_by_pairs(teacher, rows, [test for _, test in splits], progress)
    return _logits_by_inner_folds(
        teacher, rows, splits, INNER_FOLDS if cv is None else cv, progress
    )


def has_pairs(splits: Splits, n_rows: int) -> bool:
    """Whether the test folds part the rows, each is trained on all others, and two leave some.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import KFold, ShuffleSplit
    >>> from sklearn_kd.teachers._cross_fitting import has_pairs
    >>> X = np.zeros((6, 1))
    >>> [has_pairs(list(cv.split(X)), 6) for cv in (KFold(3), KFold(2), ShuffleSplit(3))]
    [True, False, False]
    """
    everything = np.arange(n_rows)
    tests = np.concatenate([test for _, test in splits])
    return (
        len(splits) > 2
        and np.array_equal(np.sort(tests), everything)
        and all(
            np.array_equal(np.sort(train), np.setdiff1d(everything, test)) for train, test in splits
        )
    )


def _logits_by_pairs(
    teacher: Any, rows: LabelledRows, folds: list[np.ndarray], progress: FitTask
) -> NestedLogits:
    """Return nested logits from K(K−1)/2 teachers without two folds, and K without one."""
    everything = np.arange(len(rows.labels))
    by_fold = [rows.no_logits() for _ in folds]
    whole, n_clipped = rows.no_logits(), 0
    remedy = (
        "give each class rows in three folds, as a stratified splitter does, or set teacher_cv "
        "to cross-fit inside the training rows of each fold"
    )
    n_fits = len(folds) * (len(folds) + 1) // 2
    with progress.stage("cross-fit-teacher", n_fits) as task:
        # 1. A teacher that has seen neither fold j nor fold k: z_t on the rows of j for the
        #    student without k, and on the rows of k for the student without j.
        for j, k in itertools.combinations(range(len(folds)), 2):
            both = np.concatenate([folds[j], folds[k]])
            train = np.setdiff1d(everything, both)
            how = f"without the folds {j} and {k}"
            z_t = _logits_of_unseen(teacher, rows, train, both, task, how=how, remedy=remedy).values
            by_fold[k][folds[j]] = z_t[: len(folds[j])]
            by_fold[j][folds[k]] = z_t[len(folds[j]) :]

        # 2. A teacher that has not seen fold k: z_t on its rows for scores, and for the student
        #    of all rows.
        for k, fold in enumerate(folds):
            train, how = np.setdiff1d(everything, fold), f"without fold {k}"
            unseen = _logits_of_unseen(teacher, rows, train, fold, task, how=how, remedy=remedy)
            by_fold[k][fold] = whole[fold] = unseen.values
            n_clipped += unseen.n_clipped
    return NestedLogits(Logits(whole, n_clipped), by_fold)


def _logits_by_inner_folds(
    teacher: Any, rows: LabelledRows, splits: Splits, cv: Any, progress: FitTask
) -> NestedLogits:
    """Return nested logits as a student that cross-fits its teacher by ``cv`` has them."""
    everything, by_fold = np.arange(len(rows.labels)), []
    is_list = not (isinstance(cv, Integral) or hasattr(cv, "split"))
    cv = list(cv) if is_list else cv  # reads an iterator once
    with progress.stage("nest-teacher", len(splits) + 1) as task:
        for train, _ in splits:
            z_t, trained_on = rows.no_logits(), rows.only(train)
            with task.stage("fold", 2) as fold:
                # 1. z_t on the training rows, cross-fitted among them.
                inner = folds_among(cv, train, len(everything)) if is_list else cv
                z_t[train] = cross_fitted_logits(
                    teacher, trained_on, cv=inner, progress=fold
                ).values

                # 2. z_t on all others, by the teacher of the training rows.
                rest = np.setdiff1d(everything, train)
                if len(rest):
                    fitted = fit_teacher(clone(teacher), trained_on, fold, "fit-teacher")
                    z_t[rest] = logits_of(fitted, safe_indexing(rows.X, rest), rows.classes).values
            by_fold.append(z_t)
        whole = cross_fitted_logits(teacher, rows, cv=cv, progress=task)
    return NestedLogits(whole, by_fold)


def folds_among(splits: Splits, some: np.ndarray, n_rows: int) -> Splits:
    """Return folds of all rows as those of some rows, numbered in their order.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.teachers._cross_fitting import folds_among
    >>> [(train, test)] = folds_among([(np.array([0, 1]), np.array([2, 3]))], np.array([3, 1]), 4)
    >>> train.tolist(), test.tolist()
    ([1], [0])
    """
    position = np.full(n_rows, -1)
    position[some] = np.arange(len(some))
    among = [tuple(position[part][position[part] >= 0] for part in split) for split in splits]
    return [(train, test) for train, test in among if len(test)]


def _logits_of_unseen(
    teacher: Any,
    rows: LabelledRows,
    train: np.ndarray,
    test: np.ndarray,
    progress: FitTask,
    *,
    how: str,
    remedy: str,
) -> Logits:
    """Return logits on the rows ``test`` by a clone of ``teacher`` fitted to ``train``.

    ``how`` and ``remedy`` complete the error that a class is missing there.
    """
    missing = np.setdiff1d(np.arange(len(rows.classes)), rows.labels[train])
    if len(missing):
        raise ValueError(
            f"Cross-fitting the teacher {how} leaves a training fold without class "
            f"{rows.classes[missing].tolist()[0]!r}; {remedy}, pass a FrozenEstimator as teacher, "
            "or pass teacher_logits to fit."
        )
    fitted = fit_teacher(clone(teacher), rows.only(train), progress, "fold")
    return logits_of(fitted, safe_indexing(rows.X, test), rows.classes)
