"""What the students of a search learn: rows, the teacher's logits, targets of every recipe."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import n_logits
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.distillation._effective_logits_of_rows import (
    effective_logits_if_any,
    effective_logits_of_each,
    merged_effective_logits_of_grid,
    merged_labels,
)
from sklearn_kd.rows._labels import RowLabels
from sklearn_kd.rows._training_rows import DistinctRows
from sklearn_kd.search._grid import Candidate, Grid
from sklearn_kd.search._kept_factors import KeptFactors
from sklearn_kd.search._scored_rows import ScoredRows, record_bytes
from sklearn_kd.solvers._system import Size, Solver
from sklearn_kd.students._initial_network import start_of
from sklearn_kd.students._posed import PosedStudent, Rows
from sklearn_kd.teachers._teaching import Taught


class Setting(NamedTuple):
    """What a search knows before the teacher is asked: enough to plan it."""

    grid: Grid
    rows: Rows
    solver: Solver
    cv: Any
    init: str
    refit: bool
    memory_limit: float | str
    sees_labels: bool  # whether the teacher is fitted to the labels that are searched
    n_scores: int  # as far as known beforehand
    kept: KeptFactors | None  # those of the fit before
    n_validation: int = 0  # validation rows, which are scored instead of held-out ones

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.rows.checked.classes)

    @property
    def size(self) -> Size:
        """Shape of the system of all rows, with the columns of all recipes."""
        weights = self.rows.distinct.weights
        n_columns = self.grid.n_columns(self.n_classes)
        n_rows, n_features = self.rows.X.shape
        return Size(n_rows, n_features, n_columns, weights.dtype, weights.device)

    def record_bytes(self, n_scored: int) -> int:
        """Return the bytes of what is kept of ``n_scored`` held-out rows until all are scored."""
        n_cells = len(self.grid.candidates)
        return record_bytes(n_scored, n_cells, n_logits(self.n_classes), self.n_scores)


class Fold(NamedTuple):
    """Rows left out together, by position among the rows of positive weight."""

    train: Tensor | None  # None: each held-out row has a student of its own
    test: Tensor  # validation rows, where there are any

    def n_trained_on(self, distinct: DistinctRows) -> int:
        """Return how many distinct rows the students of the fold are trained on."""
        return len(distinct.merged.group[self.train].unique())


@dataclass(frozen=True)
class Problem:
    """The students of all rows, or of a fold: rows, the teacher's logits, targets."""

    setting: Setting
    taught: Taught

    def of_fold(self, index: int) -> Self:
        """Return the problem of the students that are scored on a fold.

        It differs where the teacher was fitted to these rows: its logits on the rows, held-out
        ones too, are then by teachers that have seen no label of the fold.
        """
        if self.taught.by_fold is None:
            return self
        z_t = self.taught.logits._replace(values=self.taught.by_fold[index])
        return replace(self, taught=self.taught._replace(logits=z_t, by_fold=None))

    @property
    def has_weights(self) -> bool:
        """Whether the rows that are scored have weights."""
        return self.setting.rows.checked.sample_weight is not None

    @property
    def n_given(self) -> int:
        """Number of rows among which are those that are scored."""
        return len(self.setting.rows.checked.labels)

    def is_labelled(self, positions: Tensor) -> Tensor:
        """Return which rows have a label, by position among those of positive weight."""
        return self.distinct.labels.is_labelled[positions]

    @property
    def distinct(self) -> DistinctRows:
        """The rows of positive weight, copies merged."""
        return self.setting.rows.distinct

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The candidates (ρ, T), which differ in their targets only."""
        return self.setting.grid.recipes

    @property
    def members(self) -> Tensor:
        """z_t of all rows by each teacher, (M, n_samples) or (M, n_samples, K)."""
        return self.taught.logits.values

    @functools.cached_property
    def targets(self) -> Tensor:
        """z_eff of the distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3).

        NaN with a soft ratio of 0, whose hard labels alone have none.
        """
        return self.targets_of(self.distinct)

    def targets_of(self, distinct: DistinctRows) -> Tensor:
        """Return z_eff of some distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3)."""
        rooted = [recipe for recipe in self.recipes if recipe["soft_ratio"] > 0]
        if not rooted:
            shape = len(distinct.weights), len(self.recipes), *self.members.shape[2:]
            return distinct.X.new_full(shape, torch.nan)
        z_eff = merged_effective_logits_of_grid(self.members, distinct, rooted).to(distinct.X)
        if len(rooted) == len(self.recipes):
            return z_eff
        has_root = torch.tensor([recipe["soft_ratio"] > 0 for recipe in self.recipes])
        every = z_eff.new_full((len(z_eff), len(has_root), *z_eff.shape[2:]), torch.nan)
        every[:, has_root] = z_eff
        return every

    @functools.cached_property
    def single_targets(self) -> Tensor:
        """z_eff of each row of positive weight by itself, copies or not, on the CPU."""
        if self.distinct.merged.n_merged == 0:
            return self.targets.cpu().double()
        members = self.members[:, self.distinct.kept.cpu()]
        labels = self.distinct.labels.cpu()
        return single_effective_logits(members, labels, self.recipes)

    def trained_on(self, train: Tensor) -> tuple[Tensor, DistinctRows, Tensor]:
        """Return the numbers of the distinct rows among ``train``, these rows, and their z_eff."""
        numbers, rows = self.distinct.among(train)
        if self.distinct.merged.n_merged == 0:
            return numbers, rows, self.targets[numbers]
        # The copies of a row may be in other folds, and with them a part of its labels.
        return numbers, rows, self.targets_of(rows)

    def rows_of(self, positions: Tensor) -> Any:
        """Return rows by position among those of positive weight, as scorers are given them.

        Rows that are read block by block are not: their array has no columns.
        """
        checked, samples = self.setting.rows.checked, self.samples(positions)
        if checked.stream is not None:
            return np.empty((len(samples), 0))
        return safe_indexing(checked.array, samples)

    def scored(self, positions: Tensor) -> ScoredRows:
        """Return what there is to know of rows to score, by position likewise."""
        checked, samples = self.setting.rows.checked, self.samples(positions)
        weights, group = checked.sample_weight, self.distinct.merged.group
        return ScoredRows(
            checked.labels[samples],
            checked.classes,
            None if weights is None else weights[samples],
            samples,
            group[positions.to(group.device)].cpu().numpy(),
        )

    def samples(self, positions: Tensor) -> np.ndarray:
        """Return the numbers of rows among all, by position among those of positive weight."""
        return self.distinct.kept[positions.to(self.distinct.kept.device)].cpu().numpy()

    def posed(self, candidate: Candidate, initial_logits: Tensor) -> PosedStudent:
        """Return the problem of one candidate on all rows."""
        setting, grid = self.setting, self.setting.grid
        recipe, time = grid.recipes[candidate.recipe], grid.times[candidate.time]
        labels = merged_labels(self.members, self.distinct, recipe)
        z_eff = effective_logits_if_any(labels, recipe)
        return PosedStudent(
            rows=setting.rows,
            solver=setting.solver,
            kernel=grid.used_kernels[candidate.kernel],
            function=grid.functions[candidate.kernel],
            init=start_of(setting.init, grid.functions[candidate.kernel]),
            ridge=grid.ridges[candidate.ridge],
            recipe=recipe,
            taught=self.taught,
            effective_logits=None if z_eff is None else z_eff.to(self.distinct.X),
            initial_logits=initial_logits,
            stopping_times=None if time is None else [time],
            labels=labels,
        )


def single_effective_logits(
    members: Tensor, labels: RowLabels, recipes: list[dict[str, Any]]
) -> Tensor:
    """Return z_eff of each row by itself for every recipe, (n, C) or (n, C, K) (Eq. 3).

    NaN with a soft ratio of 0, whose hard labels alone have none.
    """
    nothing = torch.full_like(members[0], torch.nan)
    columns = [
        effective_logits_of_each(members, labels, recipe) if recipe["soft_ratio"] > 0 else nothing
        for recipe in recipes
    ]
    return torch.stack(columns, dim=1)
