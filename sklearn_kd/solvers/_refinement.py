"""The exact student by a Cholesky factor in float32, and an iteration to float64 accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import Tensor

from sklearn_kd._memory import workspace_bytes
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import Interval
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._block_cg import block_pcg
from sklearn_kd.linalg._forecast import Work, factor_work, product_work
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.linalg._preconditioner import SingleFactor
from sklearn_kd.solvers._cholesky import Cholesky
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

# Products with the kernel matrix where the factor in float32 needs no jitter.
_USUAL_PRODUCTS = 3


class Refinement(Solver):
    """Factor the kernel matrix in float32, half the bytes, and iterate in float64.

    Conjugate gradients with that factor as preconditioner take two or three products with the
    kernel matrix where it is well conditioned.

    Parameters
    ----------
    tol : float > 0, default=1e-6
        Where to stop: the largest norm of z_eff − z₀ − (Θ + λ W⁻¹) a of any class, relative to
        that of z_eff − z₀.
    max_iter : int, default=500
        Largest number of iterations.

    Notes
    -----
    The student's ``fit_report_`` holds ``residual`` (the largest of any class), ``energy_error``
    (estimate of ‖f − f_exact‖, the largest of any class: every logit is within ``energy_error`` ·
    √Θ(x, x) of the exact one), ``prediction_error`` (that bound on the training rows), ``stopped``
    (why), ``n_products`` (products with the kernel matrix), ``n_solved`` (columns solved for),
    ``products`` (what they were computed from), and ``factor_jitter`` and
    ``factor_rcond`` of the factor in float32.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.solvers import Refinement
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> student = LinearizedKDStudent(LogisticRegression(), solver=Refinement(tol=1e-10))
    >>> student.fit(scale(X), y).fit_report_.residual <= 1e-10
    True
    """

    name: ClassVar[str] = "refinement"
    kind: ClassVar[str] = "exact to tol, by a factor in float32"
    n_steps: ClassVar[int] = N_REPORTS
    remedy: ClassVar[str] = Cholesky.remedy

    _parameter_constraints: ClassVar[dict] = {
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, tol: float = 1e-6, max_iter: int = 500) -> None:
        self.tol = tol
        self.max_iter = max_iter

    def planned_bytes(self, size: Size, memory_limit: float | str) -> int:
        """Return the peak bytes of the float32 factor and the iteration."""
        return refinement_bytes(size.n_rows, size.n_features, size.n_targets, size.device)

    def work(self, size: Size, memory_limit: float | str) -> list[Work]:
        """Return the factor, and the usual number of products and of solves with the factor."""
        n = size.n_rows
        solves = product_work(n, size.n_targets)
        return [
            Work(torch.float32, n**2 / 2, factor_work(n) + _USUAL_PRODUCTS * solves),
            Work(torch.float64, n**2 / 2, n**2 * size.n_targets).times(_USUAL_PRODUCTS),
        ]

    def solve(self, system: System, memory_limit: float | str, progress: FitTask) -> Solution:
        """Return the exact student, to a residual of ``tol``."""
        assert isinstance(system.X, Tensor)
        with progress.parts("factor-and-iterate", N_REPORTS) as report:
            student = refined_student(
                system.kernel,
                system.X,
                system.targets,
                ridge=system.ridge,
                weights=system.weights,
                tol=self.tol,
                max_iter=self.max_iter,
                on_iteration=report_residual(report, self.tol),
            )
        report = student.report
        rcond = report.factor_rcond if report.factor_jitter == 0 else math.nan
        return solution_of(student, system.X, rcond)


def refinement_bytes(n_rows: int, n_features: int, n_targets: int, device: torch.device) -> int:
    """Return the peak bytes of the factor and the iteration, from shapes alone.

    They are those of the factor, the vectors of `block_pcg`, the rows in float64 and float32, and
    the tiles of the kernel.
    """
    vectors = 8 * n_rows * (20 * n_targets + 2 * n_features)
    return 4 * n_rows**2 + vectors + 3 * workspace_bytes(device)


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
) -> IteratedStudent:
    """Solve (Θ + λ W⁻¹) a = Δz in float64 with a Cholesky factor in float32 as preconditioner.

    Parameters are those of `pcg_student`. The report has ``factor_jitter`` and ``factor_rcond`` of
    the factor in place of the preconditioner's rank.

    Raises
    ------
    NotPSDError
        If there is no factor in float32.
    """
    row_ridges = row_ridges_of(kernel, X, ridge, weights)
    exact = TiledOperator(kernel, X.double())
    try:
        factor = SingleFactor(kernel, X, row_ridges)
    except NotPSDError as error:
        raise NotPSDError(
            f"{error} This was a factor in float32, and solver='cholesky' makes one in float64; "
            "solver='pcg' needs none."
        ) from error
    result = block_pcg(
        with_ridge(exact, row_ridges),
        targets.reshape(len(X), -1).double(),
        factor,
        tol=tol,
        max_iter=max_iter,
        on_iteration=on_iteration,
    )
    student = student_of(result, targets, row_ridges, exact)
    student.report.update(
        factor_jitter=factor.jitter, factor_rcond=factor.rcond, products="the rows in float64"
    )
    warn_if_not_converged(student, tol, max_iter)
    return student
