"""The student at every training-set size, from one frame.

Symbols (paper -> code -> shape), with n rows, S sizes, C candidates (ρ, T) and K classes (no K
axis for two):

==================  ==================  =====================
Δz                  ``targets``         (n, C) or (n, C, K)
q = L⁻¹ Δz          ``q``               as ``targets``
‖Δ_ŵ,m‖             ``norms``           (n, C)
z_t on new x        ``teacher_logits``  (m, C) or (m, C, K)
z₀ on new x         ``initial_logits``  (m,) or (m, K)
==================  ==================  =====================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._held_out import class_sum
from sklearn_kd.linalg._running_sum import running_sum
from sklearn_kd.metrics._risk import disagreement
from sklearn_kd.rows._labels import NO_LABEL


class NewRows(NamedTuple):
    """Rows on which the student is compared with its teacher and with the truth."""

    X: Tensor  # (m, d)
    teacher_logits: Tensor  # (m, C) or (m, C, K), or for all candidates the same (m, 1, ...)
    initial_logits: Tensor | None  # (m,) or (m, K); None is zero
    labels: Tensor | None  # (m,) class indices, -1 for rows without a label


class PrefixWeightChanges(NamedTuple):
    """The student's weights at every training-set size."""

    norms: Tensor  # (n, C) √(Δzᵀ (Θ_m + λ W⁻¹)⁻¹ Δz), the norms of Eq. 10
    weight_change_norms: Tensor  # (n, C) ‖Δ_ŵ,m‖; the same without a ridge
    one_step_errors: Tensor  # as the targets


class PrefixRisks(NamedTuple):
    """How often the student differs, at each of the sizes."""

    transfer_risk: Tensor  # (S, C) from its teacher
    error: Tensor | None  # (S, C) from the labels, of rows that have one


def prefix_weight_changes(frame: TangentFrame, targets: Tensor) -> PrefixWeightChanges:
    """Return norms ‖q[:m]‖ and errors on row m of the student of the m − 1 rows before it."""
    squares = running_sum(class_sum(frame.coordinates(targets).square()))
    shares = class_sum(frame.prefix_ridge_shares(targets))
    return PrefixWeightChanges(
        norms=squares.sqrt(),
        weight_change_norms=(squares - shares).clamp_min(0).sqrt(),
        one_step_errors=frame.one_step_errors(targets),
    )


@full_precision()
def prefix_risks(
    frame: TangentFrame, targets: Tensor, sizes: list[int], new: NewRows
) -> PrefixRisks:
    """Return the transfer risk and the error of f_m = z₀ + u[:m] @ q[:m] at each size m."""
    is_binary = targets.ndim == 2
    counts = torch.zeros(2, len(sizes), targets.shape[1], dtype=torch.int64, device=targets.device)
    for position, rows, change in frame.prefix_steps(new.X, targets, sizes):
        z_0 = new.initial_logits
        logits = change if z_0 is None else change + z_0[rows, None]
        teacher = new.teacher_logits[rows]
        counts[0, position] += disagreement(teacher, logits, is_binary=is_binary).sum(dim=0)
        if new.labels is not None:
            predicted = logits > 0 if is_binary else logits.argmax(dim=2)
            truth = new.labels[rows, None]
            counts[1, position] += ((predicted != truth) & (truth != NO_LABEL)).sum(dim=0)
    risk, wrong = counts.to(targets)
    error = None if new.labels is None else wrong / (new.labels != NO_LABEL).sum()
    return PrefixRisks(risk / len(new.X), error)
