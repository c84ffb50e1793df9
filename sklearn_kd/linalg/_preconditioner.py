"""Preconditioners M = C Cᵀ ≈ A, given by products with C⁻¹ and C⁻ᵀ.

With both, conjugate gradients can work on Ã = C⁻¹ A C⁻ᵀ, whose condition is small where A's is not,
and orthonormalise blocks of search directions without losing digits.

Symbols of the low-rank preconditioner:

=====  =============  =====================================================================
A      Θ + diag(ρ)    the kernel matrix with its ridge
F      ``factor``     (n, k) Θ ≈ F Fᵀ by randomly pivoted Cholesky
D      ``diagonal``   (n,) ρ + μ, with μ the mean of the diagonal that F leaves of Θ
M                     F Fᵀ + diag(D)
H      ``reduction``  (n, k) C⁻¹ = (I − H Hᵀ) D^(−1/2)
=====  =============  =====================================================================

Θ − F Fᵀ has n − k eigenvalues that matter, and a multiple of the identity serves for them. μ is
their mean, whatever the ridge. So ridge = 0 needs no special case.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from sklearn_kd._memory import WORKSPACE_BYTES
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._cholesky import factor_in_place, reciprocal_condition
from sklearn_kd.linalg._parts import parts, solve_triangular
from sklearn_kd.linalg._pivoted_cholesky import PivotedCholesky

# D / ‖F Fᵀ‖ is at least this. Below it, D vanishes in the last digits of F Fᵀ + D.
_LEAST_SHIFT = 1e-13


class Preconditioner(Protocol):
    """M = C Cᵀ, positive definite."""

    dtype: torch.dtype

    def solve(self, V: Tensor) -> Tensor:
        """Return C⁻¹ V for V of shape (n, p), float64."""

    def solve_transposed(self, V: Tensor) -> Tensor:
        """Return C⁻ᵀ V for V of shape (n, p), float64."""


class IdentityPreconditioner:
    """M = I: plain conjugate gradients."""

    dtype = torch.float64

    def solve(self, V: Tensor) -> Tensor:
        """Return V."""
        return V.clone()

    solve_transposed = solve


class LowRankPreconditioner:
    """M = F Fᵀ + D from a partial Cholesky factorization.

    Parameters
    ----------
    partial : PivotedCholesky
        Θ ≈ F Fᵀ. Its factor is overwritten: a second (n, k) array might not fit.
    row_ridges : Tensor of shape (n,), default=None
        ρ ≥ 0 with A = Θ + diag(ρ); None is 0.

    Attributes
    ----------
    rank : int
        k.
    shift : float
        μ, which stands for the part of Θ that F leaves.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._operator import DenseOperator
    >>> from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky
    >>> from sklearn_kd.linalg._preconditioner import LowRankPreconditioner
    >>> A = torch.diag(torch.tensor([100.0, 50.0, 1.0, 1.0, 1.0]).double())
    >>> generator = torch.Generator().manual_seed(0)
    >>> partial = randomly_pivoted_cholesky(DenseOperator(A), 2, generator=generator)
    >>> M = LowRankPreconditioner(partial)
    >>> M.solve(M.solve_transposed(torch.eye(5).double())).shape
    torch.Size([5, 5])
    """

    @full_precision()
    def __init__(self, partial: PivotedCholesky, row_ridges: Tensor | None = None) -> None:
        F = partial.factor
        n, self.rank = F.shape
        self.dtype = F.dtype
        largest = F.double().square().sum().item()
        left = partial.trace / max(n - self.rank, 1)
        self.shift = max(left, _LEAST_SHIFT * largest)
        diagonal = F.new_full((n,), self.shift, dtype=torch.float64)
        if row_ridges is not None:
            diagonal += row_ridges
        if not diagonal.all():  # Θ is zero, and so is the ridge
            diagonal.fill_(1.0)
        self.root = diagonal.sqrt()
        F /= self.root.to(F.dtype)[:, None]
        # With Fᵀ D⁻¹ F = V S² Vᵀ: H = D^(−1/2) F V S⁻¹ (1 − (1 + S²)^(−1/2))^½
        squares, V = torch.linalg.eigh(_gram(F).double())
        squares.clamp_min_(0)
        # (1 − (1 + s)^(−1/2)) / s without the difference, which is 1/2 at s = 0
        root = (1 + squares).sqrt()
        shrink = 1 / (root * (1 + root))
        K = (V * shrink.sqrt()).to(F.dtype)
        step = max(1, WORKSPACE_BYTES // (8 * max(self.rank, 1)))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            F[rows] = F[rows] @ K
        self.reduction = F

    @full_precision()
    def _reduce(self, V: Tensor) -> Tensor:
        # V − H Hᵀ V, transposed: MKL is twice as fast with the few columns of V as rows
        H = self.reduction
        return V - (V.T.to(H.dtype) @ H @ H.T).T.to(V.dtype)

    def solve(self, V: Tensor) -> Tensor:
        """Return C⁻¹ V = (I − H Hᵀ) D^(−1/2) V."""
        return self._reduce(V / self.root[:, None])

    def solve_transposed(self, V: Tensor) -> Tensor:
        """Return C⁻ᵀ V = D^(−1/2) (I − H Hᵀ) V."""
        return self._reduce(V).div_(self.root[:, None])


def _gram(F: Tensor) -> Tensor:
    """Return Fᵀ F (k, k)."""
    out = F.new_zeros((F.shape[1], F.shape[1]))
    for rows in parts(len(F), out.numel(), F.device):
        out.addmm_(F[rows].T, F[rows])
    return out


def default_rank(n_rows: int, *, is_stored: bool = True) -> int:
    """Return a rank k for n rows at which the factor takes about as long as a few products.

    Products with a stored matrix are cheap. Where each product evaluates the kernel, a larger
    factor pays, as it saves products.
    """
    return min(n_rows, 100 + round((5 if is_stored else 15) * math.sqrt(n_rows)))


class SingleFactor:
    """M = L Lᵀ ≈ Θ + diag(ρ), a Cholesky factor in float32.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Distinct rows.
    row_ridges : Tensor of shape (n,), default=None
        ρ ≥ 0; None is 0.

    Attributes
    ----------
    jitter : float
        Added to the diagonal. It slows the iteration down, but does not change its answer.
    rcond : float
        Estimate of 1 / cond₁(L Lᵀ).

    Raises
    ------
    NotPSDError
        If no admissible jitter makes the matrix positive definite in float32.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels import NTK
    >>> from sklearn_kd.linalg._operator import TiledOperator
    >>> from sklearn_kd.linalg._block_cg import block_pcg
    >>> from sklearn_kd.linalg._preconditioner import SingleFactor
    >>> X = torch.linspace(-2, 2, 100, dtype=torch.float64).reshape(50, 2)
    >>> kernel = NTK().to_torch()
    >>> result = block_pcg(
    ...     TiledOperator(kernel, X), X.sin(), SingleFactor(kernel, X), tol=1e-10
    ... )
    >>> result.stopped, bool(result.residuals.max() <= 1e-10)
    ('converged', True)
    """

    dtype = torch.float32

    @full_precision()
    def __init__(self, kernel: KernelFunction, X: Tensor, row_ridges: Tensor | None = None) -> None:
        rows = X.float()
        storage = rows.new_empty((len(rows), len(rows)))

        def assemble() -> Tensor:
            kernel.gram(rows, out=storage, symmetrize=False)
            if row_ridges is not None:
                storage.diagonal().add_(row_ridges)
            return storage

        self.lower, self.jitter = factor_in_place(assemble)
        self.rcond = reciprocal_condition(self.lower)

    @full_precision()
    def solve(self, V: Tensor) -> Tensor:
        """Return L⁻¹ V for V of shape (n, p), float64."""
        return solve_triangular(self.lower, V.float(), upper=False).double()

    @full_precision()
    def solve_transposed(self, V: Tensor) -> Tensor:
        """Return L⁻ᵀ V for V of shape (n, p), float64."""
        return solve_triangular(self.lower.T, V.float(), upper=True).double()
