"""Full float32 precision in matrix products, whatever the user set globally."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# torch's setting belongs to the whole process, so overlapping uses in several threads have to
# agree on who saves and who restores it: the first one in and the last one out.
_lock = threading.Lock()
_users = 0
_undo: list[Callable[[], None]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch reduced-precision float32 products (TF32, bfloat16) off, and restore the setting.

    The setting belongs to the whole process: other threads see it change for the duration.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels._precision import full_precision
    >>> with full_precision():
    ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
    """
    global _users
    with _lock:
        if _users == 0:
            _undo.append(_switch_to_full())
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _undo.pop()()


def _switch_to_full() -> Callable[[], None]:
    """Set full precision and return what undoes it."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(before)
    # torch's type stubs do not list the backend's matmul switch.
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    settings = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        for switch, setting in zip(switches, settings, strict=True):
            switch.fp32_precision = setting

    return restore
