"""A teacher's logits, whatever classifier the teacher is.

One meaning of "logit" throughout: (n,) log-odds of ``classes_[1]`` for two classes, (n, K) in
the sum-zero gauge (Σ_k z_k = 0 in each row) for K ≥ 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_kd._array import to_tensor


def canonical_logits(logits: Any, n_rows: int, n_classes: int, *, name: str) -> Tensor:
    """Return ``logits`` as a float64 tensor (n,) for two classes, (n, K) sum-zero otherwise.

    Two columns for two classes are taken as one logit per class: z = z₁ − z₀.

    Raises
    ------
    ValueError
        If the shape does not match, or a value is NaN or infinite; names ``name`` and the row.
    """
    values = to_tensor(logits, name=name)
    expected = [(n_rows, n_classes)] + ([(n_rows,)] if n_classes == 2 else [])
    if tuple(values.shape) not in expected:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, but {n_rows} rows of {n_classes} classes "
            f"need {' or '.join(map(str, reversed(expected)))}."
        )
    finite = values.reshape(n_rows, -1).isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(
            f"{name} must be finite, but row {row} holds {values[row].tolist()}; clip infinite "
            "logits to a large finite value such as ±700."
        )
    if values.ndim == 1:
        return values
    if n_classes == 2:
        return values[:, 1] - values[:, 0]
    return values - values.mean(dim=1, keepdim=True)


def class_probabilities(logits: Tensor) -> Tensor:
    """Return the sigmoid (two classes) or softmax of canonical logits, shape (n, K)."""
    if logits.ndim == 1:
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    return torch.softmax(logits, dim=1)


def class_indices(logits: Tensor) -> Tensor:
    """Return the index of the most probable class by canonical logits, shape (n,)."""
    return (logits > 0).long() if logits.ndim == 1 else logits.argmax(dim=1)


def n_logits(n_classes: int) -> int:
    """Return how many logits a row has: one for two classes, else one for each."""
    return 1 if n_classes == 2 else n_classes


def centred(logits: Tensor) -> Tensor:
    """Return logits in the gauge of the library: (n, K) with rows that sum to zero, (n,) as is.

    The softmax does not see the mean over the classes, so training does not move it either.
    """
    return logits if logits.ndim == 1 else logits - torch.mean(logits, dim=1, keepdim=True)


def logits(outputs: Tensor) -> Tensor:
    """Return outputs (n, K) as logits: f, f₁ − f₀ of shape (n,), or (n, K) with sum zero."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    if outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]
    return outputs - outputs.mean(dim=1, keepdim=True)
