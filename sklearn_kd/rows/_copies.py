"""Find exact duplicate rows, which are one row to a kernel machine.

Two equal rows have the same feature φ(x), so a kernel matrix that holds both is singular. The
loss (Eq. 2) is linear in the labels, so the converged student sees one row whose labels are the
weighted means of the copies' labels. Merging loses nothing, and no ridge is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd.rows._streams import RowStream

# Odd constants of the finaliser of the splitmix64 generator, and its increment.
_MIX = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15], dtype=np.uint64)

# Entries that are hashed at a time, so that temporaries stay in cache.
_ENTRIES_IN_CACHE = 2**14


class MergedRows(NamedTuple):
    """Which rows are copies of which.

    ``first`` (n_distinct,) indexes the first copy of each distinct row, in order of appearance;
    ``group`` (n,) is the distinct row that each row is a copy of.
    """

    first: Tensor
    group: Tensor

    @property
    def n_distinct(self) -> int:
        """Number of distinct rows."""
        return len(self.first)

    @property
    def n_merged(self) -> int:
        """Number of rows that are copies of an earlier row."""
        return len(self.group) - len(self.first)

    def among(self, kept: Tensor) -> MergedRows:
        """Return which of the rows ``kept``, increasing row numbers, are copies of which."""
        if len(kept) == len(self.group):
            return self
        group = self.group.to(kept.device)[kept]
        positions = torch.arange(len(kept), device=kept.device)
        first = torch.full_like(self.first, len(kept), device=kept.device)
        first = first.scatter_reduce(0, group, positions, "amin")
        occurs = first < len(kept)
        first, order = first[occurs].sort()
        number = torch.empty_like(self.first, device=kept.device)
        number[occurs.nonzero()[order, 0]] = torch.arange(len(order), device=kept.device)
        return MergedRows(first, number[group])

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` (n, ...) over the copies of each row (n_distinct, ...)."""
        shape = (self.n_distinct, *values.shape[1:])
        return values.new_zeros(shape).index_add_(0, self.group, values)

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean of ``values`` over the copies of each row.

        A row without copies keeps its value bit for bit.
        """
        if self.n_merged == 0:
            return values[self.first]
        column = weights.reshape(-1, *[1] * (values.ndim - 1))
        # Σ w v / Σ w taken relative to the first copy: exact where all copies agree.
        reference = values[self.first]
        shift = self.total(column * (values - reference[self.group])) / self.total(column)
        return reference + shift


def merge_rows(X: Tensor) -> MergedRows:
    """Group the exactly equal rows of ``X`` (n, d), in order of first appearance.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.rows import merge_rows
    >>> merged = merge_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    >>> merged.first, merged.group
    (tensor([0, 1]), tensor([0, 1, 0]))
    """
    # + 0.0 turns -0.0 into 0.0: the two are equal but differ in their bytes.
    rows = np.ascontiguousarray((X + 0.0).cpu().numpy())
    # Equal rows have equal sums of their bit patterns. If all sums differ, no rows are equal.
    sums = rows.view(f"i{rows.itemsize}").sum(axis=1, dtype=np.int64)
    if _all_differ(sums):
        everyone = torch.arange(len(rows), device=X.device)
        return MergedRows(everyone, everyone)
    seen: dict[bytes, int] = {}
    group = np.fromiter((seen.setdefault(row.tobytes(), len(seen)) for row in rows), int, len(rows))
    first = np.full(len(seen), len(rows))
    np.minimum.at(first, group, np.arange(len(rows)))
    return MergedRows(
        torch.as_tensor(first, device=X.device), torch.as_tensor(group, device=X.device)
    )


def copies_in(stream: RowStream, beside: Tensor) -> MergedRows:
    """Return which rows are copies of which, once rounded; reads every row once.

    In the dtype and on the device of ``beside``.

    Rows are told apart by a hash of 128 bits. Among 10⁹ different rows two share a hash with
    probability 10⁻²¹.

    Raises
    ------
    ValueError
        If a row holds NaN or infinity.
    """
    hashes = np.empty((len(stream), 2), dtype=np.uint64)
    for block, X in stream.digested_blocks(beside.dtype):
        hashes[block] = row_hashes(to_numpy(X))
    first, group = np.arange(len(hashes)), np.arange(len(hashes))
    if not _all_differ(hashes[:, 0]):
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: copies stay in order
        is_new = np.concatenate([[True], (np.diff(hashes[order], axis=0) != 0).any(axis=1)])
        of_sorted = np.flatnonzero(is_new)[np.cumsum(is_new) - 1]
        first_copy = np.empty_like(order)
        first_copy[order] = order[of_sorted]
        first, group = np.unique(first_copy, return_inverse=True)
    return MergedRows(*(torch.as_tensor(a, device=beside.device) for a in (first, group)))


def _all_differ(values: np.ndarray) -> bool:
    """Whether no two of ``values`` are equal; by a sort, 15 times as fast as `numpy.unique`."""
    ordered = np.sort(values)
    return not (ordered[1:] == ordered[:-1]).any()


def row_hashes(X: np.ndarray) -> np.ndarray:
    """Return two 64-bit hashes of each row (n, d), shape (n, 2).

    Each entry's bits are mixed with the number of its column, and the results summed.
    """
    columns = np.arange(1, X.shape[1] + 1, dtype=np.uint64)
    salts = [columns * _MIX[2] + np.uint64(half) * _MIX[0] for half in range(2)]
    out = np.empty((len(X), 2), dtype=np.uint64)
    step = max(1, _ENTRIES_IN_CACHE // X.shape[1])
    for start in range(0, len(X), step):
        rows = slice(start, start + step)
        bits = np.ascontiguousarray(X[rows] + 0.0)  # −0.0 becomes 0.0, which it equals
        bits = bits.view(f"u{bits.itemsize}").astype(np.uint64)
        for half, salt in enumerate(salts):
            mixed_bits = mixed(mixed(bits ^ salt) + salt)
            out[rows, half] = mixed_bits.sum(axis=1, dtype=np.uint64)
    return out


def mixed(values: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers that look random, one for each of ``values``."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
