"""The search over exact students by conjugate gradients: no factor, and no need for the matrix.

ρ and T change only the columns of Δz, so one iteration for each fold, ridge and kernel serves all
of them.
"""

from __future__ import annotations

from typing import Any

from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_kd._base import DistinctRows, TrainingRows
from sklearn_kd._cv_results import FoldScores, Grid
from sklearn_kd._exact_search import folds_of
from sklearn_kd._held_out_student import (
    Fold,
    HeldOutStudent,
    Problem,
    no_directions,
    students_of,
)
from sklearn_kd._initial_network import initial_logits
from sklearn_kd._pcg_student import PCG_REMEDY, pcg_student
from sklearn_kd._progress import FitTask
from sklearn_kd._solvers import Options, Size, pcg_plan, prediction_bytes
from sklearn_kd.kernels._function import KernelFunction, as_kernel_function
from sklearn_kd.kernels._tiles import matmat
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.linalg._memory import budget_bytes, require


class IteratedSearch:
    """Held-out scores of the exact students of a grid, to a residual of ``tol``.

    Parameters
    ----------
    search : LinearizedKDStudentCV
        Whose parameters count.
    grid : Grid
        The candidates.
    rows : TrainingRows
    distinct : DistinctRows
        Of ``rows``, in memory.

    Raises
    ------
    MemoryBudgetError
        If not even the preconditioner, the targets and the predictions fit ``memory_limit``.
    ValueError
        If ``cv`` is None, or a fold has no rows to train on or to test.
    """

    def __init__(self, search: Any, grid: Grid, rows: TrainingRows, distinct: DistinctRows) -> None:
        if search.cv is None:
            raise ValueError(
                "cv=None leaves one row out at a time in closed form, which needs the factor that "
                "solver='pcg' does without; give a number of folds, such as cv=5, or use "
                "solver='auto' or 'nystrom'."
            )
        self.search = search
        self.grid = grid
        self.teacher_cv = check_cv(search.cv, rows.labels, classifier=True)
        self.folds = folds_of(search.cv, self.teacher_cv, rows, distinct)
        n_classes = len(rows.classes)
        n_columns = grid.n_columns(n_classes)
        n, d = distinct.X.shape
        dtype, device = distinct.X.dtype, distinct.X.device
        beside = prediction_bytes(Size(n, d, n_columns, dtype, device))
        # The folds are planned as if they were all rows, as the last fit is on all of them.
        self.plan = pcg_plan(
            Size(n, d, n_columns, dtype, device),
            Options(memory_limit=max(0, budget_bytes(search.memory_limit, device) - beside)),
        )
        require(
            self.plan.planned_bytes + beside,
            search.memory_limit,
            device,
            what=f"LinearizedKDStudentCV.fit on n={n} distinct rows with solver='pcg'",
            remedy=PCG_REMEDY,
        )
        self._initial_logits = [
            initial_logits(search.init, kernel, as_kernel_function(kernel), distinct.X, n_classes)
            for kernel in grid.kernels
        ]

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate, by the students that have not seen a fold."""
        for kernel, z_0 in zip(self.grid.kernels, self._initial_logits, strict=True):
            function = as_kernel_function(kernel)
            for alpha in self.grid.alphas:
                with progress.stage("candidates", len(self.folds)) as task:
                    for fold in self.folds:
                        with task.stage("fold"):
                            students = self._held_out_students(problem, function, z_0, fold, alpha)
                            scores.add(students, fold)
                scores.close_cell()

    def _held_out_students(
        self, problem: Problem, kernel: KernelFunction, z_0: Tensor, fold: Fold, alpha: float
    ) -> list[HeldOutStudent]:
        """Return the students of every recipe that have not seen the rows of the fold."""
        assert fold.train is not None
        search = self.search
        numbers, train, z_eff = problem.trained_on(fold.train)
        student = pcg_student(
            kernel,
            train.X,
            z_eff - z_0[numbers, None],
            alpha=alpha,
            weights=train.weights,
            plan=self.plan,
            tol=search.tol,
            max_iter=search.max_iter,
            random_state=check_random_state(search.random_state),
        )
        coefficients = student.coefficients.to(train.X)
        rows = problem.distinct.X[problem.distinct.merged.group[fold.test]]
        logits = matmat(kernel, rows, train.X, coefficients.reshape(len(train.X), -1))
        held_out = HeldOut(
            logits.reshape(-1, *coefficients.shape[1:]),
            no_directions("pcg"),
            logits.new_full((1, len(problem.recipes)), float("nan")),
            len(train.X),
        )
        return students_of(problem, held_out, z_0, fold.test)

    def at_hand(self, params: dict[str, Any], progress: FitTask) -> None:
        """Return nothing: the best student on all rows is one more iteration."""
