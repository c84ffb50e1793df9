"""The solvers of the student's equations, one entry each in `SOLVERS`.

(Θ_n + α W⁻¹) a = Δz (Eq. 4), with n distinct rows, their total weights W and K columns:

============  ==================================  ==============================================
solver        what it finds                       what it holds
============  ==================================  ==============================================
"cholesky"    a, to rounding                      the (n, n) factor
"refinement"  a, to a residual of ``tol``         the (n, n) factor in float32
"pcg"         a, to a residual of ``tol``         an (n, k) preconditioner; Θ if it fits
"nystrom"     the best f in the span of M of the  (M, M) sums over the rows, a block of rows
              n features, see `linalg._nystrom`
============  ==================================  ==============================================

"auto" is the first exact one that fits the memory; what changes the problem is asked for by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from sklearn.utils import Bunch, check_random_state
from torch import Tensor

from sklearn_kd._memory import budget_bytes, format_bytes, require
from sklearn_kd._progress import FitTask
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SinglePrecisionWarning
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.linalg._landmarks import nystrom_bytes
from sklearn_kd.linalg._sharded import processes_of_this_machine, require_group, smallest_of_all
from sklearn_kd.rows._streams import RowStream, as_row_stream
from sklearn_kd.solvers._checkpoint import Checkpoint
from sklearn_kd.solvers._frame_cache import frames
from sklearn_kd.solvers._pass import (
    NYSTROM_REMEDY,
    LandmarkChoice,
    NystromStudent,
    PassOptions,
    StreamedRows,
    candidate_rows,
    nystrom_student,
)
from sklearn_kd.solvers._pcg import (
    PCG_REMEDY,
    PCGPlan,
    PCGStudent,
    pcg_student,
    plan_pcg,
    refined_student,
    report_residual,
)
from sklearn_kd.solvers._refinement import refinement_bytes

# So many times at most a pass over the rows, or an iteration, tells callbacks how far it is.
N_REPORTS = 100

CHOLESKY_REMEDY = (
    "Use fewer rows, dtype='float32' (half the bytes), solver='pcg' (exact to tol, without the "
    "matrix), solver='nystrom' (an approximation), or raise memory_limit."
)


class System(NamedTuple):
    """(Θ_n + α W⁻¹) a = Δz on distinct rows."""

    kernel: KernelFunction
    X: Tensor | RowStream  # (n, d); a stream only for solvers that take one
    weights: Tensor  # (n,) in the working dtype on the working device
    targets: Tensor  # (n,) or (n, K), Δz
    ridge: float


class Size(NamedTuple):
    """Shape of a system: rows n, features d, columns K, and where and how it is computed."""

    n_rows: int
    n_features: int
    n_targets: int
    dtype: torch.dtype
    device: torch.device


class Options(NamedTuple):
    """The student's parameters that solvers read, each what it needs."""

    memory_limit: float | str = "auto"
    cache_size: float | str = "auto"
    n_landmarks: int = 1000
    landmarks: str = "rpcholesky"
    random_state: Any = None
    n_jobs: int | None = None
    checkpoint: str | os.PathLike | None = None
    tol: float = 1e-6
    max_iter: int = 500
    distributed: bool = False


@dataclass(frozen=True)
class Solution:
    """The student that a solver found: f(x) = z₀(x) + Θ(x, X_fit) dual_coef.

    ``frame`` is the tangent frame, where the solver has built it; ``report`` is what the solver
    adds to ``fit_report_``.
    """

    dual_coef: Tensor  # (m,) or (m, K)
    X_fit: Tensor  # (m, d)
    weight_change_norm: float
    jitter: float
    rcond: float
    n_iter: int = 1
    frame: TangentFrame | None = None
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Solver:
    """How to solve a `System`, and what that takes.

    Parameters
    ----------
    solve : callable
        ``solve(system, options, progress)`` returns the `Solution`.
    planned_bytes : callable
        ``planned_bytes(size, options)`` returns the peak bytes, from shapes alone.
    remedy : str
        What to do where these do not fit.
    takes_streams : bool, default=False
        Whether rows that are not in memory will do.
    """

    solve: Callable[[System, Options, FitTask], Solution]
    planned_bytes: Callable[[Size, Options], int]
    remedy: str
    takes_streams: bool = False


def solve_cholesky(system: System, options: Options, progress: FitTask) -> Solution:
    """Return the exact student by the tangent frame, Θ_n + α W⁻¹ = L Lᵀ."""
    assert isinstance(system.X, Tensor)
    with progress.stage("kernel-and-factor"):
        frame = frames.frame(
            system.kernel,
            system.X,
            ridge=system.ridge,
            weights=system.weights,
            memory_limit=options.memory_limit,
            cache_size=options.cache_size,
        )
    with progress.stage("solve"):
        return solution_of(frame, system.targets)


