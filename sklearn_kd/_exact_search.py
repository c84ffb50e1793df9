"""The search over exact students: every candidate and fold from a few factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import check_cv
from torch import Tensor

from sklearn_kd._base import DistinctRows, TrainingRows
from sklearn_kd._cv_results import FoldScores, Grid
from sklearn_kd._held_out_student import (
    Fold,
    HeldOutStudent,
    Problem,
    WholeKernel,
    held_out_students,
    serves_all_folds,
)
from sklearn_kd._initial_network import initial_logits
from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._function import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._memory import MEMORY_REMEDY, require, search_bytes


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
            for alpha in self.grid.alphas:
                with progress.stage("candidates", len(self.folds)) as task:
                    for fold in self.folds:
                        with task.stage("fold"):
                            # No name for the students: they hold a factor until scored.
                            scores.add(self._held_out_students(problem, z_0, fold, alpha), fold)
                scores.close_cell()

    @abstractmethod
    def _plan(self, distinct: DistinctRows, n_columns: int) -> None:
        """Require the memory for the students of ``n_columns`` right-hand sides."""

    @abstractmethod
    def _use(self, kernel: Any) -> None:
        """Turn to a kernel, as :class:`LinearizedKDStudent` takes it."""

    @abstractmethod
    def _held_out_students(
        self, problem: Problem, initial_logits: Tensor, fold: Fold, alpha: float
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe that have not seen the rows of the fold."""


class ExactSearch(FoldSearch):
    """Every candidate and fold from a few factors."""

    def _plan(self, distinct: DistinctRows, n_columns: int) -> None:
        search, alphas = self.search, self.grid.alphas
        serves_folds = serves_all_folds(self.folds, distinct, alphas, refit=bool(search.refit))
        # Ridges, and folds with factors of their own, share the kernel matrix beside these.
        has_factors = search.cv is not None and not serves_folds
        shares_matrix = has_factors or len(alphas) > 1
        n, d = distinct.X.shape
        planned = search_bytes(
            n,
            d,
            n_columns,
            distinct.X.dtype,
            distinct.X.device,
            folds=[] if search.cv is None else [len(fold.test) for fold in self.folds],
            by_factors=has_factors,
            keeps_matrix=shares_matrix,
            refit=bool(search.refit),
        )
        require(
            planned,
            search.memory_limit,
            distinct.X.device,
            what=f"LinearizedKDStudentCV.fit on n={n} distinct rows",
            remedy=MEMORY_REMEDY,
        )
        self._whole = WholeKernel(
            distinct, search.memory_limit, keep_matrix=shares_matrix, serves_folds=serves_folds
        )

    def _use(self, kernel: Any) -> None:
        self._whole.use(kernel)

    def _held_out_students(
        self, problem: Problem, initial_logits: Tensor, fold: Fold, alpha: float
    ) -> list[HeldOutStudent]:
        return held_out_students(problem, self._whole, initial_logits, fold, alpha)

    def at_hand(self, params: dict[str, Any], progress: FitTask) -> TangentFrame:
        """Return the frame of all rows, for the refit of one candidate."""
        self._whole.use(params.get("kernel", self.search.kernel))
        return self._whole.frame(params["alpha"])


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
