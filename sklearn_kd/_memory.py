"""Memory is planned before it is allocated.

A plan is a number of bytes worked out from shapes alone; `require` compares it with the budget
and raises before anything is allocated.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
import threading
from collections.abc import Iterator
from multiprocessing.dummy import DummyProcess
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch
import torch.distributed as dist

from sklearn_kd.exceptions import MemoryBudgetError

# None on Windows, which has no such limits.
resource: Any = (
    importlib.import_module("resource") if importlib.util.find_spec("resource") else None
)

# Memory of blocked evaluations (kernel tiles, prediction blocks) at a time, beside results.
WORKSPACE_BYTES = 64 * 2**20
# On a GPU, where smaller blocks are over before the next one is launched.
GPU_WORKSPACE_BYTES = 8 * WORKSPACE_BYTES

CPU = torch.device("cpu")

# The share of free memory that "auto" allows one computation.
AUTO_SHARE = 0.9

MEMORY_REMEDY = (
    "Use fewer rows, a device with more memory, dtype='float32' (half the bytes), or raise "
    "memory_limit."
)

_PROC = Path("/proc/self")

# For each kind of control group: its limits, the memory used, and the reclaimable part of that.
# The system reclaims the page cache and its own caches before it refuses memory.
_GROUP_FILES = {
    "cgroup2": (
        ("memory.max", "memory.high"),
        "memory.current",
        {"inactive_file", "active_file", "slab_reclaimable"},
    ),
    "cgroup": (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        {"total_inactive_file", "total_active_file"},
    ),
}


def _group_folders() -> Iterator[tuple[str, Path]]:
    """Yield (kind, folder) of the control groups of this process, up to the root of each tree.

    Every one of their limits applies. Containers, batch systems and service managers set them.
    """
    own: dict[str, PurePosixPath] = {}
    for line in (_PROC / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            own["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in (_PROC / "mountinfo").read_text().splitlines():
        place, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split()[:3]
        if kind not in own or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        # A container may have mounted only its own part of the tree, whose top is `root`.
        root, mount = (part.replace("\\040", " ") for part in place.split()[3:5])
        inside = own[kind].is_relative_to(root) and ".." not in own[kind].parts
        relative = own[kind].relative_to(root) if inside else PurePosixPath()
        for part in (relative, *relative.parents):
            yield kind, Path(mount, part)


def _group_headroom(kind: str, folder: Path) -> int | None:
    """Return the bytes left under the limit of a control group; None without a limit."""
    limit_names, used_name, reclaimable_names = _GROUP_FILES[kind]
    limits = [_number(folder / name) for name in limit_names]
    limit = min((limit for limit in limits if limit is not None), default=None)
    used = _number(folder / used_name)
    if limit is None or used is None:
        return None
    try:
        statistics = (folder / "memory.stat").read_text()
    except OSError:
        statistics = ""
    entries = (line.split() for line in statistics.splitlines())
    reclaimable = sum(int(count) for name, count in entries if name in reclaimable_names)
    return max(0, limit - max(0, used - reclaimable))


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is none."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _address_space_headroom() -> int | None:
    """Return the bytes left of this process's address space (``ulimit -v``); None without one."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - psutil.Process().memory_info().vms)


def _free_bytes() -> int:
    """Return the bytes of the host that this process can still get, by the tightest limit."""
    try:
        headrooms = [_group_headroom(kind, folder) for kind, folder in _group_folders()]
    except OSError:  # no Linux
        headrooms = []
    headrooms += [_address_space_headroom(), psutil.virtual_memory().available]
    return min(headroom for headroom in headrooms if headroom is not None)


def _n_sharing() -> int:
    """Return how many workers of a pool plan at the same time, including this one.

    This is the number of worker processes with the same parent (of joblib's "loky" and
    "multiprocessing", or of `multiprocessing`), times the threads of joblib's "threading". The
    processes of a `torch.distributed` group agree on their plans themselves.
    """
    if dist.is_available() and dist.is_initialized():
        return 1
    n_threads = 1
    if isinstance(threading.current_thread(), DummyProcess):
        n_threads = sum(isinstance(thread, DummyProcess) for thread in threading.enumerate())
    if multiprocessing.parent_process() is None:
        return n_threads
    own, parent = _command(psutil.Process()), psutil.Process().parent()
    siblings = [] if parent is None else parent.children()
    return max(1, sum(_command(process) == own for process in siblings)) * n_threads


def _command(process: psutil.Process) -> str | None:
    """Return what distinguishes the workers of a pool from their parent's other children."""
    try:
        return re.sub(r"\d+", "", " ".join(process.cmdline()[:4]))
    except psutil.Error:  # it has ended meanwhile
        return None


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on ``device`` without swapping.

    In a pool of workers it is this worker's share.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free // _n_sharing() + cached
    return _free_bytes() // _n_sharing()


def workspace_bytes(device: torch.device) -> int:
    """Return the memory of blocked evaluations on ``device`` at a time, beside results."""
    return WORKSPACE_BYTES if device.type == "cpu" else GPU_WORKSPACE_BYTES


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
