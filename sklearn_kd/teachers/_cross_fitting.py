"""The logits of an unfitted teacher on rows it has not seen: cross-fitted, and nested in folds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import indexable
from sklearn.utils.metadata_routing import MetadataRouter, get_routing_for_object
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor

from sklearn_kd._progress import FitTask, Leaf
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.rows._splits import about_n_splits, splits_of
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.teachers._logits_of import Logits, Reading, logits_of

# The inner folds of a student in a search, as those of a student alone.
INNER_FOLDS = 5

Splits = Sequence[tuple[np.ndarray, np.ndarray]]  # (train, test) row numbers


class LabelledRows(NamedTuple):
    """What a teacher is fitted to."""

    X: Any  # as the user gave them
    labels: np.ndarray  # (n,) indices into classes, -1 for a row without a label
    classes: np.ndarray  # (K,)
    sample_weight: np.ndarray | None  # (n,)
    reading: Reading  # how the teacher's answers become logits

    @classmethod
    def of(cls, X: Any, rows: TrainingRows, reading: Reading) -> Self:
        """Return rows as given, with the labels and weights that were checked."""
        (X,) = indexable(X)
        return cls(X, rows.labels, rows.classes, rows.sample_weight, reading)

    def only(self, numbers: np.ndarray) -> Self:
        """Return some of the rows."""
        weights = None if self.sample_weight is None else self.sample_weight[numbers]
        X = safe_indexing(self.X, numbers)
        return self._replace(X=X, labels=self.labels[numbers], sample_weight=weights)

    @property
    def unlabelled(self) -> np.ndarray:
        """Numbers of the rows without a label."""
        return np.flatnonzero(self.labels == NO_LABEL)

    def logits_of(self, fitted: Any, X: Any) -> Logits:
        """Return the logits, on other rows, of a teacher that was fitted to these."""
        n_labelled = len(self.labels) - len(self.unlabelled)
        return logits_of(fitted, X, self.classes, self.reading._replace(n_rows=n_labelled))

    def no_logits(self) -> Tensor:
        """Return NaN for the logits of every row, (n,) or (n, K)."""
        width = () if len(self.classes) == 2 else (len(self.classes),)
        shape = (len(self.labels), *width)
        return torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")


class NestedLogits(NamedTuple):
    """The teacher's logits for the student of all rows, and for that of each fold."""

    whole: Logits
    by_fold: list[Tensor]  # one for each fold, of all rows: (n,) or (n, K)


class Unseen(NamedTuple):
    """Rows that a clone of the teacher has not seen, and those that it is fitted to."""

    train: np.ndarray
    test: np.ndarray
    how: str  # names the clone in an error
    others: np.ndarray = np.empty(0, dtype=int)  # rows to ask about too, after those of test


def fit_teacher(teacher: Any, rows: LabelledRows, leaf: Leaf) -> Any:
    """Fit ``teacher`` to the rows that have a label.

    It is given the sample weights where its ``fit`` takes them.
    """
    if len(rows.unlabelled):
        rows = rows.only(np.flatnonzero(rows.labels != NO_LABEL))
    is_weighted = rows.sample_weight is not None and takes_weights(teacher)
    weights = {"sample_weight": rows.sample_weight} if is_weighted else {}
    with leaf.fit_of(teacher):
        return teacher.fit(rows.X, rows.classes[rows.labels], **weights)


def takes_weights(teacher: Any) -> bool:
    """Whether row weights reach ``teacher``: its ``fit`` names them, or metadata routing does."""
    if get_config()["enable_metadata_routing"]:
        routing = get_routing_for_object(teacher)
        if routing.consumes("fit", ["sample_weight"]):
            return True
        if isinstance(routing, MetadataRouter):
            return False
    return has_fit_parameter(teacher, "sample_weight") and not declines_weights(teacher)


def declines_weights(teacher: Any) -> bool:
    """Whether ``teacher`` asks metadata routing to keep row weights away."""
    if not get_config()["enable_metadata_routing"]:
        return False
    routing = get_routing_for_object(teacher)
    if isinstance(routing, MetadataRouter):
        return False
    return routing.fit.requests.get("sample_weight") is False


