"""Arguments of the metrics on frames: how they are read, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd.distillation._arguments import require
from sklearn_kd.linalg import TangentFrame


def logits_on_frame(frame: TangentFrame, logits: Tensor, name: str) -> Tensor:
    """Return logits of the frame's rows, in its dtype and on its device; checked.

    Those of K classes are brought into the gauge in which they sum to zero.
    """
    is_logits = logits.ndim == 1 or (logits.ndim == 2 and len(logits.T) > 1)
    if len(logits) != frame.n_rows or not is_logits:
        raise ValueError(
            f"{name} must have shape ({frame.n_rows},), or ({frame.n_rows}, K) for K classes: one "
            f"entry for each distinct row of the frame, in its order; got {tuple(logits.shape)}. "
            "A student's tangent_frame() has the rows of its X_fit_."
        )
    require(torch.isfinite(logits), name, logits, "must be finite", "remove or clip such rows.")
    return centred(logits.to(frame.X))


def positive_scalar(value: Tensor | float, name: str, device_of: Tensor) -> Tensor:
    """Return ``value`` as a float64 scalar on the device of another tensor; checked."""
    scalar = torch.as_tensor(value, dtype=torch.float64, device=device_of.device)
    if scalar.ndim > 0 or not 0 < scalar < torch.inf:
        raise ValueError(f"{name} must be one positive, finite number; got {scalar.tolist()}.")
    return scalar


def fraction(value: Tensor | float, name: str) -> float:
    """Return ``value`` as a number strictly between 0 and 1; checked."""
    if not 0 < float(value) < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded; got {float(value)}.")
    return float(value)


def refuse_classes(logits: Tensor, name: str, instead: str) -> None:
    """Raise if ``logits`` have an axis of classes where only two classes make sense."""
    if logits.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)}, but these angles and Theorem 1 are defined "
            f"for two classes, with one logit a row; {instead}"
        )
