"""Data inefficiency: how much the student still has to move when one more row arrives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sklearn_kd.distillation._arguments import numbers, require_each, scalar
from sklearn_kd.metrics._arguments import training_set_sizes
from sklearn_kd.metrics._risk import weighted_mean


def data_inefficiency(
    norms: Tensor, sizes: Tensor | None = None, *, window: float | None = None
) -> Tensor:
    r"""Return the data inefficiency along a path of training-set sizes.

    .. math:: \mathcal I(n) = n\,[\ln E\|\Delta_{n+1}\|_2 - \ln E\|\Delta_n\|_2]
        \qquad (\text{Eq. 10}),

    the elasticity of the weight change in the number of rows. It is small where the rows so far
    already determine the student. The expectation over samples and initialisation is inside the
    logarithm.

    Parameters
    ----------
    norms : array-like of shape (n,) or (n_runs, n)
        ‖Δ_m‖₂ of the students trained on the first m = 1…n rows; one line per run (a permutation
        of the rows, a draw of them, a draw of the initial network).
    sizes : array-like of int of shape (n_sizes,), default=None
        Training-set sizes in 1…n; None means all. At n itself, which has no next row,
        Eq. 10 gives its value at n − 1.
    window : float > 1, default=None
        None: Eq. 10 itself, a single step, which is noisy. Otherwise its mean over a window
        of this ratio on the logarithmic axis: the slope of ln E‖Δ_m‖ against ln m between
        m/√window and m·√window, cut off at 1 and n.

    Returns
    -------
    ndarray of shape (n_sizes,)
        𝓘 at each size.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, a size or the window is out of range, or a norm that is
        needed is 0: a student that has not moved has no data inefficiency.

    Examples
    --------
    Norms that grow as n^0.3 have a data inefficiency of about 0.3:

    >>> import numpy as np
    >>> from sklearn_kd.metrics import data_inefficiency
    >>> norms = np.arange(1, 1001) ** 0.3
    >>> data_inefficiency(norms, [10, 100, 999]).round(4)
    array([0.2859, 0.2985, 0.2998])
    >>> data_inefficiency(norms, [10, 100, 999], window=2.0).round(4)
    array([0.3, 0.3, 0.3])
    """
    mean, low, high = _mean_norm_and_steps(checked_norms(norms), sizes, window)
    return _slope_per_step(mean, low, high, window)


def data_inefficiency_std(
    norms: Tensor, sizes: Tensor | None = None, *, window: float | None = None
) -> Tensor:
    """Return the spread of `data_inefficiency` over the runs, to first order.

    𝓘 is a function of means over the runs; run r contributes d ln E‖Δ_m‖ = ‖Δ_m,r‖/E‖Δ_m‖ − 1 to
    each logarithm. Divide by √n_runs for the standard error; 0 for a single run.
    """
    mean, low, high = _mean_norm_and_steps(norms, sizes, window)
    norms = norms.reshape(-1, norms.shape[-1])
    relative = norms[:, high - 1] / mean[high - 1] - norms[:, low - 1] / mean[low - 1]
    return _step_factor(low, high, window).to(relative) * relative.std(dim=0, correction=0)


def checked_norms(value: Any) -> Tensor:
    """Return norms of two or more training-set sizes, (n,) or (n_runs, n); checked."""
    norms = value if isinstance(value, Tensor) else numbers(value, "norms")
    if norms.ndim not in (1, 2) or 0 in norms.shape:
        raise ValueError(
            f"norms must have shape (n,) or (n_runs, n), with one line a run; got "
            f"{tuple(norms.shape)}."
        )
    if norms.shape[-1] < 2:
        raise ValueError(
            f"norms holds {norms.shape[-1]} training-set size; a step needs two or more. A column "
            "of norms is one run: flatten it with ravel()."
        )
    require_each(
        (norms >= 0) & torch.isfinite(norms),
        "norms",
        norms,
        "must be non-negative and finite",
        "take weight_change_norm of prefix_path.",
    )
    return norms


def _mean_norm_and_steps(
    norms: Tensor, sizes: Tensor | None, window: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E‖Δ_m‖ (n,) and the sizes (n_sizes,) that the step at each size starts and ends at."""
    n = norms.shape[-1]
    window = None if window is None else scalar(window, "window")
    if window is not None and not window > 1:
        raise ValueError(f"window={window:g} must be a ratio above 1, or None for Eq. 10.")
    at = training_set_sizes(sizes, n)
    if window is None:
        low = at.clamp_max(n - 1)
        high = low + 1
    else:
        low = (at.double() / math.sqrt(window)).round().long().clamp(1, n - 1)
        high = torch.maximum((at.double() * math.sqrt(window)).round().long().clamp_max(n), low + 1)
    mean = norms.reshape(-1, n).mean(dim=0)
    low, high = low.to(norms.device), high.to(norms.device)
    if not (mean[low - 1] > 0).all():
        size = int(low[(mean[low - 1] <= 0)].max())
        raise ValueError(
            f"The data inefficiency is undefined at {size} rows: norms are 0 there, as of a "
            "student whose effective logits are all 0. Use larger sizes, and check teacher_logits."
        )
    return mean, low, high


def _slope_per_step(mean: Tensor, low: Tensor, high: Tensor, window: float | None) -> Tensor:
    start, stop = mean[low - 1], mean[high - 1]
    # ln(stop/start) without cancellation in the quotient
    return _step_factor(low, high, window).to(mean) * torch.log1p((stop - start) / start)


def _step_factor(low: Tensor, high: Tensor, window: float | None) -> Tensor:
    """Return the factor from a difference of ln E‖Δ‖ to 𝓘: m (Eq. 10), or 1 / ln(high/low)."""
    if window is None:
        return low.double()
    return 1 / torch.log(high.double() / low.double())


def held_out_data_inefficiency(
    squared_norm: Tensor,
    errors: Tensor,
    new_directions: Tensor,
    n_rows: int,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Return the data inefficiency with each held-out row as the (n+1)-th training row.

    𝓘(n) = n [ln E‖Δ_{n+1}‖ − ln E‖Δ_n‖] (Eq. 10), ‖Δ_{n+1}‖² = ‖Δ_n‖² + r²/v: exact, no refit.

    Parameters
    ----------
    squared_norm : Tensor, scalar or of shape (m,)
        ‖Δ_n‖² of the student trained on n rows, summed over the classes: of one student, or of
        one student for each held-out row.
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
    if not (squared_norm > 0).all():
        raise ValueError(
            "The data inefficiency is undefined for a student whose weight change is 0: all its "
            "effective logits are 0. Check teacher_logits."
        )
    squared_errors = errors.reshape(len(errors), -1).square().sum(dim=1)
    spanned = new_directions == 0
    gain = torch.where(spanned, 0.0, squared_errors / torch.where(spanned, 1.0, new_directions))
    norm = squared_norm.sqrt().expand(len(gain))
    # √(N + g) − √N without cancellation: increments are tiny once the student has converged.
    increment = gain / (norm + (squared_norm + gain).sqrt())
    growth = weighted_mean(increment, sample_weight) / weighted_mean(norm, sample_weight)
    return n_rows * torch.log1p(growth)
