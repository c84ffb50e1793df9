"""Students that have not seen the rows they are scored on, as one estimator that scorers accept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd._array import to_numpy
from sklearn_kd._base import DistinctRows, TangentKernelClassifier, TrainingRows
from sklearn_kd._targets import merged_effective_logits, root_of_eq_3
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._function import as_kernel_function
from sklearn_kd.linalg import MergedRows, TangentFrame
from sklearn_kd.linalg._held_out import (
    HeldOut,
    Solved,
    block_held_out,
    blocks_pay,
    fold_held_out,
    leave_one_out,
    resolves_blocks,
)


class HeldOutStudent(TangentKernelClassifier):
    """Predictions that are there already, for a scorer to ask for.

    A scorer calls ``predict`` or ``decision_function`` on rows; here these are the rows that were
    held out, whatever is passed, and the answers come from closed forms.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Class labels.
    logits : Tensor of shape (m,) or (m, K)
        The student's logits on the held-out rows.
    teacher_logits, effective_logits : Tensor of shape (m,) or (m, K)
        The teacher's, and those that the student would be trained towards.
    new_directions : callable
        Returns v(x) of each row, with its ridge, of shape (m,).
    squared_norm : Tensor, scalar or of shape (m,)
        ‖Δ‖² of the student, or of each row's own.
    n_rows : int
        Distinct rows that the student was trained on.
    """

    def __init__(
        self,
        classes: np.ndarray,
        logits: Tensor,
        teacher_logits: Tensor,
        effective_logits: Tensor,
        new_directions: Callable[[], Tensor],
        squared_norm: Tensor,
        n_rows: int,
    ) -> None:
        self.classes_ = classes
        self.dual_coef_ = None
        self.logits = logits
        self.teacher_logits = teacher_logits
        self.effective_logits = effective_logits
        self.new_directions = new_directions
        self.squared_norm = squared_norm
        self.n_rows = n_rows

    def _check_new_rows(self, X: Any, method: str) -> Any:
        return X

    def _logits(self, X: Any, coefficients: Any) -> Tensor:
        return self.logits

    def teacher_decision_function(self, X: Any, teacher_logits: Any = None) -> np.ndarray:
        """Return the teacher's logits on the held-out rows."""
        return to_numpy(self.teacher_logits)

    def effective_decision_function(self, X: Any, y: Any, teacher_logits: Any = None) -> np.ndarray:
        """Return the effective logits of the held-out rows."""
        return to_numpy(self.effective_logits)

    def _next_row_terms(
        self, X: Any, y: Any, teacher_logits: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return ‖Δ‖², the errors r, v and n that the data inefficiency is made of (Eq. 10)."""
        errors = self.effective_logits - self.logits
        return self.squared_norm, errors, self.new_directions(), self.n_rows

    def take(self, rows: Tensor) -> Self:
        """Return the student restricted to some of the held-out rows."""
        norm = self.squared_norm
        return type(self)(
            self.classes_,
            self.logits[rows],
            self.teacher_logits[rows],
            self.effective_logits[rows],
            lambda: self.new_directions()[rows],
            norm[rows] if norm.ndim else norm,
            self.n_rows,
        )


class Fold(NamedTuple):
    """Rows left out together, by position among the rows of positive weight."""

    train: Tensor | None  # None: each held-out row has a student of its own
    test: Tensor


def serves_all_folds(
    folds: list[Fold], distinct: DistinctRows, alphas: list[float], *, refit: bool
) -> bool:
    """Whether a factor of all rows replaces, and takes less time than, one for each fold.

    Each fold has to be trained on all rows that it does not test, and all of these distinct. A
    ridge that differs by row would be another one for a row that is new.
    """
    n = len(distinct.kept)
    if distinct.merged.n_merged:
        return False
    if any(alphas) and not (distinct.weights == 1).all():
        return False
    for train, test in folds:
        is_left = torch.ones(n, dtype=torch.bool, device=test.device)
        is_left[test] = False
        if train is None or not torch.equal(is_left.nonzero()[:, 0], train.sort().values):
            return False
    # Of all ridges one is fitted to all rows anyway.
    n_held_out = [len(fold.test) for fold in folds]
    return blocks_pay(n, n_held_out, frame_is_needed=refit and len(alphas) == 1)


@dataclass(frozen=True)
class Problem:
    """What all folds share."""

    rows: TrainingRows
    distinct: DistinctRows
    teacher_logits: Tensor  # (n_samples,) or (n_samples, K)
    recipes: list[dict[str, Any]]

    @functools.cached_property
    def targets(self) -> Tensor:
        """z_eff of the distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3)."""
        return self.targets_of(self.distinct)

    def targets_of(self, distinct: DistinctRows) -> Tensor:
        """Return z_eff of some distinct rows for every recipe, (n, C) or (n, C, K) (Eq. 3)."""
        columns = [
            merged_effective_logits(self.teacher_logits, distinct, recipe)
            for recipe in self.recipes
        ]
        return torch.stack(columns, dim=1).to(distinct.X)

    @functools.cached_property
    def single_targets(self) -> Tensor:
        """z_eff of each row of positive weight by itself, copies or not, on the CPU."""
        if self.distinct.merged.n_merged == 0:
            return self.targets.cpu().double()
        z_t = self.teacher_logits[self.distinct.kept.cpu()]
        hard = self.hard_labels.to(z_t)
        return torch.stack([root_of_eq_3(z_t, hard, **recipe) for recipe in self.recipes], dim=1)

    def trained_on(self, train: Tensor) -> tuple[Tensor, DistinctRows, Tensor]:
        """Return the numbers of the distinct rows among ``train``, these rows, and their z_eff."""
        numbers, rows = self._restricted(train)
        if self.distinct.merged.n_merged == 0:
            return numbers, rows, self.targets[numbers]
        # The copies of a row may be in other folds, and with them a part of its labels.
        return numbers, rows, self.targets_of(rows)

    def _restricted(self, train: Tensor) -> tuple[Tensor, DistinctRows]:
        """Return the numbers of the distinct rows among ``train``, and these rows as a problem."""
        whole = self.distinct
        numbers, group = torch.unique(whole.merged.group[train], return_inverse=True)
        positions = torch.arange(len(train), device=train.device)
        first = torch.full_like(numbers, len(train)).scatter_reduce(0, group, positions, "amin")
        merged, weights = MergedRows(first, group), whole.kept_weights[train]
        return numbers, DistinctRows(
            kept=whole.kept[train],
            kept_weights=weights,
            merged=merged,
            X=whole.X[numbers],
            hard_labels=merged.mean(self.hard_labels[train], weights),
            weights=merged.total(weights),
        )

    @functools.cached_property
    def hard_labels(self) -> Tensor:
        """Labels of the rows of positive weight: (n,) of class 1, or (n, K) indicators."""
        labels = torch.as_tensor(self.rows.labels, device=self.distinct.X.device)
        labels = labels[self.distinct.kept]
        n_classes = len(self.rows.classes)
        return (labels if n_classes == 2 else one_hot(labels, n_classes)).to(self.distinct.X)


class WholeKernel:
    """Θ of all distinct rows: its matrix, where folds or ridges share it, and its last factor.

    Parameters
    ----------
    distinct : DistinctRows
        The rows.
    memory_limit : "auto" or number of bytes
        Budget for the factor.
    keep_matrix : bool
        Whether to hold the matrix beside the factor.
    serves_folds : bool
        Whether folds are left out of the factor of all rows, where rounding allows it.
    """

    def __init__(
        self,
        distinct: DistinctRows,
        memory_limit: float | str,
        *,
        keep_matrix: bool,
        serves_folds: bool,
    ) -> None:
        self.memory_limit = memory_limit
        self._distinct = distinct
        self._keep_matrix = keep_matrix
        self._serves_folds = serves_folds
        self._kernel: Any = self  # no kernel yet; None is one
        self._matrix: Tensor | None = None
        self._frame: TangentFrame | None = None
        self._solved: Solved | None = None

    def use(self, kernel: Any) -> None:
        """Turn to a kernel, as :class:`LinearizedKDStudent` takes it."""
        if self._kernel is kernel:
            return
        self._kernel, self.function = kernel, as_kernel_function(kernel)
        self._frame = self._matrix = self._solved = None  # frees those of another kernel first
        self._unresolved: set[float] = set()
        if self._keep_matrix:
            self._matrix = self.function.gram(self._distinct.X)

    @property
    def matrix(self) -> Tensor:
        """Θ of all rows."""
        if self._matrix is None:
            self._frame = self._solved = None  # frees the factor, which nothing needs beside it
            self._matrix = self.function.gram(self._distinct.X)
        return self._matrix

    def frame(self, alpha: float) -> TangentFrame:
        """Return the tangent frame of all rows with this ridge."""
        if self._frame is None or self._frame.alpha != alpha:
            self._frame = self._solved = None  # frees the factor of another ridge first
            self._frame = TangentFrame(
                self.function,
                self._distinct.X,
                alpha=alpha,
                weights=self._distinct.weights,
                gram=self._matrix,
                memory_limit=self.memory_limit,
            )
        return self._frame

    def solved(self, alpha: float, targets: Callable[[], Tensor]) -> Solved | None:
        """Return the student of all rows, if folds are to be left out of it."""
        if not self._serves_folds or alpha in self._unresolved:
            return None
        try:
            frame = self.frame(alpha)
        except NotPSDError:  # without the rows of a fold it may well be definite
            frame = None
        if frame is None or not resolves_blocks(frame):
            self._unresolved.add(alpha)
            return None
        if self._solved is None:
            self._solved = Solved.of(frame, targets())
        return self._solved


def no_directions(solver: str) -> Callable[[], Tensor]:
    """Return what raises where v(x) is asked of students that have no tangent frame."""

    def new_directions() -> Tensor:
        raise AttributeError(
            "The data inefficiency needs the tangent frame of all training rows, which students "
            f"fitted with solver={solver!r} do not have; use another score or solver='auto'."
        )

    return new_directions


def held_out_students(
    problem: Problem, whole: WholeKernel, initial_logits: Tensor, fold: Fold, alpha: float
) -> list[HeldOutStudent]:
    """Return the students of every recipe that have not seen the rows of the fold.

    ``initial_logits`` are z₀ of all distinct rows, (n,) or (n, K).
    """
    distinct = problem.distinct
    number = distinct.merged.group[fold.test]
    z_0 = initial_logits[:, None]  # the same for every recipe
    if fold.train is None:
        by_row = leave_one_out(whole.frame(alpha), problem.targets - z_0)
        held_out = HeldOut(
            by_row.logits[number],
            lambda: by_row.new_directions()[number],
            by_row.squared_norms[number],
            by_row.n_rows,
        )
    elif student := whole.solved(alpha, lambda: problem.targets - z_0):
        held_out = block_held_out(student, number)
    else:
        numbers, train, targets = problem.trained_on(fold.train)
        held_out = fold_held_out(
            whole.matrix,
            numbers,
            number,
            targets - z_0[numbers],
            alpha=alpha,
            weights=train.weights,
            memory_limit=whole.memory_limit,
        )
    return students_of(problem, held_out, initial_logits, fold.test)


def students_of(
    problem: Problem, held_out: HeldOut, initial_logits: Tensor, test: Tensor
) -> list[HeldOutStudent]:
    """Return what was predicted of the rows ``test`` as the students of every recipe."""
    distinct = problem.distinct
    z_0 = initial_logits[distinct.merged.group[test], None]
    logits = (held_out.logits + z_0).cpu().double()
    z_t = problem.teacher_logits[distinct.kept[test].cpu()]
    z_eff = problem.single_targets[test.cpu()]
    norms = held_out.squared_norms.cpu().double()
    return [
        HeldOutStudent(
            problem.rows.classes,
            logits=logits[:, index],
            teacher_logits=z_t,
            effective_logits=z_eff[:, index],
            new_directions=lambda: held_out.new_directions().cpu().double(),
            squared_norm=norms[:, index] if len(norms) > 1 else norms[0, index],
            n_rows=held_out.n_rows,
        )
        for index in range(len(problem.recipes))
    ]
