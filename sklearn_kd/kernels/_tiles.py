"""Blocked evaluation: kernel matrices in tiles that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sklearn_kd._memory import CPU, workspace_bytes
from sklearn_kd.kernels._precision import full_precision

# Work arrays of a tile's size per core: those of a ReLU, beside whose matrix tiles of a CPU are
# small, and on a GPU those of a GELU, which needs most. Numbers kept for a row beside its features.
_TILE_BUFFERS = 7
_GPU_TILE_BUFFERS = 18
_PER_ROW = 16

# Rows, columns, and the entries of a kernel matrix there.
Block = tuple[slice, slice, Tensor]

_CPU_TILE = 512  # small enough for a core's caches, large enough to hide Python's overhead
_CUDA_TILE = 2048  # large enough for a kernel to outlast its launch


def tile_size(device: torch.device) -> int:
    """Return the side of the square tiles used on ``device``."""
    return _CPU_TILE if device.type == "cpu" else _CUDA_TILE


def in_parallel(fill: Callable[..., None], tiles: Sequence[tuple[int, ...]], out: Tensor) -> None:
    """Call ``fill(*tile)`` for every tile; on a CPU each core works on a tile of its own."""
    # If every operation on a tile were split over the cores, they would wait for each other
    # thousands of times. That is a little slower on an idle machine, and many times on a busy one.
    threads = torch.get_num_threads() if out.device.type == "cpu" else 1
    if threads == 1 or len(tiles) == 1:
        for tile in tiles:
            fill(*tile)
        return
    try:
        # The setting holds for this thread and for threads started later, so restore it.
        with ThreadPoolExecutor(threads, "tiles", torch.set_num_threads, (1,)) as pool:
            for _ in pool.map(lambda tile: fill(*tile), tiles):
                pass
    finally:
        torch.set_num_threads(threads)


def ordinary(tensor: Tensor) -> Tensor:
    """Return ``tensor``, or a copy that autograd can use if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def stream(kernel_block: Callable[[Tensor, Any], Tensor], X: Tensor, Y: Any) -> Iterator[Block]:
    """Yield (rows, columns, entries) of K(X, Y), a workspace of entries at a time.

    ``kernel_block(X, Y)`` returns K(X, Y), such as the method ``block`` of a kernel function, which
    takes prepared rows for ``Y`` too.
    """
    entries = workspace_bytes(X.device) // X.element_size()
    columns = max(1, min(len(Y), entries // 64))
    rows = max(1, entries // columns)
    for i in range(0, len(X), rows):
        for j in range(0, len(Y), columns):
            block = kernel_block(X[i : i + rows], Y[j : j + columns])
            yield slice(i, i + rows), slice(j, j + columns), block


def product(blocks: Iterable[Block], n_rows: int, V: Tensor) -> Tensor:
    """Return K V of shape (n_rows, k) for V of shape (m, k), K given by its blocks."""
    result = V.new_zeros(n_rows, V.shape[1])
    with full_precision():
        for rows, columns, block in blocks:
            result[rows].addmm_(block, V[columns])
    return result


def kernel_bytes(
    n_rows: int, n_columns: int, n_features: int, dtype: torch.dtype, device: torch.device = CPU
) -> int:
    """Return the peak bytes of evaluating a kernel matrix.

    They are those of its entries, of the prepared rows, and of the tiles of every core.
    """
    area = min(tile_size(device), n_rows) * min(tile_size(device), n_columns)
    if device.type == "cpu":
        tiles = torch.get_num_threads() * _TILE_BUFFERS * area * dtype.itemsize
    else:  # as in float64: in float32 there are more
        tiles = _GPU_TILE_BUFFERS * area * torch.float64.itemsize
    rows = (n_rows + n_columns) * (n_features + _PER_ROW)
    return (n_rows * n_columns + rows) * dtype.itemsize + tiles
