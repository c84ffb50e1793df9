"""Block conjugate gradients for A X = T: many right-hand sides, products with A only.

Symbols (formula -> code -> shape), with n rows, m right-hand sides, r columns that span them and
p ≤ r search directions:

========  =================  ========================================================
A         ``operator``       (n, n) the kernel matrix with its ridge, positive definite
T         ``targets``        (n, m) right-hand sides
B, C      ``basis``,         (n, r), (r, m) T ≈ B C D (`compress`)
          ``mixing``
M = GGᵀ   preconditioner     A ≈ M; Ã = G⁻¹ A G⁻ᵀ
X, R      ``X``, ``R``       (n, r) solution for B, and residual B − A X
R̃, P̃, W̃   ``R_``, ``P_``,    (n, r), (n, p), (n, p) G⁻¹ R; orthonormal search directions; Ã P̃
          ``W_``
Γ         ``gamma``          (p, p) P̃ᵀ Ã P̃
========  =================  ========================================================

Block conjugate gradients fail where the search directions become dependent. This happens when some
combination of the columns has converged; with the columns of a (ρ, T) grid it happens at the start.
So the right-hand sides are compressed first. Before each product, the directions are replaced by an
orthonormal basis of their numerical span; directions that depend on others are dropped
(breakdown-free block CG; H. Ji and Y. Li, BIT Numer. Math. 57, 2017).

The residual of the recursion drifts from B − A X. So it is replaced by B − A X, in float64,
whenever it has fallen by half of the digits of the products, and before convergence is declared. If
the replaced residual shows no progress, the limit of the precision has been reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._compression import CompressedTargets, compress
from sklearn_kd.linalg._operator import KernelOperator
from sklearn_kd.linalg._preconditioner import IdentityPreconditioner, Preconditioner
from sklearn_kd.linalg._running_sum import sum_of_rest

# Share of the tolerance that the compression of the right-hand sides may use up.
_TRUNCATION_SHARE = 0.1

# Search directions of unit length that lie this close to the span of the others are dropped.
_DEPENDENT = 1e-10

# The iteration stops after this many iterations without a new smallest residual. The residual may
# rise for long before it falls: 150 iterations were seen at a condition of 1e10.
_PATIENCE = 250

# The residual may rise by at most the root of the largest condition that float64 resolves.
_DIVERGED = 1e10

# The limit of precision is reached if a replaced residual exceeds this share of the one before.
_LEAST_PROGRESS = 0.5


@dataclass
class PCGResult:
    """The result of block conjugate gradients, with its accuracy.

    Attributes
    ----------
    solution : Tensor of shape (n, m)
        X, float64.
    residuals : Tensor of shape (m,)
        ‖t_j − A x_j‖ / ‖t_j‖ of the returned solution, computed in float64 by products with A;
        0 for zero columns. It includes the error of the compression.
    product : Tensor of shape (n, m)
        A X of the returned solution, from the same products.
    energy_errors : Tensor of shape (m,)
        Estimate of ‖x_j − A⁻¹ t_j‖_A, which bounds the error of every prediction:
        |f(x) − f_∞(x)| ≤ ‖x_j − A⁻¹ t_j‖_A √Θ(x, x).
    n_iter : int
        Number of iterations, each of which takes one product with A.
    n_products : int
        Number of products, including those for residuals.
    n_solved : int
        r, the number of columns solved for.
    stopped : {"converged", "max_iter", "precision", "stagnation"}
        Why it ended. "converged": every residual is at most ``tol``. "max_iter": no iterations are
        left. "precision": the residual in float64 no longer falls, though that of the recursion
        does, or rows i with A_ii = 0 cannot be solved for. "stagnation": neither falls, or both
        keep rising, as they may where A is singular. The best iterate is returned.
    """

    solution: Tensor
    residuals: Tensor
    product: Tensor
    energy_errors: Tensor
    n_iter: int
    n_products: int
    n_solved: int
    stopped: str


@full_precision()
def block_pcg(
    operator: KernelOperator,
    targets: Tensor,
    preconditioner: Preconditioner | None = None,
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
    exact: KernelOperator | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> PCGResult:
    """Solve A X = T until every column's residual is at most ``tol`` times its right-hand side.

    Parameters
    ----------
    operator : KernelOperator
        A, positive definite, with its ridge. Its dtype is that of the products of the iteration.
        Everything else is float64.
    targets : Tensor of shape (n, m)
        T, finite. Columns may have any scale, and may be zero or equal.
    preconditioner : Preconditioner, default=None
        M ≈ A; None is the identity.
    tol : float, default=1e-6
        Largest ‖t_j − A x_j‖ / ‖t_j‖ allowed for any column.
    max_iter : int, default=500
        Largest number of iterations.
    exact : KernelOperator, default=None
        A in float64, for the residuals, where ``operator`` is in float32.
    on_iteration : callable, default=None
        Called as ``on_iteration(n_iter, residual)`` with the largest relative residual.

    Returns
    -------
    PCGResult
        It says whether the residuals reached ``tol``, and if not, why. Nothing is raised for that.

    Raises
    ------
    NotPSDError
        If a search direction has a negative squared length xᵀ A x, beyond rounding.
    ValueError
        If a product is not finite, or the solution leaves the range of the operator's dtype.

    Notes
    -----
    The energy error ‖x_j − A⁻¹ t_j‖_A is ‖G⁻¹ r_j‖ / √q with q a mean of the eigenvalues of Ã.
    q is measured on the way. The decrease of the squared energy error from iteration i to the end k
    is known exactly (Hestenes and Stiefel, 1952), so
    q = (‖G⁻¹ r_i‖² − ‖G⁻¹ r_k‖²) / (sum of the steps' contributions), the smallest of all columns.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._operator import DenseOperator
    >>> from sklearn_kd.linalg._block_cg import block_pcg
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 3.0]).double())
    >>> result = block_pcg(DenseOperator(A), torch.ones(3, 1).double(), tol=1e-12)
    >>> result.solution.T
    tensor([[1.0000, 0.5000, 0.3333]], dtype=torch.float64)
    >>> result.n_iter, result.stopped
    (3, 'converged')
    """
    targets = targets.double()
    exact = operator if exact is None else exact
    preconditioner = IdentityPreconditioner() if preconditioner is None else preconditioner
    # Rows without a feature, A_ii = 0, cannot be solved for: only the others are.
    out_of_reach = operator.diag() == 0
    compressed = compress(targets, _TRUNCATION_SHARE * tol)
    compressed.basis[out_of_reach] = 0
    recursion = _Recursion(operator, preconditioner, compressed)
    n_iter, n_products, stopped = _iterate(recursion, exact, tol, max_iter, on_iteration)
    if stopped == "converged" and targets[out_of_reach].any():
        stopped = "precision"
    solution = compressed.expand(recursion.X)
    require_in_range(solution.to(exact.dtype), exact)
    nonzero = compressed.norms > 0
    product = compressed.expand(compressed.basis - recursion.R)  # A X: R has just been replaced
    residual = (targets - product) / torch.where(nonzero, compressed.norms, 1.0)
    return PCGResult(
        solution=solution,
        residuals=torch.linalg.vector_norm(residual, dim=0).where(nonzero, 0.0),
        product=product,
        energy_errors=recursion.energy_errors(residual).mul_(compressed.norms),
        n_iter=n_iter,
        n_products=n_products,
        n_solved=compressed.basis.shape[1],
        stopped=stopped,
    )


def _iterate(
    recursion: _Recursion,
    exact: KernelOperator,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[int, float], None] | None,
) -> tuple[int, int, str]:
    """Iterate until the residual is at most ``tol``, or no further progress is possible.

    Returns the numbers of iterations and products, and why it ended. The recursion is left at the
    best iterate, with its residual replaced.
    """
    n_iter = n_products = 0
    # The residual that the recursion has to claim, and the largest residual in float64 so far.
    claim, confirmed = tol, 1.0
    smallest, smallest_at = math.inf, 0
    half_of_digits = math.sqrt(torch.finfo(recursion.operator.dtype).eps)
    best = _BestIterate(recursion)
    stopped = "converged" if not recursion.residuals().gt(tol).any() else ""
    while not stopped:
        moved = n_iter < max_iter and recursion.step()
        n_iter, n_products = n_iter + moved, n_products + moved
        worst = recursion.residuals().max().item()
        best.update(recursion)
        if worst < 0.99 * smallest:
            smallest, smallest_at = worst, n_iter
        is_stuck = n_iter - smallest_at >= _PATIENCE or not worst < _DIVERGED * smallest
        if on_iteration is not None and moved:
            on_iteration(n_iter, worst)
        if moved and not is_stuck and worst > max(claim, half_of_digits * confirmed):
            continue
        recursion.replace_residual(exact)
        n_products += 1
        before, confirmed = confirmed, recursion.residuals().max().item()
        if confirmed <= tol:
            stopped = "converged"
        elif n_iter == max_iter:
            stopped = "max_iter"
        elif is_stuck:
            stopped = "stagnation"
        elif not moved or not confirmed <= _LEAST_PROGRESS * before:
            stopped = "precision"
        if worst <= claim:  # the claim was wrong: next time, leave room for what was missed
            claim = _LEAST_PROGRESS * tol
    if stopped != "converged":
        n_products += best.restore(recursion, exact)
    return n_iter, n_products, stopped


class _BestIterate:
    """The iterate of the smallest residuals, squares summed over the right-hand sides.

    Where A is singular, or nearly singular to rounding, the iterates finally diverge.
    """

    def __init__(self, recursion: _Recursion) -> None:
        self.X = recursion.X.clone()
        self.total = self.total_of_zero = recursion.total()
        self.n_steps = 0

    def update(self, recursion: _Recursion) -> None:
        """Keep the current iterate if it is the best so far, by the residual of the recursion."""
        total = recursion.total()
        if total < self.total:
            self.X.copy_(recursion.X)
            self.total, self.n_steps = total, len(recursion.gains)

    def restore(self, recursion: _Recursion, exact: KernelOperator) -> int:
        """Go back to the best iterate, or to zero, where the last one is worse.

        Residuals are compared in float64. Returns the number of products that this took.
        """
        n_products = 0
        zero = torch.zeros_like(self.X)
        candidates = ((self.X, self.total, self.n_steps), (zero, self.total_of_zero, 0))
        for X, claimed, n_steps in candidates:
            total, last, n_last = recursion.total(), recursion.X, len(recursion.gains)
            if total <= claimed:
                break
            recursion.go_to(X, n_steps, exact)
            n_products += 1
            if total <= recursion.total():
                recursion.go_to(last, n_last, exact)
                n_products += 1
        return n_products


class _Recursion:
    """The state of the iteration; P̃ is kept Ã-orthonormal, so that Γ = I."""

    def __init__(
        self,
        operator: KernelOperator,
        preconditioner: Preconditioner,
        compressed: CompressedTargets,
    ) -> None:
        self.operator = operator
        self.preconditioner = preconditioner
        self.compressed = compressed
        self.X = torch.zeros_like(compressed.basis)
        self.R = compressed.basis.clone()
        self.R_ = preconditioner.solve(self.R)
        self.P_ = self.W_ = self.R_[:, :0]
        self.gains: list[Tensor] = []  # (m,) by which each step lowered the squared energy errors
        self.squares: list[Tensor] = []  # (m,) ‖G⁻¹ r_j‖² before each step
        self.trace = operator.diag().sum(dtype=torch.float64).item()

    def step(self) -> bool:
        """Do one iteration; False if no search direction is left."""
        directions = self.R_ - self.P_ @ (self.W_.T @ self.R_)
        P_ = orthonormal_basis(directions)
        if P_.shape[1] == 0:
            return False
        P = self.preconditioner.solve_transposed(P_)
        W = self.operator.matmat(P.to(self.operator.dtype)).double()
        gamma = P.T @ W
        if not gamma.isfinite().all():
            raise ValueError(
                "A product with the kernel matrix is not finite: its entries, or the ridge, are "
                f"out of the range of {self.operator.dtype}. Rescale the inputs."
            )
        g, Y = torch.linalg.eigh((gamma + gamma.T) / 2)
        epsilon = torch.finfo(self.operator.dtype).eps
        lengths = P.square().sum(dim=0)
        self._require_positive(g, 10 * epsilon * self.trace * lengths)
        kept = g > len(g) * epsilon * g.amax()
        if not kept.any():
            return False
        scaling = Y[:, kept] * g[kept].rsqrt()
        self.P_, P, W = P_ @ scaling, P @ scaling, W @ scaling
        self.W_ = self.preconditioner.solve(W)
        step = self.P_.T @ self.R_
        self.squares.append(self._squares(self.R_))
        self.gains.append((step @ self.compressed.mixing).square().sum(dim=0))
        self.X.addmm_(P, step)
        self.R.addmm_(W, step, alpha=-1)
        if self.preconditioner.dtype == torch.float64:
            self.R_.addmm_(self.W_, step, alpha=-1)
        else:  # rounding errors in W̃ must not add up
            self.R_ = self.preconditioner.solve(self.R)
        return True

    def _require_positive(self, g: Tensor, rounding: Tensor) -> None:
        if g[0] < -rounding.amax():
            raise NotPSDError(
                f"The kernel matrix of {len(self.X)} rows is not positive definite: conjugate "
                "gradients found a direction of negative squared length. Either the kernel is not "
                "positive semi-definite, or rounding decides: use ridge > 0 or dtype='float64'."
            )

    def replace_residual(self, exact: KernelOperator) -> None:
        """Replace the R of the recursion by B − A X."""
        X = self.X.to(exact.dtype)
        require_in_range(X, exact)
        self.R = self.compressed.basis - exact.matmat(X).double()
        self.R_ = self.preconditioner.solve(self.R)

    def go_to(self, X: Tensor, n_steps: int, exact: KernelOperator) -> None:
        """Make an iterate of ``n_steps`` steps the current one, with its residual."""
        self.X = X
        del self.gains[n_steps:], self.squares[n_steps:]
        self.replace_residual(exact)

    def _squares(self, columns: Tensor) -> Tensor:
        """Return ‖V c_j‖² (m,) of V (n, r), relative to the norms of the targets."""
        C = self.compressed.mixing
        return ((columns.T @ columns) @ C).mul_(C).sum(dim=0).clamp_min_(0)

    def residuals(self) -> Tensor:
        """Return an upper bound on the relative residuals (m,), as the recursion has them."""
        return self._squares(self.R).sqrt() + self.compressed.truncation

    def total(self) -> float:
        """Return the sum of the squared relative residuals over the right-hand sides."""
        return self._squares(self.R).sum().item()

    def energy_errors(self, residual: Tensor) -> Tensor:
        """Return the estimates (m,) from the residuals (n, m), relative to the norms."""
        width = max(1, self.X.shape[1])
        last = torch.cat(
            [self.preconditioner.solve(part).square().sum(0) for part in residual.split(width, 1)]
        )
        if not self.gains:
            return last.sqrt()
        # Sums of the gains from iteration i to the end; the last i from which most was gained.
        gained = sum_of_rest(torch.stack(self.gains))
        fall = torch.stack(self.squares) - last
        quotient = torch.where(fall > 9 * last, fall / gained, math.inf)
        q = quotient[gained > 0].amin() if (gained > 0).any() else torch.ones_like(last[0])
        return (last / q.where(q.isfinite(), torch.ones_like(q))).sqrt()


def require_in_range(solution: Tensor, operator: KernelOperator) -> None:
    """Raise `ValueError` unless the solution is finite in the dtype of the operator."""
    if not solution.isfinite().all():
        raise ValueError(
            f"Solving with the kernel matrix leaves the range of {operator.dtype}: its entries "
            f"are at most {operator.diag().amax().item():.3g}, against targets of order one. "
            "Scale the inputs so that kernel values are of order one."
        )


def orthonormal_basis(columns: Tensor) -> Tensor:
    """Return an orthonormal basis (n, p) of the numerical span of the columns (n, r).

    All columns count alike, whatever their lengths. p < r where some depend on the others.
    """
    lengths = torch.linalg.vector_norm(columns, dim=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    Q, R = torch.linalg.qr(columns)
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    return Q @ U[:, S / S.sum() > _DEPENDENT]
