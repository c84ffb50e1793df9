"""Training rows that are read block by block, and the targets of a student on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd.rows._streams import RowStream


class Probes(NamedTuple):
    """A few training rows: their numbers, rows (m, d), targets (m, C) and weights (m,)."""

    numbers: np.ndarray
    X: Tensor
    targets: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class StreamedRows:
    """Training rows that are read block by block, with their targets.

    Parameters
    ----------
    stream : RowStream
        The rows.
    targets : callable
        ``targets(rows)`` returns Δz of these rows, (b, ...), for a slice or a tensor of row
        numbers: one trailing entry per candidate (ρ, T) and class.
    weights : Tensor of shape (n,), default=None
        Row weights; rows of weight 0 do not count. None means 1.
    """

    stream: RowStream
    targets: Callable[[slice | Tensor], Tensor]
    weights: Tensor | None = None

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one row's Δz."""
        return tuple(self.targets(slice(0, 1)).shape[1:])

    @property
    def n_targets(self) -> int:
        """Number of columns of Δz."""
        return math.prod(self.target_shape)

    def fitted_to(self, rows: slice | Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return Δz (b, C) and the weights (b,), float64."""
        targets = self.targets(rows)
        targets = targets.reshape(len(targets), -1).to(device, torch.float64)
        if self.weights is None:
            return targets, None
        return targets, self.weights[rows].to(device, torch.float64)

    def blocks(
        self, size: int, dtype: torch.dtype, device: torch.device, start: int = 0
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Yield (rows, X, Δz, weights) of consecutive blocks of at most ``size`` rows."""
        for rows, X in self.stream.blocks(size, start, dtype=dtype, device=device):
            yield rows, X, *self.fitted_to(rows, device)

    def between(self, start: int, stop: int) -> StreamedRows:
        """Return the rows from ``start`` to before ``stop``, holding no data of other rows."""
        rows = slice(start, stop)
        # Clones: the pickle of a view would hold all of its base.
        targets = self.targets(rows).clone()
        weights = None if self.weights is None else self.weights[rows].clone()
        return StreamedRows(self.stream.between(start, stop), targets.__getitem__, weights)

    def sample(self, size: int, random_state: np.random.RandomState) -> np.ndarray:
        """Return increasing numbers of at most ``size`` rows of positive weight, at random."""
        if self.weights is None:
            return sample_numbers(self.stream.n_rows, size, random_state)
        eligible = np.flatnonzero(to_numpy(self.weights > 0))
        return eligible[sample_numbers(len(eligible), size, random_state)]

    def take(self, numbers: np.ndarray, dtype: torch.dtype, device: torch.device) -> Probes:
        """Return the rows with these increasing numbers, Δz and weights."""
        X = self.stream.take(numbers, dtype=dtype).to(device)
        return Probes(numbers, X, *self.fitted_to(torch.from_numpy(numbers), device))


def sample_numbers(n: int, size: int, random_state: np.random.RandomState) -> np.ndarray:
    """Return min(n, size) increasing numbers below n, drawn without replacement."""
    return np.sort(sample_without_replacement(n, min(n, size), random_state=random_state))
