"""The exact student by conjugate gradients: no factor of the kernel matrix, which need not exist.

Planning what is kept in memory, the preconditioner, and what is reported beside the answer. The
algebra is in `linalg._pcg`.

====================  ================  =============================================
products with Θ from  bytes, n rows     a product takes
====================  ================  =============================================
Θ in float64          4 n²              its half, read once
Θ in float32          2 n²              its half, read once; residuals in float64 are
                                        products with a kernel evaluated on the fly
a part of Θ in        what there is     its part, and the evaluation of the rest of the
float32                                 half; residuals as above
====================  ================  =============================================

Whichever it is, the answer is that of float64: residuals are float64, and at most ``tol``. Where
products in float32 cannot reach that, the iteration goes on with those in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch
from torch import Tensor

from sklearn_kd._memory import WORKSPACE_BYTES, budget_bytes
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._block_cg import PCGResult, block_pcg
from sklearn_kd.linalg._operator import KernelOperator, RidgeOperator, TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import PIVOT_BLOCK, randomly_pivoted_cholesky
from sklearn_kd.linalg._preconditioner import LowRankPreconditioner, SingleFactor, default_rank
from sklearn_kd.linalg._sharded import ShardedOperator, drive, largest_share, require_same_problem

PCG_REMEDY = (
    "Use fewer rows, solver='nystrom' (an approximation, over rows that need not be in memory), or "
    "raise memory_limit."
)

# The preconditioner's rank is not made smaller than this to fit the memory.
_LEAST_RANK = 100


class PCGPlan(NamedTuple):
    """What is kept in memory: so many bytes of Θ in a dtype, F of a rank; all bytes planned."""

    dtype: torch.dtype
    kept_bytes: int
    rank: int
    planned_bytes: int


class PCGStudent(NamedTuple):
    """The student f(x) = Θ(x, X) coefficients, ‖Δ_ŵ‖₂, iterations, and a report."""

    coefficients: Tensor  # (n, ...), float64, shaped as the targets
    weight_change_norm: float
    n_iter: int
    report: Bunch

    def to(self, device: torch.device) -> Self:
        """Return it with its coefficients on another device."""
        return self._replace(coefficients=self.coefficients.to(device))


def pcg_bytes(n_rows: int, n_features: int, n_targets: int, rank: int) -> int:
    """Return the peak bytes of preconditioner and iteration beside Θ, from shapes alone.

    The targets, their compression and the solution take six arrays of n × m in float64, the
    iteration ten, a product three; a factor of n × k, its small matrices, and a block of columns of
    the kernel are in float64 too; the rows are there twice, in two precisions.
    """
    vectors = 8 * n_rows * (19 * n_targets + 2 * n_features)
    factor = 8 * n_rows * (rank + 4 * PIVOT_BLOCK) + 8 * 6 * rank**2
    return vectors + factor + 3 * WORKSPACE_BYTES


def plan_pcg(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    memory_limit: float | str,
    device: torch.device,
    n_shares: int = 1,
) -> PCGPlan:
    """Return what to keep in memory: as much as helps and fits; if nothing fits, the least."""
    budget = budget_bytes(memory_limit, device)
    entries = largest_share(n_rows, device, n_shares)
    rank = default_rank(n_rows)
    beside = pcg_bytes(n_rows, n_features, n_targets, rank)
    for stored in (dtype, torch.float32):
        kept = entries * stored.itemsize
        if beside + kept <= budget:
            return PCGPlan(stored, kept, rank, beside + kept)
    if budget - beside < kept / 2:  # most is evaluated at each product
        rank = default_rank(n_rows, is_stored=False)
        while rank > _LEAST_RANK and pcg_bytes(n_rows, n_features, n_targets, rank) > budget:
            rank = max(rank // 2, _LEAST_RANK)
        beside = pcg_bytes(n_rows, n_features, n_targets, rank)
    kept = max(0, budget - beside)
    return PCGPlan(torch.float32, kept, rank, beside + kept)


def pcg_student(
    kernel: KernelFunction,
    X: Tensor,
    targets: Tensor,
    *,
    ridge: float = 0.0,
    weights: Tensor | None = None,
    plan: PCGPlan,
    tol: float = 1e-6,
    max_iter: int = 500,
    random_state: np.random.RandomState,
    distributed: bool = False,
    on_iteration: Callable[[int, float], None] | None = None,
) -> PCGStudent:
    """Solve (Θ + α W⁻¹) a = Δz by preconditioned conjugate gradients.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Distinct rows.
    targets : Tensor of shape (n, ...)
        Δz, one trailing entry per candidate and class.
    ridge : float, default=0.0
        Ridge α ≥ 0.
    weights : Tensor of shape (n,), default=None
        Positive row weights w, which divide the ridge; None means 1.
    plan : PCGPlan
        From `plan_pcg`.
    tol : float, default=1e-6
        Largest residual of any column, in the 2-norm, relative to that of its Δz.
    max_iter : int, default=500
        Largest number of iterations.
    random_state : RandomState
        Draws the pivots of the preconditioner.
    distributed : bool, default=False
        Whether all processes of the default group of `torch.distributed` call this, with the same
        rows and targets, and share the products. Process 0 does the rest.
    on_iteration : callable, default=None
        Called as ``on_iteration(n_iter, residual)``.

    Returns
    -------
    PCGStudent
        With a report of ``residual`` and ``energy_error`` (the largest of any column),
        ``prediction_error`` (the bound that follows for the logits of the training rows),
        ``stopped``, ``n_products``, ``n_solved`` (columns after compression),
        ``preconditioner_rank``, ``products`` and ``planned_bytes``.

    Warns
    -----
    ConvergenceWarning
        If a residual is above ``tol``.
    """
    row_ridges = _ridge(X, ridge, weights)
    columns = targets.reshape(len(X), -1).double()
    if distributed:
        columns = require_same_problem(X, columns)
    theta, exact = _operators(kernel, X, plan, distributed)

    def solve() -> PCGStudent:
        generator = torch.Generator().manual_seed(random_state.randint(2**31))
        preconditioner = LowRankPreconditioner(
            randomly_pivoted_cholesky(exact, plan.rank, generator=generator), row_ridges
        )
        products = f"{_source(theta)} in {str(theta.dtype).removeprefix('torch.')}"
        iterate = functools.partial(
            block_pcg,
            targets=columns,
            preconditioner=preconditioner,
            tol=tol,
            exact=_with_ridge(exact, row_ridges),
            on_iteration=on_iteration,
        )
        result = iterate(_with_ridge(theta, row_ridges), max_iter=max_iter)
        left = max_iter - result.n_iter
        if theta is not exact and left > 0 and result.stopped != "converged":
            # the limit of float32 products, not that of the problem
            first, result = result, iterate(_with_ridge(exact, row_ridges), max_iter=left)
            result.n_iter += first.n_iter
            result.n_products += first.n_products
            products += ", then the rows in float64"
        student = _student_of(result, targets, row_ridges, exact)
        student.report.update(
            preconditioner_rank=preconditioner.rank,
            products=products,
            planned_bytes=plan.planned_bytes,
        )
        return student

    if distributed:
        assert isinstance(theta, ShardedOperator)
        assert isinstance(exact, ShardedOperator)
        # pickled, hence on the host
        student = drive([theta, exact], lambda: solve().to(torch.device("cpu")))
        student = student.to(X.device)
    else:
        student = solve()
    warn_if_not_converged(student, tol, max_iter)
    return student


def refined_student(
    kernel: KernelFunction,
    X: Tensor,
    targets: Tensor,
    *,
    ridge: float = 0.0,
    weights: Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    on_iteration: Callable[[int, float], None] | None = None,
) -> PCGStudent:
    """Solve (Θ + α W⁻¹) a = Δz in float64 with a Cholesky factor in float32 as preconditioner.

    Parameters as for `pcg_student`, and a report likewise, with ``factor_jitter`` and
    ``factor_rcond``, of the factor, in place of the preconditioner's rank.

    Raises
    ------
    NotPSDError
        If there is no factor in float32.
    """
    row_ridges = _ridge(X, ridge, weights)
    exact = TiledOperator(kernel, X.double())
    try:
        factor = SingleFactor(kernel, X, row_ridges)
    except NotPSDError as error:
        raise NotPSDError(
            f"{error} This was a factor in float32, as one in float64 was not to be; "
            "solver='pcg' needs none."
        ) from error
    result = block_pcg(
        _with_ridge(exact, row_ridges),
        targets.reshape(len(X), -1).double(),
        factor,
        tol=tol,
        max_iter=max_iter,
        on_iteration=on_iteration,
    )
    student = _student_of(result, targets, row_ridges, exact)
    student.report.update(
        factor_jitter=factor.jitter, factor_rcond=factor.rcond, products="the rows in float64"
    )
    warn_if_not_converged(student, tol, max_iter)
    return student


def _student_of(
    result: PCGResult, targets: Tensor, row_ridges: Tensor | None, exact: KernelOperator
) -> PCGStudent:
    # ‖Δ_ŵ‖² = aᵀ Θ a = aᵀ A a − aᵀ (α W⁻¹) a
    a = result.solution
    squared = (a * result.product).sum()
    if row_ridges is not None:
        squared -= (row_ridges[:, None] * a.square()).sum()
    energy_error = result.energy_errors.max().item()
    report = Bunch(
        residual=result.residuals.max().item(),
        energy_error=energy_error,
        prediction_error=energy_error * math.sqrt(exact.diag().max().item()),
        stopped=result.stopped,
        n_products=result.n_products,
        n_solved=result.n_solved,
    )
    norm = squared.clamp_min(0).sqrt().item()
    return PCGStudent(a.reshape(targets.shape), norm, result.n_iter, report)


def _ridge(X: Tensor, ridge: float, weights: Tensor | None) -> Tensor | None:
    """Return α / w (n,), float64; None is none."""
    if ridge == 0:
        return None
    return ridge / (X.new_ones(len(X)) if weights is None else weights).double()


def _operators(
    kernel: KernelFunction, X: Tensor, plan: PCGPlan, distributed: bool
) -> tuple[TiledOperator, TiledOperator]:
    """Return Θ for the products of the iteration, and Θ in float64 for the residuals."""
    operator = ShardedOperator if distributed else TiledOperator
    theta = operator(kernel, X.to(plan.dtype), kept_bytes=plan.kept_bytes)
    return theta, theta if plan.dtype == torch.float64 else operator(kernel, X.double())


def _source(theta: TiledOperator) -> str:
    """Return what products are computed from."""
    if theta.kept_share == 0:
        return "the rows"
    share = "" if theta.kept_share == 1 else f"{theta.kept_share:.0%} of "
    return f"{share}the kernel matrix"


def _with_ridge(operator: KernelOperator, row_ridges: Tensor | None) -> KernelOperator:
    return (
        operator if row_ridges is None else RidgeOperator(operator, row_ridges.to(operator.dtype))
    )


def warn_if_not_converged(student: PCGStudent, tol: float, max_iter: int) -> None:
    """Warn with `ConvergenceWarning`, and what to do, if a residual is above ``tol``."""
    report = student.report
    if report.stopped == "converged":
        return
    reasons = {
        "max_iter": f"max_iter={max_iter} iterations were not enough: raise max_iter, or tol if "
        "this residual will do; ridge > 0 makes the problem easier.",
        "precision": "rounding in float64 allows no less with this kernel matrix, which is too "
        "ill-conditioned: raise tol, use ridge > 0, remove near-duplicate rows, or use a deeper "
        "or less smooth kernel.",
        "stagnation": "it stopped falling, as the kernel matrix is too ill-conditioned: raise tol, "
        "use ridge > 0, remove near-duplicate rows, or use a deeper or less smooth kernel.",
    }
    warn(
        f"Conjugate gradients reached a relative residual of {report.residual:.2g} after "
        f"{student.n_iter} iterations, not tol={tol:g}: {reasons[report.stopped]}",
        ConvergenceWarning,
    )


def report_residual(report: Callable[[float], None], tol: float) -> Callable[[int, float], None]:
    """Return ``on_iteration`` that reports how many of the digits asked for there are."""

    def on_iteration(n_iter: int, residual: float) -> None:
        digits = -math.log(max(min(residual, 1.0), tol))
        report(digits / -math.log(tol) if tol < 1 else 1.0)

    return on_iteration
