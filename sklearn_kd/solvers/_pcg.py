"""The exact student by conjugate gradients: no factor of the kernel matrix, which need not exist.

This module decides what is kept in memory, makes the preconditioner, and reports on the answer. The
algebra is in `linalg._block_cg`.

====================  ================  =============================================
products with Θ from  bytes, n rows     a product takes
====================  ================  =============================================
Θ in float64          4 n²              its half, read once
Θ in float32          2 n²              its half, read once; residuals in float64 are
                                        products with a kernel evaluated on the fly
a part of Θ in        what fits         its part, and the evaluation of the rest of the
float32                                 half; residuals as above
====================  ================  =============================================

In each case residuals are computed in float64 and are at most ``tol``. Where products in float32
cannot reach that, the iteration goes on with products in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_kd._memory import budget_bytes, workspace_bytes
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import Interval
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._block_cg import block_pcg
from sklearn_kd.linalg._forecast import READING, Work, product_work
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import PIVOT_BLOCK, randomly_pivoted_cholesky
from sklearn_kd.linalg._preconditioner import LowRankPreconditioner, default_rank
from sklearn_kd.linalg._sharded import (
    ShardedOperator,
    drive,
    largest_share,
    processes_of_this_machine,
    require_group,
    require_same_problem,
    smallest_of_all,
)
from sklearn_kd.solvers._iteration import (
    IteratedStudent,
    report_residual,
    row_ridges_of,
    solution_of,
    student_of,
    warn_if_not_converged,
    with_ridge,
)
from sklearn_kd.solvers._system import N_REPORTS, Size, Solution, Solver, System

# Iterations, and products in float64 beside those in float32, for problems of ordinary condition.
USUAL_ITERATIONS = 50
_USUAL_RESIDUALS = 3

# The preconditioner's rank is not made smaller than this to fit the memory.
_LEAST_RANK = 100


class PCGPlan(NamedTuple):
    """The plan of memory: the bytes and dtype kept of Θ, and the preconditioner's rank."""

    dtype: torch.dtype
    kept_bytes: int
    rank: int
    planned_bytes: int


class PCG(Solver):
    """Preconditioned conjugate gradients: exact to ``tol``, without a factor.

    The kernel matrix is kept where it fits the memory, and otherwise evaluated at every
    iteration, in whole or in part.

    Parameters
    ----------
    tol : float > 0, default=1e-6
        Where to stop: the largest norm of z_eff − z₀ − (Θ + λ W⁻¹) a of any class, relative to
        that of z_eff − z₀. At ``ridge=0`` the norm is that of the errors of the training logits.
    max_iter : int, default=500
        Largest number of iterations.
    random_state : int, RandomState instance or None, default=None
        Draws the pivots of the preconditioner.
    distributed : bool, default=False
        Whether the processes of `torch.distributed`, one per machine or GPU and started by
        ``torchrun``, share the products. Each of them makes the same fit, with all rows, and ends
        with the same student.

    Notes
    -----
    The student's ``fit_report_`` holds ``residual`` (the largest of any class), ``energy_error``
    (estimate of ‖f − f_exact‖, the largest of any class: every logit is within ``energy_error`` ·
    √Θ(x, x) of the exact one), ``prediction_error`` (that bound on the training rows), ``stopped``
    (why), ``n_products`` (products with the kernel matrix), ``n_solved`` (columns solved for),
    ``products`` (what they were computed from), ``preconditioner_rank`` and
    ``planned_bytes``.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.solvers import PCG
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> student = LinearizedKDStudent(LogisticRegression(), solver=PCG(tol=1e-8, random_state=0))
    >>> student.fit(scale(X), y).fit_report_.residual <= 1e-8
    True
    """

    name: ClassVar[str] = "pcg"
    kind: ClassVar[str] = "exact to tol; the time is that of 50 iterations"
    n_steps: ClassVar[int] = N_REPORTS
    remedy: ClassVar[str] = (
        "Use fewer rows, solver='nystrom' (an approximation, over rows that need not be in "
        "memory), or raise memory_limit."
    )

    _parameter_constraints: ClassVar[dict] = {
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "distributed": ["boolean"],
    }

    def __init__(
        self,
        tol: float = 1e-6,
        max_iter: int = 500,
        random_state: int | np.random.RandomState | None = None,
        distributed: bool = False,
    ) -> None:
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.distributed = distributed

    def planned_bytes(self, size: Size, memory_limit: float | str) -> int:
        """Return the peak bytes of preconditioner and iteration, storing as much as fits."""
        return self.plan(size, memory_limit).planned_bytes

    def work(self, size: Size, memory_limit: float | str) -> list[Work]:
        """Return the preconditioner, and a usual number of iterations with what is kept of Θ."""
        plan, n, C = self.plan(size, memory_limit), size.n_rows, size.n_targets
        n_shares = dist.get_world_size() if self.distributed else 1
        half = n**2 / 2 / n_shares
        kept = min(1.0, plan.kept_bytes / plan.dtype.itemsize / half)
        # F, its Gram matrix and its rotation; its eigenvalues take 30 factors
        preconditioner = n * plan.rank**2 * 2.5 + 30 * plan.rank**3 / 6
        entries = half * (kept + USUAL_ITERATIONS * (1 - kept))
        product = product_work(n, C) / n_shares
        products = USUAL_ITERATIONS * (product + 2 * n * plan.rank * (C + READING))
        works = [
            Work(torch.float64, n * plan.rank, preconditioner),
            Work(plan.dtype, entries, products),
        ]
        if plan.dtype != torch.float64:
            residual = Work(torch.float64, half, 2 * half * C)
            works.append(residual.times(_USUAL_RESIDUALS))
        return works

    def plan(self, size: Size, memory_limit: float | str) -> PCGPlan:
        """Return the plan of memory, the same in all processes of a group."""
        budget = budget_bytes(memory_limit, size.device)
        n_shares = 1
        if self.distributed:
            require_group(size.device)
            if memory_limit == "auto" and size.device.type == "cpu":
                budget //= processes_of_this_machine(size.device)
            budget, n_shares = smallest_of_all(budget, size.device), dist.get_world_size()
        return plan_pcg(*size[:4], budget, size.device, n_shares)

    def solve(self, system: System, memory_limit: float | str, progress: FitTask) -> Solution:
        """Return the exact student, to a residual of ``tol``."""
        with progress.parts("iterate", N_REPORTS) as report:
            student = self.student(
                system,
                self.plan(system.size, memory_limit),
                on_iteration=report_residual(report, self.tol),
            )
        assert isinstance(system.X, Tensor)
        return solution_of(student, system.X)

    def student(
        self,
        system: System,
        plan: PCGPlan,
        *,
        on_iteration: Callable[[int, float], None] | None = None,
    ) -> IteratedStudent:
        """Return the student by this plan of memory; its targets may be those of a grid."""
        assert isinstance(system.X, Tensor)
        return pcg_student(
            system.kernel,
            system.X,
            system.targets,
            ridge=system.ridge,
            weights=system.weights,
            plan=plan,
            tol=self.tol,
            max_iter=self.max_iter,
            random_state=check_random_state(self.random_state),
            distributed=self.distributed,
            on_iteration=on_iteration,
        )


