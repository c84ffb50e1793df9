"""The rows of a fit: as given, and with exact copies merged."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._logits import n_logits
from sklearn_kd.rows._copies import MergedRows, copies_in, merge_rows
from sklearn_kd.rows._labels import NO_LABEL, RowLabels
from sklearn_kd.rows._streams import RowStream


class TrainingRows(NamedTuple):
    """Checked input of a fit: rows as given and as a tensor, class indices, row weights."""

    array: Any  # (n, d) in the caller's array library
    X: Tensor  # (n, d) in the working dtype on the working device
    classes: np.ndarray  # (K,)
    labels: np.ndarray  # (n,) indices into classes, -1 for a row without a label
    sample_weight: np.ndarray | None  # (n,)
    stream: RowStream | None = None  # rows that are not in memory; array and X are then (0, d)
    trust: np.ndarray | None = None  # (n,) share of the soft ratio, in (0, 1]

    @property
    def weights(self) -> Tensor:
        """Row weights (n,), ones where none were given, beside ``X``."""
        if self.sample_weight is None:
            return self.X.new_ones(len(self.labels))
        return to_tensor(self.sample_weight, dtype=self.X.dtype, device=self.X.device)


class DistinctRows(NamedTuple):
    """The rows of positive weight, of which exact copies act as one row of their total weight."""

    kept: Tensor  # (n_kept,) the samples of positive weight
    kept_weights: Tensor  # (n_kept,)
    merged: MergedRows  # of the n_kept samples
    labels: RowLabels  # of the n_kept samples
    X: Tensor  # (n, d)
    weights: Tensor  # (n,) total weight of the copies

    @property
    def hard_labels(self) -> Tensor:
        """Mean labels, where all rows have one: (n,) share of class 1, or (n, K) class shares."""
        return self.merged.mean(self.labels.hard.to(self.weights.dtype), self.kept_weights)

    def among(self, kept: Tensor) -> tuple[Tensor, Self]:
        """Return the numbers of the distinct rows among some kept samples, and these rows."""
        numbers, group = torch.unique(self.merged.group[kept], return_inverse=True)
        positions = torch.arange(len(kept), device=kept.device)
        first = torch.full_like(numbers, len(kept)).scatter_reduce(0, group, positions, "amin")
        merged, weights = MergedRows(first, group), self.kept_weights[kept]
        return numbers, self._replace(
            kept=self.kept[kept],
            kept_weights=weights,
            merged=merged,
            labels=self.labels.take(kept),
            X=self.X[numbers] if len(self.X) else self.X,  # not there if they are streamed
            weights=merged.total(weights),
        )

    def to_host(self) -> Self:
        """Return a copy to keep: on the CPU, without the rows, which ``X_fit_`` holds."""
        first, group = self.merged
        return self._replace(
            kept=self.kept.cpu(),
            kept_weights=self.kept_weights.cpu(),
            merged=MergedRows(first.cpu(), group.cpu()),
            labels=self.labels.cpu(),
            X=self.X.new_empty((0, self.X.shape[1]), device="cpu"),
            weights=self.weights.cpu(),
        )


def distinct_rows(rows: TrainingRows, copies: MergedRows | None = None) -> DistinctRows:
    """Find exact copies, which a loss that is linear in the labels cannot tell apart.

    ``copies`` says which of all rows are copies, for rows that are not in memory: X is then empty.
    """
    weights = rows.weights
    kept = weights.nonzero()[:, 0]
    kept_weights = weights[kept]
    if copies is None:
        X = rows.X[kept]
        merged = merge_rows(X)
        X = X[merged.first]
    else:
        X, merged = rows.X[:0], copies.among(kept)
    trust = None if rows.trust is None else torch.as_tensor(rows.trust, device=X.device)
    indices = torch.as_tensor(rows.labels, device=X.device)
    labels = RowLabels(indices, n_logits(len(rows.classes)), trust).take(kept)
    return DistinctRows(
        kept=kept,
        kept_weights=kept_weights,
        merged=merged,
        labels=labels,
        X=X,
        weights=merged.total(kept_weights),
    )


def rows_report(rows: TrainingRows, distinct: DistinctRows) -> dict[str, Any]:
    """Return the report of every fit: the numbers of rows, and where it was computed."""
    return {
        "n_rows": len(rows.labels),
        "n_distinct_rows": distinct.merged.n_distinct,
        "n_merged_rows": distinct.merged.n_merged,
        "n_zero_weight_rows": len(rows.labels) - len(distinct.kept),
        "n_unlabelled_rows": int((rows.labels == NO_LABEL).sum()),
        "device": str(distinct.X.device),
        "dtype": str(distinct.X.dtype).removeprefix("torch."),
    }


def distinct_of_stream(rows: TrainingRows) -> tuple[DistinctRows, RowStream]:
    """Return the distinct rows of positive weight without their X, and a stream of their X.

    A pass that reads every row once.
    """
    stream = rows.stream
    assert stream is not None
    distinct = distinct_rows(rows, copies_in(stream, rows.X))
    kept = distinct.kept[distinct.merged.first]
    return distinct, stream.only(to_numpy(kept))
