"""Running sums that are reproducible on a GPU where determinism is asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sklearn_kd.kernels._precision import full_precision

_BLOCK = 256


def running_sum(values: Tensor, dim: int = 0) -> Tensor:
    """Return s_i = Σ_{j ≤ i} v_j along ``dim``, in the shape of ``values``.

    On CUDA `torch.cumsum` of floating-point numbers adds in an order that varies, and is an error
    under ``torch.use_deterministic_algorithms(True)``. The sums are then products with triangles
    of ones.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._running_sum import running_sum
    >>> running_sum(torch.tensor([1.0, 2.0, 4.0]))
    tensor([1., 3., 7.])
    """
    if values.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return sum_by_blocks(values.movedim(dim, -1)).movedim(-1, dim)
    return values.cumsum(dim)


def sum_of_rest(values: Tensor) -> Tensor:
    """Return Σ_{j ≥ i} v_j along the first axis.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._running_sum import sum_of_rest
    >>> sum_of_rest(torch.tensor([1.0, 2.0, 4.0]))
    tensor([7., 6., 4.])
    """
    return running_sum(values.flip(0)).flip(0)


@full_precision()
def sum_by_blocks(values: Tensor) -> Tensor:
    """Return the running sums along the last axis: those within blocks, and of all blocks before.

    Rounding grows with the square of the logarithm of the length only.
    """
    n = values.shape[-1]
    width = min(n, _BLOCK)
    triangle = values.new_ones((width, width)).triu_()
    if n <= _BLOCK:
        return values @ triangle
    within = pad(values, (0, -n % _BLOCK)).unflatten(-1, (-1, _BLOCK)) @ triangle
    before = pad(sum_by_blocks(within[..., -1])[..., :-1], (1, 0))
    return (within + before[..., None]).flatten(-2)[..., :n]
