"""The search over students restricted to landmarks: one pass for all candidates of a kernel.

ρ and T change only the columns of Δz, and the ridge only what is added to the sums over the rows.
So one pass serves all of them, and a second one for each ridge gives every row's prediction by the
students that were trained on all other rows, in closed form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_kd._memory import require
from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.rows._streams import RowStream
from sklearn_kd.rows._training_rows import DistinctRows, TrainingRows
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._held_out_student import (
    HeldOutStudent,
    no_directions,
    prediction_bytes,
    students_of,
)
from sklearn_kd.search._problem import Fold, Problem
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.solvers._choice import (
    N_REPORTS,
    SOLVERS,
    Options,
    Size,
    Solution,
    checkpoint_at,
    restricted_solution,
)
from sklearn_kd.solvers._pass import (
    NYSTROM_REMEDY,
    LandmarkChoice,
    NystromPass,
    PassOptions,
    StreamedRows,
    leave_one_out_blocks,
    nystrom_pass,
    solve_pass,
)
from sklearn_kd.students._initial_network import initial_logits


class RestrictedSearch:
    """Leave-one-out scores of the restricted students of a grid.

    Parameters
    ----------
    search : LinearizedKDStudentCV
        Whose parameters count.
    grid : Grid
        The candidates.
    rows : TrainingRows
    distinct : DistinctRows
        Of ``rows``, without their X.
    stream : RowStream
        Their X.

    Raises
    ------
    MemoryBudgetError
        If the sums over the rows, and what is kept of every row, do not fit ``memory_limit``.
    """

    teacher_cv = 5

    def __init__(
        self,
        search: Any,
        grid: Grid,
        rows: TrainingRows,
        distinct: DistinctRows,
        stream: RowStream,
    ) -> None:
        _require_memory(search, stream, distinct.weights, grid.n_columns(len(rows.classes)))
        self.search = search
        self.checkpoint = checkpoint_at(search.checkpoint)
        self.grid = grid
        self.stream = stream
        # The last pass of the kernel at hand, and z₀ of the distinct rows.
        self._kernel: Any = self  # no kernel yet; None is one
        self._done: NystromPass | None = None

    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate: one pass for each kernel, and one for each ridge."""
        self.problem = problem
        everything = torch.arange(len(problem.distinct.kept), device=problem.distinct.kept.device)
        for kernel in self.grid.kernels:
            self.use(kernel, progress)
            for ridge in self.grid.ridges:
                with progress.stage("candidates"):
                    students = self._held_out_students(ridge, everything)
                    scores.add(students, Fold(None, everything))
                    scores.close_cell()
        if not self.search.refit:
            self._remove_checkpoint()

    def _remove_checkpoint(self) -> None:
        """Remove the files of all passes: none is needed any more."""
        if self.checkpoint is not None:
            self.checkpoint.remove()

    def use(self, kernel: Any, progress: FitTask) -> None:
        """Pass over the rows with one of the kernels, unless it was the last one."""
        if self._kernel is kernel:
            return
        search, weights = self.search, self.problem.distinct.weights
        function = as_kernel_function(kernel)
        n_classes = len(self.problem.rows.classes)
        self._kernel, self._done = kernel, None
        self._z_0 = initial_logits(search.init, kernel, function, self.stream, n_classes, weights)
        targets = self.problem.targets
        size = Size(*self.stream.shape, targets[0].numel(), targets.dtype, targets.device)
        with progress.stage("pass-over-rows", N_REPORTS) as task:
            self._done = nystrom_pass(
                function,
                self._rows(),
                LandmarkChoice(search.n_landmarks, search.landmarks, search.random_state),
                dtype=weights.dtype,
                device=weights.device,
                options=PassOptions(
                    memory_limit=search.memory_limit,
                    beside=beside_bytes(size, search.n_landmarks),
                    n_jobs=search.n_jobs,
                    checkpoint=self.checkpoint,
                    on_progress=task.report,
                ),
            )

    def _rows(self) -> StreamedRows:
        targets, z_0 = self.problem.targets, self._z_0[:, None]
        weights = self.problem.distinct.weights
        all_one = bool((weights == 1).all())
        return StreamedRows(
            self.stream, lambda rows: targets[rows] - z_0[rows], None if all_one else weights
        )

    def _held_out_students(self, ridge: float, test: Tensor) -> list[HeldOutStudent]:
        """Return the students of every recipe, each row's trained on all other distinct rows."""
        assert self._done is not None
        problem, distinct = self.problem, self.problem.distinct
        solution = solve_pass(self._done, ridge).solution
        logits = torch.empty_like(problem.targets)
        for block, values in leave_one_out_blocks(solution, self._rows()):
            logits[block] = values.to(logits)
        group = distinct.merged.group
        norms = logits.new_full((1, len(problem.recipes)), torch.nan)
        held_out = HeldOut(
            logits[group], no_directions("nystrom"), norms, distinct.merged.n_distinct - 1
        )
        return students_of(problem, held_out, self._z_0, test)

    def at_hand(self, params: dict[str, Any], progress: FitTask) -> Solution:
        """Return the solution of one candidate, trained on all rows: the sums are there already."""
        grid, kernel = self.grid, params.get("kernel", self.search.kernel)
        self.use(kernel, progress)
        assert self._done is not None
        recipe = {name: params[name] for name in ("soft_ratio", "temperature")}
        index = next(i for i, known in enumerate(grid.recipes) if recipe.items() <= known.items())
        student = solve_pass(self._done, params["ridge"])
        self._remove_checkpoint()
        return restricted_solution(student, self.problem.distinct.weights.dtype, index)


def _require_memory(search: Any, stream: RowStream, weights: Tensor, n_columns: int) -> None:
    size = Size(*stream.shape, n_columns, weights.dtype, weights.device)
    names = [name for name in Options._fields if hasattr(search, name)]
    options = Options(**{name: getattr(search, name) for name in names})
    planned = SOLVERS["nystrom"].planned_bytes(size, options)
    require(
        planned + beside_bytes(size, search.n_landmarks),
        search.memory_limit,
        weights.device,
        what=f"LinearizedKDStudentCV.fit on n={len(stream)} distinct rows with solver='nystrom'",
        remedy=NYSTROM_REMEDY,
    )


def beside_bytes(size: Size, n_landmarks: int) -> int:
    """Return the bytes that a search takes beside a pass, whose sums it keeps.

    What is kept of all rows; the factors that leave rows out.
    """
    return prediction_bytes(size) + 2 * 8 * n_landmarks**2
