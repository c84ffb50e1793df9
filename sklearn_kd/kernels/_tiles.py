"""Blocked evaluation: kernel matrices in tiles that stay in cache."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision

if TYPE_CHECKING:
    from sklearn_kd.kernels._function import KernelFunction


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


# Rows, columns and the entries there of a kernel matrix.
Block = tuple[slice, slice, Tensor]

_CPU_TILE = 512  # small enough for a core's caches, large enough to hide Python's overhead
_CUDA_TILE = 4096
_STREAM_BYTES = 2**26  # of kernel entries that `stream` holds at a time


def tile_size(device: torch.device) -> int:
    """Return the side of the square tiles used on ``device``."""
    return _CPU_TILE if device.type == "cpu" else _CUDA_TILE


def fill_block(recursion: Recursion, X: Tensor, Y: Tensor, out: Tensor) -> Tensor:
    """Write K(X, Y) into ``out`` of shape (n, m), tile by tile."""
    if out.numel() == 0:
        return out
    size = tile_size(X.device)
    with full_precision():
        y_rows = recursion.rows(Y)
        x_parts = _split(recursion.rows(X, like=y_rows), size)
        y_parts = _split(y_rows, size)
        workspace = _Workspace(recursion, out, size)

        def fill(i: int, j: int) -> None:
            target = out[i * size : (i + 1) * size, j * size : (j + 1) * size]
            recursion.tile(x_parts[i], y_parts[j], target, workspace.buffers, same=False)

        in_parallel(fill, list(itertools.product(range(len(x_parts)), range(len(y_parts)))), out)
    return out


def fill_gram(recursion: Recursion, X: Tensor, out: Tensor, *, symmetrize: bool) -> Tensor:
    """Write K(X, X) into ``out`` of shape (n, n): its upper triangle, mirrored if asked."""
    if out.numel() == 0:
        return out
    size = tile_size(X.device)
    with full_precision():
        rows = recursion.rows(X)
        # The tiles on the diagonal are halved, as half of such a tile is not asked for. They come
        # last: the small ones even out the work of the cores.
        half = size // 2
        parts = {side: _split(rows, side) for side in (size, half)}
        n_tiles, n_halves = len(parts[size]), len(parts[half])
        tiles = [(size, i, j) for i in range(n_tiles) for j in range(i + 1, n_tiles)]
        tiles += [
            (half, i, j) for i in range(n_halves) for j in range(i, min(i | 1, n_halves - 1) + 1)
        ]
        diagonal = recursion.diagonal(rows.variances).split(half)
        workspace = _Workspace(recursion, out, size)

        def fill(side: int, i: int, j: int) -> None:
            x, y = parts[side][i], parts[side][j]
            target = out[i * side : (i + 1) * side, j * side : (j + 1) * side]
            if i < j:
                recursion.tile(x, y, target, workspace.buffers, same=False)
                if symmetrize:
                    out[j * side : (j + 1) * side, i * side : (i + 1) * side] = target.T
                return
            # on the diagonal: keep what lies below it unless asked to mirror
            corner = torch.empty_like(target)
            recursion.tile(x, x, corner, workspace.buffers, same=True)
            corner.diagonal().copy_(diagonal[i])
            corner.triu_()
            if symmetrize:
                target.copy_(corner).add_(corner.triu(1).T)
            else:
                target.tril_(-1).add_(corner)

        in_parallel(fill, tiles, out)
    return out


def fill_gradient(recursion: Recursion, X: Tensor, out: Tensor) -> Tensor:
    """Write the derivatives of K(X, X) into ``out`` of shape (n, n, 2), by blocks of rows."""
    size = tile_size(X.device)
    with full_precision():
        rows = recursion.rows(X)
        parts = _split(rows, size)

        def fill(i: int) -> None:
            block = recursion.gradient(parts[i], rows)
            out[i * size : (i + 1) * size] = block.permute(1, 2, 0)

        in_parallel(fill, [(i,) for i in range(len(parts))], out)
    return out


def _split(rows: Any, size: int) -> list[Any]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Workspace(threading.local):
    """Buffers of a tile's size, for each thread its own."""

    def __init__(self, recursion: Recursion, out: Tensor, size: int):
        area = min(size, out.shape[0]) * min(size, out.shape[1])
        self.buffers = [out.new_empty(area) for _ in range(recursion.buffers)]


def in_parallel(fill: Callable[..., None], tiles: Sequence[tuple[int, ...]], out: Tensor) -> None:
    """Call ``fill(*tile)`` for every tile; on a CPU each core works on a tile of its own."""
    # Splitting every operation on a tile over the cores would have them wait for each other
    # thousands of times: a little slower on an idle machine, and many times beside a busy process.
    threads = torch.get_num_threads() if out.device.type == "cpu" else 1
    if threads == 1 or len(tiles) == 1:
        for tile in tiles:
            fill(*tile)
        return
    try:
        # the setting holds for the thread that makes it, and for threads to come: put it back
        with ThreadPoolExecutor(threads, "tiles", torch.set_num_threads, (1,)) as pool:
            for _ in pool.map(lambda tile: fill(*tile), tiles):
                pass
    finally:
        torch.set_num_threads(threads)


def matmat(kernel: KernelFunction, X: Tensor, Y: Tensor, V: Tensor) -> Tensor:
    """Return K(X, Y) V of shape (n, k) for V of shape (m, k), holding few kernel entries.

    At most 64 MiB of K(X, Y) exist at a time, whatever n and m; none where the kernel has a product
    of its own.

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
    if hasattr(kernel, "matmat"):
        return kernel.matmat(X, Y, V)
    return product(stream(kernel, X, Y), len(X), V)


def stream(kernel: KernelFunction, X: Tensor, Y: Tensor) -> Iterator[Block]:
    """Yield (rows, columns, entries) of K(X, Y), 64 MiB of entries at a time."""
    entries = _STREAM_BYTES // X.element_size()
    columns = max(1, min(len(Y), entries // 64))
    rows = max(1, entries // columns)
    for i in range(0, len(X), rows):
        for j in range(0, len(Y), columns):
            block = kernel.block(X[i : i + rows], Y[j : j + columns])
            yield slice(i, i + rows), slice(j, j + columns), block


def product(blocks: Iterable[Block], n_rows: int, V: Tensor) -> Tensor:
    """Return K V of shape (n_rows, k) for V of shape (m, k), K given by its blocks."""
    result = V.new_zeros(n_rows, V.shape[1])
    with full_precision():
        for rows, columns, block in blocks:
            result[rows].addmm_(block, V[columns])
    return result