def solution_of(frame: TangentFrame, targets: Tensor) -> Solution:
    """Return the exact student of a frame that is at hand."""
    dual_coef = frame.solve(targets)
    return Solution(
        dual_coef,
        frame.X,
        frame.weight_change_norm(targets, dual_coef),
        frame.jitter,
        frame.rcond,
        frame=frame,
    )


def cholesky_bytes(size: Size, options: Options) -> int:
    """Return the peak bytes of the frame and a solve with it."""
    return frame_bytes(size.n_rows, size.n_features, size.n_targets, size.dtype, size.device)


def solve_nystrom(system: System, options: Options, progress: FitTask) -> Solution:
    """Return the student restricted to ``n_landmarks`` landmarks, by one pass over the rows."""
    X = system.X if isinstance(system.X, RowStream) else as_row_stream(system.X)
    weights = None if (system.weights == 1).all() else system.weights
    checkpoint = checkpoint_at(options.checkpoint)
    with progress.stage("pass-over-rows", N_REPORTS) as task:
        student = nystrom_student(
            system.kernel,
            StreamedRows(X, lambda rows: system.targets[rows], weights),
            LandmarkChoice(options.n_landmarks, options.landmarks, options.random_state),
            ridge=system.ridge,
            dtype=system.weights.dtype,
            device=system.weights.device,
            options=PassOptions(
                memory_limit=options.memory_limit,
                n_jobs=options.n_jobs,
                checkpoint=checkpoint,
                on_progress=task.report,
            ),
        )
    if checkpoint is not None:
        checkpoint.remove()
    return restricted_solution(student, system.weights.dtype)


def checkpoint_at(path: str | os.PathLike | None) -> Checkpoint | None:
    """Return the checkpoint beside ``path``, once it is known that it can be written."""
    if path is None:
        return None
    checkpoint = Checkpoint(Path(path))
    checkpoint.require_writable()
    return checkpoint


def restricted_solution(
    student: NystromStudent, dtype: torch.dtype, column: int | None = None
) -> Solution:
    """Return the solution that a pass came to; that of one ``column`` of those of a grid."""
    report = Bunch(**student.report)
    coefficients = student.coefficients
    if column is not None:
        coefficients = coefficients[:, column]
        for gap in ("fit_gap", "held_out_gap"):
            report[gap] = None if report[gap] is None else report[gap][column]
    in_basis = student.solution.basis.lower.T @ coefficients.reshape(len(coefficients), -1)
    names = ("n_landmarks", "captured_trace", "fit_gap", "held_out_gap", "resumed_at_row")
    return Solution(
        coefficients.to(dtype),
        student.landmarks,
        torch.linalg.vector_norm(in_basis).item(),
        report.jitter,
        report.rcond,
        report={name: report[name] for name in (*names, "planned_bytes")},
    )


def nystrom_system_bytes(size: Size, options: Options) -> int:
    """Return the peak bytes of the choice of landmarks, the pass and its solution."""
    n_landmarks = min(options.n_landmarks, size.n_rows)
    n_candidates = candidate_rows(size.n_rows, n_landmarks)
    return nystrom_bytes(size.n_rows, size.n_features, n_landmarks, size.n_targets, n_candidates)


def solve_refinement(system: System, options: Options, progress: FitTask) -> Solution:
    """Return the exact student, to a residual of ``tol``, with the help of a float32 factor."""
    assert isinstance(system.X, Tensor)
    with progress.stage("factor-and-iterate", N_REPORTS) as task:
        student = refined_student(
            system.kernel,
            system.X,
            system.targets,
            ridge=system.ridge,
            weights=system.weights,
            tol=options.tol,
            max_iter=options.max_iter,
            on_iteration=report_residual(task.report, options.tol),
        )
    report = student.report
    rcond = report.factor_rcond if report.factor_jitter == 0 else math.nan
    return iterated_solution(student, system.X, rcond)


def iterated_solution(student: PCGStudent, X: Tensor, rcond: float = math.nan) -> Solution:
    """Return the solution that an iteration on the rows ``X`` came to."""
    return Solution(
        student.coefficients.to(X.dtype),
        X,
        student.weight_change_norm,
        jitter=0.0,
        rcond=rcond,
        n_iter=student.n_iter,
        report=dict(student.report),
    )


