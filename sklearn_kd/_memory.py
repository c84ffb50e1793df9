"""Memory is planned before it is allocated.

A plan is a number of bytes worked out from shapes alone; `require` compares it with the budget
and raises before anything is allocated.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from sklearn_kd.exceptions import MemoryBudgetError

# What the blocked evaluations (kernel tiles, prediction blocks) may hold at once, beside results.
WORKSPACE_BYTES = 64 * 2**20


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
