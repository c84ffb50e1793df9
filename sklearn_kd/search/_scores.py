"""The scores of a search, fold by fold, and the table that they make."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import check_scoring
from torch import Tensor

from sklearn_kd.search._grid import Grid
from sklearn_kd.search._held_out_student import HeldOutStudent, on_labelled_rows
from sklearn_kd.search._problem import Fold, Problem
from sklearn_kd.search._row_record import RowRecord
from sklearn_kd.search._scored_rows import ScoredRows
from sklearn_kd.search._uncertainty import (
    Uncertainty,
    parts_by_fold,
    parts_by_row,
    uncertainty,
)
from sklearn_kd.students._student import LinearizedKDStudent

# Leave-one-out predictions are scored together; their standard error comes from this many groups.
LOO_GROUPS = 10


class FoldScores:
    """Held-out scores of all candidates, added for one kernel and ridge after the other.

    Leave-one-out is one fold whose rows have a student each. It is scored as a whole, and once
    more in groups of rows that share the classes evenly, for the spread.

    Raises
    ------
    ValueError
        If there are row weights, and a score takes none.
    """

    def __init__(self, scoring: Any, problem: Problem) -> None:
        self.scorer = check_scoring(LinearizedKDStudent(), scoring=scoring)
        if problem.has_weights:
            _require_weighted(self.scorer, scoring)
        self._scoring = scoring
        self._problem = problem
        self.record = RowRecord(self.scorer)
        self._means: list[dict[str, np.ndarray]] = []  # {score: (n_recipes,)}
        self._splits: list[list[dict[str, np.ndarray]]] = []  # per split {score: (n_recipes,)}
        self._cell: list[dict[str, np.ndarray]] = []  # the splits of the current kernel and ridge
        self._whole: dict[str, np.ndarray] | None = None  # its leave-one-out scores
        self._test_shares: list[float] = []  # n_test / n_train of every split

    def add(self, students: list[HeldOutStudent], fold: Fold) -> None:
        """Score the students of every recipe on the rows that they have not seen."""
        students, fold = on_labelled_rows(students, fold, self._problem)
        rows = self._problem.scored(fold.test)
        scores = self._scores(students, rows)
        self.record.add(students, rows, scores)
        if fold.train is None:
            self._whole = scores
            self._cell = []
            for group in groups_of(rows.labels):
                features = self._problem.rows_of(fold.test[group])
                some = [student.take(group, features) for student in students]
                self._cell.append(self._scores(some, rows.take(group.numpy())))
        else:
            self._cell.append(scores)
            self._test_shares.append(len(fold.test) / len(fold.train))

    def close_cell(self) -> None:
        """End the folds of one kernel and ridge."""
        means = {k: np.mean([split[k] for split in self._cell], axis=0) for k in self._cell[0]}
        self._means.append(self._whole or means)
        self._splits.append(self._cell)
        self._whole, self._cell = None, []
        self.record.close_cell()

    def _scores(self, students: list[HeldOutStudent], rows: ScoredRows) -> dict[str, np.ndarray]:
        """Return each score of the students of all recipes on the rows."""
        y = rows.classes[rows.labels]
        weights = {} if rows.sample_weight is None else {"sample_weight": rows.sample_weight}
        try:
            scores = [self.scorer(student, student.rows, y, **weights) for student in students]
        except ValueError as error:
            error.args = (
                f"scoring={self._scoring!r} is not defined on {len(y)} held-out rows with the "
                f"classes {np.unique(y).tolist()}: {error} Use a score that is, fewer folds, or "
                "leave out classes of very few rows.",
            )
            raise
        named = [score if isinstance(score, dict) else {"score": score} for score in scores]
        return {name: np.array([score[name] for score in named], float) for name in named[0]}

    def cv_results(self, grid: Grid) -> dict[str, Any]:
        """Return the table: parameters, and each score by split, its mean, spread and rank."""
        params = grid.params
        results: dict[str, Any] = {"params": params}
        for name in params[0]:
            column = np.ma.MaskedArray(np.empty(len(params), object), mask=False)
            column[:] = [candidate[name] for candidate in params]
            results[f"param_{name}"] = column
        for name in self._means[0]:
            mean = np.concatenate([cell[name] for cell in self._means])
            splits = np.concatenate([[split[name] for split in c] for c in self._splits], axis=1)
            for index, values in enumerate(splits):
                results[f"split{index}_test_{name}"] = values
            results[f"mean_test_{name}"] = mean
            results[f"std_test_{name}"] = splits.std(axis=0)
            freedom = min(1, len(splits) - 1)
            spread = splits.std(axis=0, ddof=freedom)
            results[f"stderr_test_{name}"] = spread / np.sqrt(len(splits))
            worst_if_nan = np.where(np.isnan(mean), -np.inf, mean)
            results[f"rank_test_{name}"] = rankdata(-worst_if_nan, method="min").astype(np.int32)
            sure = self._uncertainty(name, mean, splits, grid.preference())
            results[f"diff_test_{name}"] = sure.difference
            results[f"stderr_diff_test_{name}"] = sure.stderr
            results[f"in_best_set_{name}"] = sure.in_best_set
        return results

    def _uncertainty(
        self, name: str, mean: np.ndarray, splits: np.ndarray, preference: list[tuple]
    ) -> Uncertainty:
        """Return the differences to the best cell: by row where the score is a mean over rows."""
        is_number = np.isfinite(splits).all(axis=0) & np.isfinite(mean)
        cells = np.flatnonzero(is_number)
        nothing = np.full(len(mean), np.nan)
        found = Uncertainty(nothing, nothing.copy(), np.zeros(len(mean), bool))
        if not len(cells):
            return found
        if (rows := self.record.splits(name)) is not None:
            parts = parts_by_row(rows, mean)
        else:
            overlap = float(np.mean(self._test_shares)) if self.record.has_repeats else 0.0
            parts = parts_by_fold(splits, overlap)
        best = best_of(mean, cells, preference)
        sure = uncertainty(
            mean[cells],
            parts[:, cells],
            int(np.searchsorted(cells, best)),
            many_units=rows is not None,
        )
        for values, of_cells in zip(found, sure, strict=True):
            values[cells] = of_cells
        return found

    def values_of_labels(self, cells: np.ndarray) -> np.ndarray | None:
        """Return what a true label of each row of the fit is worth to tell ``cells`` apart.

        None where validation rows are scored: the labels of the fit are in no score.
        """
        if self._problem.setting.n_validation:
            return None
        n_rows = len(self._problem.setting.rows.checked.labels)
        return self.record.values_of_labels(cells, n_rows)

    @property
    def rows_given(self) -> Any:
        """The rows of the fit, in the caller's array library."""
        return self._problem.setting.rows.checked.array

    def held_out_logits(self, cell: int) -> np.ndarray:
        """Return the logits of a cell on the rows that are scored, by students without them."""
        return self.record.held_out_logits(cell, self._problem.n_given)

    @property
    def n_splits(self) -> int:
        """Number of folds, or of groups for leave-one-out."""
        return len(self._splits[0])