def pcg_bytes(n_rows: int, n_features: int, n_targets: int, rank: int, device: torch.device) -> int:
    """Return the peak bytes of preconditioner and iteration beside Θ, from shapes alone.

    The targets, their compression and the solution take six arrays of n × m in float64, the
    iteration twelve, a product three. A factor of n × k, its small matrices, and a block of columns
    of the kernel are in float64 too. The rows are held twice, in two precisions.
    """
    vectors = 8 * n_rows * (21 * n_targets + 2 * n_features)
    factor = 8 * n_rows * (rank + 4 * PIVOT_BLOCK) + 8 * 6 * rank**2
    return vectors + factor + 3 * workspace_bytes(device)


def plan_pcg(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    memory_limit: float | str,
    device: torch.device,
    n_shares: int = 1,
) -> PCGPlan:
    """Plan what to keep in memory: as much as helps and fits; if nothing fits, the minimum."""
    budget = budget_bytes(memory_limit, device)
    entries = largest_share(n_rows, device, n_shares)
    rank = default_rank(n_rows)
    beside = pcg_bytes(n_rows, n_features, n_targets, rank, device)
    for stored in (dtype, torch.float32):
        kept = entries * stored.itemsize
        if beside + kept <= budget:
            return PCGPlan(stored, kept, rank, beside + kept)
    if budget - beside < kept / 2:  # most is evaluated at each product
        rank = default_rank(n_rows, is_stored=False)
        while (
            rank > _LEAST_RANK and pcg_bytes(n_rows, n_features, n_targets, rank, device) > budget
        ):
            rank = max(rank // 2, _LEAST_RANK)
        beside = pcg_bytes(n_rows, n_features, n_targets, rank, device)
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
) -> IteratedStudent:
    """Solve (Θ + λ W⁻¹) a = Δz by preconditioned conjugate gradients.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        Distinct rows.
    targets : Tensor of shape (n, ...)
        Δz, one trailing entry per candidate and class.
    ridge : float, default=0.0
        Ridge λ ≥ 0.
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
    IteratedStudent
        With a report of ``residual`` and ``energy_error`` (the largest of any column),
        ``prediction_error`` (the bound that follows for the logits of the training rows),
        ``stopped``, ``n_products``, ``n_solved`` (columns after compression),
        ``preconditioner_rank``, ``products`` and ``planned_bytes``.

    Warns
    -----
    ConvergenceWarning
        If a residual is above ``tol``.
    """
    row_ridges = row_ridges_of(kernel, X, ridge, weights)
    columns = targets.reshape(len(X), -1).double()
    if distributed:
        columns = require_same_problem(X, columns)
    theta, exact = _operators(kernel, X, plan, distributed)

    def solve() -> IteratedStudent:
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
            exact=with_ridge(exact, row_ridges),
            on_iteration=on_iteration,
        )
        result = iterate(with_ridge(theta, row_ridges), max_iter=max_iter)
        left = max_iter - result.n_iter
        if theta is not exact and left > 0 and result.stopped != "converged":
            # the limit of float32 products, not that of the problem
            first, result = result, iterate(with_ridge(exact, row_ridges), max_iter=left)
            result.n_iter += first.n_iter
            result.n_products += first.n_products
            products += ", then the rows in float64"
        student = student_of(result, targets, row_ridges, exact)
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
