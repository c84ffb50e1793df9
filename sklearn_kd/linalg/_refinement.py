"""A Cholesky factor in float32, for answers in float64: half the memory of a factor in float64.

L in float32 is a preconditioner for conjugate gradients in float64 (`block_pcg`), whose products
evaluate the kernel on the fly. Plain iterative refinement, X ← X + (L Lᵀ)⁻¹ (T − A X), takes as
many products while cond(A) · ε₃₂ is well below 1, and fails beyond, where L needs a jitter.
Iterations to a residual of 1e-6 for a (ρ, T) grid of 32 columns at n = 1500, and the condition
measured:

=====================  =======  ========  ======  ====  =======================
kernel, d              cond A   rcond(L)  jitter  here  plain refinement
=====================  =======  ========  ======  ====  =======================
ReLU depth 3, d = 20   4e4      5e-6      0       2     2
ReLU depth 3, d = 2    1e7      8e-8      0       3     3
erf depth 2, d = 5     2e9      2e-8      1e-4    37    above 8e-3 after 200
ReLU depth 3, d = 1    2e11     4e-8      1e-4    110   above 3e-2 after 200
=====================  =======  ========  ======  ====  =======================

The jitter is relative to the mean diagonal. It is not part of the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_kd.kernels._function import KernelFunction
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._cholesky import factor_in_place, reciprocal_condition
from sklearn_kd.linalg._memory import WORKSPACE_BYTES


class SingleFactor:
    """M = L Lᵀ ≈ Θ + diag(ρ), a Cholesky factor in float32.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Distinct rows.
    ridge : Tensor of shape (n,), default=None
        ρ ≥ 0; None is 0.

    Attributes
    ----------
    jitter : float
        What was added to the diagonal. It slows the iteration down, and leaves its answer alone.
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
    >>> from sklearn_kd.linalg._pcg import block_pcg
    >>> from sklearn_kd.linalg._refinement import SingleFactor
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
    def __init__(self, kernel: KernelFunction, X: Tensor, ridge: Tensor | None = None) -> None:
        rows = X.float()
        storage = rows.new_empty((len(rows), len(rows)))

        def assemble() -> Tensor:
            kernel.gram(rows, out=storage, symmetrize=False)
            if ridge is not None:
                storage.diagonal().add_(ridge)
            return storage

        self.lower, self.jitter = factor_in_place(assemble)
        self.rcond = reciprocal_condition(self.lower)

    @full_precision()
    def solve(self, V: Tensor) -> Tensor:
        """Return L⁻¹ V for V of shape (n, p), float64."""
        return torch.linalg.solve_triangular(self.lower, V.float(), upper=False).double()

    @full_precision()
    def solve_transposed(self, V: Tensor) -> Tensor:
        """Return L⁻ᵀ V for V of shape (n, p), float64."""
        return torch.linalg.solve_triangular(self.lower.T, V.float(), upper=True).double()


def refinement_bytes(n_rows: int, n_features: int, n_targets: int) -> int:
    """Return the peak bytes of the factor and the iteration, from shapes alone.

    The factor; of the targets and the iteration what `block_pcg` takes; the rows in float64 and
    float32, and the tiles of the kernel.
    """
    vectors = 8 * n_rows * (18 * n_targets + 2 * n_features)
    return 4 * n_rows**2 + vectors + 3 * WORKSPACE_BYTES
