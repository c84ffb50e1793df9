"""Long dense operations in parts: between two calls of the library Python answers Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Multiplications with their additions that one call may take: a second or less on one CPU core.
OPERATIONS_PER_CALL = 2**34


def parts(length: int, operations: float, device: torch.device) -> Iterator[slice]:
    """Split ``length`` items, of ``operations`` each, into slices that take about a second.

    A GPU is given all of them at once.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._parts import parts
    >>> list(parts(5, 2**33, torch.device("cpu")))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, length)
    if device.type == "cpu":
        step = max(1, min(step, int(OPERATIONS_PER_CALL / max(operations, 1))))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def product(A: Tensor, B: Tensor) -> Tensor:
    """Return A B for A (m, k) and B (k, p)."""
    out = A.new_empty((len(A), B.shape[1]))
    for rows in parts(len(A), B.numel(), A.device):
        torch.mm(A[rows], B, out=out[rows])
    return out


def solve_triangular(triangle: Tensor, B: Tensor, *, upper: bool) -> Tensor:
    """Return the solution X of T X = B for T (n, n) and B (n, p)."""
    n, width = B.shape
    columns = list(parts(width, n**2 / 2, B.device))
    if len(columns) <= 1:
        return torch.linalg.solve_triangular(triangle, B, upper=upper)
    out = B.new_empty((width, n)).T
    for some in columns:
        out[:, some] = torch.linalg.solve_triangular(triangle, B[:, some], upper=upper)
    return out
