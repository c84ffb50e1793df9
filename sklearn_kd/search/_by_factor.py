"""The search over exact students: every candidate and fold from a few factors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sklearn_kd._memory import MEMORY_REMEDY, budget_bytes, require, workspace_bytes
from sklearn_kd._progress import FitTask
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._forecast import HALF, Work, factor_work, product_work
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.linalg._held_out import (
    HeldOut,
    StudentInFrame,
    block_held_out,
    blocks_pay,
    fold_frame,
    fold_held_out,
    leave_one_out,
    new_rows_held_out,
    resolves_blocks,
)
from sklearn_kd.rows._training_rows import DistinctRows
from sklearn_kd.search._by_iteration import iteration_work
from sklearn_kd.search._by_pass import pass_work
from sklearn_kd.search._fold_search import FoldSearch, kept_bytes
from sklearn_kd.search._grid import Candidate, Cell
from sklearn_kd.search._held_out_student import HeldOutStudent, students_of
from sklearn_kd.search._kept_factors import KeptFactors, limit_of
from sklearn_kd.search._problem import Fold, Problem, Setting
from sklearn_kd.search._validation import ValidatedProblem
from sklearn_kd.solvers._choice import in_words
from sklearn_kd.solvers._cholesky import Cholesky, solution_of
from sklearn_kd.solvers._nystrom import Nystrom
from sklearn_kd.solvers._pcg import PCG
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._posed import PosedStudent

# Time of the diagonal of an inverse from its factor, in units of that of the factor.
_INVERSE = 1.35


class SearchByFactor(FoldSearch):
    """Every candidate and fold from a few factors.

    Attributes
    ----------
    whole : WholeKernel
        Θ of all rows, and its factor.
    """

    def _plan(self) -> None:
        setting, ridges = self.setting, self.setting.grid.ridges
        distinct, refit = setting.rows.distinct, setting.refit
        noise = max(function.noise(distinct.X) for function in setting.grid.functions)
        with_noise = [ridge + noise for ridge in ridges]
        serves_folds = serves_all_folds(self.folds, distinct, with_noise, refit=refit)
        # Ridges, and folds with factors of their own, share the kernel matrix beside these; so do
        # students that stop.
        has_factors = setting.cv is not None and not serves_folds
        shares_matrix = has_factors or len(ridges) > 1 or bool(setting.grid.stopped_at)
        size = setting.size
        planned = self._planned_bytes(by_factors=has_factors, keeps_matrix=shares_matrix)
        self.kept = factors_to_keep(setting, planned)
        require(
            planned,
            setting.memory_limit,
            size.device,
            what=f"LinearizedKDStudentCV.fit on n={size.n_rows} distinct rows",
            remedy=MEMORY_REMEDY,
        )
        self.whole = WholeKernel(
            distinct,
            setting.memory_limit,
            self.kept,
            keep_matrix=shares_matrix,
            serves_folds=serves_folds,
        )

    def _planned_bytes(self, *, by_factors: bool, keeps_matrix: bool) -> int:
        """Return the peak bytes of the search; see `search_bytes`."""
        setting = self.setting
        planned = search_bytes(
            *setting.size,
            folds=[] if setting.cv is None else [len(fold.test) for fold in self.folds],
            by_factors=by_factors,
            keeps_matrix=keeps_matrix,
            refit=setting.refit,
        )
        return planned + kept_bytes(setting, self.folds)

    def warn_if_long(self) -> None:
        """Warn if the search will take minutes; not where factors are left of the fit before."""
        if self.kept is None or not self.kept.continues:
            super().warn_if_long()

    def work(self) -> list[Work]:
        """Return the factors of all rows and of folds, and what leaves folds out of the former."""
        return self.work_of(1.0)

    def work_of(self, share: float) -> list[Work]:
        """Return what a search over a share of the rows consists of."""
        setting, whole = self.setting, self.whole
        size, grid = setting.size, setting.grid
        n, C = share * size.n_rows, size.n_targets
        n_kernels, n_cells = len(grid.kernels), len(grid.kernels) * len(grid.ridges)
        tests = [share * len(fold.test) for fold in self.folds]
        if setting.cv is None:
            # the diagonal of the inverse, by a triangle: as many multiplications as the factor
            cell = factor_work(n) + _INVERSE * n**3 / 6 + 2 * product_work(n, C)
        elif whole.serves_folds:
            cell = factor_work(n)
            for index, m in enumerate(tests):
                cell += n**2 * m / 2 + n * m**2 + m**3 / 6 + product_work(m, C)
                if index == 0 or setting.sees_labels:
                    cell += 2 * product_work(n, C)
        else:
            left = [share * fold.n_trained_on(setting.rows.distinct) for fold in self.folds]
            cell = sum(factor_work(k) + 2 * product_work(k, C) for k in left) + n * sum(tests) * C
        has_frame = n_cells == 1 and (setting.cv is None or whole.serves_folds)
        refit = factor_work(n) if setting.refit and not has_frame else 0.0
        n_assembled = n_kernels if whole.keeps_matrix else n_cells
        return [Work(size.dtype, n_assembled * n**2 / 2, n_cells * cell + refit)]

    def faster(self) -> dict[str, list[Work]]:
        """Return conjugate gradients where there are folds, landmarks, and fewer rows."""
        setting, pcg, nystrom = self.setting, PCG(), Nystrom()
        options = {
            in_words(nystrom): pass_work(nystrom, setting, self.folds),
            HALF: self.work_of(0.5),
        }
        if setting.cv is None:
            return options
        return {in_words(pcg): iteration_work(pcg, setting, self.folds)} | options

    def _held_out_students(
        self, problem: Problem, cell: Cell, initial_logits: Tensor, fold: Fold
    ) -> list[HeldOutStudent]:
        self.whole.use(self.setting.grid.functions[cell.kernel])
        return held_out_students(problem, self.whole, initial_logits, fold, cell.ridge)

    def _on_validation_rows(
        self, problem: ValidatedProblem, cell: Cell, initial_logits: Tensor
    ) -> HeldOut:
        self.whole.use(self.setting.grid.functions[cell.kernel])
        targets = problem.targets - initial_logits[:, None]
        student = StudentInFrame.of(self.whole.frame(cell.ridge), targets)
        return new_rows_held_out(student, problem.validation.X)

    def solve(
        self, problem: Problem, posed: PosedStudent, candidate: Candidate, progress: FitTask
    ) -> Solution:
        """Return the student of one candidate from the factor of all rows."""
        self.whole.use(posed.function)
        return solution_of(self.whole.frame(posed.ridge), posed.system.targets)


def factors_to_keep(setting: Setting, planned: int) -> KeptFactors:
    """Return what this fit keeps for the next one, in what ``planned`` bytes leave.

    What the fit before has kept is dropped where it is of no use, or leaves too little room.
    """
    last, distinct, device = setting.kept, setting.rows.distinct, setting.size.device
    if last is not None and not last.serve(distinct):
        last.clear()
    held = 0 if last is None else last.n_bytes
    budget = budget_bytes(setting.memory_limit, device)
    if setting.memory_limit != "auto":  # else what is held is not free
        budget -= held
    if planned > budget and last is not None:
        last.clear()
        held, budget = 0, budget_bytes(setting.memory_limit, device)
    assert isinstance(setting.solver, Cholesky)
    share = limit_of(setting.solver.cache_size, device, held)
    return KeptFactors(distinct, min(share, max(0, budget - planned) + held), last)


def search_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    folds: Sequence[int],
    by_factors: bool,
    keeps_matrix: bool,
    refit: bool,
) -> int:
    """Return the peak bytes of a search over ``n_targets`` columns, one per candidate and class.

    Parameters
    ----------
    folds : sequence of int
        Number of rows that each fold leaves out; empty for leave-one-out.
    by_factors : bool
        Whether folds have factors of their own, beside the matrix of all rows; else they are left
        out of the factor of all rows, a block of columns of its inverse at a time.
    keeps_matrix : bool
        Whether the matrix stands beside the factor of all rows: always where folds have factors.
    refit : bool
        Whether all rows are factored in the end.
    """
    n = n_rows
    if by_factors:
        beside = max(refit * n**2, *((n - m) ** 2 for m in folds))
    elif folds:
        beside = keeps_matrix * n**2 + max(n * m + 3 * m**2 for m in folds)
    else:
        beside = keeps_matrix * n**2
        beside += min(n**2, workspace_bytes(device) // (2 * dtype.itemsize))
    return frame_bytes(n, n_features, 2 * n_targets, dtype, device) + beside * dtype.itemsize


def serves_all_folds(
    folds: list[Fold], distinct: DistinctRows, ridges: list[float], *, refit: bool
) -> bool:
    """Whether a factor of all rows replaces, and takes less time than, one for each fold.

    Each fold has to be trained on all rows that it does not test, and all of these distinct. A
    ridge that differs by row would be another one for a row that is new.
    """
    n = len(distinct.kept)
    if distinct.merged.n_merged:
        return False
    if any(ridges) and not (distinct.weights == 1).all():
        return False
    for train, test in folds:
        if train is None:
            return False
        is_left = torch.ones(n, dtype=torch.bool, device=test.device)
        is_left[test] = False
        if not torch.equal(is_left.nonzero()[:, 0], train.sort().values):
            return False
    # Of all ridges one is fitted to all rows anyway.
    n_held_out = [len(fold.test) for fold in folds]
    return blocks_pay(n, n_held_out, frame_is_needed=refit and len(ridges) == 1)


class WholeKernel:
    """Θ of all distinct rows: its last factor, and its matrix where folds or ridges share it.

    Parameters
    ----------
    distinct : DistinctRows
        The rows.
    memory_limit : "auto" or number of bytes
        Budget for the factor.
    kept : KeptFactors
        What an earlier fit has left, and what is kept for a later one.
    keep_matrix : bool
        Whether to hold the matrix beside the factor.
    serves_folds : bool
        Whether folds are left out of the factor of all rows, where rounding allows it.
    """

    def __init__(
        self,
        distinct: DistinctRows,
        memory_limit: float | str,
        kept: KeptFactors,
        *,
        keep_matrix: bool,
        serves_folds: bool,
    ) -> None:
        self.memory_limit = memory_limit
        self._distinct = distinct
        self._kept = kept
        self.keeps_matrix = keep_matrix
        self.serves_folds = serves_folds
        self._function: KernelFunction | None = None
        self._unresolved: set[float] = set()
        self._matrix: Tensor | None = None
        self._frame: TangentFrame | None = None
        self._solved: StudentInFrame | None = None
        self._solved_for: Tensor | None = None  # the teachers' logits that it has learnt

    def use(self, function: KernelFunction) -> None:
        """Use this kernel from now on, and free what belongs to another one."""
        if self._function is function:
            return
        self._frame = self._matrix = self._solved = None  # frees those of another kernel first
        self._function, self._unresolved = function, set()

    @property
    def function(self) -> KernelFunction:
        """The kernel in use."""
        assert self._function is not None, "use() names the kernel"
        return self._function

    @property
    def noise(self) -> float:
        """What the kernel in use adds to the ridge."""
        return self.function.noise(self._distinct.X)

    @property
    def matrix(self) -> Tensor:
        """Θ of all rows."""
        if self._matrix is None:
            self._frame = self._solved = None  # frees the factor, which nothing needs beside it
            self._matrix = self._kept.matrix(self.function)
            if self._matrix is None:
                self._matrix = self.function.gram(self._distinct.X)
        return self._matrix

    def frame(self, ridge: float) -> TangentFrame:
        """Return the tangent frame of all rows with this ridge."""
        if self._frame is None or self._frame.ridge != ridge:
            self._frame = self._solved = None  # frees the factor of another ridge first
            self._frame = self._kept.frame(
                self.function, ridge, functools.partial(self._new_frame, ridge)
            )
        return self._frame

    def _new_frame(self, ridge: float) -> TangentFrame:
        return TangentFrame(
            self.function,
            self._distinct.X,
            ridge=ridge,
            weights=self._distinct.weights,
            gram=self.matrix if self.keeps_matrix else self._matrix,
            memory_limit=self.memory_limit,
        )

    def free_factor(self) -> None:
        """Free the factor, beside which what follows may not fit."""
        self._frame = self._solved = None

    def keep(self) -> None:
        """Keep the matrix for a next fit, where there is room."""
        self._kept.keep_matrix(self.function, self.matrix)

    def fold_frame(self, train: Tensor, weights: Tensor, ridge: float) -> TangentFrame:
        """Return the frame of the rows of a fold, whose weights are ``weights``."""

        def build() -> TangentFrame:
            return fold_frame(
                self.matrix,
                train,
                ridge=ridge + self.noise,
                weights=weights,
                memory_limit=self.memory_limit,
            )

        self.keep()  # before the frames of folds, which hold it
        return self._kept.fold_frame(self.function, ridge + self.noise, train, weights, build)

    def solved(self, ridge: float, problem: Problem, z_0: Tensor) -> StudentInFrame | None:
        """Return the student of all rows, if folds are left out of it; else None.

        It is solved once for all folds whose teacher has the same logits.
        """
        if not self.serves_folds or ridge in self._unresolved:
            return None
        try:
            frame = self.frame(ridge)
        except NotPSDError:  # without the rows of a fold it may well be definite
            frame = None
        if frame is None or not resolves_blocks(frame):
            self._unresolved.add(ridge)
            return None
        if self._solved is None or self._solved_for is not problem.members:
            self._solved = None  # frees that of another fold first
            self._solved = StudentInFrame.of(frame, problem.targets - z_0)
            self._solved_for = problem.members
        return self._solved


def held_out_students(
    problem: Problem, whole: WholeKernel, initial_logits: Tensor, fold: Fold, ridge: float
) -> list[HeldOutStudent]:
    """Return the students of every recipe that have not seen the rows of the fold.

    ``initial_logits`` are z₀ of all distinct rows, (n,) or (n, K).
    """
    distinct = problem.distinct
    number = distinct.merged.group[fold.test]
    z_0 = initial_logits[:, None]  # the same for every recipe
    if fold.train is None:
        by_row = leave_one_out(whole.frame(ridge), problem.targets - z_0)
        held_out = HeldOut(
            by_row.logits[number],
            lambda: by_row.new_directions()[number],
            by_row.squared_norms[number],
            by_row.n_rows,
        )
    elif student := whole.solved(ridge, problem, z_0):
        held_out = block_held_out(student, number)
    else:
        numbers, train, targets = problem.trained_on(fold.train)
        frame = whole.fold_frame(numbers, train.weights, ridge)
        held_out = fold_held_out(frame, number, targets - z_0[numbers])
    return students_of(problem, held_out, initial_logits, fold.test)
