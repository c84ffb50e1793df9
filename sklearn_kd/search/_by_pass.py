"""The search over students restricted to landmarks: one pass for all candidates of a kernel.

ρ and T change only the columns of Δz, and the ridge only what is added to the sums over the rows.
So one pass serves all of them, and a second one for each ridge gives every row's prediction by the
students that were trained on all other rows, in closed form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_kd._memory import require
from sklearn_kd._progress import FitTask
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.rows._checking import to_working
from sklearn_kd.rows._streams import RowStream, as_row_stream
from sklearn_kd.search._grid import Candidate
from sklearn_kd.search._held_out_student import (
    HeldOutStudent,
    no_directions,
    prediction_bytes,
    students_of,
)
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.search._protocol import CandidateSearch
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.solvers._nystrom import Nystrom, restricted_solution
from sklearn_kd.solvers._pass import NystromPass, leave_one_out_blocks, solve_pass
from sklearn_kd.solvers._rows_and_targets import StreamedRows
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._initial_network import initial_logits
from sklearn_kd.students._posed import PosedStudent, Rows


def rows_of_landmarks(search: Any, rows: Rows, solver: Nystrom, sees_labels: bool) -> Rows:
    """Return the rows as a stream if there are more than landmarks, else in memory.

    Where all distinct rows would be landmarks the restricted student is the exact one, of which
    every row can be left out.

    Raises
    ------
    ValueError
        If the search has folds, or a teacher that is yet to be fitted to the labels.
    """
    if search.cv is not None:
        raise ValueError(
            "solver='nystrom' scores by leave-one-out in closed form and needs cv=None, not "
            f"cv={search.cv!r}; for folds, use GridSearchCV with "
            "LinearizedKDStudent(solver='nystrom')."
        )
    if sees_labels:
        name = "None, which is NTKTeacher()," if search.teacher is None else repr(search.teacher)
        raise ValueError(
            f"teacher={name} is unfitted, and solver='nystrom' scores by leave-one-out, by which "
            "each label would reach its own score through the teacher. Fit the teacher on other "
            "rows and pass FrozenEstimator(teacher), pass teacher_logits to fit, or use "
            "solver='auto' or 'pcg'."
        )
    X = rows.X if isinstance(rows.X, RowStream) else as_row_stream(rows.X)
    if len(X) > solver.n_landmarks:
        return rows._replace(X=X)
    in_memory = to_working(search, X)
    return rows._replace(distinct=rows.distinct._replace(X=in_memory), X=in_memory)


class KernelPass(NamedTuple):
    """The pass with one of the kernels."""

    kernel: int
    initial_logits: Tensor  # z₀ of the distinct rows
    done: NystromPass


class SearchByPass(CandidateSearch):
    """Leave-one-out scores of the restricted students of a grid.

    Raises
    ------
    MemoryBudgetError
        If the sums over the rows, and what is kept of every row, do not fit ``memory_limit``.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, splits=[])
        assert isinstance(setting.solver, Nystrom)
        assert isinstance(setting.rows.X, RowStream)
        self.solver, self.stream = setting.solver, setting.rows.X
        # One draw for all passes: the student that is fitted in the end is the one that was scored.
        self._seed = self.solver.seed()
        self._checkpoint = self.solver.checkpoints()
        self._last: KernelPass | None = None
        size, memory_limit = setting.size, setting.memory_limit
        require(
            self.solver.planned_bytes(size, memory_limit) + self._beside_bytes(),
            memory_limit,
            size.device,
            what=f"LinearizedKDStudentCV.fit on n={size.n_rows} distinct rows with "
            "solver='nystrom'",
            remedy=self.solver.remedy,
        )

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate: one pass for each kernel, and one for each ridge."""
        kept = problem.distinct.kept
        everything = torch.arange(len(kept), device=kept.device)
        for kernel in range(len(self.setting.grid.kernels)):
            pass_over = self._pass_over(problem, kernel, progress)
            for ridge in self.setting.grid.ridges:
                with progress.stage("candidates"):
                    students = self._held_out_students(problem, pass_over, ridge, everything)
                    scores.add(students, Fold(None, everything))
                    scores.close_cell()
        if not self.setting.refit:
            self._remove_checkpoint()

    def posed(self, problem: Problem, candidate: Candidate) -> PosedStudent:
        """Return the problem of one candidate on all rows."""
        if self._last is not None and self._last.kernel == candidate.kernel:
            return problem.posed(candidate, self._last.initial_logits)
        return problem.posed(candidate, self._initial_logits(candidate.kernel))

    def solve(
        self, problem: Problem, posed: PosedStudent, candidate: Candidate, progress: FitTask
    ) -> Solution:
        """Return the student of one candidate; after the last kernel's pass without a new one."""
        done = self._pass_over(problem, candidate.kernel, progress).done
        student = solve_pass(done, posed.ridge)
        self._remove_checkpoint()
        return restricted_solution(student, posed.system.size.dtype, candidate.recipe)

    def _pass_over(self, problem: Problem, kernel: int, progress: FitTask) -> KernelPass:
        """Pass over the rows with one of the kernels, for all recipes at once; or did so last."""
        if self._last is not None and self._last.kernel == kernel:
            return self._last
        self._last = None  # frees the sums of another kernel first
        z_0, setting = self._initial_logits(kernel), self.setting
        done = self.solver.pass_over(
            setting.grid.functions[kernel],
            self._streamed_rows(problem.targets, z_0),
            setting.size,
            setting.memory_limit,
            self._seed,
            self._checkpoint,
            progress,
            beside=self._beside_bytes(),
        )
        self._last = KernelPass(kernel, z_0, done)
        return self._last

    def _remove_checkpoint(self) -> None:
        """Remove the files of all passes: none is needed any more."""
        if self._checkpoint is not None:
            self._checkpoint.remove()

    def _initial_logits(self, kernel: int) -> Tensor:
        setting, grid = self.setting, self.setting.grid
        return initial_logits(
            setting.init,
            grid.used_kernels[kernel],
            grid.functions[kernel],
            self.stream,
            setting.n_classes,
            setting.rows.distinct.weights,
        )

    def _streamed_rows(self, targets: Tensor, z_0: Tensor) -> StreamedRows:
        """Return the rows with Δz: z₀ (n,) or (n, K) is subtracted from every recipe's z_eff."""
        weights = self.setting.rows.distinct.weights
        counted = None if bool((weights == 1).all()) else weights
        return StreamedRows(self.stream, lambda rows: targets[rows] - z_0[rows][:, None], counted)

    def _held_out_students(
        self, problem: Problem, pass_over: KernelPass, ridge: float, test: Tensor
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe, each row's trained on all other distinct rows."""
        distinct, z_0 = problem.distinct, pass_over.initial_logits
        solution = solve_pass(pass_over.done, ridge).solution
        logits = torch.empty_like(problem.targets)
        rows = self._streamed_rows(problem.targets, z_0)
        for block, values in leave_one_out_blocks(solution, rows):
            logits[block] = values.to(logits)
        held_out = HeldOut(
            logits[distinct.merged.group],
            no_directions("nystrom"),
            logits.new_full((1, len(problem.recipes)), torch.nan),
            distinct.merged.n_distinct - 1,
        )
        return students_of(problem, held_out, z_0, test)

    def _beside_bytes(self) -> int:
        """Return the bytes that the search takes beside a pass, whose sums it keeps.

        What is kept of all rows; the factors that leave rows out.
        """
        of_rows = self.setting.record_bytes(len(self.setting.rows.distinct.kept))
        return of_rows + prediction_bytes(self.setting.size) + 2 * 8 * self.solver.n_landmarks**2
