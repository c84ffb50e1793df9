r"""Forecasts of learning curves: the error with more rows, with intervals.

The law is :math:`e(m) = a + b\,m^{-d}`, in one number s for each shape:

=========  ==================================================================================
no floor   :math:`e(m) = s\,\{c + (1 - c) (m/n)^{-d}\}`, a = c s: s is the error at n
floor a    :math:`e(m) = a + s\,(m/n)^{-d}`: s is what is above the floor, or below, at n
=========  ==================================================================================

Symbols, with S sizes, P orders of the rows and G shapes:

=======  ==============  ============================================================
m        ``sizes``       (S,) training-set sizes, n the largest
e        ``errors``      (P, S) errors measured
c, d     ``_shapes``     (G,) the share of the error that is left in the end, and the rate
s        ``scale``       (G,) fitted for each shape in closed form
=======  ==============  ============================================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from sklearn_kd.distillation._arguments import count, fraction, numbers, scalar, vector

# The rates d that are averaged over, and how likely each is thought to be beforehand.
RATES = np.geomspace(0.08, 1.6, 14)
LIKELY_RATE, SPREAD_OF_RATES = 0.4, 0.3  # the median, and the spread of ln d
# The shares c of the error at n that are left in the end, where no floor is known.
SHARES = np.linspace(0, 0.95, 20)
# Curves are no exact laws: they leave them by so much of the error with each doubling, one way and
# the other, from the largest size on.
MISFIT_BACK, MISFIT_AHEAD = 0.15, 0.07
# The spread of a single order, which does not show it, as a share of the error.
SPREAD_OF_ONE = 0.05
# What a mean over orders of the same rows leaves of their own spread.
LEAST_NOISE = 1e-4


class Forecast(NamedTuple):
    """A learning curve at sizes beyond those that were measured."""

    target_sizes: np.ndarray  # (n_targets,)
    error: np.ndarray  # (n_targets,) the median
    low: np.ndarray  # (n_targets,)
    high: np.ndarray
    rate: float  # posterior mean of d
    final_error: float  # posterior mean of a


def learning_curve_forecast(
    sizes: Any,
    errors: Any,
    target_sizes: Any,
    *,
    floor: float | None = None,
    n_test: int | None = None,
    confidence: float = 0.8,
) -> Forecast:
    r"""Error at training-set sizes beyond those that were measured, with intervals.

    Laws :math:`e(m) = a + b\,m^{-d}` are averaged, each by how well it fits the curve and how
    likely it was beforehand: no single best fit is trusted. For each shape of the curve its scale
    has a closed form.

    Parameters
    ----------
    sizes : array-like of int of shape (n_sizes,)
        Increasing training-set sizes, two or more.
    errors : array-like of shape (n_orders, n_sizes), or (n_sizes,)
        Errors in [0, 1] at these sizes, for several orders of the rows: rows of
        ``student.prefix_path(...).error``. The rows that are tested must not be trained on.
    target_sizes : array-like of int of shape (n_targets,)
        Sizes to forecast.
    floor : float in [0, 1], default=None
        The error that is left in the end, where it is known: at a soft ratio of 1 that of the
        teacher, on the same test rows. The curve may then come from below as well. None: unknown.
    n_test : int, default=None
        Number of different rows that were tested, over all orders; their noise is that of the whole
        curve. None: as if without noise.
    confidence : float in (0, 1), default=0.8
        Coverage of the intervals.

    Returns
    -------
    Forecast
        A named tuple: ``target_sizes``; ``error``, the median at each of them; ``low`` and
        ``high``, the interval, each of shape (n_targets,); ``rate`` and ``final_error``, the
        posterior means of d and a. The interval is that of the error on all rows that there could
        be, as a mean over draws of the training rows; an error measured on another finite test set
        has its noise on top.

    Raises
    ------
    ValueError
        If shapes do not match, sizes do not increase, or values are out of their ranges.
    TypeError
        If an argument is no number, or no array of numbers.

    See Also
    --------
    sklearn_kd.LinearizedKDStudent.prefix_path : Errors at all sizes from one factorization.
    sklearn_kd.DistillationPlan : Which makes such forecasts for every soft ratio.

    Notes
    -----
    The noise of the curve has three parts: that of the test rows, which all sizes share; the spread
    between orders; and the misfit of the law, a random walk on the logarithm of the size, which
    counts early sizes less and widens the interval with each doubling.

    Beforehand rates of 0.2 to 0.7 are thought likely, and all final errors below the last one: a
    steep curve is expected to level off. Where it does not (a = 0, d of 0.8 and more), errors of 2n
    rows and beyond are mostly below the interval: the forecast is then too cautious.

    A curve that has not begun to fall cannot be continued: the interval says so by its width.

    References
    ----------
    T. Viering and M. Loog, "The shape of learning curves: a review", IEEE TPAMI 45, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.metrics import learning_curve_forecast
    >>> sizes = np.array([25, 50, 100, 200, 400])
    >>> rng = np.random.default_rng(0)
    >>> errors = rng.binomial(500, 0.04 + 0.9 * sizes**-0.5, size=(8, 5)) / 500
    >>> found = learning_curve_forecast(sizes, errors, [1600], n_test=2000)
    >>> bool(found.low[0] < 0.04 + 0.9 * 1600**-0.5 < found.high[0])
    True
    """
    sizes, errors, targets = _checked(sizes, errors, target_sizes)
    floor = None if floor is None else _share(floor)
    n_rows = math.inf if n_test is None else count(n_test, "n_test", 1)
    confidence = fraction(confidence, "confidence")
    mean = errors.mean(axis=0)
    end = 0.0 if floor is None else floor

    # 1. Every shape, with its scale s and how likely it is given the curve.
    share, rate, log_prior = _shapes(floor)
    covariance = _covariance(sizes, errors, floor, n_rows)
    basis = _shape(sizes / sizes[-1], share, rate)
    scale, variance, log_likelihood = _fitted(mean - end, basis, covariance)
    log_weight = log_prior + log_likelihood
    log_weight -= logsumexp(log_weight)
    weight = np.exp(log_weight)

    # 2. Their continuations, and the quantiles of the mixture.
    ahead = _shape(targets / sizes[-1], share, rate)  # (G, n_targets)
    centre = end + scale[:, None] * ahead
    doublings = np.abs(np.log2(targets / sizes[-1]))
    spread = np.sqrt(
        variance[:, None] * ahead**2
        + (MISFIT_AHEAD * centre.clip(0)) ** 2 * doublings
        + (0.0 if floor is None else _test_noise(floor, n_rows) ** 2)
    )
    tails = (1 - confidence) / 2
    low, middle, high = _quantiles(centre, spread, log_weight, [tails, 0.5, 1 - tails])
    return Forecast(
        target_sizes=targets,
        error=middle,
        low=low,
        high=high,
        rate=float(weight @ rate),
        final_error=float(weight @ (share * scale.clip(0, 1))) if floor is None else floor,
    )


def _checked(
    sizes: Any, errors: Any, target_sizes: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the curve and the sizes to forecast as arrays."""
    sizes = vector(sizes, "sizes").cpu().numpy()
    targets = vector(target_sizes, "target_sizes").cpu().numpy()
    errors = np.atleast_2d(numbers(errors, "errors").cpu().numpy())
    if len(sizes) < 2 or sizes[0] <= 0 or (np.diff(sizes) <= 0).any():
        raise ValueError(
            f"sizes={sizes.tolist()} must be two or more positive numbers that increase."
        )
    if errors.ndim != 2 or errors.shape[1] != len(sizes) or not len(errors):
        raise ValueError(
            f"errors has shape {errors.shape}, but must have a column for each of the "
            f"{len(sizes)} sizes, and a row for each order."
        )
    if not ((errors >= 0) & (errors <= 1)).all():
        raise ValueError("errors must be shares of wrong rows, from 0 to 1, without NaN.")
    if not (targets > 0).all():
        raise ValueError(f"target_sizes={targets.tolist()} must be positive numbers.")
    return sizes, errors, targets


