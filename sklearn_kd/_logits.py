"""The definition of "logit", and all that follows: gauge, probabilities, classes, labels.

Two classes have one logit a row, (n,), the log-odds of ``classes_[1]``; K ≥ 3 classes have K,
(n, K), in the sum-zero gauge: Σ_k z_k = 0 in each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd._array import to_tensor


def canonical_logits(given: Any, n_rows: int, n_classes: int, *, name: str) -> Tensor:
    """Return logits as a float64 tensor: (n,) for two classes, (n, K) with sum zero otherwise.

    Two columns for two classes are taken as one logit per class: z = z₁ − z₀.

    Raises
    ------
    ValueError
        If the shape does not match, or a value is NaN or infinite; names ``name`` and the row.
    """
    values = to_tensor(given, name=name)
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
            f"{name} must be finite, but row {row} holds {values[row].tolist()}; a probability of "
            "0 claims more than a teacher knows: calibrate it, or clip its probabilities to at "
            "least 0.001 before taking logarithms."
        )
    return values if values.ndim == 1 else logits(values)


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
    """Return logits in the sum-zero gauge: (..., K) with Σ_k z_k = 0, (n,) as they are.

    The softmax does not see the mean over the classes, so training does not move it either.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd._logits import centred
    >>> centred(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    [[-2.0, -1.0, 3.0]]
    """
    return logits if logits.ndim == 1 else logits - logits.mean(dim=-1, keepdim=True)


def logits(outputs: Tensor) -> Tensor:
    """Return a network's outputs (n, K) as logits.

    One output is the logit itself, two are z = f₁ − f₀; both of shape (n,). More are centred.
    """
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    if outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]
    return centred(outputs)


def hard_labels(indices: Tensor, n_columns: int) -> Tensor:
    """Return class indices as labels of the shape of logits.

    Parameters
    ----------
    indices : Tensor of int of shape (...)
    n_columns : int
        Logits in each row, :func:`n_logits`. One: the index itself is the label.

    Returns
    -------
    Tensor of shape (...) or (..., n_columns)
        Indices for one logit a row, one-hot rows for more.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd._logits import hard_labels
    >>> hard_labels(torch.tensor([2, 0]), 3).tolist()
    [[0, 0, 1], [1, 0, 0]]
    """
    return indices if n_columns == 1 else one_hot(indices, n_columns)
