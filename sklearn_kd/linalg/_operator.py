"""Kernel matrices as operators: what iterative solvers and pivoted Cholesky need to know of them.

A solver asks for the diagonal, a few columns and products Θ V, never for the matrix. Where its
entries live, in memory, in a file or nowhere, is the operator's affair.

===================  ==========================  ==================================
operator             bytes for n rows            a product with (n, k)
===================  ==========================  ==================================
`DenseOperator`      n² entries in memory        one matrix product
`MemmapOperator`     n² entries on disk          reads the file once
`TiledOperator`      a few tiles                 evaluates the kernel's upper half
`ShardedOperator`    a few tiles, or its share   of P processes each does one P-th of that
                     of n²/2 entries
`RidgeOperator`      n, beside its operator's    that of its operator
===================  ==========================  ==================================
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels._function import KernelFunction
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._tiles import tile_size
from sklearn_kd.linalg._memory import WORKSPACE_BYTES, format_bytes

# Side of the tiles that a kernel is asked for: it splits them over the cores itself.
_TILE = 2048


class KernelOperator(ABC):
    """A symmetric positive semi-definite (n, n) matrix, known by what can be asked of it.

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


class MemmapOperator(KernelOperator):
    """A kernel matrix in a file, of which row blocks are read as a product passes through it.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
        A `numpy.memmap` in general; both triangles, rows contiguous.
    device : torch.device, default="cpu"
        Where products are computed.
    """

    def __init__(self, matrix: np.ndarray, device: str | torch.device = "cpu") -> None:
        self.matrix = matrix
        self.n_rows, self.device = len(matrix), torch.device(device)
        self.dtype = torch.from_numpy(np.empty(0, matrix.dtype)).dtype

    @classmethod
    def write(cls, kernel: KernelFunction, X: Tensor, path: str | os.PathLike) -> Self:
        """Write K(X, X) into a new file, tile by tile, and return it as an operator.

        Parameters
        ----------
        kernel : KernelFunction
        X : Tensor of shape (n, d)
        path : path-like
            File of n² entries in the dtype of ``X``, without header.

        Raises
        ------
        MemoryBudgetError
            If the disk is too small; a memory map of a file that the disk cannot hold would end
            the process at some later write.
        """
        n = len(X)
        needed = n * n * X.element_size()
        free = shutil.disk_usage(Path(path).absolute().parent).free
        if needed > free:
            raise MemoryBudgetError(
                f"The kernel matrix of n={n} rows takes {format_bytes(needed)} on disk, but only "
                f"{format_bytes(free)} are free beside path={os.fspath(path)!r}. Choose another "
                "disk, or evaluate the kernel on the fly."
            )
        dtype = np.dtype(str(X.dtype).removeprefix("torch."))
        matrix = np.memmap(path, dtype=dtype, mode="w+", shape=(n, n))
        for rows, columns, entries in upper_tiles(kernel, X):
            tile = entries.cpu().numpy()
            matrix[rows, columns] = tile
            if rows != columns:
                matrix[columns, rows] = tile.T
        matrix.flush()
        return cls(matrix, X.device)

    def _read(self, entries: np.ndarray) -> Tensor:
        # a copy: torch has no read-only tensors, and the file must not change under the caller
        return torch.from_numpy(np.array(entries, order="C")).to(self.device)

    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        return self._read(self.matrix.diagonal())

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""
        return self._read(self.matrix[np.ix_(rows.cpu().numpy(), columns.cpu().numpy())])

    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""
        return self._read(self.matrix[indices.cpu().numpy()]).T

    @full_precision()
    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        result = torch.empty_like(V)
        step = max(1, WORKSPACE_BYTES // (self.n_rows * self.matrix.itemsize))
        for start in range(0, self.n_rows, step):
            rows = slice(start, start + step)
            result[rows] = self._read(self.matrix[rows]) @ V
        return result


class TiledOperator(KernelOperator):
    """A kernel matrix that is never stored: every product evaluates its upper half anew.

    Each tile off the diagonal serves both triangles of the product. The kernel evaluates a tile
    on all cores. A kernel with a product of its own is asked for that.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Rows; their dtype and device are the operator's.
    """

    def __init__(self, kernel: KernelFunction, X: Tensor) -> None:
        self.kernel = kernel
        self.X = X
        self.n_rows, self.dtype, self.device = len(X), X.dtype, X.device

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

    @full_precision()
    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        if hasattr(self.kernel, "matmat"):
            return self.kernel.matmat(self.X, self.X, V)
        return add_tile_product(torch.zeros_like(V), upper_tiles(self.kernel, self.X), V)


class RidgeOperator(KernelOperator):
    """Θ + diag(ridge): the matrix A = Θ + α W⁻¹ of the ridge student.

    Parameters
    ----------
    operator : KernelOperator
        Θ.
    ridge : Tensor of shape (n,)
        α / wᵢ ≥ 0.
    """

    def __init__(self, operator: KernelOperator, ridge: Tensor) -> None:
        self.operator = operator
        self.ridge = ridge
        self.n_rows, self.dtype, self.device = operator.n_rows, operator.dtype, operator.device

    def diag(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        return self.operator.diag() + self.ridge

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the entries of these rows and columns, shape (n_rows, n_columns)."""
        same = rows[:, None] == columns
        return self.operator.block(rows, columns) + same * self.ridge[rows][:, None]

    def columns(self, indices: Tensor) -> Tensor:
        """Return whole columns, shape (n, n_indices)."""
        entries = self.operator.columns(indices).clone()
        position = torch.arange(len(indices), device=self.device)
        entries[indices, position] += self.ridge[indices]
        return entries

    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        return self.operator.matmat(V).addcmul_(self.ridge[:, None], V)


def upper_parts(n_rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) of the tiles of this size on and above the diagonal."""
    parts = [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            yield rows, columns


def upper_tiles(kernel: KernelFunction, X: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, columns, entries) of K(X, X) tile by tile, on and above the diagonal."""
    for rows, columns in upper_parts(len(X), max(_TILE, tile_size(X.device))):
        yield rows, columns, tile_of(kernel, X, rows, columns)


def tile_of(kernel: KernelFunction, X: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return the entries of one tile of K(X, X)."""
    return kernel.gram(X[rows]) if rows == columns else kernel.block(X[rows], X[columns])


def add_tile_product(
    result: Tensor, tiles: Iterable[tuple[slice, slice, Tensor]], V: Tensor
) -> Tensor:
    """Add K V to ``result``, K given by tiles on and above the diagonal; each serves both sides."""
    for rows, columns, entries in tiles:
        result[rows].addmm_(entries, V[columns])
        if rows != columns:
            result[columns].addmm_(entries.T, V[rows])
    return result
