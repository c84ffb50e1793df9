"""The logits of any classifier."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._logits import canonical_logits
from sklearn_kd.rows._streams import as_row_stream, is_streamed


class Logits(NamedTuple):
    """A teacher's logits, and in how many rows a probability of 0 was clipped for them."""

    values: Tensor  # (n,) or (n, K), float64 on the CPU
    n_clipped: int
    cross_fitted: bool = False  # whether those of a row have seen the labels of other rows


def logits_of(teacher: Any, X: Any, classes: np.ndarray) -> Logits:
    """Return the logits of a fitted ``teacher`` on the rows ``X``.

    They come from ``decision_function`` where the teacher has it, else they are the log-odds
    (K ≥ 3: centred log-probabilities) of ``predict_proba``, with probabilities clipped from below
    at the resolution of their dtype. Rows that need not be in memory are read block by block.

    Raises
    ------
    ValueError
        If the teacher's classes are not ``classes``, or its output has another shape.
    TypeError
        If the teacher has neither method.
    """
    _check_classes(teacher, classes)
    if is_streamed(X):
        blocks = [logits_of(teacher, to_numpy(b), classes) for _, b in as_row_stream(X).blocks()]
        values = torch.cat([block.values for block in blocks])
        return Logits(values, sum(block.n_clipped for block in blocks))
    name = type(teacher).__name__
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if hasattr(teacher, "decision_function"):
        scores = teacher.decision_function(X)
        origin = f"{name}.decision_function(X)"
        return Logits(canonical_logits(scores, n_rows, len(classes), name=origin), 0)
    if not hasattr(teacher, "predict_proba"):
        raise TypeError(
            f"teacher={name} has neither decision_function nor predict_proba; use a classifier "
            "with one of them, or pass teacher_logits to fit."
        )
    raw = teacher.predict_proba(X)
    dtype = torch.float32 if str(getattr(raw, "dtype", "")).endswith("float32") else torch.float64
    probabilities = to_tensor(raw, dtype=dtype)
    if probabilities.ndim != 2:
        raise ValueError(
            f"{name}.predict_proba(X) has shape {tuple(probabilities.shape)}; it must have one "
            f"column for each of {len(classes)} classes."
        )
    floor = torch.finfo(dtype).eps
    clipped = int((probabilities < floor).any(dim=1).sum())
    logs = probabilities.clamp_min(floor).log()
    origin = f"{name}.predict_proba(X)"
    return Logits(canonical_logits(logs, n_rows, len(classes), name=origin), clipped)


def _check_classes(teacher: Any, classes: np.ndarray) -> None:
    if not hasattr(teacher, "classes_"):
        raise TypeError(
            f"teacher={type(teacher).__name__} has no classes_ after fit, so it is no classifier; "
            "use a scikit-learn classifier, or pass teacher_logits to fit."
        )
    known = np.asarray(teacher.classes_)
    if not np.array_equal(known, classes):
        raise ValueError(
            f"teacher={type(teacher).__name__} knows the classes {known.tolist()}, but y holds "
            f"{classes.tolist()}; fit teacher and student on the same labels."
        )
