"""The student restricted to a few landmarks: one pass over rows that need not be in memory."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import Bunch, check_random_state

from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import Interval, StrOptions
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._forecast import Work, factor_work, product_work
from sklearn_kd.linalg._landmarks import nystrom_bytes
from sklearn_kd.rows._streams import RowStream, as_row_stream
from sklearn_kd.solvers._checkpoint import Checkpoint
from sklearn_kd.solvers._pass import (
    NYSTROM_REMEDY,
    LandmarkChoice,
    NystromPass,
    NystromStudent,
    PassOptions,
    candidate_rows,
    nystrom_pass,
    solve_pass,
)
from sklearn_kd.solvers._rows_and_targets import StreamedRows
from sklearn_kd.solvers._system import N_REPORTS, Size, Solution, Solver, System


class Nystrom(Solver):
    """Restrict the student to the span of a few rows, its landmarks: one pass over all rows.

    This is an approximation, and is chosen by name only. With all rows as landmarks it is the exact
    student. The rows need not be in memory.

    Parameters
    ----------
    n_landmarks : int, default=1000
        Number of landmarks.
    landmarks : {"rpcholesky", "uniform"}, default="rpcholesky"
        How the landmarks are chosen among ten times as many rows drawn at random: by randomly
        pivoted Cholesky, or uniformly.
    random_state : int, RandomState instance or None, default=None
        Draws the landmarks.
    n_jobs : int, default=None
        Workers, of any :mod:`joblib` backend, that pass over the rows. None is 1 outside of a
        `joblib.parallel_config`; -1 is all processors.
    checkpoint : str or path, default=None
        Where to write the sums over the rows so far, about once a minute. After an interruption
        the same ``fit`` resumes from there. At the end the file is removed. Each pass has a file of
        its own beside this one: ``pass-1f3a9c02.npz`` for ``"pass.npz"``, with digits that follow
        from the rows, the targets and the options.

    Notes
    -----
    The student's ``fit_report_`` holds ``n_landmarks``, ``captured_trace`` (share of the trace of Θ
    that the landmarks explain; 1 is exact), ``fit_gap`` and ``held_out_gap`` (root mean squares
    over up to 1000 training rows of z_eff − f, f the student, or the one trained on all rows but
    that one), ``resumed_at_row`` and ``planned_bytes``.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.solvers import Nystrom
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> solver = Nystrom(n_landmarks=100, random_state=0)
    >>> student = LinearizedKDStudent(LogisticRegression(), solver=solver).fit(scale(X), y)
    >>> student.X_fit_.shape
    (100, 30)
    """

    name: ClassVar[str] = "nystrom"
    kind: ClassVar[str] = "an approximation, by 1000 landmarks"
    n_steps: ClassVar[int] = N_REPORTS
    remedy: ClassVar[str] = NYSTROM_REMEDY
    takes_streams: ClassVar[bool] = True
    keeps_all_rows: ClassVar[bool] = False

    _parameter_constraints: ClassVar[dict] = {
        "n_landmarks": [Interval(Integral, 1, None, closed="left")],
        "landmarks": [StrOptions({"rpcholesky", "uniform"})],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "checkpoint": [str, os.PathLike, None],
    }

    def __init__(
        self,
        n_landmarks: int = 1000,
        landmarks: str = "rpcholesky",
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.checkpoint = checkpoint

    def check_options(self) -> None:
        """Raise unless the options are valid, and the checkpoint can be written."""
        super().check_options()
        checkpoint = self.checkpoints()
        if checkpoint is not None:
            checkpoint.require_writable()

    def planned_bytes(self, size: Size, memory_limit: float | str) -> int:
        """Return the peak bytes of the choice of landmarks, the pass and its solution."""
        n_landmarks = min(self.n_landmarks, size.n_rows)
        n_candidates = candidate_rows(size.n_rows, n_landmarks)
        return nystrom_bytes(
            size.n_rows, size.n_features, n_landmarks, size.n_targets, n_candidates, size.device
        )

    def work(self, size: Size, memory_limit: float | str) -> list[Work]:
        """Return the choice of landmarks, the pass and its solution, without reading the rows."""
        n, M = size.n_rows, min(self.n_landmarks, size.n_rows)
        n_candidates = candidate_rows(n, M)
        # Φ by a triangle takes M²/2 for a row, ΦᵀΦ in four groups of columns 5/8 M².
        sums = n * (M**2 * 9 / 8 + M * size.n_targets)
        choice, solve = n_candidates * M**2, 2 * factor_work(M) + product_work(M, size.n_targets)
        return [
            Work(size.dtype, n * M + n_candidates * M, 0),
            Work(torch.float64, 0, choice + sums + solve),
        ]

    def solve(self, system: System, memory_limit: float | str, progress: FitTask) -> Solution:
        """Return the student in the span of the landmarks, by one pass over the rows."""
        X = system.X if isinstance(system.X, RowStream) else as_row_stream(system.X)
        weights = None if (system.weights == 1).all() else system.weights
        rows = StreamedRows(X, lambda rows: system.targets[rows], weights)
        checkpoint = self.checkpoints()
        done = self.pass_over(
            system.kernel, rows, system.size, memory_limit, self.seed(), checkpoint, progress
        )
        solution = restricted_solution(solve_pass(done, system.ridge), system.size.dtype)
        if checkpoint is not None:
            checkpoint.remove()
        return solution

    def seed(self) -> int:
        """Return a seed for the landmarks: every use of it draws the same ones."""
        return int(check_random_state(self.random_state).randint(2**31))

    def checkpoints(self) -> Checkpoint | None:
        """Return where passes are written."""
        return None if self.checkpoint is None else Checkpoint(Path(self.checkpoint))

    def pass_over(
        self,
        kernel: KernelFunction,
        rows: StreamedRows,
        size: Size,
        memory_limit: float | str,
        seed: int,
        checkpoint: Checkpoint | None,
        progress: FitTask,
        *,
        beside: int = 0,
    ) -> NystromPass:
        """Choose the landmarks and sum over all rows: students of every ridge follow from it.

        Parameters
        ----------
        seed : int
            Draws the landmarks.
        checkpoint : Checkpoint or None
            Where the pass is written, to be removed by the caller.
        beside : int, default=0
            Bytes of the budget that the caller takes.
        """
        choice = LandmarkChoice(
            self.n_landmarks,
            self.landmarks,
            np.random.RandomState(seed),
            any_draw=self.random_state is None or self.random_state is np.random,
        )
        with progress.parts("pass-over-rows", N_REPORTS) as report:
            options = PassOptions(memory_limit, beside, self.n_jobs, checkpoint, report)
            return nystrom_pass(
                kernel, rows, choice, dtype=size.dtype, device=size.device, options=options
            )


def restricted_solution(
    student: NystromStudent, dtype: torch.dtype, column: int | None = None
) -> Solution:
    """Return the solution of a pass; of a pass for a grid, that of one ``column``."""
    report = Bunch(**student.report)
    coefficients = student.coefficients
    if column is not None:
        coefficients = coefficients[:, column]
        for gap in ("fit_gap", "held_out_gap"):
            report[gap] = None if report[gap] is None else report[gap][column]
    # ‖Δ_ŵ‖² = bᵀ Θ_ZZ b = ‖Lᵀ b‖²
    in_basis = student.solution.basis.lower.T @ coefficients.reshape(len(coefficients), -1)
    names = ("n_landmarks", "captured_trace", "fit_gap", "held_out_gap", "resumed_at_row")
    reported: dict[str, Any] = {name: report[name] for name in (*names, "planned_bytes")}
    return Solution(
        coefficients.to(dtype),
        student.landmarks,
        torch.linalg.vector_norm(in_basis).item(),
        report.jitter,
        report.rcond,
        report=reported,
    )
