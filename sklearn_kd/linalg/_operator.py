"""Kernel matrices as operators, for iterative solvers and pivoted Cholesky.

A solver needs the diagonal, a few columns and products Θ V, but never the whole matrix. The
operator decides where the entries are kept: in memory, in a file or nowhere.

===================  ==========================  ==================================
operator             bytes for n rows            a product with (n, k)
===================  ==========================  ==================================
`DenseOperator`      n² entries in memory        one matrix product
`TiledOperator`      the tiles that it keeps,    reads those, and evaluates the others, of the
                     up to n²/2 entries          upper half
`ShardedOperator`    likewise, of its share      of P processes each does one P-th of that
`RidgeOperator`      n, beside its operator's    that of its operator
===================  ==========================  ==================================
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels._tiles import tile_size
from sklearn_kd.linalg._reproducible_sum import ReproducibleSum

# Largest side of a tile that a CPU kernel evaluates; it splits the tile over the cores itself.
_TILE = 2048
# Smaller tiles are not worth a call.
_SMALLEST_TILE = 64
# With this many tiles, if n allows, the shares of the processes are even.
_TILES_PER_SIDE = 8


class KernelOperator(ABC):
    """A symmetric positive semi-definite (n, n) matrix, known by its diagonal, blocks and products.

    Indices are tensors of row numbers. A product is with the whole matrix, and its caller gets
    all n rows of it: an operator that is spread over processes gathers them.
    """

    n_rows: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n_rows, self.n_rows

    @abstractmethod
    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""

    @abstractmethod
    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""

    @abstractmethod
    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""

    @abstractmethod
    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k) and the operator's dtype, shape (n, k)."""


class DenseOperator(KernelOperator):
    """A kernel matrix in memory.

    Parameters
    ----------
    matrix : Tensor of shape (n, n)
        Both triangles.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.n_rows, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        return self.matrix.diagonal().clone()

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""
        return self.matrix[rows[:, None], columns]

    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""
        return self.matrix[indices].T

    @full_precision()
    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        # = Θ V by symmetry; MKL takes up to three times as long for Θ V of few columns
        return (V.T @ self.matrix).T


class TiledOperator(KernelOperator):
    """A kernel matrix: some tiles of its upper half are kept, the others evaluated when needed.

    Each tile off the diagonal serves both triangles of a product. The kernel evaluates a tile on
    all cores. Results depend neither on the kept tiles nor on the order of the tiles. If the kernel
    has a product of its own, that is used unless all tiles are kept.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Rows; their dtype and device are the operator's.
    kept_bytes : int, default=0
        Bytes of tiles to keep.

    Attributes
    ----------
    kept_share : float
        The share of the tiles' entries that are kept.
    """

    def __init__(self, kernel: KernelFunction, X: Tensor, *, kept_bytes: int = 0) -> None:
        self.kernel = kernel
        self.X = X
        self.n_rows, self.dtype, self.device = len(X), X.dtype, X.device
        self._parts = self._own_parts()
        sizes = [tile_entries(part) * X.element_size() for part in self._parts]
        n_kept = sum(1 for total in itertools.accumulate(sizes) if total <= kept_bytes)
        if kernel.has_own_product and n_kept < len(sizes):
            n_kept = 0
        self._kept = [tile_of(kernel, X, *part) for part in self._parts[:n_kept]]
        self.kept_share = sum(sizes[:n_kept]) / max(sum(sizes), 1)
        self._largest = max(self.diag().amax().item(), 0.0) if len(X) else 0.0

    def _own_parts(self) -> list[tuple[slice, slice]]:
        return list(upper_parts(self.n_rows, tile_side(self.n_rows, self.device)))

    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        return self.kernel.diag(self.X)

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""
        entries = self.kernel.block(self.X[rows], self.X[columns])
        return self._with_diagonal(entries, rows, columns)

    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""
        entries = self.kernel.block(self.X, self.X[indices])
        position = torch.arange(len(indices), device=self.device)
        entries[indices, position] = self.kernel.diag(self.X[indices])
        return entries

    def _with_diagonal(self, entries: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # `diag` is exact where the product of a row with itself is rounded.
        same = (rows[:, None] == columns).nonzero(as_tuple=True)
        if len(same[0]):
            entries[same] = self.kernel.diag(self.X[rows[same[0]]])
        return entries

    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        if self.kernel.has_own_product and not self._kept:
            return self.kernel.matmat(self.X, self.X, V)
        return self.sum_of_tiles(V).value().to(V.dtype)

    @full_precision()
    def sum_of_tiles(self, V: Tensor) -> ReproducibleSum:
        """Return the product of the tiles with ``V`` of shape (n, k), as a sum."""
        # |Θ| ≤ max Θ(x, x), and twice that with rounding
        total = ReproducibleSum(self.n_rows, 2 * self._largest * V.double().abs().sum(dim=0))
        V_T = V.T.contiguous()
        for part, kept in itertools.zip_longest(self._parts, self._kept):
            rows, columns = part
            entries = tile_of(self.kernel, self.X, rows, columns) if kept is None else kept
            # transposed: MKL is faster with the few columns of V as rows
            total.add(rows, (V_T[:, columns] @ entries.T).T)
            if rows != columns:
                total.add(columns, (V_T[:, rows] @ entries).T)
        return total


class RidgeOperator(KernelOperator):
    """Θ + diag(row_ridges): the matrix A = Θ + λ W⁻¹ of the ridge student.

    Parameters
    ----------
    operator : KernelOperator
        Θ.
    row_ridges : Tensor of shape (n,)
        λ / wᵢ ≥ 0.
    """

    def __init__(self, operator: KernelOperator, row_ridges: Tensor) -> None:
        self.operator = operator
        self.row_ridges = row_ridges
        self.n_rows, self.dtype, self.device = operator.n_rows, operator.dtype, operator.device

    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        return self.operator.diag() + self.row_ridges

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""
        same = rows[:, None] == columns
        return self.operator.block(rows, columns) + same * self.row_ridges[rows][:, None]

    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""
        entries = self.operator.columns(indices).clone()
        position = torch.arange(len(indices), device=self.device)
        entries[indices, position] += self.row_ridges[indices]
        return entries

    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        return self.operator.matmat(V).addcmul_(self.row_ridges[:, None], V)


def tile_side(n_rows: int, device: torch.device) -> int:
    """Return the side of the tiles of a product: eight along n rows, up to a largest size.

    It depends neither on the kept tiles nor on the number of processes: another side would round
    differently.
    """
    side = max(_SMALLEST_TILE, -(-n_rows // _TILES_PER_SIDE))
    whole = _TILE // 4  # what a CPU kernel evaluates at a time
    if side > whole:
        side = -(-side // whole) * whole
    return min(side, max(_TILE, tile_size(device)))


def upper_parts(n_rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) of the tiles of this size on and above the diagonal."""
    parts = [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            yield rows, columns


def tile_entries(part: tuple[slice, slice]) -> int:
    """Return the number of entries of a tile."""
    rows, columns = part
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def tile_of(kernel: KernelFunction, X: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return the entries of one tile of K(X, X)."""
    return kernel.gram(X[rows]) if rows == columns else kernel.block(X[rows], X[columns])
