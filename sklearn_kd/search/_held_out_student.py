"""Students that have not seen the rows they are scored on, as an estimator that scorers accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.search._problem import Fold, Problem
from sklearn_kd.solvers._system import Size


class HeldOutStudent(LogitClassifier):
    """Predictions that were made beforehand, for a scorer to ask for.

    A scorer calls ``predict`` or ``decision_function`` on the rows that were held out; the answers
    come from closed forms. A question about other rows is an error.

    Parameters
    ----------
    rows : array-like of shape (m, d)
        The held-out rows; of shape (m, 0) where they are not in memory.
    classes : ndarray of shape (n_classes,)
        Class labels.
    logits : Tensor of shape (m,) or (m, K)
        The student's logits on the held-out rows.
    teacher_logits, effective_logits : Tensor of shape (m,) or (m, K), or None
        The teacher's, and those that the student would be trained towards; None if no teacher is
        known on validation rows, the latter also with a soft ratio of 0.
    new_directions : callable
        Returns v(x) of each row, with its ridge, of shape (m,).
    squared_norm : Tensor, scalar or of shape (m,)
        ‖Δ‖² of the student, or of each row's own.
    n_rows : int
        Distinct rows that the student was trained on.
    """

    def __init__(
        self,
        rows: Any,
        classes: np.ndarray,
        logits: Tensor,
        teacher_logits: Tensor | None,
        effective_logits: Tensor | None,
        new_directions: Callable[[], Tensor],
        squared_norm: Tensor,
        n_rows: int,
    ) -> None:
        self.rows = rows
        self.classes = classes
        self.logits = logits
        self.teacher_logits = teacher_logits
        self.effective_logits = effective_logits
        self.new_directions = new_directions
        self.squared_norm = squared_norm
        self.n_rows = n_rows

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"{type(self).__name__}(on {len(self.logits)} held-out rows)"

    def _check_new_rows(self, X: Any, method: str) -> Any:
        if X is not self.rows and not np.array_equal(to_numpy_rows(X), to_numpy_rows(self.rows)):
            raise ValueError(
                f"A score asked {method} about rows other than the held-out ones. "
                "LinearizedKDStudentCV knows its students' answers to those only; use "
                "GridSearchCV with LinearizedKDStudent for such a score."
            )
        return X

    def _logits(self, X: Any) -> Tensor:
        return self.logits

    def teacher_decision_function(self, X: Any, teacher_logits: Any = None) -> np.ndarray:
        """Return the teacher's logits on the held-out rows."""
        return to_numpy(self._known(self.teacher_logits))

    def effective_decision_function(self, X: Any, y: Any, teacher_logits: Any = None) -> np.ndarray:
        """Return the effective logits of the held-out rows."""
        return to_numpy(self._known(self.effective_logits))

    def _next_row_terms(
        self, X: Any, y: Any, teacher_logits: Any = None, teacher_trust: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return ‖Δ‖², the errors r, v and n that the data inefficiency is made of (Eq. 10)."""
        directions = self.new_directions()
        errors = self._known(self.effective_logits) - self.logits
        return self.squared_norm, errors, directions, self.n_rows

    def _known(self, logits: Tensor | None) -> Tensor:
        if logits is not None:
            return logits
        if self.teacher_logits is not None:
            raise AttributeError(
                "A score asks for the effective logits of a student with soft_ratio=0, of hard "
                "labels alone, for which Eq. 3 has no finite root; leave 0 out of soft_ratios, or "
                "use another score."
            )
        raise AttributeError(
            "A score asks for the teacher on X_val, but teacher_logits stood in for the teacher; "
            "pass teacher_logits_val to fit too, or use a score that needs no teacher."
        )

    def take(self, positions: Tensor, rows: Any) -> Self:
        """Return the student restricted to some held-out rows, whose features are ``rows``."""
        norm = self.squared_norm
        return type(self)(
            rows,
            self.classes,
            self.logits[positions],
            None if self.teacher_logits is None else self.teacher_logits[positions],
            None if self.effective_logits is None else self.effective_logits[positions],
            lambda: self.new_directions()[positions],
            norm[positions] if norm.ndim else norm,
            self.n_rows,
        )


def to_numpy_rows(X: Any) -> np.ndarray:
    """Return rows as numpy, to be compared."""
    return to_numpy(X) if isinstance(X, Tensor) else np.asarray(X)


def no_directions(which: str, instead: str = "solver='auto'") -> Callable[[], Tensor]:
    """Return a function that raises: such students have no tangent frame, and no v(x)."""

    def new_directions() -> Tensor:
        raise AttributeError(
            "The data inefficiency needs the tangent frame of all training rows, which students "
            f"{which} do not have; use another score or {instead}."
        )

    return new_directions


def students_of(
    problem: Problem, held_out: HeldOut, initial_logits: Tensor, test: Tensor
) -> list[HeldOutStudent]:
    """Return the students of every recipe, with their predictions of the rows ``test``."""
    distinct = problem.distinct
    z_0 = initial_logits[distinct.merged.group[test], None]
    logits = (held_out.logits + z_0).cpu().double()
    members = problem.members[:, distinct.kept[test].cpu()]
    z_eff = problem.single_targets[test.cpu()]
    norms = held_out.squared_norms.cpu().double()
    rows = problem.rows_of(test)
    return [
        HeldOutStudent(
            rows,
            problem.setting.rows.checked.classes,
            logits=logits[:, index],
            teacher_logits=mixed_logits(members, recipe),
            effective_logits=z_eff[:, index] if recipe["soft_ratio"] > 0 else None,
            new_directions=lambda: held_out.new_directions().cpu().double(),
            squared_norm=norms[:, index] if len(norms) > 1 else norms[0, index],
            n_rows=held_out.n_rows,
        )
        for index, recipe in enumerate(problem.recipes)
    ]


def on_labelled_rows(
    students: list[HeldOutStudent], fold: Fold, problem: Problem
) -> tuple[list[HeldOutStudent], Fold]:
    """Return the students and the fold without the held-out rows that have no label.

    Raises
    ------
    ValueError
        If none has one.
    """
    labelled = problem.is_labelled(fold.test)
    if labelled.all():
        return students, fold
    if not labelled.any():
        raise ValueError(
            f"A fold of cv={problem.setting.cv!r} tests {len(labelled)} rows, and none of them has "
            "a label to be scored against; use a stratified splitter, or fewer folds."
        )
    positions = labelled.nonzero()[:, 0]
    some = fold._replace(test=fold.test[positions])
    rows = problem.rows_of(some.test)
    return [student.take(positions.cpu(), rows) for student in students], some


def prediction_bytes(size: Size) -> int:
    """Return the bytes of Δz and predictions of all rows, and of these by copy, in a search."""
    return size.n_rows * size.n_targets * (2 * size.dtype.itemsize + 2 * 8)
