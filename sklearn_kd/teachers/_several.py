"""Several teachers in place of one: a list, and how much each of them counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_kd._array import to_tensor
from sklearn_kd.teachers._constraint import TAKEN, is_teacher


def is_list(teacher: Any) -> bool:
    """Whether a student's parameter ``teacher`` holds several."""
    return isinstance(teacher, (list, tuple))


def members_of(teacher: Any) -> list:
    """Return the teachers that a student's parameter ``teacher`` holds.

    Raises
    ------
    TypeError
        If one of a list cannot be fitted.
    ValueError
        If the list is empty.
    """
    if not is_list(teacher):
        return [teacher]
    if not len(teacher):
        raise ValueError("teacher=[] holds no teacher; give one, or None for NTKTeacher().")
    for index, one in enumerate(teacher):
        if not is_teacher(one):
            raise TypeError(f"teacher[{index}]={one!r} is no teacher; each must be {TAKEN}.")
    return list(teacher)


def require_teachers(teacher_weights: Any, teacher_logits: Any) -> None:
    """Raise if there are weights, and given logits in place of the teachers that they weigh."""
    if teacher_weights is not None and teacher_logits is not None:
        raise ValueError(
            "teacher_logits replace the teachers, and leave nothing for "
            f"teacher_weights={teacher_weights!r}; set these to None, or pass no logits."
        )


def normalised_weights(teacher_weights: Any, teacher: Any) -> tuple[float, ...] | None:
    """Return the weights of a list of teachers, which sum to one; None for a single teacher.

    Raises
    ------
    ValueError
        If there is no list of as many teachers, or a weight is negative, or all are 0.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_kd.teachers._several import normalised_weights
    >>> normalised_weights([3, 1], [LogisticRegression(), LogisticRegression(C=0.1)])
    (0.75, 0.25)
    """
    if not is_list(teacher):
        if teacher_weights is None:
            return None
        raise ValueError(
            f"teacher_weights={teacher_weights!r} weigh several teachers, but teacher="
            f"{'None' if teacher is None else type(teacher).__name__} is one; give a list."
        )
    n_teachers = len(members_of(teacher))
    if teacher_weights is None:
        return (1 / n_teachers,) * n_teachers
    weights = to_tensor(teacher_weights, name="teacher_weights").numpy()
    valid = weights.shape == (n_teachers,) and np.isfinite(weights).all() and (weights >= 0).all()
    if not valid or not 0 < weights.sum() < np.inf:
        raise ValueError(
            f"teacher_weights={teacher_weights!r} must be {n_teachers} numbers of at least 0, one "
            "for each teacher, and not all 0."
        )
    return tuple((weights / weights.sum()).tolist())
