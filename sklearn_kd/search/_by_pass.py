"""The search over students restricted to landmarks: one pass for all candidates of a kernel.

ρ and T change only the columns of Δz, and the ridge only what is added to the sums over the rows.
So one pass serves all of them, and a second one for each ridge gives every row's prediction by the
students that were trained on all other rows, in closed form. With folds there is a pass for each,
over the rows that it is trained on: its landmarks are among these, as in a refit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_kd._memory import require
from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._forecast import Work
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.linalg._landmarks import block_rows
from sklearn_kd.rows._checking import to_working
from sklearn_kd.rows._streams import RowStream, as_row_stream
from sklearn_kd.search._fold_search import (
    all_splits,
    folds_of,
    initial_logits_of_validation,
    kept_bytes,
)
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
from sklearn_kd.search._validation import ValidatedProblem, validated_students
from sklearn_kd.solvers._nystrom import Nystrom, restricted_solution
from sklearn_kd.solvers._pass import NystromPass, leave_one_out_blocks, solve_pass
from sklearn_kd.solvers._rows_and_targets import StreamedRows
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._initial_network import initial_logits
from sklearn_kd.students._posed import PosedStudent, Rows


def rows_of_landmarks(search: Any, rows: Rows, solver: Nystrom) -> Rows:
    """Return the rows as a stream if there are more than landmarks, else in memory.

    Where all distinct rows would be landmarks the restricted student is the exact one, of which
    every row can be left out.
    """
    X = rows.X if isinstance(rows.X, RowStream) else as_row_stream(rows.X)
    if len(X) > solver.n_landmarks:
        return rows._replace(X=X)
    in_memory = to_working(search, X)
    return rows._replace(distinct=rows.distinct._replace(X=in_memory), X=in_memory)


def pass_work(solver: Nystrom, setting: Setting, folds: list[Fold]) -> list[Work]:
    """Return what a search consists of, by its passes."""
    size, grid = setting.size, setting.grid
    n, M = size.n_rows, min(solver.n_landmarks, size.n_rows)
    n_kernels, n_cells = len(grid.kernels), len(grid.kernels) * len(grid.ridges)

    def passes(n_rows: int, count: int) -> list[Work]:
        whole = solver.work(size._replace(n_rows=n_rows), setting.memory_limit)
        return [work.times(count) for work in whole]

    if setting.cv is not None:
        left = [fold.n_trained_on(setting.rows.distinct) for fold in folds]
        by_fold = [work for n_left in left for work in passes(n_left, n_kernels)]
        return by_fold + (passes(n, 1) if setting.refit else [])
    second = Work(torch.float64, 0, n * (M**2 / 2 + M * size.n_targets))
    return [
        *passes(n, n_kernels),
        Work(size.dtype, n * M, 0).times(n_cells),
        second.times(n_cells),
    ]


class KernelPass(NamedTuple):
    """The pass with one of the kernels."""

    kernel: int
    initial_logits: Tensor  # z₀ of the distinct rows
    done: NystromPass


class FoldStudents(NamedTuple):
    """The students of every ridge and recipe that are trained without a fold."""

    landmarks: Tensor  # (M, d)
    coefficients: list[Tensor]  # (M, C) or (M, C, K) for each ridge
    n_rows: int  # distinct rows that they are trained on


class SearchByPass(CandidateSearch):
    """Held-out scores of the restricted students of a grid: leave-one-out, or fold by fold.

    Raises
    ------
    MemoryBudgetError
        If the sums over the rows, and what is kept of every row, do not fit ``memory_limit``.
    ValueError
        If a fold has no rows to train on or to test.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, all_splits(setting.cv, setting.rows))
        self.folds = folds_of(setting, self.splits)
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

    @property
    def n_steps(self) -> int:
        """Number of steps: those of passes too; the last fit may need no new one."""
        n_kernels, n_passes = len(self.setting.grid.kernels), max(1, len(self.splits))
        n_last = self.setting.refit and (self.setting.cv is not None or n_kernels > 1)
        return super().n_steps + (n_kernels * n_passes + n_last) * self.solver.n_steps

    def work(self) -> list[Work]:
        """Return a pass for each kernel, and one for each ridge or fold."""
        return pass_work(self.solver, self.setting, self.folds)

    def faster(self) -> dict[str, list[Work]]:
        """Return the search with half of the landmarks."""
        fewer = Nystrom(max(1, self.solver.n_landmarks // 2))
        return {f"n_landmarks={fewer.n_landmarks}": pass_work(fewer, self.setting, self.folds)}

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate: one pass for each kernel, and one for each ridge."""
        for kernel in range(len(self.setting.grid.kernels)):
            if isinstance(problem, ValidatedProblem):
                self._score_validation_rows(problem, kernel, scores, progress)
            elif self.setting.cv is None:
                self._score_each_row(problem, kernel, scores, progress)
            else:
                self._score_folds(problem, kernel, scores, progress)
        if not self.setting.refit:
            self._remove_checkpoint()

    def _score_each_row(
        self, problem: Problem, kernel: int, scores: FoldScores, progress: FitTask
    ) -> None:
        """Add the leave-one-out scores of every candidate with one of the kernels."""
        (everything,) = self.folds
        pass_over = self._pass_over(problem, kernel, progress)
        for ridge in self.setting.grid.ridges:
            with progress.step("score-fold"):
                students = self._held_out_students(problem, pass_over, ridge, everything.test)
                scores.add(students, everything)
                scores.close_cell()

    def _score_validation_rows(
        self, problem: ValidatedProblem, kernel: int, scores: FoldScores, progress: FitTask
    ) -> None:
        """Add the scores on validation rows of every candidate with one of the kernels."""
        (everything,), n_rows = self.folds, problem.distinct.merged.n_distinct
        done = self._pass_over(problem, kernel, progress).done
        function, z_0 = self.setting.grid.functions[kernel], initial_logits_of_validation
        cross = function.block(problem.validation.X, done.basis.landmarks).double()
        for ridge in self.setting.grid.ridges:
            with progress.step("score-fold"):
                coefficients = solve_pass(done, ridge).coefficients
                logits = cross @ coefficients.reshape(cross.shape[1], -1)
                held_out = self._held_out(logits.reshape(-1, *coefficients.shape[1:]), n_rows)
                students = validated_students(problem, held_out, z_0(problem, kernel))
                scores.add(students, everything)
                scores.close_cell()

    def _score_folds(
        self, problem: Problem, kernel: int, scores: FoldScores, progress: FitTask
    ) -> None:
        """Add the scores by fold of every candidate with one of the kernels."""
        z_0, n_folds = self._initial_logits(kernel), len(self.folds)
        problems = [problem.of_fold(index) for index in range(n_folds)]
        trained = [
            self._without(own, kernel, z_0, fold, progress)
            for own, fold in zip(problems, self.folds, strict=True)
        ]
        numbers = [problem.distinct.merged.group[fold.test].unique() for fold in self.folds]
        function = self.setting.grid.functions[kernel]
        for ridge in range(len(self.setting.grid.ridges)):
            by_fold = self._predictions(function, trained, numbers, ridge)
            for own, fold, students, some, logits in zip(
                problems, self.folds, trained, numbers, by_fold, strict=True
            ):
                at = torch.searchsorted(some, problem.distinct.merged.group[fold.test])
                with progress.step("score-fold"):
                    held_out = self._held_out(logits[at], students.n_rows)
                    scores.add(students_of(own, held_out, z_0, fold.test), fold)
            scores.close_cell()

    def _without(
        self, problem: Problem, kernel: int, z_0: Tensor, fold: Fold, progress: FitTask
    ) -> FoldStudents:
        """Pass over the rows without those of a fold, which have weight 0, for every ridge."""
        assert fold.train is not None
        numbers, rows, z_eff = problem.trained_on(fold.train)
        weights = torch.zeros_like(problem.distinct.weights)
        weights[numbers] = rows.weights
        targets = torch.zeros_like(problem.targets)
        targets[numbers] = z_eff
        done = self._passed(kernel, targets, z_0, weights, progress)
        students = [solve_pass(done, ridge) for ridge in self.setting.grid.ridges]
        coefficients = [student.coefficients for student in students]
        return FoldStudents(done.basis.landmarks, coefficients, len(numbers))

    def _predictions(
        self,
        function: KernelFunction,
        trained: list[FoldStudents],
        numbers: list[Tensor],
        ridge: int,
    ) -> list[Tensor]:
        """Return the logits of the distinct rows of each fold, by one pass over all rows.

        ``numbers`` are theirs, increasing, by fold.
        """
        size, shape = self.setting.size, trained[0].coefficients[ridge].shape[1:]
        out = [torch.empty((len(n), *shape), dtype=size.dtype, device=size.device) for n in numbers]
        step = block_rows(self.solver.n_landmarks)
        for block, X in self.stream.blocks(step, dtype=size.dtype, device=size.device):
            for students, some, logits in zip(trained, numbers, out, strict=True):
                ends = torch.tensor([block.start, block.stop], device=some.device)
                here = slice(*torch.searchsorted(some, ends).tolist())
                cross = function.block(X[some[here] - block.start], students.landmarks).double()
                columns = students.coefficients[ridge].reshape(cross.shape[1], -1)
                logits[here] = (cross @ columns).reshape(-1, *shape).to(logits)
        return out

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
        z_0, weights = self._initial_logits(kernel), problem.distinct.weights
        done = self._passed(kernel, problem.targets, z_0, weights, progress)
        self._last = KernelPass(kernel, z_0, done)
        return self._last

    def _passed(
        self, kernel: int, targets: Tensor, z_0: Tensor, weights: Tensor, progress: FitTask
    ) -> NystromPass:
        """Pass over the rows of positive weight with one of the kernels."""
        setting = self.setting
        return self.solver.pass_over(
            setting.grid.functions[kernel],
            self._streamed_rows(targets, z_0, weights),
            setting.size,
            setting.memory_limit,
            self._seed,
            self._checkpoint,
            progress,
            beside=self._beside_bytes(),
        )

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

    def _streamed_rows(self, targets: Tensor, z_0: Tensor, weights: Tensor) -> StreamedRows:
        """Return the rows with Δz: z₀ (n,) or (n, K) is subtracted from every recipe's z_eff."""
        counted = None if bool((weights == 1).all()) else weights
        return StreamedRows(self.stream, lambda rows: targets[rows] - z_0[rows][:, None], counted)

    def _held_out_students(
        self, problem: Problem, pass_over: KernelPass, ridge: float, test: Tensor
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe, each row's trained on all other distinct rows."""
        distinct, z_0 = problem.distinct, pass_over.initial_logits
        solution = solve_pass(pass_over.done, ridge).solution
        logits = torch.empty_like(problem.targets)
        rows = self._streamed_rows(problem.targets, z_0, distinct.weights)
        for block, values in leave_one_out_blocks(solution, rows):
            logits[block] = values.to(logits)
        held_out = self._held_out(logits[distinct.merged.group], distinct.merged.n_distinct - 1)
        return students_of(problem, held_out, z_0, test)

    def _held_out(self, logits: Tensor, n_rows: int) -> HeldOut:
        """Return logits (m, C) or (m, C, K) as those of students without a tangent frame."""
        unknown = logits.new_full((1, logits.shape[1]), torch.nan)
        return HeldOut(logits, no_directions("fitted with solver='nystrom'"), unknown, n_rows)

    def _beside_bytes(self) -> int:
        """Return the bytes that the search takes beside a pass, whose sums it keeps.

        What is kept of all rows; the factors that leave rows out, or the students of each fold, and
        Δz of one.
        """
        size, M = self.setting.size, self.solver.n_landmarks
        kept = prediction_bytes(size) + kept_bytes(self.setting, self.folds)
        if self.setting.cv is None:
            return kept + 2 * 8 * M**2
        by_fold = 8 * M * (size.n_features + len(self.setting.grid.ridges) * size.n_targets)
        return kept + len(self.folds) * by_fold + size.n_rows * size.n_targets * size.dtype.itemsize
