"""Blocked evaluation: kernel matrices in tiles that stay in cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ._precision import full_precision

if TYPE_CHECKING:
    from ._function import KernelFunction


class Recursion(Protocol):
    """A layer recursion on prepared rows, which are opaque here but can be sliced."""

    @property
    def buffers(self) -> int:
        """Return how many arrays of a tile's size `tile` works in."""

    def rows(self, X: Tensor, like: Any = None) -> Any:
        """Prepare rows of shape (n, d); both sides of a block need the same ``like``."""

    def variances(self, X: Tensor) -> Tensor:
        """Return the variances of the pre-activations of rows, shape (L + 1, n)."""

    def diagonal(self, variances: Tensor) -> Tensor:
        """Return K(x, x) for rows with these variances, shape (n,)."""

    def tile(self, x: Any, y: Any, out: Tensor, work: list[Tensor], *, same: bool) -> None:
        """Write K(x, y) into ``out``; the diagonal is left open if x and y are the same rows."""

    def gradient(self, x: Any, y: Any) -> Tensor:
        """Return the derivatives of K(x, y) in log σ_w and log σ_b, shape (2, n, m)."""


_CPU_TILE = 512
_CUDA_TILE = 4096
_STREAM_BYTES = 2**26  # of kernel entries held at a time by `matmat`


def tile_size(device: torch.device) -> int:
    """Return the side of the square tiles used on ``device``."""
    return _CPU_TILE if device.type == "cpu" else _CUDA_TILE


def fill_block(recursion: Recursion, X: Tensor, Y: Tensor, out: Tensor) -> Tensor:
    """Write K(X, Y) into ``out`` of shape (n, m), tile by tile."""
    if out.numel() == 0:
        return out
    with full_precision():
        y_rows = recursion.rows(Y)
        x_rows = recursion.rows(X, like=y_rows)
        size = tile_size(X.device)
        work = _workspace(recursion, out, size)
        for i in range(0, len(X), size):
            for j in range(0, len(Y), size):
                target = out[i : i + size, j : j + size]
                recursion.tile(x_rows[i : i + size], y_rows[j : j + size], target, work, same=False)
    return out


def fill_gram(recursion: Recursion, X: Tensor, out: Tensor, *, symmetrize: bool) -> Tensor:
    """Write K(X, X) into ``out`` of shape (n, n): its upper triangle, mirrored if asked."""
    if out.numel() == 0:
        return out
    with full_precision():
        rows = recursion.rows(X)
        diagonal = recursion.diagonal(rows.variances)
        size = tile_size(X.device)
        work = _workspace(recursion, out, size)
        for i in range(0, len(X), size):
            x_rows = rows[i : i + size]
            for j in range(i, len(X), size):
                target = out[i : i + size, j : j + size]
                if i < j:
                    recursion.tile(x_rows, rows[j : j + size], target, work, same=False)
                    if symmetrize:
                        out[j : j + size, i : i + size] = target.T
                else:
                    # the tile on the diagonal: keep what lies below it unless asked to mirror
                    corner = torch.empty_like(target)
                    recursion.tile(x_rows, x_rows, corner, work, same=True)
                    corner.diagonal().copy_(diagonal[i : i + size])
                    corner.triu_()
                    if symmetrize:
                        target.copy_(corner).add_(corner.triu(1).T)
                    else:
                        target.tril_(-1).add_(corner)
    return out


def fill_gradient(recursion: Recursion, X: Tensor, out: Tensor) -> Tensor:
    """Write the derivatives of K(X, X) into ``out`` of shape (n, n, 2), by blocks of rows."""
    with full_precision():
        rows = recursion.rows(X)
        size = tile_size(X.device)
        for i in range(0, len(X), size):
            block = recursion.gradient(rows[i : i + size], rows)
            out[i : i + size] = block.permute(1, 2, 0)
    return out


def _workspace(recursion: Recursion, out: Tensor, size: int) -> list[Tensor]:
    area = min(size, out.shape[0]) * min(size, out.shape[1])
    return [out.new_empty(area) for _ in range(recursion.buffers)]


def matmat(kernel: KernelFunction, X: Tensor, Y: Tensor, V: Tensor) -> Tensor:
    """Return K(X, Y) V of shape (n, k) for V of shape (m, k), holding few kernel entries.

    At most 64 MiB of K(X, Y) exist at a time, whatever n and m.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels._infinite import InfiniteKernel
    >>> from sklearn_kd.kernels._tiles import matmat
    >>> X, V = torch.eye(3), torch.ones(3, 1)
    >>> product = matmat(InfiniteKernel(), X, X, V)
    >>> torch.allclose(product, InfiniteKernel().gram(X) @ V)
    True
    """
    result = V.new_zeros(len(X), V.shape[1])
    entries = _STREAM_BYTES // V.element_size()
    columns = max(1, min(len(Y), entries // 64))
    rows = max(1, entries // columns)
    with full_precision():
        for i in range(0, len(X), rows):
            for j in range(0, len(Y), columns):
                block = kernel.block(X[i : i + rows], Y[j : j + columns])
                result[i : i + rows].addmm_(block, V[j : j + columns])
    return result
