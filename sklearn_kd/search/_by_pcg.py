"""The search over exact students by conjugate gradients: no factor, and no need for the matrix.

ρ and T change only the columns of Δz, so one iteration for each fold, ridge and kernel serves all
of them.
"""

from __future__ import annotations

from typing import Any

from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_kd._memory import budget_bytes, require
from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.rows._training_rows import DistinctRows, TrainingRows
from sklearn_kd.search._fold_search import FoldSearch
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._held_out_student import (
    HeldOutStudent,
    no_directions,
    prediction_bytes,
    students_of,
)
from sklearn_kd.search._problem import Fold, Problem
from sklearn_kd.solvers._choice import Options, Size, pcg_plan
from sklearn_kd.solvers._pcg import PCG_REMEDY, pcg_student


class IteratedSearch(FoldSearch):
    """Every candidate of a fold from one iteration, to a residual of ``tol``."""

    def __init__(self, search: Any, grid: Grid, rows: TrainingRows, distinct: DistinctRows) -> None:
        if search.cv is None:
            raise ValueError(
                "cv=None leaves one row out at a time in closed form, which needs the factor that "
                "solver='pcg' does without; give a number of folds, such as cv=5, or use "
                "solver='auto' or 'nystrom'."
            )
        super().__init__(search, grid, rows, distinct)

    def _plan(self, distinct: DistinctRows, n_columns: int) -> None:
        search, device = self.search, distinct.X.device
        n, d = distinct.X.shape
        size = Size(n, d, n_columns, distinct.X.dtype, device)
        beside = prediction_bytes(size)
        left = max(0, budget_bytes(search.memory_limit, device) - beside)
        # The folds are planned as if they were all rows, as the last fit is on all of them.
        self.plan = pcg_plan(size, Options(memory_limit=left))
        require(
            self.plan.planned_bytes + beside,
            search.memory_limit,
            device,
            what=f"LinearizedKDStudentCV.fit on n={n} distinct rows with solver='pcg'",
            remedy=PCG_REMEDY,
        )

    def _use(self, kernel: Any) -> None:
        self._kernel = as_kernel_function(kernel)

    def _held_out_students(
        self, problem: Problem, initial_logits: Tensor, fold: Fold, ridge: float
    ) -> list[HeldOutStudent]:
        assert fold.train is not None
        search, kernel = self.search, self._kernel
        numbers, train, z_eff = problem.trained_on(fold.train)
        student = pcg_student(
            kernel,
            train.X,
            z_eff - initial_logits[numbers, None],
            ridge=ridge,
            weights=train.weights,
            plan=self.plan,
            tol=search.tol,
            max_iter=search.max_iter,
            random_state=check_random_state(search.random_state),
        )
        coefficients = student.coefficients.to(train.X)
        rows = problem.distinct.X[problem.distinct.merged.group[fold.test]]
        logits = kernel.matmat(rows, train.X, coefficients.reshape(len(train.X), -1))
        held_out = HeldOut(
            logits.reshape(-1, *coefficients.shape[1:]),
            no_directions("pcg"),
            logits.new_full((1, len(problem.recipes)), float("nan")),
            len(train.X),
        )
        return students_of(problem, held_out, initial_logits, fold.test)

    def at_hand(self, params: dict[str, Any], progress: FitTask) -> None:
        """Return nothing: the best student on all rows is one more iteration."""
