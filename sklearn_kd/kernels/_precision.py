"""Full float32 precision in matrix products, whatever the user set globally."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    settings = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, setting in zip(switches, settings, strict=True):
            switch.fp32_precision = setting
