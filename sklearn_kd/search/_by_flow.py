"""The search over students that stop: every recipe, ridge and fold of a kernel side by side.

Converged students, where they are among the candidates, come from the factors of the same Θ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import n_logits
from sklearn_kd._memory import budget_bytes
from sklearn_kd._progress import PERCENT, FitTask
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._forecast import HALF, Work, product_work
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.search._by_factor import SearchByFactor
from sklearn_kd.search._flows import (
    Flows,
    Kernel,
    StoppedScores,
    flows_bytes,
    n_runs_together,
    with_noise,
)
from sklearn_kd.search._grid import Candidate, Cell
from sklearn_kd.search._held_out_student import HeldOutStudent, no_directions, students_of
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.search._protocol import TRAINING, CandidateSearch
from sklearn_kd.search._validation import ValidatedProblem
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._posed import PosedStudent
from sklearn_kd.students._stopped import N_STEPS, train
from sklearn_kd.training._gradient_flow import usual_products


class SearchByFlow(SearchByFactor):
    """Every candidate that stops, and every fold, from a few flows; those that converge by factor.

    Raises
    ------
    MemoryBudgetError
        If the kernel matrix and a single run beside it do not fit ``memory_limit``, or the factors
        of converged students do not.
    """

    def __init__(self, setting: Setting) -> None:
        self._converges = None in setting.grid.times
        self._trained: list[StoppedScores] = []  # by kernel, the last with its predictions
        super().__init__(setting)

    def _planned_bytes(self, *, by_factors: bool, keeps_matrix: bool) -> int:
        """Return the peak bytes of the flows or, where they take more, of the factors."""
        setting, folds = self.setting, self.folds
        budget = budget_bytes(setting.memory_limit, setting.size.device)
        n_together = n_runs_together(setting, folds, budget)
        self._flows = Flows(setting, folds, n_together)
        planned = flows_bytes(setting, folds, n_together)
        if not self._converges:
            return planned
        of_factors = super()._planned_bytes(by_factors=by_factors, keeps_matrix=keeps_matrix)
        return max(planned, of_factors)

    @property
    def n_steps(self) -> int:
        """Number of steps: those of the flows too, and of the last fit where it is sure to stop."""
        n_last = N_STEPS if self.setting.refit and not self._converges else 0
        return super().n_steps + len(self.setting.grid.kernels) * N_STEPS + n_last

    def warn_if_long(self) -> None:
        """Warn if the search will take minutes; a kernel matrix that is left saves none of them."""
        CandidateSearch.warn_if_long(self)

    def work_of(self, share: float) -> list[Work]:
        """Return what a search over a share of the rows consists of."""
        setting, n_rows = self.setting, share * self.setting.size.n_rows
        grid, n_columns = setting.grid, n_logits(setting.n_classes)
        n_products = usual_products(grid.stopped_at[-1])
        groups = self._flows.groups(has_noise=False) * len(grid.kernels)
        products = sum(product_work(n_rows, len(group) * n_columns) for group in groups)
        if self._converges:
            assembled = super().work_of(share)
        else:
            products += setting.refit * product_work(n_rows, n_columns)
            assembled = [Work(setting.size.dtype, len(grid.kernels) * n_rows**2 / 2, 0.0)]
        return [*assembled, Work(setting.size.dtype, 0.0, n_products * products)]

    def faster(self) -> dict[str, list[Work]]:
        """Return fewer rows."""
        return {HALF: self.work_of(0.5)}

    def _begin(self, kernel: int, problems: list[Problem], progress: FitTask) -> None:
        """Train the students with a kernel that stop."""
        for last in self._trained:
            last.changes.clear()
        setting, whole = self.setting, self.whole
        function = setting.grid.functions[kernel]
        with progress.step("kernel"):
            whole.use(function)
            matrix = whole.matrix
            whole.keep()
        cross_product = None
        if isinstance(first := problems[0], ValidatedProblem):
            rows, fitted = first.validation.X, setting.rows.distinct.X

            def cross_product(columns: Tensor) -> Tensor:
                return function.matmat(rows, fitted, columns)

        own = Kernel(matrix, whole.noise, cross_product, self._initial_logits[kernel])
        with progress.parts("gradient-flow", PERCENT) as on_progress, full_precision():
            self._trained.append(self._flows.train(problems, own, on_progress))

    def _held_out_students(
        self, problem: Problem, cell: Cell, initial_logits: Tensor, fold: Fold
    ) -> list[HeldOutStudent]:
        if cell.time is None:
            return super()._held_out_students(problem, cell, initial_logits, fold)
        return students_of(problem, self._stopped(cell, fold), initial_logits, fold.test)

    def _on_validation_rows(
        self, problem: ValidatedProblem, cell: Cell, initial_logits: Tensor
    ) -> HeldOut:
        if cell.time is None:
            return super()._on_validation_rows(problem, cell, initial_logits)
        return self._stopped(cell, self.folds[0])

    def _stopped(self, cell: Cell, fold: Fold) -> HeldOut:
        """Return f − z₀ on the rows of a fold by the students of every recipe that have stopped."""
        setting, grid = self.setting, self.setting.grid
        number = next(k for k, other in enumerate(self.folds) if other is fold)
        assert cell.time is not None, "else the student has converged"
        at = grid.ridges.index(cell.ridge), grid.stopped_at.index(cell.time)
        logits = self._trained[cell.kernel].changes[number][at]
        distinct = setting.rows.distinct
        return HeldOut(
            logits,
            no_directions("that stopped", "stopping_times=None"),
            logits.new_full((1, len(grid.recipes)), torch.nan),
            len(distinct.weights) if fold.train is None else fold.n_trained_on(distinct),
        )

    @property
    def training(self) -> dict[str, np.ndarray]:
        """The mean of Eq. 2 and the accuracy on the rows trained on, means over the folds."""
        grid, columns = self.setting.grid, super().training
        by_kernel = [(scores.losses, scores.accuracies) for scores in self._trained]
        for name, values in zip(TRAINING, zip(*by_kernel, strict=True), strict=True):
            means = np.stack(values).mean(axis=-1)  # (kernels, ridges, S, recipes)
            for index, candidate in enumerate(grid.candidates):
                time = grid.times[candidate.time]
                if time is not None:
                    at = candidate._replace(time=grid.stopped_at.index(time))
                    columns[name][index] = means[at]
        return columns

    def solve(
        self, problem: Problem, posed: PosedStudent, candidate: Candidate, progress: FitTask
    ) -> Solution:
        """Return the student of one candidate on all rows."""
        if posed.stopping_times is None:
            return super().solve(problem, posed, candidate, progress)
        self.whole.use(posed.function)
        self.whole.free_factor()
        matrix = self.whole.matrix
        with with_noise(matrix, self.whole.noise / problem.distinct.weights):
            return train(posed, progress, matrix)
