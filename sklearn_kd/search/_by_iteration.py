"""The search over exact students by conjugate gradients: no factor, and no need for the matrix.

ρ and T change only the columns of Δz, so one run of conjugate gradients for each fold, ridge and
kernel serves all of them.
"""

from __future__ import annotations

from torch import Tensor

from sklearn_kd._memory import budget_bytes, require
from sklearn_kd._progress import FitTask
from sklearn_kd.linalg._forecast import HALF, Work
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.search._by_pass import pass_work
from sklearn_kd.search._fold_search import FoldSearch, kept_bytes
from sklearn_kd.search._grid import Candidate, Cell
from sklearn_kd.search._held_out_student import (
    HeldOutStudent,
    no_directions,
    prediction_bytes,
    students_of,
)
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.search._validation import ValidatedProblem
from sklearn_kd.solvers._choice import in_words
from sklearn_kd.solvers._nystrom import Nystrom
from sklearn_kd.solvers._pcg import PCG
from sklearn_kd.solvers._system import Solution, System
from sklearn_kd.students._posed import PosedStudent


def iteration_work(
    solver: PCG, setting: Setting, folds: list[Fold], share: float = 1.0
) -> list[Work]:
    """Return what a search over a share of the rows consists of, by its runs."""
    size, grid = setting.size, setting.grid
    n_rows, n_cells = share * size.n_rows, len(grid.kernels) * len(grid.ridges)
    left = [share * fold.n_trained_on(setting.rows.distinct) for fold in folds]
    runs = [(int(n), n_cells, size.n_targets) for n in left]
    if setting.refit:
        runs.append((int(n_rows), 1, size.n_targets // len(grid.recipes)))
    return [
        work.times(count)
        for n, count, n_targets in runs
        for work in solver.work(size._replace(n_rows=n, n_targets=n_targets), setting.memory_limit)
    ]


class SearchByIteration(FoldSearch):
    """Every candidate of a fold from one run of conjugate gradients, to a residual of ``tol``."""

    def __init__(self, setting: Setting) -> None:
        if setting.cv is None and not setting.n_validation:
            raise ValueError(
                "cv=None leaves one row out at a time in closed form, which needs the factor that "
                "solver='pcg' does without; give a number of folds, such as cv=5, pass "
                "validation rows to fit (X_val, y_val), or use solver='auto' or 'nystrom'."
            )
        assert isinstance(setting.solver, PCG)
        self.solver = setting.solver
        super().__init__(setting)

    def _plan(self) -> None:
        size, memory_limit = self.setting.size, self.setting.memory_limit
        beside = prediction_bytes(size) + kept_bytes(self.setting, self.folds)
        left = max(0, budget_bytes(memory_limit, size.device) - beside)
        # The folds are planned as if they were all rows, as the last fit is on all of them.
        self.plan = self.solver.plan(size, left)
        require(
            self.plan.planned_bytes + beside,
            memory_limit,
            size.device,
            what=f"LinearizedKDStudentCV.fit on n={size.n_rows} distinct rows with solver='pcg'",
            remedy=self.solver.remedy,
        )

    @property
    def n_steps(self) -> int:
        """Number of steps: those of the last iteration too."""
        return super().n_steps + self.setting.refit * self.solver.n_steps

    def work(self) -> list[Work]:
        """Return a run for each fold, ridge and kernel, and one on all rows."""
        return iteration_work(self.solver, self.setting, self.folds)

    def faster(self) -> dict[str, list[Work]]:
        """Return landmarks, and fewer rows."""
        nystrom = Nystrom()
        return {
            in_words(nystrom): pass_work(nystrom, self.setting, self.folds),
            HALF: iteration_work(self.solver, self.setting, self.folds, 0.5),
        }

    def _held_out_students(
        self, problem: Problem, cell: Cell, initial_logits: Tensor, fold: Fold
    ) -> list[HeldOutStudent]:
        assert fold.train is not None
        function = self.setting.grid.functions[cell.kernel]
        numbers, train, z_eff = problem.trained_on(fold.train)
        targets = z_eff - initial_logits[numbers, None]
        system = System(function, train.X, train.weights, targets, cell.ridge)
        rows = problem.distinct.X[problem.distinct.merged.group[fold.test]]
        held_out = self._predicted(system, rows, len(problem.recipes))
        return students_of(problem, held_out, initial_logits, fold.test)

    def _on_validation_rows(
        self, problem: ValidatedProblem, cell: Cell, initial_logits: Tensor
    ) -> HeldOut:
        function, distinct = self.setting.grid.functions[cell.kernel], problem.distinct
        targets = problem.targets - initial_logits[:, None]
        system = System(function, distinct.X, distinct.weights, targets, cell.ridge)
        return self._predicted(system, problem.validation.X, len(problem.recipes))

    def _predicted(self, system: System, rows: Tensor, n_recipes: int) -> HeldOut:
        """Return f − z₀ on other rows by the students of every recipe."""
        assert isinstance(system.X, Tensor)
        student = self.solver.student(system, self.plan)
        coefficients = student.coefficients.to(system.X)
        columns = coefficients.reshape(len(system.X), -1)
        logits = system.kernel.matmat(rows, system.X, columns)
        return HeldOut(
            logits.reshape(-1, *coefficients.shape[1:]),
            no_directions("fitted with solver='pcg'"),
            logits.new_full((1, n_recipes), float("nan")),
            len(system.X),
        )

    def solve(
        self, problem: Problem, posed: PosedStudent, candidate: Candidate, progress: FitTask
    ) -> Solution:
        """Return the student of one candidate: one more run, on all rows."""
        return self.solver.solve(posed.system, self.setting.memory_limit, progress)
