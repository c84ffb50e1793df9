"""What all folds of a search share: rows, the teacher's logits, targets of every recipe."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd.distillation._effective_logits_of_rows import merged_effective_logits, root_of_eq_3
from sklearn_kd.rows._checking import check_rows, check_streamed_rows, to_working
from sklearn_kd.rows._copies import MergedRows
from sklearn_kd.rows._streams import RowStream, as_row_stream, is_streamed
from sklearn_kd.rows._training_rows import (
    DistinctRows,
    TrainingRows,
    distinct_of_stream,
    distinct_rows,
)


class Fold(NamedTuple):
    """Rows left out together, by position among the rows of positive weight."""

    train: Tensor | None  # None: each held-out row has a student of its own
    test: Tensor


@dataclass(frozen=True)
class Problem:
    """What all folds share."""

    rows: TrainingRows
    distinct: DistinctRows
    teacher_logits: Tensor  # (n_samples,) or (n_samples, K)
    recipes: list[dict[str, Any]]

    @functools.cached_property
    def targets(self) -> Tensor:
        """z_eff of the distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3)."""
        return self.targets_of(self.distinct)

    def targets_of(self, distinct: DistinctRows) -> Tensor:
        """Return z_eff of some distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3)."""
        columns = [
            merged_effective_logits(self.teacher_logits, distinct, recipe)
            for recipe in self.recipes
        ]
        return torch.stack(columns, dim=1).to(distinct.X)

    @functools.cached_property
    def single_targets(self) -> Tensor:
        """z_eff of each row of positive weight by itself, copies or not, on the CPU."""
        if self.distinct.merged.n_merged == 0:
            return self.targets.cpu().double()
        z_t = self.teacher_logits[self.distinct.kept.cpu()]
        hard = self.hard_labels.to(z_t)
        return torch.stack([root_of_eq_3(z_t, hard, **recipe) for recipe in self.recipes], dim=1)

    def trained_on(self, train: Tensor) -> tuple[Tensor, DistinctRows, Tensor]:
        """Return the numbers of the distinct rows among ``train``, these rows, and their z_eff."""
        numbers, rows = self._restricted(train)
        if self.distinct.merged.n_merged == 0:
            return numbers, rows, self.targets[numbers]
        # The copies of a row may be in other folds, and with them a part of its labels.
        return numbers, rows, self.targets_of(rows)

    def _restricted(self, train: Tensor) -> tuple[Tensor, DistinctRows]:
        """Return the numbers of the distinct rows among ``train``, and these rows as a problem."""
        whole = self.distinct
        numbers, group = torch.unique(whole.merged.group[train], return_inverse=True)
        positions = torch.arange(len(train), device=train.device)
        first = torch.full_like(numbers, len(train)).scatter_reduce(0, group, positions, "amin")
        merged, weights = MergedRows(first, group), whole.kept_weights[train]
        return numbers, DistinctRows(
            kept=whole.kept[train],
            kept_weights=weights,
            merged=merged,
            X=whole.X[numbers],
            hard_labels=merged.mean(self.hard_labels[train], weights),
            weights=merged.total(weights),
        )

    @functools.cached_property
    def hard_labels(self) -> Tensor:
        """Labels of the rows of positive weight: (n,) of class 1, or (n, K) indicators."""
        labels = torch.as_tensor(self.rows.labels, device=self.distinct.X.device)
        labels = labels[self.distinct.kept]
        n_classes = len(self.rows.classes)
        return (labels if n_classes == 2 else one_hot(labels, n_classes)).to(self.distinct.X)


def read_rows(
    search: Any, X: Any, y: Any, sample_weight: Any
) -> tuple[TrainingRows, DistinctRows, RowStream | None]:
    """Return the checked rows, the distinct ones, and a stream of these if there are more than M.

    Where all distinct rows would be landmarks the restricted student is the exact one, of which
    every row can be left out: then they are in memory, and there is no stream.
    """
    if search.solver != "nystrom":
        rows = check_rows(search, X, y, sample_weight)
        return rows, distinct_rows(rows), None
    if search.cv is not None:
        raise ValueError(
            "solver='nystrom' scores by leave-one-out in closed form and needs cv=None, not "
            f"cv={search.cv!r}; for folds, use GridSearchCV with "
            "LinearizedKDStudent(solver='nystrom')."
        )
    if is_streamed(X):
        rows = check_streamed_rows(search, X, y, sample_weight)
        distinct, stream = distinct_of_stream(rows)
    else:
        rows = check_rows(search, X, y, sample_weight)
        distinct = distinct_rows(rows)
        stream = as_row_stream(distinct.X)
    if len(stream) > search.n_landmarks:
        return rows, distinct, stream
    return rows, distinct._replace(X=to_working(search, stream)), None
