"""The teachers that a plan compares, by name, alone and mixed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.frozen import FrozenEstimator

from sklearn_kd._array import to_numpy
from sklearn_kd.plan._known import KnownLogits
from sklearn_kd.teachers._constraint import TAKEN, is_teacher
from sklearn_kd.teachers._given_logits import given_logits, warn_if_large
from sklearn_kd.teachers._teaching import is_fitted

MIXTURE = "all in equal parts"


class Teachers(NamedTuple):
    """Teachers with names, and the weights with which they are tried."""

    names: list[str]
    members: list[Any]
    weights: list[tuple[float, ...]] | None  # None: there is one
    are_fitted: bool

    @property
    def teacher(self) -> Any:
        """What students take as ``teacher``."""
        return self.members[0] if self.weights is None else self.members

    def chosen(self, weights: Any) -> Any:
        """Return the teacher of a choice of weights: one, or all of a mixture."""
        if self.weights is None:
            return self.members[0]
        return self.members[int(np.argmax(weights))] if max(weights) == 1 else self.members

    def named(self, weights: Any) -> str:
        """Return what a choice of weights is called."""
        if self.weights is None:
            return self.names[0]
        return self.names[int(np.argmax(weights))] if max(weights) == 1 else MIXTURE


def teachers_of(given: Any, teacher_logits: Any) -> dict[str, Any]:
    """Return the teachers, or their logits, that a plan was given, by name.

    Raises
    ------
    TypeError
        If one is no teacher.
    ValueError
        If there are teachers and logits that replace them, or no teacher in a list.
    """
    if teacher_logits is not None:
        if given is not None:
            raise ValueError(
                "teacher_logits was passed to fit, and teachers to DistillationPlan; logits stand "
                "in for teachers: set teachers=None, or pass no logits."
            )
        return teacher_logits if isinstance(teacher_logits, dict) else {"teacher": teacher_logits}
    if isinstance(given, dict):
        named = dict(given)
    elif isinstance(given, list | tuple):
        named = {f"teacher {number}": one for number, one in enumerate(given, 1)}
    else:
        return {"teacher": given}
    for name, one in named.items():
        if not is_teacher(one):
            raise TypeError(f"teachers[{name!r}]={one!r} is no teacher; each must be {TAKEN}.")
    if not named:
        raise ValueError(f"teachers={given!r} holds no teacher; give one, or None for NTKTeacher.")
    return named


def posed_teachers(
    named: dict[str, Any],
    teacher_cv: Any,
    classes: np.ndarray,
    X: Any,
    n_rows: int,
    X_val: Any,
    teacher_logits_val: Any,
    *,
    are_logits: bool,
) -> Teachers:
    """Return the teachers as students take them; logits that were given are a teacher, too.

    Raises
    ------
    ValueError
        If logits do not match the rows and classes.
    """
    names, members = list(named), list(named.values())
    if are_logits:
        members = [
            _known(named, name, classes, X, n_rows, X_val, teacher_logits_val) for name in names
        ]
    n = len(members)
    weights = None
    if n > 1:
        alone = [tuple(float(i == j) for j in range(n)) for i in range(n)]
        weights = [*alone, (1 / n,) * n]
    return Teachers(names, members, weights, all(is_fitted(one, teacher_cv) for one in members))


def _known(
    named: dict[str, Any],
    name: str,
    classes: np.ndarray,
    X: Any,
    n_rows: int,
    X_val: Any,
    logits_val: Any,
) -> FrozenEstimator:
    """Return a teacher that is known by its logits."""
    of_rows = given_logits(named[name], n_rows, classes, name=_named("teacher_logits", named, name))
    warn_if_large(of_rows)
    known = [(X, to_numpy(of_rows))]
    if X_val is not None and logits_val is not None:
        given = logits_val[name] if isinstance(logits_val, dict) else logits_val
        of_val = given_logits(given, len(X_val), classes, name="teacher_logits_val")
        known.append((X_val, to_numpy(of_val)))
    return FrozenEstimator(KnownLogits(classes, known))


def _named(argument: str, named: dict[str, Any], name: str) -> str:
    return argument if len(named) == 1 else f"{argument}[{name!r}]"
