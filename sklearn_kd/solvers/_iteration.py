"""Shared parts of the iterative solvers: the student found by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch
from torch import Tensor

from sklearn_kd._warnings import warn
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._block_cg import PCGResult
from sklearn_kd.linalg._operator import KernelOperator, RidgeOperator
from sklearn_kd.solvers._system import Solution


class IteratedStudent(NamedTuple):
    """The student f(x) = Θ(x, X) coefficients, ‖Δ_ŵ‖₂, iterations, and a report."""

    coefficients: Tensor  # (n, ...), float64, shaped as the targets
    weight_change_norm: float
    n_iter: int
    report: Bunch

    def to(self, device: torch.device) -> Self:
        """Return it with its coefficients on another device."""
        return self._replace(coefficients=self.coefficients.to(device))


def student_of(
    result: PCGResult, targets: Tensor, row_ridges: Tensor | None, exact: KernelOperator
) -> IteratedStudent:
    # ‖Δ_ŵ‖² = aᵀ Θ a = aᵀ A a − aᵀ (λ W⁻¹) a
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
    return IteratedStudent(a.reshape(targets.shape), norm, result.n_iter, report)


def row_ridges_of(
    kernel: KernelFunction, X: Tensor, ridge: float, weights: Tensor | None
) -> Tensor | None:
    """Return (λ + ν) / w (n,) in float64, ν the kernel's noise, or None if it is 0."""
    ridge += kernel.noise(X)
    if ridge == 0:
        return None
    return ridge / (X.new_ones(len(X)) if weights is None else weights).double()


def with_ridge(operator: KernelOperator, row_ridges: Tensor | None) -> KernelOperator:
    return (
        operator if row_ridges is None else RidgeOperator(operator, row_ridges.to(operator.dtype))
    )


def warn_if_not_converged(student: IteratedStudent, tol: float, max_iter: int) -> None:
    """Warn with `ConvergenceWarning`, and a remedy, if a residual is above ``tol``."""
    report = student.report
    if report.stopped == "converged":
        return
    reasons = {
        "max_iter": f"max_iter={max_iter} iterations were not enough: raise max_iter, or raise tol "
        "to accept this residual; ridge > 0 makes the problem easier.",
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
    """Return ``on_iteration`` that reports the share of the digits of ``tol`` reached so far."""

    def on_iteration(n_iter: int, residual: float) -> None:
        digits = -math.log(max(min(residual, 1.0), tol))
        report(digits / -math.log(tol) if tol < 1 else 1.0)

    return on_iteration


def solution_of(student: IteratedStudent, X: Tensor, rcond: float = math.nan) -> Solution:
    """Return the solution that an iteration on the rows ``X`` found."""
    return Solution(
        student.coefficients.to(X.dtype),
        X,
        student.weight_change_norm,
        jitter=0.0,
        rcond=rcond,
        n_iter=student.n_iter,
        report=dict(student.report),
    )
