"""The search over exact students, fold by fold."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import PredefinedSplit, check_cv
from torch import Tensor

from sklearn_kd._array import to_tensor
from sklearn_kd._progress import FitTask
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.rows._splits import splits_of
from sklearn_kd.search._grid import Candidate, Cell
from sklearn_kd.search._held_out_student import HeldOutStudent
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.search._protocol import CandidateSearch
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.search._validation import ValidatedProblem, validated_students
from sklearn_kd.students._initial_network import initial_logits
from sklearn_kd.students._posed import PosedStudent, Rows
from sklearn_kd.teachers._cross_fitting import Splits


class FoldSearch(CandidateSearch):
    """Held-out scores of the exact students of a grid, fold by fold.

    Raises
    ------
    MemoryBudgetError
        If what the students take does not fit ``memory_limit``.
    ValueError
        If a fold has no rows to train on or to test, or ``init="network"`` meets a kernel without
        a network of as many outputs as there are classes.
    """

    def __init__(self, setting: Setting) -> None:
        rows = setting.rows
        super().__init__(setting, all_splits(setting.cv, rows))
        self.folds = folds_of(setting, self.splits)
        self._plan()
        grid = setting.grid
        self._initial_logits = [
            initial_logits(setting.init, kernel, function, rows.distinct.X, setting.n_classes)
            for kernel, function in zip(grid.used_kernels, grid.functions, strict=True)
        ]

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate, by the students that have not seen a fold."""
        problems = [problem.of_fold(index) for index in range(len(self.folds))]
        for kernel, z_0 in enumerate(self._initial_logits):
            self._begin(kernel, problems, progress)
            for cell in self.setting.grid.cells_of(kernel):
                for own, fold in zip(problems, self.folds, strict=True):
                    with progress.step("score-fold"):
                        # No name for the students: they hold a factor until scored.
                        scores.add(self._students(own, cell, z_0, fold), fold)
                scores.close_cell()

    def _begin(self, kernel: int, problems: list[Problem], progress: FitTask) -> None:
        """Do what serves all cells of a kernel at once; ``problems`` are those of the folds."""

    def _students(
        self, problem: Problem, cell: Cell, initial_logits: Tensor, fold: Fold
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe, with predictions of rows they have not seen."""
        if not isinstance(problem, ValidatedProblem):
            return self._held_out_students(problem, cell, initial_logits, fold)
        held_out = self._on_validation_rows(problem, cell, initial_logits)
        z_0 = initial_logits_of_validation(problem, cell.kernel)
        return validated_students(problem, held_out, z_0)

    def posed(self, problem: Problem, candidate: Candidate) -> PosedStudent:
        """Return the problem of one candidate on all rows."""
        return problem.posed(candidate, self._initial_logits[candidate.kernel])

    @abstractmethod
    def _plan(self) -> None:
        """Require the memory for the students of all columns."""

    @abstractmethod
    def _held_out_students(
        self, problem: Problem, cell: Cell, initial_logits: Tensor, fold: Fold
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe that have not seen the rows of the fold."""

    @abstractmethod
    def _on_validation_rows(
        self, problem: ValidatedProblem, cell: Cell, initial_logits: Tensor
    ) -> HeldOut:
        """Return f − z₀ on the validation rows, of the students of every recipe on all rows."""


def initial_logits_of_validation(problem: ValidatedProblem, kernel: int) -> Tensor:
    """Return z₀ of the validation rows with one of the kernels, (m,) or (m, K)."""
    setting, grid = problem.setting, problem.setting.grid
    return initial_logits(
        setting.init,
        grid.used_kernels[kernel],
        grid.functions[kernel],
        problem.validation.X,
        setting.n_classes,
    )


def kept_bytes(setting: Setting, folds: list[Fold]) -> int:
    """Return the bytes that all cells keep of the rows: logits and scores, and z_eff by fold.

    The last where each fold has its own, in the working precision and in double precision on the
    CPU. Students that stop are trained before the first of them is scored.
    """
    size, grid = setting.size, setting.grid
    n_scored = sum(len(fold.test) for fold in folds)
    n_stopped = len(grid.ridges) * len(grid.stopped_at)
    of_stopped = n_scored * n_stopped * size.n_targets * size.dtype.itemsize
    n_own = len(folds) if setting.sees_labels else 0
    of_targets = n_own * size.n_rows * size.n_targets * (size.dtype.itemsize + 8)
    return of_targets + of_stopped + setting.record_bytes(n_scored)


def all_splits(cv: Any, rows: Rows) -> Splits:
    """Return the folds of ``cv`` as row numbers, none for leave-one-out; drawn once for all.

    Rows of weight 0 are not there when they are drawn. Listed folds are of all rows.
    """
    if cv is None:
        return []
    labels, kept = rows.checked.labels, rows.distinct.kept.cpu().numpy()
    is_drawn = isinstance(cv, Integral) or hasattr(cv, "split")
    if len(kept) == len(labels) or not is_drawn or isinstance(cv, PredefinedSplit):
        return splits_of(check_cv(cv, labels, classifier=True), labels, cv=cv)
    labels = labels[kept]
    splits = splits_of(check_cv(cv, labels, classifier=True), labels, cv=cv)
    return [(kept[train], kept[test]) for train, test in splits]


def folds_of(setting: Setting, splits: Splits) -> list[Fold]:
    """Return the folds as positions among the rows of positive weight.

    Validation rows are a single fold.

    Raises
    ------
    ValueError
        If a fold is empty, or tests a row twice.
    """
    cv, rows = setting.cv, setting.rows
    kept, labels = rows.distinct.kept, rows.checked.labels
    if setting.n_validation:
        return [Fold(None, torch.arange(setting.n_validation, device=kept.device))]
    everything = torch.arange(len(kept), device=kept.device)
    if cv is None:
        if len(rows.distinct.weights) < 2:
            raise ValueError(
                "cv=None leaves one distinct row out at a time, and X holds only one of "
                "positive weight; there is nothing to train on."
            )
        return [Fold(None, everything)]
    position = torch.full((len(labels),), -1, device=kept.device)
    position[kept] = everything

    def positions_of(samples: np.ndarray) -> Tensor:
        numbers = to_tensor(samples, dtype=torch.int64, device=position.device)
        positions = position[numbers]
        return positions[positions >= 0]

    folds = [Fold(positions_of(train), positions_of(test)) for train, test in splits]
    for index, (train, test) in enumerate(folds):
        if train is None or not len(train) or not len(test):
            raise ValueError(
                f"cv={cv!r} leaves fold {index} without training or test rows of "
                "positive weight; use fewer folds."
            )
        if len(test.unique()) < len(test):
            raise ValueError(
                f"cv={cv!r} tests a row twice in fold {index}; give each test row once, or a "
                "sample_weight."
            )
    return folds
