"""The definition of "logit", and all that follows: gauge, probabilities, classes, labels.

Two classes have one logit a row, (n,), the log-odds of ``classes_[1]``; K ≥ 3 classes have K,
(n, K), in the sum-zero gauge: Σ_k z_k = 0 in each row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd._array import to_tensor

# Sums of float32 probabilities are this close to 1; those of logits are not, row after row.
_SUM_TOLERANCE = 1e-5
# Log-odds from here on stand for a probability below the resolution of float64, log 2e-16.
SATURATED = 36.0
# Share of rows that are far from all others, where logits of any size are a model's own.
_OUTLIERS = 0.01
# The logits of fewer rows may all lie in [0, 1] by chance.
_ROWS_TO_TELL = 10


def canonical_logits(given: Any, n_rows: int, n_classes: int, *, name: str) -> Tensor:
    """Return logits as a float64 tensor: (n,) for two classes, (n, K) with sum zero otherwise.

    Two columns for two classes are taken as one logit per class: z = z₁ − z₀. A single column is
    taken as the vector that it holds.

    Raises
    ------
    ValueError
        If the shape does not match, or a value is NaN or infinite; names ``name`` and the row.
    """
    values = to_tensor(given, name=name)
    expected = [(n_rows, n_classes)] + ([(n_rows,)] if n_classes == 2 else [])
    if n_classes == 2 and values.shape == (n_rows, 1):
        values = values[:, 0]
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
            "0 claims more than a teacher knows: calibrate it, or take "
            "np.log(np.maximum(p, 1 / n)) with the number n of rows that it was fitted on."
        )
    return values if values.ndim == 1 else logits(values)


def by_class_name(given: Any, classes: np.ndarray, *, name: str) -> Any:
    """Return the columns of a data frame in the order of the classes that they are named after.

    None if the columns have no names of their own: no frame, or one with names by default.

    Raises
    ------
    ValueError
        If the columns have other names than the classes.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn_kd._logits import by_class_name
    >>> frame = pd.DataFrame({"top": [3.0], "low": [1.0]})
    >>> by_class_name(frame, np.array(["low", "top"]), name="teacher_logits").tolist()
    [[1.0, 3.0]]
    """
    if not hasattr(given, "columns"):
        return None
    columns, labels = list(given.columns), classes.tolist()
    if type(given.columns).__name__ == "RangeIndex":
        return None
    for wanted in (labels, [str(label) for label in labels]):
        if len(columns) == len(wanted) and set(columns) == set(wanted):
            return np.asarray(given)[:, [columns.index(label) for label in wanted]]
    if columns in (list(range(len(columns))), [f"column_{i}" for i in range(len(columns))]):
        return None
    raise ValueError(
        f"{name} has the columns {columns}, which are not the classes {labels}. Name each column "
        "after its class, or pass an array with the columns in the order of the sorted classes."
    )


def what_else(values: Tensor) -> str | None:
    """Return "labels" or "probabilities" where values (n,) or (n, K) are these and no logits.

    Rows of numbers in [0, 1] that sum to 1 are probabilities, and so are ten rows or more of
    numbers in [0, 1] on both sides of 1/2: as log-odds they would give every row the same class. A
    vector of zeros and ones holds labels.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd._logits import what_else
    >>> what_else(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    'probabilities'
    >>> what_else(torch.tensor([1.0, 0.0, 0.0]))
    'labels'
    >>> what_else(torch.tensor([1.0, -0.5, 0.3])) is None
    True
    """
    if len(values) < 2 or values.min() < 0 or values.max() > 1 + _SUM_TOLERANCE:
        return None
    if values.ndim == 2 and values.shape[1] > 1:
        if ((values.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all():
            return "probabilities"
    elif ((values == 0) | (values == 1)).all() and values.min() < values.max():
        return "labels"
    tells_classes = bool(values.min() < 0.5 < values.max())
    return "probabilities" if tells_classes and len(values) >= _ROWS_TO_TELL else None


def require_logits(values: Tensor, *, name: str) -> None:
    """Raise where values (n,) or (n, K) are probabilities or labels.

    Raises
    ------
    ValueError
        With the formula that makes logits of them.
    """
    kind = what_else(values)
    if kind is None:
        return
    if values.ndim == 2 and values.shape[1] > 1:
        remedy = "np.log(np.maximum(p, 1 / n)) of these probabilities p"
    else:
        remedy = "scipy.special.logit(np.clip(p, 1 / n, 1 - 1 / n)) of probabilities p"
    is_label = " (labels have none: pass them as y)" if kind == "labels" else ""
    raise ValueError(
        f"{name} holds {kind}: all values are in [0, 1]. Logits are needed{is_label}: pass "
        f"{remedy}, with the number n of rows that the teacher was fitted on. If these are "
        "log-odds z of two classes, pass both columns, np.column_stack([-z / 2, z / 2])."
    )


def saturated_rows(logits: Tensor) -> Tensor:
    """Return which rows give some class a probability that rounds to 0, (n,)."""
    columns = torch.stack([torch.zeros_like(logits), logits], dim=1) if logits.ndim == 1 else logits
    return columns.amax(dim=1) - columns.amin(dim=1) >= SATURATED


def are_saturated(logits: Tensor) -> bool:
    """Whether more rows are saturated than outliers would be."""
    return int(saturated_rows(logits).sum()) > _OUTLIERS * len(logits)


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
