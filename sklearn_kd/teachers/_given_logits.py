"""Logits that a user gives in place of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_tensor
from sklearn_kd._logits import (
    SATURATED,
    are_saturated,
    by_class_name,
    canonical_logits,
    require_logits,
    saturated_rows,
)
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SaturatedTeacherWarning


def given_logits(
    teacher_logits: Any, n_rows: int, classes: np.ndarray, *, name: str = "teacher_logits"
) -> Tensor:
    """Return logits that a user gave, checked and in the gauge of ``decision_function``.

    Raises
    ------
    TypeError
        If they are a path, or a teacher.
    ValueError
        If they do not match rows and classes, or are probabilities or labels.
    """
    if isinstance(teacher_logits, str | Path):
        raise TypeError(
            f"{name}={str(teacher_logits)!r} is a path, but an array is needed; pass "
            f"np.load({str(teacher_logits)!r})."
        )
    if hasattr(teacher_logits, "fit") or hasattr(teacher_logits, "forward"):
        raise TypeError(
            f"{name} is a {type(teacher_logits).__name__}, but an array is needed; pass "
            "FrozenEstimator(teacher), or TorchTeacher(module, classes), as the parameter teacher."
        )
    named = by_class_name(teacher_logits, classes, name=name)
    values = to_tensor(teacher_logits if named is None else named, name=name)
    z_t = canonical_logits(values, n_rows, len(classes), name=name)
    require_logits(values, name=name)
    labels = to_tensor(classes if classes.dtype.kind in "iuf" else []).to(z_t)
    if z_t.ndim == 1 and len(z_t) > 1 and torch.equal(z_t.unique(), labels):
        raise ValueError(
            f"{name} holds the labels {classes.tolist()} and nothing else. Logits are needed: "
            "log-odds of the second class. Labels are passed as y."
        )
    return z_t


def warn_if_large(z_t: Tensor) -> None:
    """Warn of given logits that claim a probability below the resolution of float64."""
    if are_saturated(z_t):
        n_large = int(saturated_rows(z_t).sum())
        warn(
            f"teacher_logits differ by {SATURATED:g} or more between the classes of a row in "
            f"{n_large} of {len(z_t)} rows: probabilities below 2e-16, which say more than a "
            "teacher knows. If they come from probabilities p, pass np.log(np.maximum(p, 1 / n)) "
            "with the number n of rows that it was fitted on.",
            SaturatedTeacherWarning,
        )
