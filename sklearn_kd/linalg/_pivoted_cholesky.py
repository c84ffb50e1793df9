"""Randomly pivoted Cholesky: a low-rank factor of a kernel matrix from a few of its columns.

Symbols:

=========  ==============  ==================================================
A          ``operator``    (n, n) symmetric positive semi-definite
F          ``factor``      (n, k) A ≈ F Fᵀ
S          ``pivots``      (k,) the rows whose columns were read
d          ``residual``    (n,) diagonal of A − F Fᵀ, which is never negative
=========  ==============  ==================================================

Each pivot is drawn with probability d / Σd (Chen, Epperly, Tropp and Webber, "Randomly pivoted
Cholesky", 2025). Columns are fast to read only in blocks, and pivots of a block that are all drawn
from the same d may be near-copies of each other. So a block of proposals is drawn. Each is kept
with the probability (its d after the ones kept before it) / (its d when proposed). The kept pivots
have exactly the distribution of pivots drawn one after the other (Epperly, Tropp and Webber,
"Embrace rejection: kernel matrix approximation by accelerated randomly pivoted Cholesky", 2024).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._operator import KernelOperator

# Number of pivots proposed, and of columns read, at a time.
PIVOT_BLOCK = 128

# d is a difference of numbers as large as A's diagonal. It is rounding below this many units in
# their last place, times the number of subtractions.
_ROUNDING_UNITS = 8


class PivotedCholesky(NamedTuple):
    """A ≈ F Fᵀ, exact in the rows and columns of the pivots."""

    factor: Tensor  # (n, k)
    pivots: Tensor  # (k,) int64, in the order of the columns of the factor
    residual: Tensor  # (n,)

    @property
    def trace(self) -> float:
        """Return tr(A − F Fᵀ), which bounds the 2-norm of the difference."""
        return self.residual.sum(dtype=torch.float64).item()


@full_precision()
def randomly_pivoted_cholesky(
    operator: KernelOperator,
    rank: int,
    *,
    generator: torch.Generator,
    block_size: int = PIVOT_BLOCK,
) -> PivotedCholesky:
    """Approximate A ≈ F Fᵀ from ``rank`` of its columns; O(n rank²) beside reading them.

    Parameters
    ----------
    operator : KernelOperator
        A, positive semi-definite.
    rank : int
        Largest number of columns of F. There are fewer if fewer determine A to rounding.
    generator : torch.Generator
        On the CPU: the pivots do not depend on the device.
    block_size : int, default=128
        Number of pivots proposed at a time.

    Returns
    -------
    PivotedCholesky
        ``factor`` (n, k), ``pivots`` (k,), ``residual`` (n,) and the ``trace`` of the residual,
        with k ≤ rank.

    Raises
    ------
    NotPSDError
        If the columns read are not those of a positive semi-definite matrix, beyond rounding.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._operator import DenseOperator
    >>> from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky
    >>> A = DenseOperator(torch.outer(torch.arange(4.0), torch.arange(4.0)))
    >>> result = randomly_pivoted_cholesky(A, 3, generator=torch.Generator().manual_seed(0))
    >>> result.factor.shape, result.trace
    (torch.Size([4, 1]), 0.0)
    """
    n = operator.n_rows
    rank = min(rank, n)
    diagonal = operator.diag()
    epsilon = torch.finfo(operator.dtype).eps
    residual = diagonal.clone()
    factor = torch.empty((n, rank), dtype=operator.dtype, device=operator.device)
    pivots = torch.empty(rank, dtype=torch.int64, device=operator.device)
    k = 0
    while k < rank:
        rounding = _ROUNDING_UNITS * (k + 1) * epsilon * diagonal
        residual = torch.where(residual > rounding, residual, 0.0)
        if not residual.any():
            break
        proposed = _draw(residual, block_size, generator)
        schur = operator.block(proposed, proposed) - factor[proposed, :k] @ factor[proposed, :k].T
        kept = _accept(schur.cpu(), residual[proposed].cpu(), rounding[proposed].cpu(), generator)
        kept = kept[: rank - k].to(proposed.device)
        chosen, end = proposed[kept], k + len(kept)
        # F_new = (A_S − F F_Sᵀ) R⁻ᵀ with the Schur complement of the pivots = R Rᵀ
        columns = factor[:, k:end]
        columns.copy_(operator.columns(chosen))
        columns.addmm_(factor[:, :k], factor[chosen, :k].T, alpha=-1)
        # The rows of the pivots are the Schur complement as the columns have it.
        corner = columns[chosen]
        lower, info = torch.linalg.cholesky_ex((corner + corner.T) / 2)
        if info.item() > 0:
            raise NotPSDError(
                f"The kernel matrix is not positive semi-definite: without what {k} other rows "
                f"explain of it, row {chosen[info.item() - 1].item()} has a negative squared "
                "norm. Either the kernel is not positive semi-definite, or its entries carry "
                "errors well above the rounding of its dtype."
            )
        columns.copy_(torch.linalg.solve_triangular(lower.T, columns, upper=True, left=False))
        residual -= columns.square().sum(dim=1)
        residual[chosen] = 0
        pivots[k:end] = chosen
        k = end
    return PivotedCholesky(factor[:, :k], pivots[:k], residual.clamp_min_(0))


def _draw(residual: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw ``size`` rows, with replacement, with probabilities in proportion to ``residual``."""
    cumulative = residual.double().cpu().cumsum(0)
    points = _uniform(size, generator) * cumulative[-1]
    # right=True never selects a row of probability 0, except where rounding puts a point at the
    # very end. There the last row of positive probability is drawn.
    last = residual.nonzero()[-1, 0].item()
    drawn = torch.searchsorted(cumulative, points, right=True).clamp_max_(last)
    return drawn.to(residual.device)


def _accept(
    schur: Tensor, proposed_with: Tensor, rounding: Tensor, generator: torch.Generator
) -> Tensor:
    """Return which of the proposals are kept: positions, increasing, at least one."""
    remaining = schur.clone()
    kept: list[int] = []
    for i, point in enumerate(_uniform(len(schur), generator).tolist()):
        left = remaining[i, i].item()
        # The first is always kept, whatever rounding does to the two numbers that are equal.
        if kept and (left <= rounding[i] or point * proposed_with[i] >= left):
            continue
        kept.append(i)
        column = remaining[i:, i] / math.sqrt(left)
        remaining[i:, i:].addr_(column, column, alpha=-1)
    return torch.tensor(kept, device=schur.device)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    """Draw from [0, 1) on the CPU, whatever torch's default dtype and device are."""
    return torch.rand(size, dtype=torch.float64, device="cpu", generator=generator)