def cross_fitted_logits(
    teacher: Any,
    rows: LabelledRows,
    *,
    cv: Any,
    progress: FitTask,
    n_jobs: int | None = None,
) -> Logits:
    """Return logits on each row with a label by a clone of ``teacher`` not fitted on it.

    Those of other rows are NaN: see `with_unlabelled`. ``cv`` is what
    `sklearn.model_selection.check_cv` takes, and its test folds must cover every row with a label
    once.
    """
    z_t, splits = rows.no_logits(), labelled_splits(rows, cv)
    tests = [rows.unlabelled, *(test for _, test in splits)]
    uncovered = np.setdiff1d(np.arange(len(z_t)), np.concatenate(tests))
    if len(uncovered):
        raise ValueError(
            f"Cross-fitting the teacher with cv={cv!r} leaves row {uncovered[0]} in no test fold; "
            "use a splitter whose test folds cover every row."
        )
    unseen = [Unseen(train, test, f"with cv={cv!r}") for train, test in splits]
    remedy = "use fewer folds or a stratified splitter"
    found = _logits_of_unseen(teacher, rows, unseen, progress, remedy=remedy, n_jobs=n_jobs)
    for (_, test), logits in zip(splits, found, strict=True):
        z_t[test] = logits.values
    return Logits.of_parts(z_t, found)


def labelled_splits(rows: LabelledRows, cv: Any) -> Splits:
    """Return the folds of cross-fitting, whose test rows all have a label.

    A number of folds is one of the rows with a label; a splitter and an iterable split all rows.
    """
    labels, labelled = rows.labels, np.flatnonzero(rows.labels != NO_LABEL)
    if not len(labelled):
        raise ValueError(
            "The teacher is unfitted, and no row of positive weight has a label to fit it to; "
            "label some, pass FrozenEstimator(teacher) for one that is fitted, or teacher_logits."
        )
    if cv is None or isinstance(cv, Integral):
        splits = splits_of(check_cv(cv, labels[labelled], classifier=True), labels[labelled], cv=cv)
        return [(labelled[train], labelled[test]) for train, test in splits]
    splits = splits_of(check_cv(cv, labels, classifier=True), labels, cv=cv)
    with_label = [(train, test[labels[test] != NO_LABEL]) for train, test in splits]
    return [(train, test) for train, test in with_label if len(test)]


def with_unlabelled(z_t: Logits, fitted: Any, rows: LabelledRows) -> Logits:
    """Return logits of all rows, those without a label by the teacher of all others.

    It has seen no label of theirs.
    """
    if not len(rows.unlabelled):
        return z_t
    own = rows.logits_of(fitted, safe_indexing(rows.X, rows.unlabelled))
    values = z_t.values.clone()
    values[rows.unlabelled] = own.values
    return Logits.of_parts(values, [z_t, own])


def nested_logits(
    teacher: Any,
    rows: LabelledRows,
    splits: Splits,
    *,
    cv: Any,
    progress: FitTask,
    n_jobs: int | None = None,
) -> NestedLogits:
    """Return logits by which no label of a fold reaches the student that is scored on it.

    In the logits of a fold, those of a training row come from a clone of ``teacher`` that has seen
    neither the row nor the fold, those of all other rows, and of rows without a label, from one
    that has seen the training rows. In the logits of all rows, those without a label are still to
    come: see `with_unlabelled`.

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
    n_jobs : int, default=None
        Workers, of any `joblib` backend, for the fits of one stage. None is 1 outside of a
        `joblib.parallel_config`.
    """
    if cv is None and has_pairs(splits, len(rows.labels)):
        return _logits_by_pairs(teacher, rows, [test for _, test in splits], progress, n_jobs)
    return _logits_by_inner_folds(
        teacher, rows, splits, INNER_FOLDS if cv is None else cv, progress, n_jobs
    )


