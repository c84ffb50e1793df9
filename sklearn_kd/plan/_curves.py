"""Learning curves of the chosen student, by students of fewer rows, and what follows for more."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.plan._searches import Given, Searched
from sklearn_kd.plan._teachers import Teachers
from sklearn_kd.search._student_cv import LinearizedKDStudentCV

LEAST_TO_STRATIFY = 5
N_SIZES = 6
SMALLEST = 1 / 10  # of the rows that are learnt, the first size
LARGEST_FIRST = 1 / 3  # no curve where it would be more
LEAST_ROWS = 8  # in the first size
LEAST_OF_A_CLASS = 7  # where a teacher is cross-fitted to them, in five folds


class Curves(NamedTuple):
    """The errors of students of fewer rows, each trained on some and tested on others."""

    grows: str  # "labelled" or "unlabelled": the rows that there are fewer of
    soft_ratios: list[float]
    sizes: np.ndarray  # (S,) rows, of those that there are fewer of
    errors: np.ndarray  # (n_soft_ratios, P, S)
    n_test: int  # different rows that were tested, over all orders


def learning_curves(
    searched: Searched,
    teachers: Teachers,
    given: Given,
    options: dict[str, Any],
    n_orders: int,
    random_state: Any,
    progress: Any,
) -> list[Curves]:
    """Return the curves over labelled rows and, where there are rows without, over these.

    The recipe is the chosen one, with every ρ of the grid. Each order of the rows is tested on
    another fold of the labelled ones. There is no curve where the smallest size would be of a few
    rows.
    """
    problem = _Problem(searched, teachers, given, options)
    found = []
    for grows in ("labelled", "unlabelled"):
        if (sizes := problem.sizes(grows)) is None:
            continue
        rng = check_random_state(random_state)
        errors = []
        for order, (learnt, tested) in enumerate(problem.folds(n_orders)):
            with progress.step(f"learning-curve-{grows}"):
                errors.append(problem.errors(grows, sizes, learnt, tested, rng, order))
        curve = np.stack(errors, axis=1)  # (n_soft_ratios, P, S)
        found.append(Curves(grows, problem.soft_ratios, sizes, curve, problem.n_test(n_orders)))
    return found


class _Problem:
    """Students of some rows, tested on others, by the chosen recipe."""

    def __init__(
        self, searched: Searched, teachers: Teachers, given: Given, options: dict[str, Any]
    ) -> None:
        self.given, self.searched = given, searched
        self.time = searched.search.best_params_.get("stopping_time")
        self.soft_ratios = sorted({float(rho) for rho in options["soft_ratios"]})
        # With as many epochs, training is as much longer as there are more rows.
        network = searched.student.network
        self.time_grows = network is None or network.batch_size is not None
        self.search = LinearizedKDStudentCV(teachers.teacher, **searched.chosen(options))
        self.search.set_params(soft_ratios=options["soft_ratios"], refit=False)
        self.logits = None
        if teachers.are_fitted:  # known logits, a mixture's too, stand in for them
            self.logits = searched.search.best_estimator_.teacher_logits_
            self.search.set_params(teacher=None, teacher_weights=None)
        self.n_learnt = min(len(learnt) for learnt, _ in self.folds(len(given.splits)))
        self.unlabelled = np.flatnonzero(given.rows.labels < 0)
        n_rows = len(given.rows.labels)
        in_folds = min(len(learnt) for learnt, _ in given.splits)
        self.n_learnt_in_search = in_folds if given.X_val is None else n_rows

    def n_test(self, n_orders: int) -> int:
        """Return the number of rows that are tested on, over all orders."""
        if self.given.X_val is not None:
            return int((self.given.labels_val >= 0).sum())
        return len(np.unique(np.concatenate([tested for _, tested in self.folds(n_orders)])))

    def sizes(self, grows: str) -> np.ndarray | None:
        """Return the numbers of rows to learn, increasing; None where these would be too few."""
        labels = self.given.rows.labels[self.given.labelled]
        rarest = np.unique(labels, return_counts=True)[1].min()
        n_rows = self.n_learnt if grows == "labelled" else len(self.unlabelled)
        least = LEAST_ROWS
        if grows == "labelled" and self.logits is None:  # a teacher is cross-fitted to them
            least = max(least, int(np.ceil(LEAST_OF_A_CLASS * len(labels) / rarest)))
        first = max(least, int(np.ceil(SMALLEST * n_rows)))
        if rarest < LEAST_TO_STRATIFY or first > LARGEST_FIRST * n_rows:
            return None
        return np.unique(np.geomspace(first, n_rows, N_SIZES).round().astype(int))

    def folds(self, n_orders: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return the labelled rows to learn and to test, for each order; None: validation rows."""
        labelled = self.given.labelled
        if self.given.X_val is not None:
            return [(labelled, None)] * n_orders
        some = itertools.islice(itertools.cycle(self.given.splits), n_orders)
        return [(np.intersect1d(a, labelled), np.intersect1d(b, labelled)) for a, b in some]

    def errors(
        self,
        grows: str,
        sizes: np.ndarray,
        learnt: np.ndarray,
        tested: np.ndarray | None,
        rng: np.random.RandomState,
        number: int,
    ) -> np.ndarray:
        """Return the errors in one random order of the rows, (n_soft_ratios, S)."""
        labels = self.given.rows.labels
        labelled = _stratified_order(learnt, labels[learnt], rng)
        unlabelled = rng.permutation(self.unlabelled)
        columns = []
        for size in sizes[: -1 if self.knows_the_last else None]:
            if grows == "labelled":
                rows = np.concatenate([labelled[:size], unlabelled])
            else:
                rows = np.concatenate([labelled, unlabelled[:size]])
            columns.append(1 - self._accuracies(rows, tested))
        if self.knows_the_last:
            columns.append(1 - self._of_search(number))
        return np.stack(columns, axis=1)

    @property
    def knows_the_last(self) -> bool:
        """Whether the students of most rows are those of the search.

        Its folds must be the same; it leaves out their unlabelled rows too, and a teacher that it
        cross-fits is that of all rows.
        """
        given = self.given
        has_folds = self.searched.search.cv is given.splits and not len(self.unlabelled)
        return self.logits is not None and (given.X_val is not None or has_folds)

    def _of_search(self, number: int) -> np.ndarray:
        """Return the accuracy of the search's students on a fold, by ρ."""
        search = self.searched.search
        results, best = search.cv_results_, search.best_params_
        fold = f"split{number % len(self.given.splits)}"
        of = "mean" if self.given.X_val is not None else fold
        scores = results[f"{of}_test_score"]
        cells = [results["params"].index({**best, "soft_ratio": rho}) for rho in self.soft_ratios]
        return np.asarray(scores)[cells]

    def _accuracies(self, rows: np.ndarray, tested: np.ndarray | None) -> np.ndarray:
        """Return the accuracy of students of some rows on others, by ρ."""
        given = self.given
        if self.time is not None:
            # Of the rows that the search's students learn, which stop at its time.
            share = len(rows) / self.n_learnt_in_search if self.time_grows else 1.0
            self.search.stopping_times = [self.time * share]
        X_val = given.X_val if tested is None else safe_indexing(given.X, tested)
        y_val = given.y_val if tested is None else given.rows.classes[given.rows.labels[tested]]
        logits = None if self.logits is None else self.logits[rows]
        self.search.fit(
            safe_indexing(given.X, rows),
            safe_indexing(given.y, rows),
            teacher_logits=logits,
            classes=given.rows.classes if self.logits is not None else None,
            X_val=X_val,
            y_val=y_val,
        )
        results = self.search.cv_results_
        by_ratio = dict(
            zip(results["param_soft_ratio"].data, results["mean_test_score"], strict=True)
        )
        return np.array([by_ratio[rho] for rho in self.soft_ratios])


def _stratified_order(
    rows: np.ndarray, labels: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """Return the rows in a random order of which every beginning has its share of each class."""
    position = np.empty(len(rows))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        n = len(of_class)
        position[rng.permutation(of_class)] = (np.arange(n) + rng.uniform(size=n)) / n
    return rows[np.argsort(position)]
