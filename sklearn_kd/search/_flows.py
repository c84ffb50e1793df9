"""Students that stop, of many recipes and folds: columns of the same products with Θ.

Symbols, with n distinct rows, of which a fold trains on m, B runs side by side, S stopping times
and C columns of logits (1 for two classes, else K):

====  ==================  =======================================================================
a     ``stages``          (S, B, C, n), coefficients at every time
ω     ``shares``          (n,), weights of a fold's rows that sum to 1; 0 on rows it leaves out
ν     ``noise``           the kernel's own, of which the w copies of a row share ν/w
z₀    ``initial_logits``  (n,) or (n, K)
====  ==================  =======================================================================

A row that a run is not trained on has no coefficient, so that (z₀ + Θ a) there is the held-out
prediction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import n_logits
from sklearn_kd.distillation._effective_logits_of_rows import MergedLabels, merged_labels
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.rows._training_rows import DistinctRows
from sklearn_kd.search._fold_search import kept_bytes
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.students._stopped import (
    Stopped,
    columns_of,
    flow_bytes,
    losses_of_eq_2,
    training_accuracy,
)
from sklearn_kd.training._gradient_flow import gradient_flows

# Columns side by side. Processor time of a search over 1000 rows, by one thread: 12 % more with 32
# of them, no less with 256; with ten classes 13 % more with 50, and 23 % more with 640.
MOST_COLUMNS = 128


class Run(NamedTuple):
    """Where a run stands on the axes of the grid, and which fold it leaves out."""

    ridge: int
    recipe: int
    fold: int


class FoldRows(NamedTuple):
    """The rows that the students of a fold are trained on, among all distinct rows."""

    numbers: Tensor  # (m,)
    rows: DistinctRows
    members: Tensor  # z_t of all rows by each teacher, for this fold
    n: int

    @classmethod
    def of(cls, problem: Problem, fold: Fold) -> Self:
        """Return the rows of a fold, or all of them where validation rows are scored."""
        distinct = problem.distinct
        n, device = len(distinct.weights), distinct.weights.device
        if fold.train is None:
            return cls(torch.arange(n, device=device), distinct, problem.members, n)
        return cls(*distinct.among(fold.train), problem.members, n)

    @property
    def shares(self) -> Tensor:
        """ω of all distinct rows."""
        return self._spread(self.rows.weights / self.rows.weights.sum(), 0.0)

    def decay(self, ridge: float) -> float:
        """Return μ: the ridge over the total weight."""
        return ridge / self.rows.weights.sum().item()

    def row_noise(self, noise: float) -> Tensor:
        """Return ν/w of all distinct rows."""
        return self._spread(noise / self.rows.weights, 0.0)

    def labels(self, recipe: dict[str, Any]) -> MergedLabels:
        """Return the labels of all distinct rows; indifferent ones of rows not trained on.

        The copies of a row may be in other folds, and with them a part of its labels.
        """
        z_t, hard, soft_ratio = merged_labels(self.members, self.rows, recipe)
        if isinstance(soft_ratio, Tensor):
            soft_ratio = self._spread(soft_ratio, 0.5)
        even = 0.5 if hard.ndim == 1 else 1 / hard.shape[1]
        return MergedLabels(self._spread(z_t, 0.0), self._spread(hard, even), soft_ratio)

    def _spread(self, values: Tensor, elsewhere: float) -> Tensor:
        every = values.new_full((self.n, *values.shape[1:]), elsewhere)
        every[self.numbers] = values
        return every


class Kernel(NamedTuple):
    """A kernel on the distinct rows."""

    matrix: Tensor  # Θ, (n, n), without noise
    noise: float
    cross_product: Callable[[Tensor], Tensor] | None  # Θ(X_val, X) a of a (n, C), if scored there
    initial_logits: Tensor


class StoppedScores(NamedTuple):
    """What the students of a kernel that stop predict, and how far they have learnt."""

    changes: list[Tensor]  # by fold (n_ridges, S, m, R) or (n_ridges, S, m, R, K): f − z₀
    losses: np.ndarray  # (n_ridges, S, R, n_folds), the mean of Eq. 2
    accuracies: np.ndarray  # likewise

    @classmethod
    def empty(cls, setting: Setting, folds: list[Fold]) -> Self:
        """Return what is to be filled."""
        grid = setting.grid
        n_ridges, n_times, n_recipes = len(grid.ridges), len(grid.stopped_at), len(grid.recipes)
        classes = () if setting.n_classes == 2 else (setting.n_classes,)
        changes = [
            torch.empty(
                (n_ridges, n_times, len(fold.test), n_recipes, *classes),
                dtype=setting.size.dtype,
                device=setting.size.device,
            )
            for fold in folds
        ]
        shape = (n_ridges, n_times, n_recipes, len(folds))
        return cls(changes, np.empty(shape), np.empty(shape))


class Flows:
    """The students of a grid that stop, trained group by group.

    Parameters
    ----------
    setting : Setting
    folds : list of Fold
    n_together : int
        The runs that fit the memory side by side.
    """

    def __init__(self, setting: Setting, folds: list[Fold], n_together: int) -> None:
        self._setting, self._folds, self._n_together = setting, folds, n_together

    def groups(self, has_noise: bool) -> list[list[Run]]:
        """Return the runs in groups; those of a recipe, which are alike, stand together.

        Copies of a row share its noise, so that folds with other copies have another diagonal.
        """
        grid, n_folds = self._setting.grid, len(self._folds)
        runs = [
            Run(ridge, recipe, fold)
            for recipe in range(len(grid.recipes))
            for ridge in range(len(grid.ridges))
            for fold in range(n_folds)
        ]
        parts = [runs]
        if has_noise and self._setting.rows.distinct.merged.n_merged:
            parts = [[run for run in runs if run.fold == fold] for fold in range(n_folds)]
        step = self._n_together
        return [part[k : k + step] for part in parts for k in range(0, len(part), step)]

    def train(
        self, problems: list[Problem], kernel: Kernel, report: Callable[[float], None]
    ) -> StoppedScores:
        """Return what the students with a kernel predict; ``problems`` are those of the folds."""
        folds = zip(problems, self._folds, strict=True)
        rows = [FoldRows.of(problem, fold) for problem, fold in folds]
        found = StoppedScores.empty(self._setting, self._folds)
        groups = self.groups(kernel.noise > 0)
        for number, runs in enumerate(groups):

            def report_group(share: float, number: int = number) -> None:
                report((number + share) / len(groups))

            self._train_group(runs, rows, kernel, found, report_group)
        return found

    def _train_group(
        self,
        runs: list[Run],
        rows: list[FoldRows],
        kernel: Kernel,
        found: StoppedScores,
        report: Callable[[float], None],
    ) -> None:
        """Train runs side by side, and fill in what they predict."""
        grid, z_0 = self._setting.grid, columns_of(kernel.initial_logits)
        loss = losses_of_eq_2(
            [
                Stopped(rows[run.fold].labels(grid.recipes[run.recipe]), grid.recipes[run.recipe])
                for run in runs
            ],
            beside=kernel.matrix,
        )
        weights = torch.stack([rows[run.fold].shares for run in runs])
        row_noise = self._row_noise(runs, rows, kernel.noise)
        with with_noise(kernel.matrix, row_noise):
            stages, _ = gradient_flows(
                kernel.matrix,
                loss,
                weights,
                stopping_times=grid.stopped_at,
                initial_logits=z_0 if z_0.any() else None,
                decay=np.array([rows[run.fold].decay(grid.ridges[run.ridge]) for run in runs]),
                report=report,
            )
            for time, stage in enumerate(stages):
                change = (stage.flatten(0, 1) @ kernel.matrix).view_as(stage)
                logits = z_0 + change
                losses = (loss.value(logits) * weights).sum(dim=1).tolist()
                for run, own, f in zip(runs, losses, logits, strict=True):
                    at = run.ridge, time, run.recipe, run.fold
                    of_fold = rows[run.fold]
                    found.losses[at] = own
                    found.accuracies[at] = training_accuracy(f[:, of_fold.numbers], of_fold.rows)
                if kernel.cross_product is None:
                    # What a row has of the noise is no part of its prediction.
                    self._fill(runs, time, change - row_noise * stage, found)
        if kernel.cross_product is not None:
            columns = kernel.cross_product(stages.flatten(0, 2).mT)  # (m, S B C)
            for time, change in enumerate(columns.mT.unflatten(0, stages.shape[:3])):
                self._fill(runs, time, change, found)

    def _row_noise(self, runs: list[Run], rows: list[FoldRows], noise: float) -> Tensor:
        """Return ν/w of all distinct rows, which the folds of a group share: see `groups`."""
        distinct = self._setting.rows.distinct
        if distinct.merged.n_merged:
            return rows[runs[0].fold].row_noise(noise)
        return noise / distinct.weights

    def _fill(self, runs: list[Run], time: int, changes: Tensor, found: StoppedScores) -> None:
        """Fill in f − z₀ (B, C, n) of the rows that are scored."""
        group = self._setting.rows.distinct.merged.group
        for run, change in zip(runs, changes, strict=True):
            fold = self._folds[run.fold]
            of_rows = change if fold.train is None else change[:, group[fold.test]]
            values = of_rows[0] if len(of_rows) == 1 else of_rows.mT
            found.changes[run.fold][run.ridge, time, :, run.recipe] = values


@contextlib.contextmanager
def with_noise(matrix: Tensor, row_noise: Tensor) -> Iterator[None]:
    """Add to the diagonal of a kernel matrix, which others use too and get back bit for bit."""
    diagonal = matrix.diagonal().clone()
    matrix.diagonal().add_(row_noise)
    try:
        yield
    finally:
        matrix.diagonal().copy_(diagonal)


def flows_bytes(setting: Setting, folds: list[Fold], n_together: int) -> int:
    """Return the peak bytes of a search that trains so many runs side by side, without factors."""
    size, n_times = setting.size, len(setting.grid.stopped_at)
    n_columns = n_together * n_logits(setting.n_classes)
    # Coefficients at every time, and what the validation rows have of them.
    of_stages = n_times * n_columns * (size.n_rows + setting.n_validation) * size.dtype.itemsize
    matrix = frame_bytes(*size._replace(n_targets=0))
    flow = flow_bytes(size._replace(n_targets=n_columns))
    return matrix + flow + of_stages + kept_bytes(setting, folds)


def n_runs_together(setting: Setting, folds: list[Fold], budget: int) -> int:
    """Return how many runs to train side by side: as many as are worth it and fit, at least one."""
    n_runs = len(setting.grid.ridges) * len(setting.grid.recipes) * len(folds)
    most = max(1, min(n_runs, MOST_COLUMNS // n_logits(setting.n_classes)))
    # The bytes are linear in the runs, beyond the first.
    one, two = (flows_bytes(setting, folds, n) for n in (2, 3))
    more = (budget - one) // (two - one)
    return int(max(1, min(most, 2 + more)))
