"""Columns of very different scale, of which a kernel sees only the largest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sklearn.gaussian_process.kernels import Exponentiation, Kernel, KernelOperator
from torch import Tensor

from sklearn_kd.kernels._empirical_ntk import EmpiricalNTK

# A column is out of scale if its standard deviation and its range are over this many times those of
# another one. The range alone would not do for outliers, nor the deviation alone for columns that
# are nearly always 0, such as those of rare categories.
SCALE_RATIO = 300.0

# A range below this share of a column's values is rounding: the column is constant.
_CONSTANT = 1e-6

# Entries of the rows that are looked at together.
_ENTRIES = 2**20


def weighs_columns_by_scale(kernel: Any) -> bool:
    """Whether a kernel is known to weigh the columns of X by their scale; None is ``NTK()``.

    Not so with a length scale for each column, nor a module, which may normalise its inputs. What
    a callable does is not known.
    """
    if kernel is None:
        return True
    return isinstance(kernel, Kernel) and not any(
        isinstance(leaf, EmpiricalNTK) or getattr(leaf, "anisotropic", False)
        for leaf in _leaves(kernel)
    )


def _leaves(kernel: Any) -> Iterator[Any]:
    """Yield the kernels that a sum, product or power is made of."""
    if isinstance(kernel, KernelOperator):
        yield from _leaves(kernel.k1)
        yield from _leaves(kernel.k2)
    elif isinstance(kernel, Exponentiation):
        yield from _leaves(kernel.kernel)
    else:
        yield kernel


def out_of_scale(X: Tensor) -> int | None:
    """Return the column of ``X`` (n, d) that is out of scale beside another one; None if none is.

    Constant columns do not count.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels._scale import out_of_scale
    >>> X = torch.tensor([[0.0, 0.0, 7.0], [1.0, 5e3, 7.0], [2.0, 1e4, 7.0]])
    >>> out_of_scale(X), out_of_scale(X / torch.tensor([1.0, 1e3, 1.0]))
    (1, None)
    """
    width = max(1, _ENTRIES // max(len(X), 1))
    blocks = X.split(width, dim=1)
    deviations = torch.cat([block.double().std(dim=0, correction=0) for block in blocks])
    low, high = (torch.cat([end(block) for block in blocks]) for end in (_lowest, _highest))
    ranges = high - low
    varies = ranges > _CONSTANT * torch.maximum(low.abs(), high.abs())
    counts = (varies & deviations.isfinite() & ranges.isfinite()).nonzero()[:, 0]
    if len(counts) < 2:
        return None
    deviations, ranges = deviations[counts], ranges[counts]
    largest = int(deviations.argmax())
    ratios = torch.minimum(deviations[largest] / deviations, ranges[largest] / ranges)
    return int(counts[largest]) if (ratios > SCALE_RATIO).any() else None


def _lowest(block: Tensor) -> Tensor:
    return block.amin(dim=0).double()


def _highest(block: Tensor) -> Tensor:
    return block.amax(dim=0).double()
