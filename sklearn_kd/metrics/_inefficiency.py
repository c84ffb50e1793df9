"""Data inefficiency: how much the student still has to move when one more row arrives."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_kd.metrics._risk import weighted_mean


def held_out_data_inefficiency(
    squared_norm: Tensor,
    errors: Tensor,
    new_directions: Tensor,
    n_rows: int,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Return the data inefficiency with each held-out row as the (n+1)-th training row.

    𝓘(n) = n [ln E‖Δ_{n+1}‖ − ln‖Δ_n‖] (Eq. 10) with ‖Δ_{n+1}‖² = ‖Δ_n‖² + r²/v: exact, no refit.

    Parameters
    ----------
    squared_norm : Tensor, scalar
        ‖Δ_n‖² of the student trained on n rows, summed over the classes.
    errors : Tensor of shape (m,) or (m, K)
        r = z_eff(x) − f_n(x) on the held-out rows; r² is summed over the classes.
    new_directions : Tensor of shape (m,)
        v(x) = Θ(x, x) − ‖u(x)‖², plus the ridge. A row with v = 0 is already spanned by the
        training rows and adds nothing.
    n_rows : int
        n, the number of distinct training rows.
    sample_weight : Tensor of shape (m,), default=None
        Weights of the mean over the held-out rows.

    Raises
    ------
    ValueError
        If ‖Δ_n‖ = 0: a student that never moved has no data inefficiency.
    """
    if not squared_norm > 0:
        raise ValueError(
            "The data inefficiency is undefined for a student whose weight change is 0: all its "
            "effective logits are 0. Check teacher_logits."
        )
    squared_errors = errors.reshape(len(errors), -1).square().sum(dim=1)
    spanned = new_directions == 0
    gain = torch.where(spanned, 0.0, squared_errors / torch.where(spanned, 1.0, new_directions))
    ratio = gain / squared_norm
    # √(1 + s) − 1 without cancellation: increments are tiny once the student has converged.
    increment = ratio / (1 + (1 + ratio).sqrt())
    return n_rows * torch.log1p(weighted_mean(increment, sample_weight))
