"""Validation rows of the user's own: scored, and never trained on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import plain
from sklearn_kd._logits import n_logits
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.linalg._held_out import HeldOut
from sklearn_kd.rows._checking import check_stream, check_weights, to_working, validated
from sklearn_kd.rows._copies import merge_rows
from sklearn_kd.rows._labels import RowLabels, labelled_among
from sklearn_kd.rows._streams import is_streamed
from sklearn_kd.search._held_out_student import HeldOutStudent
from sklearn_kd.search._problem import Problem, Setting, single_effective_logits
from sklearn_kd.search._scored_rows import ScoredRows
from sklearn_kd.teachers._given_logits import given_logits
from sklearn_kd.teachers._logits_of import logits_of
from sklearn_kd.teachers._several import members_of
from sklearn_kd.teachers._teaching import Taught


class Given(NamedTuple):
    """The arguments of ``fit`` about validation rows."""

    X: Any = None
    y: Any = None
    sample_weight: Any = None
    teacher_logits: Any = None

    def require_sound(self, cv: Any) -> None:
        """Raise `ValueError` unless they go together, and with ``cv``."""
        names = ("X_val", "y_val", "sample_weight_val", "teacher_logits_val")
        present = [name for name, value in zip(names, self, strict=True) if value is not None]
        if present and (self.X is None or self.y is None):
            missing = "X_val" if self.X is None else "y_val"
            raise ValueError(f"{present[0]} was passed to fit without {missing}; pass both.")
        if present and cv is not None:
            raise ValueError(
                f"X_val was passed to fit, so that candidates are scored on these rows, but "
                f"cv={cv!r} asks for folds of X; set cv=None, or leave out X_val and y_val."
            )


class ValidationRows(NamedTuple):
    """Checked validation rows that have a label and a positive weight."""

    given: Any  # as the user gave all of them, for the teacher
    numbers: np.ndarray  # (m,) among those given
    array: Any  # (m, d) as scorers are given them
    X: Tensor  # (m, d) in the working dtype on the working device
    labels: Tensor  # (m,) class indices
    sample_weight: np.ndarray | None  # (m,)
    n_given: int


def read_validation(search: Any, given: Given, classes: np.ndarray) -> ValidationRows | None:
    """Return the validation rows of a fit, checked against its rows; None if there are none.

    Raises
    ------
    ValueError
        If they do not match the rows and classes of the fit, or none can be scored.
    """
    if given.X is None:
        return None
    if is_streamed(given.X):
        stream = check_stream(search, given.X, reset=False)
        array = stream.take(np.arange(len(stream)))
    else:
        array = validated(search, plain(given.X, "X_val"), reset=False)
    y, labelled = labelled_among(given.y, classes)
    if len(y) != len(array):
        raise ValueError(f"X_val has {len(array)} rows, but y_val has {len(y)} labels.")
    unknown = labelled & ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y_val holds the label {y[unknown][:1].tolist()} (row {unknown.argmax()}), which y "
            f"does not; the classes are {classes.tolist()}."
        )
    weights = None
    if given.sample_weight is not None:
        weights = check_weights(given.sample_weight, len(y))
        labelled = labelled & (weights > 0)
    numbers = np.flatnonzero(labelled)
    if not len(numbers):
        raise ValueError("X_val holds no row with a label and a positive sample_weight_val.")
    array = safe_indexing(array, numbers)
    return ValidationRows(
        given.X,
        numbers,
        array,
        to_working(search, array),
        torch.from_numpy(np.searchsorted(classes, y[numbers])),
        None if weights is None else weights[numbers],
        len(y),
    )


@dataclass(frozen=True)
class ValidatedProblem(Problem):
    """The students of all rows, which are scored on validation rows."""

    validation: ValidationRows
    logits_given: Any  # of all validation rows; None: the teacher's

    @property
    def has_weights(self) -> bool:
        """Whether the rows that are scored have weights."""
        return self.validation.sample_weight is not None

    @property
    def n_given(self) -> int:
        """Number of rows among which are those that are scored."""
        return self.validation.n_given

    @functools.cached_property
    def validation_members(self) -> Tensor | None:
        """z_t of the validation rows by each teacher, (M, m) or (M, m, K); None without any."""
        rows, classes = self.validation, self.setting.rows.checked.classes
        numbers = torch.from_numpy(rows.numbers)
        if self.logits_given is not None:
            name = "teacher_logits_val"
            z_t = given_logits(self.logits_given, rows.n_given, classes, name=name)
            return z_t[None, numbers]
        if self.taught.teacher is None:
            return None
        teachers = zip(members_of(self.taught.teacher), self.taught.readings, strict=True)
        members = [logits_of(one, rows.given, classes, reading) for one, reading in teachers]
        return torch.stack([logits.values[numbers] for logits in members])

    @functools.cached_property
    def single_targets(self) -> Tensor:
        """z_eff of each validation row for every recipe, on the CPU."""
        columns = n_logits(self.setting.n_classes)
        labels = RowLabels(self.validation.labels, columns, None)
        members = self.validation_members
        assert members is not None
        return single_effective_logits(members, labels, self.recipes)

    def is_labelled(self, positions: Tensor) -> Tensor:
        """Return that every row has a label."""
        return torch.ones(len(positions), dtype=torch.bool, device=positions.device)

    def rows_of(self, positions: Tensor) -> Any:
        """Return validation rows by position, as scorers are given them."""
        return safe_indexing(self.validation.array, positions.cpu().numpy())

    def scored(self, positions: Tensor) -> ScoredRows:
        """Return what there is to know of validation rows."""
        rows, some = self.validation, positions.cpu().numpy()
        weights = rows.sample_weight
        return ScoredRows(
            rows.labels.numpy()[some],
            self.setting.rows.checked.classes,
            None if weights is None else weights[some],
            rows.numbers[some],
            self._units[some],
        )

    @functools.cached_property
    def _units(self) -> np.ndarray:
        return merge_rows(self.validation.X).group.cpu().numpy()


def problem_of(
    setting: Setting, taught: Taught, validation: ValidationRows | None, logits_given: Any
) -> Problem:
    """Return the students to score: on validation rows, if there are any."""
    if validation is None:
        return Problem(setting, taught)
    return ValidatedProblem(setting, taught, validation, logits_given)


def validated_students(
    problem: ValidatedProblem, held_out: HeldOut, initial_logits: Tensor
) -> list[HeldOutStudent]:
    """Return the students of every recipe, with their predictions of the validation rows.

    ``initial_logits`` are z₀ of these rows, (m,) or (m, K).
    """
    logits = (held_out.logits + initial_logits[:, None]).cpu().double()
    members, norms = problem.validation_members, held_out.squared_norms.cpu().double()
    z_eff = None if members is None else problem.single_targets
    has_root = [recipe["soft_ratio"] > 0 for recipe in problem.recipes]
    return [
        HeldOutStudent(
            problem.validation.array,
            problem.setting.rows.checked.classes,
            logits=logits[:, index],
            teacher_logits=None if members is None else mixed_logits(members, recipe),
            effective_logits=None if z_eff is None or not has_root[index] else z_eff[:, index],
            new_directions=lambda: held_out.new_directions().cpu().double(),
            squared_norm=norms[0, index],
            n_rows=held_out.n_rows,
        )
        for index, recipe in enumerate(problem.recipes)
    ]
