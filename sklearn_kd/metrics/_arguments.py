"""Arguments of the metrics on frames: conversion and checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd.distillation._arguments import check_finite, numbers, require_each
from sklearn_kd.linalg import TangentFrame


def check_frame(frame: Any) -> None:
    """Raise unless ``frame`` is a tangent frame."""
    if not isinstance(frame, TangentFrame):
        raise TypeError(
            f"frame must be a TangentFrame; got {type(frame).__name__}. Take tangent_frame() of a "
            "fitted student."
        )


def logits_on_frame(frame: TangentFrame, value: Any, name: str) -> Tensor:
    """Return logits of the frame's rows, in its dtype and on its device; checked.

    Logits of K classes are centred to sum to zero in each row.
    """
    logits = numbers(value, name)
    is_logits = logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] > 1)
    if not is_logits or len(logits) != frame.n_rows:
        raise ValueError(
            f"{name} must have shape ({frame.n_rows},), or ({frame.n_rows}, K) for K classes: one "
            f"entry for each distinct row of the frame, in its order; got {tuple(logits.shape)}. "
            "A student's tangent_frame() has the rows of its X_fit_."
        )
    check_finite(logits, name)
    return centred(logits.to(frame.X))


def logits_like(frame: TangentFrame, value: Any, name: str, other: Tensor, its_name: str) -> Tensor:
    """Return logits of the frame's rows that have the shape of others; checked."""
    shape = tuple(numbers(value, name).shape)
    if shape != tuple(other.shape):
        raise ValueError(
            f"{name} has shape {shape}, but {its_name} has shape {tuple(other.shape)}; give the "
            "same rows and classes."
        )
    return logits_on_frame(frame, value, name)


def training_set_sizes(value: Any, n_rows: int) -> Tensor:
    """Return training-set sizes in 1...n_rows as integers on the CPU; None means all; checked."""
    if value is None:
        return torch.arange(1, n_rows + 1, device="cpu")
    sizes = numbers(value, "sizes")
    if sizes.ndim != 1 or len(sizes) == 0:
        raise ValueError(
            f"sizes must be one-dimensional, with at least one size; got {tuple(sizes.shape)}."
        )
    require_each(
        (sizes >= 1) & (sizes <= n_rows) & (sizes == sizes.round()),
        "sizes",
        sizes,
        f"must be integers in 1…{n_rows}, the number of rows",
        "take a larger pool, or smaller sizes.",
    )
    return sizes.long()


def check_two_classes(logits: Tensor, name: str, instead: str) -> None:
    """Raise if ``logits`` have an axis of classes where only two classes make sense."""
    if logits.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)}, but these angles and Theorem 1 are defined "
            f"for two classes, with one logit a row; {instead}"
        )
