"""Memory is planned before it is allocated.

A plan is a number of bytes worked out from shapes alone; `require` compares it with the budget
and raises before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from sklearn_kd.exceptions import MemoryBudgetError

# What the blocked evaluations (kernel tiles, prediction blocks) may hold at once, beside results.
WORKSPACE_BYTES = 64 * 2**20

# Arrays of a tile's size that a core works in, numbers kept of a row beside its features, and
# work copies of the right-hand sides.
_TILE_BUFFERS = 7
_PER_ROW = 16
_COLUMN_COPIES = 6

# Of the kernel matrix, what is copied at a time to gather a fold's part of it.
GATHER_BYTES = 4 * 2**20

CPU = torch.device("cpu")

# The share of what is free that "auto" lets one computation take.
AUTO_SHARE = 0.9

MEMORY_REMEDY = (
    "Use fewer rows, a device with more memory, dtype='float32' (half the bytes), or raise "
    "memory_limit."
)

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def _container_headroom() -> int | None:
    """Return the bytes left under a Linux container's memory limit; None without a limit."""
    try:
        limit, used = _CGROUP_LIMIT.read_text().strip(), _CGROUP_USED.read_text().strip()
    except OSError:
        return None
    return int(limit) - int(used) if limit.isdigit() else None


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on ``device`` without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    free = psutil.virtual_memory().available
    headroom = _container_headroom()
    return free if headroom is None else min(free, headroom)


def budget_bytes(memory_limit: float | str, device: torch.device) -> int:
    """Return the bytes that ``memory_limit`` allows on ``device``."""
    if memory_limit == "auto":
        return int(AUTO_SHARE * available_bytes(device))
    return int(memory_limit)


def kernel_bytes(
    n_rows: int, n_columns: int, n_features: int, dtype: torch.dtype, device: torch.device = CPU
) -> int:
    """Return the peak bytes of evaluating a kernel matrix.

    Beside its entries stand the rows as its tiles need them, and the tiles of every core.
    """
    from sklearn_kd.kernels._tiles import tile_size  # kernels import this module

    area = min(tile_size(device), n_rows) * min(tile_size(device), n_columns)
    n_cores = torch.get_num_threads() if device.type == "cpu" else 1
    rows = (n_rows + n_columns) * (n_features + _PER_ROW)
    return (n_rows * n_columns + rows + n_cores * _TILE_BUFFERS * area) * dtype.itemsize


def frame_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> int:
    """Return the peak bytes of building a tangent frame and solving for ``n_targets`` columns.

    The factor overwrites the kernel matrix (n²); a copy of the rows, the targets and their work
    copies stand beside it.
    """
    columns = n_rows * _COLUMN_COPIES * n_targets
    return kernel_bytes(n_rows, n_rows, n_features, dtype, device) + columns * dtype.itemsize


def search_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    folds: Sequence[int],
    by_factors: bool,
    keeps_matrix: bool,
    refit: bool,
) -> int:
    """Return the peak bytes of a search over ``n_targets`` columns, one per candidate and class.

    Parameters
    ----------
    folds : sequence of int
        Number of rows that each fold leaves out; empty for leave-one-out.
    by_factors : bool
        Whether folds have factors of their own, beside the matrix of all rows; else they are left
        out of the factor of all rows, a block of columns of its inverse at a time.
    keeps_matrix : bool
        Whether the matrix stands beside the factor of all rows: always where folds have factors.
    refit : bool
        Whether all rows are factored in the end.
    """
    n = n_rows
    if by_factors:
        beside = max(refit * n**2, *((n - m) ** 2 for m in folds))
    elif folds:
        beside = keeps_matrix * n**2 + max(n * m + 3 * m**2 for m in folds)
    else:
        beside = keeps_matrix * n**2
        beside += min(n**2, WORKSPACE_BYTES // (2 * dtype.itemsize))
    return frame_bytes(n, n_features, 2 * n_targets, dtype, device) + beside * dtype.itemsize


def path_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    n_new: int,
    n_orders: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return the peak bytes of following a student through its sizes, beside its own frame.

    Parameters
    ----------
    n_new : int
        Rows on which it is measured, in blocks of features.
    n_orders : int
        Orders of the rows, each with a factor of its own, one at a time; 0 for the one they have.
    """
    # Norms, their changes and errors, of every order and stacked.
    results = 6 * n_rows * n_targets * max(n_orders, 1) * dtype.itemsize
    blocks = min(3 * n_new * n_rows * dtype.itemsize, 3 * WORKSPACE_BYTES // 2)
    if n_orders == 0:
        columns = n_rows * _COLUMN_COPIES * n_targets * dtype.itemsize
        return columns + blocks + results
    return frame_bytes(n_rows, n_features, n_targets, dtype, device) + blocks + results


def require(
    planned: int, memory_limit: float | str, device: torch.device, *, what: str, remedy: str
) -> None:
    """Raise `MemoryBudgetError` unless ``planned`` bytes fit into the budget.

    Raises
    ------
    MemoryBudgetError
        Naming the computation ``what``, the bytes planned and allowed, and the ``remedy``.
    """
    budget = budget_bytes(memory_limit, device)
    if planned > budget:
        raise MemoryBudgetError(
            f"{what} needs {format_bytes(planned)} on device {str(device)!r}, but "
            f"memory_limit={memory_limit!r} allows {format_bytes(budget)}. {remedy}"
        )


def format_bytes(count: float) -> str:
    """Return ``count`` bytes in the largest unit that keeps the number above one."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