def n_nested_fits(splits: Splits, *, cv: Any, n_rows: int) -> int:
    """Return about how many teachers `nested_logits` fits."""
    n_folds = len(splits)
    if cv is None and has_pairs(splits, n_rows):
        return n_folds * (n_folds + 1) // 2
    n_inner = about_n_splits(INNER_FOLDS if cv is None else cv, n_rows)
    return n_folds * (n_inner + 1) + n_inner


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
    teacher: Any,
    rows: LabelledRows,
    folds: list[np.ndarray],
    progress: FitTask,
    n_jobs: int | None,
) -> NestedLogits:
    """Return nested logits from K(K−1)/2 teachers without two folds, and K without one."""
    everything = np.arange(len(rows.labels))
    pairs = list(itertools.combinations(range(len(folds)), 2))

    def without(some: list[int], how: str, *others: np.ndarray) -> Unseen:
        test = np.concatenate([folds[fold] for fold in some])
        return Unseen(np.setdiff1d(everything, test), test, how, *others)

    unseen = [without([j, k], f"without the folds {j} and {k}") for j, k in pairs]
    unseen += [without([k], f"without fold {k}", rows.unlabelled) for k in range(len(folds))]
    remedy = (
        "give each class rows in three folds, as a stratified splitter does, or set teacher_cv "
        "to cross-fit inside the training rows of each fold"
    )
    found = _logits_of_unseen(teacher, rows, unseen, progress, remedy=remedy, n_jobs=n_jobs)

    # 1. A teacher that has seen neither fold j nor fold k: z_t on the rows of j for the student
    #    without k, and on the rows of k for the student without j.
    by_fold = [rows.no_logits() for _ in folds]
    for (j, k), logits in zip(pairs, found, strict=False):
        by_fold[k][folds[j]] = logits.values[: len(folds[j])]
        by_fold[j][folds[k]] = logits.values[len(folds[j]) :]

    # 2. A teacher that has not seen fold k: z_t on its rows for scores, and for the student of
    #    all rows; and on rows without a label, of which it has seen as little.
    whole, by_one = rows.no_logits(), found[len(pairs) :]
    for own, fold, logits in zip(by_fold, folds, by_one, strict=True):
        own[fold] = whole[fold] = logits.values[: len(fold)]
        own[rows.unlabelled] = logits.values[len(fold) :]
    return NestedLogits(Logits.of_parts(whole, by_one), by_fold)


def _logits_by_inner_folds(
    teacher: Any,
    rows: LabelledRows,
    splits: Splits,
    cv: Any,
    progress: FitTask,
    n_jobs: int | None,
) -> NestedLogits:
    """Return nested logits as a student that cross-fits its teacher by ``cv`` has them."""
    everything, by_fold = np.arange(len(rows.labels)), []
    is_list = not (isinstance(cv, Integral) or hasattr(cv, "split"))
    cv = list(cv) if is_list else cv  # reads an iterator once
    for train, _ in splits:
        z_t, trained_on = rows.no_logits(), rows.only(train)
        # 1. z_t on the training rows, cross-fitted among them.
        inner = folds_among(cv, train, len(everything)) if is_list else cv
        z_t[train] = cross_fitted_logits(
            teacher, trained_on, cv=inner, progress=progress, n_jobs=n_jobs
        ).values

        # 2. z_t on all others, and those without a label, by the teacher of the former.
        rest = np.union1d(np.setdiff1d(everything, train), rows.unlabelled)
        if len(rest):
            fitted = fit_teacher(clone(teacher), trained_on, progress.leaf("fit-teacher"))
            z_t[rest] = trained_on.logits_of(fitted, safe_indexing(rows.X, rest)).values
        by_fold.append(z_t)
    whole = cross_fitted_logits(teacher, rows, cv=cv, progress=progress, n_jobs=n_jobs)
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
    unseen: list[Unseen],
    progress: FitTask,
    *,
    remedy: str,
    n_jobs: int | None,
) -> list[Logits]:
    """Return logits by a clone of ``teacher`` for each, on the rows that it has not seen.

    ``remedy`` completes the error that a class is missing.
    """
    for train, _, how, _ in unseen:
        missing = np.setdiff1d(np.arange(len(rows.classes)), rows.labels[train])
        if len(missing):
            raise ValueError(
                f"Cross-fitting the teacher {how} leaves a training fold without class "
                f"{rows.classes[missing].tolist()[0]!r}; {remedy}, pass a FrozenEstimator as "
                "teacher, or pass teacher_logits to fit."
            )
    # The leaves are made ahead: a tree that grows cannot be sent to a worker.
    leaves = [progress.leaf("fit-teacher") for _ in unseen]
    return Parallel(n_jobs)(
        delayed(_fit_and_ask)(clone(teacher), rows, one, leaf)
        for one, leaf in zip(unseen, leaves, strict=True)
    )


def _fit_and_ask(teacher: Any, rows: LabelledRows, unseen: Unseen, leaf: Leaf) -> Logits:
    """Fit ``teacher``, and return its logits on the rows it has not seen; a worker's task."""
    trained_on = rows.only(unseen.train)
    fitted = fit_teacher(teacher, trained_on, leaf)
    logits = trained_on.logits_of(fitted, safe_indexing(rows.X, unseen.test))
    if not len(unseen.others):
        return logits
    others = trained_on.logits_of(fitted, safe_indexing(rows.X, unseen.others))
    return logits._replace(values=torch.cat([logits.values, others.values]))