def refinement_system_bytes(size: Size, options: Options) -> int:
    """Return the peak bytes of the float32 factor and the iteration."""
    return refinement_bytes(size.n_rows, size.n_features, size.n_targets)


def solve_pcg(system: System, options: Options, progress: FitTask) -> Solution:
    """Return the exact student by preconditioned conjugate gradients, to a residual of ``tol``."""
    assert isinstance(system.X, Tensor)
    n_rows, n_features = system.X.shape
    n_targets = system.targets[0].numel()
    size = Size(n_rows, n_features, n_targets, system.X.dtype, system.X.device)
    with progress.stage("iterate", N_REPORTS) as task:
        student = pcg_student(
            system.kernel,
            system.X,
            system.targets,
            ridge=system.ridge,
            weights=system.weights,
            plan=pcg_plan(size, of_all_processes(options, size.device)),
            tol=options.tol,
            max_iter=options.max_iter,
            random_state=check_random_state(options.random_state),
            distributed=options.distributed,
            on_iteration=report_residual(task.report, options.tol),
        )
    return iterated_solution(student, system.X)


def pcg_plan(size: Size, options: Options) -> PCGPlan:
    """Return what conjugate gradients keep in memory."""
    return plan_pcg(
        size.n_rows,
        size.n_features,
        size.n_targets,
        size.dtype,
        options.memory_limit,
        size.device,
        dist.get_world_size() if options.distributed else 1,
    )


def of_all_processes(options: Options, device: torch.device) -> Options:
    """Return the options with the smallest memory that any process has, so that all plan alike."""
    if not options.distributed:
        return options
    require_group(device)
    budget = budget_bytes(options.memory_limit, device)
    if options.memory_limit == "auto" and device.type == "cpu":
        budget //= processes_of_this_machine(device)
    return options._replace(memory_limit=smallest_of_all(budget, device))


def pcg_system_bytes(size: Size, options: Options) -> int:
    """Return the peak bytes of preconditioner and iteration, with as much stored as fits."""
    return pcg_plan(size, options).planned_bytes


SOLVERS = {
    "cholesky": Solver(solve_cholesky, cholesky_bytes, CHOLESKY_REMEDY),
    "refinement": Solver(solve_refinement, refinement_system_bytes, CHOLESKY_REMEDY),
    "pcg": Solver(solve_pcg, pcg_system_bytes, PCG_REMEDY),
    "nystrom": Solver(solve_nystrom, nystrom_system_bytes, NYSTROM_REMEDY, takes_streams=True),
}

# In the order in which "auto" tries them. PCG is not among them: without the matrix in memory it
# would start on any number of rows, however long that takes.
EXACT = ("cholesky", "refinement")


def choose_solver(name: str, size: Size, options: Options, *, what: str) -> str:
    """Return the name of the solver to use, once it is known to fit the memory.

    Parameters
    ----------
    name : str
        The student's ``solver``. "auto" is the first exact solver that fits.
    size : Size
    options : Options
    what : str
        The computation, for the message.

    Raises
    ------
    MemoryBudgetError
        If it does not fit ``memory_limit``.
    ValueError
        If ``options.distributed`` with a solver that cannot be, or without a process group.
    """
    names = list(EXACT) if name == "auto" else [name]
    if options.distributed:
        if name not in ("auto", "pcg"):
            raise ValueError(
                f"distributed=True shares the products of solver='pcg', but solver={name!r}; use "
                "solver='pcg' or 'auto', or distributed=False."
            )
        names, options = ["pcg"], of_all_processes(options, size.device)
    budget = budget_bytes(options.memory_limit, size.device)
    for chosen in names:
        planned = SOLVERS[chosen].planned_bytes(size, options)
        if planned <= budget:
            if name == "auto" and chosen == "refinement":
                _warn_of_single_precision(size, options, what)
            return chosen
    refused = SOLVERS[names[0]]
    require(
        refused.planned_bytes(size, options),
        options.memory_limit,
        size.device,
        what=f"{what} with solver={names[0]!r}",
        remedy=refused.remedy,
    )
    return names[0]


def _warn_of_single_precision(size: Size, options: Options, what: str) -> None:
    needed = format_bytes(SOLVERS["cholesky"].planned_bytes(size, options))
    warn(
        f"{what} needs {needed} for a factor in float64, more than "
        f"memory_limit={options.memory_limit!r} allows. It is factored in float32, and the answer "
        f"is iterated to a relative residual of tol={options.tol:g} in float64. "
        "solver='refinement' asks for this without the warning.",
        SinglePrecisionWarning,
    )
