"""Compression of nearly dependent right-hand sides to a few columns that span them all.

The logit changes Δz of a (ρ, T) grid are smooth functions of two numbers per row, the teacher's
logit and the label. So as columns they are numerically of low rank. An iterative solver then solves
for r columns instead of m, and its block of search directions is not singular at the start.

A direct solve gains nothing, because reading the factor takes most of the time. At n = 4000 the two
triangular solves for 32 columns take 24 ms on two cores. For the 14 or 25 columns that are left at
tol = 1e-6 or 1e-10 they take 25 ms, and the compression itself takes 2 ms.

Symbols:

=====  ===============  ============================================================
T      ``targets``      (n, m) right-hand sides, one column per candidate and class
B      ``basis``        (n, r) orthogonal columns, the largest first
C      ``mixing``       (r, m) T ≈ B C D; orthonormal rows
D      ``norms``        (m,) ‖t_j‖, so that a small column counts as much as a large one
=====  ===============  ============================================================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._running_sum import sum_of_rest


class CompressedTargets(NamedTuple):
    """T ≈ B C D, with the truncation error of each column relative to its norm."""

    basis: Tensor  # (n, r)
    mixing: Tensor  # (r, m)
    norms: Tensor  # (m,)
    truncation: Tensor  # (m,) ‖t_j − (B C D)_j‖ / ‖t_j‖, measured

    def expand(self, columns: Tensor) -> Tensor:
        """Map a linear function of the targets from the basis, (n, r), to all columns, (n, m)."""
        return (columns @ self.mixing).mul_(self.norms)


@full_precision()
def compress(targets: Tensor, tol: float) -> CompressedTargets:
    """Write the columns of ``targets`` in the smallest basis with an error of at most ``tol``.

    Parameters
    ----------
    targets : Tensor of shape (n, m)
        Finite; columns may be zero, equal, or of any scale.
    tol : float
        Largest ‖t_j − (B C D)_j‖ / ‖t_j‖ of any column.

    Returns
    -------
    CompressedTargets
        ``basis`` (n, r) with r ≤ min(n, m), ``mixing`` (r, m), ``norms`` (m,) and the
        ``truncation`` (m,) as measured, which is 0 for zero columns.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._compression import compress
    >>> t = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    >>> grid = torch.cat([t, t.sin(), 1e-8 * t.sin(), 3 * t, 0 * t], dim=1)
    >>> compressed = compress(grid, 1e-6)
    >>> compressed.basis.shape
    torch.Size([50, 2])
    >>> bool((compressed.truncation <= 1e-6).all())
    True
    """
    # ‖t‖ without squares that overflow or vanish
    largest = targets.abs().amax(dim=0)
    scale = torch.where(largest > 0, largest, 1.0)
    norms = scale * torch.linalg.vector_norm(targets / scale, dim=0)
    unit = targets / torch.where(norms > 0, norms, 1.0)
    Q, R = torch.linalg.qr(unit)
    U, S, C = torch.linalg.svd(R, full_matrices=False)
    # Norm of the parts of column j from the r-th on: ‖(S_k C_kj)_{k ≥ r}‖.
    tails = sum_of_rest((S[:, None] * C).square()).sqrt().amax(dim=1)
    rank = int((tails > tol).sum().item())
    basis = Q @ (U[:, :rank] * S[:rank])
    mixing = C[:rank]
    truncation = torch.linalg.vector_norm(unit.sub_(basis @ mixing), dim=0)
    return CompressedTargets(basis, mixing, norms, truncation)
