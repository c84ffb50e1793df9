"""Full float32 precision in products and convolutions, whatever the user set globally."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

# torch's setting belongs to the whole process, so overlapping uses in several threads have to
# agree on who saves and who restores it: the first one in and the last one out.
_lock = threading.Lock()
_users = 0
_undo: list[Callable[[], None]] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch reduced precision (TF32, bfloat16) in float32 off, and restore the setting.

    The setting concerns matrix products, convolutions and recurrent layers. For convolutions on
    CUDA, TF32 is torch's default.

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
    """Set full precision and return a function that undoes it."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        _switch_old_style("highest", False)
        return lambda: _switch_old_style(*before)
    backends = cast(Any, torch.backends)  # torch's type stubs do not list the switches
    cudnn, cpu = backends.cudnn, backends.mkldnn
    switches = [backends.cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]
    settings = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        for switch, setting in zip(switches, settings, strict=True):
            switch.fp32_precision = setting

    return restore


def _switch_old_style(products: str, cudnn_tf32: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
