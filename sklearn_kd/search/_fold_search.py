"""The search over exact students, fold by fold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import check_cv
from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.rows._training_rows import DistinctRows, TrainingRows
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._held_out_student import HeldOutStudent
from sklearn_kd.search._problem import Fold, Problem
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.students._initial_network import initial_logits


class FoldSearch(ABC):
    """Held-out scores of the exact students of a grid, fold by fold.

    Parameters
    ----------
    search : LinearizedKDStudentCV
        Whose parameters count.
    grid : Grid
        The candidates.
    rows : TrainingRows
    distinct : DistinctRows
        Of ``rows``, in memory.

    Raises
    ------
    MemoryBudgetError
        If what the students take does not fit ``memory_limit``.
    ValueError
        If a fold has no rows to train on or to test, or ``init="network"`` meets a kernel without
        a network of as many outputs as there are classes.
    """

    def __init__(self, search: Any, grid: Grid, rows: TrainingRows, distinct: DistinctRows) -> None:
        splitter = None if search.cv is None else check_cv(search.cv, rows.labels, classifier=True)
        self.search = search
        self.grid = grid
        self.teacher_cv = splitter or 5
        self.folds = _folds(search.cv, splitter, rows, distinct)
        n_classes = len(rows.classes)
        self._plan(distinct, grid.n_columns(n_classes))
        self._initial_logits = [
            initial_logits(search.init, kernel, as_kernel_function(kernel), distinct.X, n_classes)
            for kernel in grid.kernels
        ]

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate, by the students that have not seen a fold."""
        for kernel, z_0 in zip(self.grid.kernels, self._initial_logits, strict=True):
            self._use(kernel)
            for ridge in self.grid.ridges:
                with progress.stage("candidates", len(self.folds)) as task:
                    for fold in self.folds:
                        with task.stage("fold"):
                            # No name for the students: they hold a factor until scored.
                            scores.add(self._held_out_students(problem, z_0, fold, ridge), fold)
                scores.close_cell()

    @abstractmethod
    def _plan(self, distinct: DistinctRows, n_columns: int) -> None:
        """Require the memory for the students of ``n_columns`` right-hand sides."""

    @abstractmethod
    def _use(self, kernel: Any) -> None:
        """Turn to a kernel, as :class:`LinearizedKDStudent` takes it."""

    @abstractmethod
    def _held_out_students(
        self, problem: Problem, initial_logits: Tensor, fold: Fold, ridge: float
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe that have not seen the rows of the fold."""


def _folds(cv: Any, splitter: Any, rows: TrainingRows, distinct: DistinctRows) -> list[Fold]:
    """Return the folds as positions among the rows of positive weight."""
    everything = torch.arange(len(distinct.kept), device=distinct.kept.device)
    if splitter is None:
        if len(distinct.X) < 2:
            raise ValueError(
                "cv=None leaves one distinct row out at a time, and X holds only one of "
                "positive weight; there is nothing to train on."
            )
        return [Fold(None, everything)]
    position = torch.full((len(rows.labels),), -1, device=distinct.kept.device)
    position[distinct.kept] = everything

    def kept(samples: np.ndarray) -> Tensor:
        positions = position[torch.as_tensor(samples, device=position.device)]
        return positions[positions >= 0]

    splits = splitter.split(np.zeros((len(rows.labels), 1)), rows.labels)
    folds = [Fold(kept(train), kept(test)) for train, test in splits]
    for index, fold in enumerate(folds):
        if fold.train is None or not len(fold.train) or not len(fold.test):
            raise ValueError(
                f"cv={cv!r} leaves fold {index} without training or test rows of "
                "positive weight; use fewer folds."
            )
    return folds