def _share(floor: Any) -> float:
    floor = scalar(floor, "floor")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor!r} must be an error, from 0 to 1, or None.")
    return floor


def _shapes(floor: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shares that are left in the end, rates and log prior weights, each (G,)."""
    shares = SHARES if floor is None else np.zeros(1)
    share, rate = (part.ravel() for part in np.meshgrid(shares, RATES, indexing="ij"))
    return share, rate, norm.logpdf(np.log(rate / LIKELY_RATE) / SPREAD_OF_RATES)


def _shape(times: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return c + (1 − c) (m/n)^(−d), of each shape and size, (G, n_sizes)."""
    share = share[:, None]
    return share + (1 - share) * times ** -rate[:, None]


def _test_noise(error: Any, n_rows: float) -> Any:
    """Return √(p (1 − p) / n) of an error measured on n rows.

    Half an error more keeps a count of 0 uncertain.
    """
    if n_rows == math.inf:
        return 0.0 * error
    p = (error * n_rows + 0.5) / (n_rows + 1)
    return np.sqrt(p * (1 - p) / n_rows)


def _covariance(
    sizes: np.ndarray, errors: np.ndarray, floor: float | None, n_rows: float
) -> np.ndarray:
    """Return the covariance of the mean errors, (S, S), or of what is above a floor.

    The noise of the test rows moves all sizes together. What a floor measured on the same rows
    shares with the curve is in neither: the rest is the noise of their difference. The misfit is a
    random walk of the logarithm of the size, from the largest one back.
    """
    mean = errors.mean(axis=0)
    above = np.abs(mean - (floor or 0.0))
    profile = _test_noise(above, n_rows)
    back = np.log2(sizes[-1] / sizes)
    step = MISFIT_BACK * np.maximum(np.maximum(mean, above), 1e-3)
    walk = np.minimum(back[:, None], back) * np.outer(step, step)
    return np.outer(profile, profile) + walk + np.diag(_own_noise(errors) ** 2)


def _own_noise(errors: np.ndarray) -> np.ndarray:
    """Return the noise of the mean over orders that each size has of its own, (S,)."""
    n_orders = len(errors)
    # Differences from the curve of an order are free of what the sizes share.
    relative = errors - errors.mean(axis=1, keepdims=True)
    spread = relative.std(axis=0, ddof=1) if n_orders > 1 else SPREAD_OF_ONE * errors[0]
    pooled = np.sqrt(np.mean(spread**2))
    return np.maximum(np.sqrt((spread**2 + pooled**2) / 2 / n_orders), LEAST_NOISE)


def _fitted(
    above: np.ndarray, basis: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each shape, the scale s, its variance, and the log likelihood with s integrated.

    Generalised least squares of the curve on its shape, with a flat prior of s.
    """
    precise = basis @ np.linalg.inv(covariance)
    information = (precise * basis).sum(axis=1)
    scale = precise @ above / information
    rest = above - scale[:, None] * basis
    misfit = ((rest @ np.linalg.inv(covariance)) * rest).sum(axis=1)
    return scale, 1 / information, -(misfit + np.log(information)) / 2


def _quantiles(
    centre: np.ndarray, spread: np.ndarray, log_weight: np.ndarray, levels: list[float]
) -> np.ndarray:
    """Return quantiles of mixtures of normal laws, given that they are ≥ 0, (n_levels, n_targets).

    What lies above 1 is moved there.
    """
    found = np.empty((len(levels), centre.shape[1]))
    for column in range(centre.shape[1]):
        mean, deviation = centre[:, column], np.maximum(spread[:, column], 1e-12)

        # In logarithms: nearly all of the mixture may lie below 0, and 1 − P(≤ v) has no digits.
        def log_above(value: float, mean: Any = mean, deviation: Any = deviation) -> float:
            return float(np.logaddexp.reduce(log_weight + log_ndtr((mean - value) / deviation)))

        most, least = log_above(0.0), log_above(1.0)
        for row, level in enumerate(levels):
            wanted = most + math.log1p(-level)
            found[row, column] = (
                brentq(lambda v, w=wanted: log_above(v) - w, 0.0, 1.0, xtol=1e-10)
                if wanted > least
                else 1.0
            )
    return found