def best_of(mean: np.ndarray, cells: np.ndarray, preference: list[tuple]) -> int:
    """Return the preferred one among the cells of the largest mean."""
    best = cells[mean[cells] == mean[cells].max()]
    return min(best.tolist(), key=preference.__getitem__)


def groups_of(labels: np.ndarray) -> list[Tensor]:
    """Return the positions of the rows of each group, dealt out class by class."""
    order = torch.from_numpy(np.argsort(labels, kind="stable"))
    n_groups = min(LOO_GROUPS, len(labels))
    # Some scores, such as the log loss, need every class in every group.
    rarest = np.unique(labels, return_counts=True)[1].min()
    if rarest > 1:
        n_groups = min(n_groups, int(rarest))
    return [order[start::n_groups].sort().values for start in range(n_groups)]


def _require_weighted(scorer: Any, scoring: Any) -> None:
    several = getattr(scorer, "_scorers", None)
    for single in [scorer] if several is None else several.values():
        if hasattr(single, "_accept_sample_weight"):
            takes = single._accept_sample_weight()
        else:  # a plain function, which scikit-learn's multi-metric scorer cannot ask
            names = inspect.signature(single).parameters
            takes = several is None and ("sample_weight" in names or "kwargs" in names)
        if not takes:
            raise ValueError(
                f"scoring={scoring!r}: {single!r} takes no sample_weight, but fit was given one. "
                "Use a metric that takes it, by sklearn.metrics.make_scorer, or a single function "
                "of (estimator, X, y, sample_weight)."
            )
