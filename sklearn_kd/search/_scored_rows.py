"""The rows that students are scored on."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np


class ScoredRows(NamedTuple):
    """Held-out rows of positive weight, with their labels."""

    labels: np.ndarray  # (m,) indices into classes
    classes: np.ndarray  # (K,)
    sample_weight: np.ndarray | None  # (m,)
    numbers: np.ndarray  # (m,) among the rows of the fit
    units: np.ndarray  # (m,) copies of one row are one unit

    def take(self, positions: np.ndarray) -> Self:
        """Return some of the rows."""
        weights = self.sample_weight
        return self._replace(
            labels=self.labels[positions],
            sample_weight=None if weights is None else weights[positions],
            numbers=self.numbers[positions],
            units=self.units[positions],
        )

    @property
    def shares(self) -> np.ndarray:
        """Weights of the rows that sum to one."""
        if self.sample_weight is None:
            return np.full(len(self.labels), 1 / len(self.labels))
        return self.sample_weight / self.sample_weight.sum()


def record_bytes(n_rows: int, n_cells: int, n_logits: int, n_scores: int) -> int:
    """Return the bytes of what all cells make of scored rows: logits and scores, and a table."""
    return n_rows * n_cells * (4 * n_logits + 2 * 8 * n_scores + 2 * 8)
