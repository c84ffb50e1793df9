"""The effect of soft ratio and temperature on a teacher's right and wrong rows, before a fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import logits, require_logits
from sklearn_kd.distillation._arguments import numbers, require_each, row_logits, scalar
from sklearn_kd.distillation._effective_logits import effective_logits
from sklearn_kd.distillation._recipes import correction_margin


def diagnose_teacher(
    teacher_logits: Any,
    y: Any,
    *,
    soft_ratios: Any,
    temperatures: Any,
    temperature_scaling: str = "none",
    tolerance: float = 0.05,
) -> dict[str, np.ndarray]:
    r"""Count the rows on which hard labels overrule a teacher, and those they leave alone.

    The table has one row per soft ratio ρ and temperature T. It is computed from the effective
    logits (Eq. 3) that a student would converge to on these rows; nothing is fitted. A good cell
    overrules many of the teacher's errors and leaves most of its correct rows alone, as
    distillation relies on their soft labels.

    Parameters
    ----------
    teacher_logits : array-like or tensor of shape (n,) or (n, K)
        The teacher's logits, on rows it was not trained on: a frozen teacher's on other rows, or
        cross-fitted ones, as ``teacher_logits_`` of a student whose teacher was unfitted. Each row
        counts by its own logits and label, so that others reach no count by way of a fit. The
        teacher chooses class 1 where a binary logit is positive, else the class of the largest
        logit.
    y : array-like or tensor of shape (n,)
        Hard labels: class indices 0, ..., K-1, or booleans for two classes.
    soft_ratios : float or array-like of shape (r,), in (0, 1]
        Soft ratios ρ of the grid.
    temperatures : float or array-like of shape (t,), > 0
        Temperatures T of the grid.
    temperature_scaling : {"none", "squared"}, default="none"
        "squared" if the soft term carries a factor T² (see :func:`effective_logits`).
    tolerance : float in [0, 1], default=0.05
        How far the probability of the row's class may move for the row to count as left alone.

    Returns
    -------
    dict of ndarray of shape (r * t,)
        Ready for ``pandas.DataFrame``; T varies fastest:

        ``soft_ratio``, ``temperature``
            The cell.
        ``n_rows``
            Number of rows, n.
        ``n_teacher_errors``
            Rows on which the teacher chooses another class than y.
        ``n_errors_overruled``
            Those among them on which the effective logits choose y.
        ``n_correct_left_alone``
            Rows on which the teacher chooses y and the probability of y (temperature 1) differs
            by at most ``tolerance`` between its logits and the effective ones.
        ``correction_margin``
            Two classes only: up to what size a wrong logit is overruled
            (:func:`correction_margin`). Left out for K ≥ 3, where no single number decides.

    Raises
    ------
    ValueError
        If labels are not hard labels, shapes differ or an argument is out of its range.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn_kd.distillation import diagnose_teacher
    >>> z_t, y = [-3.0, -0.4, 0.5, 4.0], [0, 1, 1, 0]
    >>> table = diagnose_teacher(z_t, y, soft_ratios=[0.8, 1.0], temperatures=2.0)
    >>> pd.DataFrame(table)[["soft_ratio", "n_errors_overruled", "n_correct_left_alone"]]
       soft_ratio  n_errors_overruled  n_correct_left_alone
    0         0.8                   1                     1
    1         1.0                   0                     2
    """
    z_t = row_logits(teacher_logits, "teacher_logits")
    require_logits(z_t, name="teacher_logits")
    z_t = z_t if z_t.ndim == 1 else logits(z_t)
    labels = numbers(y, "y", z_t.device)
    _check_hard_labels(labels, z_t)
    tolerance = scalar(tolerance, "tolerance")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must be in [0, 1], a probability; got {tolerance}.")
    axes = _axis(soft_ratios, "soft_ratios"), _axis(temperatures, "temperatures")
    grid = list(itertools.product(*axes))
    right = _chosen_class(z_t) == labels
    probability = _probability(z_t, labels)
    overruled, left_alone = [], []
    for soft_ratio, temperature in grid:
        z_eff = effective_logits(
            z_t,
            labels,
            soft_ratio=soft_ratio,
            temperature=temperature,
            temperature_scaling=temperature_scaling,
        )
        moved = (_probability(z_eff, labels) - probability).abs()
        overruled.append(int((~right & (_chosen_class(z_eff) == labels)).sum()))
        left_alone.append(int((right & (moved <= tolerance)).sum()))
    cells = np.array(grid, dtype=np.float64).reshape(-1, 2)
    table = {
        "soft_ratio": cells[:, 0],
        "temperature": cells[:, 1],
        "n_rows": np.full(len(grid), len(z_t)),
        "n_teacher_errors": np.full(len(grid), int((~right).sum())),
        "n_errors_overruled": np.array(overruled, dtype=np.int64),
        "n_correct_left_alone": np.array(left_alone, dtype=np.int64),
    }
    if z_t.ndim == 1:
        table["correction_margin"] = correction_margin(
            cells[:, 0], cells[:, 1], temperature_scaling=temperature_scaling
        )
    return table


def _check_hard_labels(labels: Tensor, z_t: Tensor) -> None:
    if labels.shape != z_t.shape[:1]:
        raise ValueError(
            f"y must have shape ({len(z_t)},), one class index a row of teacher_logits; got "
            f"{tuple(labels.shape)}."
        )
    n_classes = 2 if z_t.ndim == 1 else z_t.shape[1]
    require_each(
        (labels >= 0) & (labels < n_classes) & (labels == labels.round()),
        "y",
        labels,
        f"must hold class indices 0, ..., {n_classes - 1}",
        "a fractional label has no right class: give the hard labels of the single rows, after "
        "teacher_logits.",
    )


def _axis(values: Any, name: str) -> list[float]:
    axis = numbers(values, name)
    if axis.ndim > 1 or axis.numel() == 0:
        raise ValueError(
            f"{name} must be a number or a sequence of at least one; got shape {tuple(axis.shape)}."
        )
    return axis.reshape(-1).tolist()


def _chosen_class(logits: Tensor) -> Tensor:
    return logits > 0 if logits.ndim == 1 else logits.argmax(dim=1)


def _probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of each row's label, at temperature 1."""
    if logits.ndim == 1:
        return torch.sigmoid(torch.where(labels == 1, logits, -logits))
    return torch.softmax(logits, dim=1).gather(1, labels.long()[:, None])[:, 0]
