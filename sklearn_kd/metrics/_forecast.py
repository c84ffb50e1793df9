r"""Forecasts of learning curves: the error with more rows, with intervals.

The law is :math:`e(m) = a + b\,m^{-d}`. Symbols, with S sizes, P orders of the rows and G laws:

=======  ==============  ============================================================
m        ``sizes``       (S,) training-set sizes
e        ``errors``      (P, S) errors measured
a, d     ``LAWS``        (G,) the error that is left in the end, and the rate
b        ``scale``       (G,) fitted for each law in closed form
=======  ==============  ============================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from sklearn_kd.distillation._arguments import fraction, numbers, scalar, vector

# The rates d that are averaged over, and how likely each is thought to be beforehand.
RATES = np.geomspace(0.08, 1.6, 14)
LIKELY_RATE, SPREAD_OF_RATES = 0.4, 0.3  # the median, and the spread of ln d
# The share of the last error that is left in the end, a, where no floor is known.
SHARES = np.linspace(0, 0.95, 20)
# Curves are no exact laws: they leave them by so much of the error with each doubling, one way and
# the other, from the largest size on.
MISFIT_BACK, MISFIT_AHEAD = 0.15, 0.07
# The spread of a single order, which does not show it, as a share of the error.
SPREAD_OF_ONE = 0.05
# What a mean over orders of the same rows leaves of their own spread.
LEAST_NOISE = 1e-4
GRID = 500  # points at which a quantile is looked for


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
    likely it was beforehand: no single best fit is trusted. The scale b has a closed form for each
    final error a and rate d.

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
    steep curve is expected to level off.

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
    sizes, errors, targets = _checked(sizes, errors, target_sizes, floor, n_test)
    confidence = fraction(confidence, "confidence")
    mean = errors.mean(axis=0)
    shared, own = _noise(errors, n_test)

    # 1. Every law, with its scale b and how likely it is given the curve.
    final, rate, log_prior = _laws(mean[-1], floor)
    basis = (sizes / sizes[-1]) ** -rate[:, None]  # (G, S)
    covariance = _covariance(sizes, mean, shared, own)
    scale, variance, log_likelihood = _fitted(mean - final[:, None], basis, covariance)
    if floor is None:  # a curve that falls: b ≥ 0
        log_likelihood = log_likelihood + norm.logcdf(scale / np.sqrt(variance))
        scale, variance = _positive(scale, variance)
    log_weight = log_prior + log_likelihood
    weight = np.exp(log_weight - logsumexp(log_weight))

    # 2. Their continuations a + b m^(−d), and the quantiles of the mixture.
    ahead = (targets / sizes[-1]) ** -rate[:, None]  # (G, n_targets)
    centre = final[:, None] + scale[:, None] * ahead
    doublings = np.abs(np.log2(targets / sizes[-1]))
    spread = np.sqrt(
        variance[:, None] * ahead**2
        + (MISFIT_AHEAD * centre.clip(0)) ** 2 * doublings
        + (shared * centre.clip(0) / max(mean[-1], 1e-12)) ** 2
    )
    tails = (1 - confidence) / 2
    low, middle, high = _quantiles(centre, spread, weight, [tails, 0.5, 1 - tails])
    return Forecast(
        target_sizes=targets,
        error=middle,
        low=low,
        high=high,
        rate=float(weight @ rate),
        final_error=float(weight @ final),
    )


def _checked(
    sizes: Any, errors: Any, targets: Any, floor: Any, n_test: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the curve and the sizes to forecast as arrays."""
    sizes, targets = (
        vector(value, name).cpu().numpy()
        for value, name in ((sizes, "sizes"), (targets, "target_sizes"))
    )
    errors = np.atleast_2d(numbers(errors, "errors").cpu().numpy())
    if sizes.ndim != 1 or len(sizes) < 2 or (np.diff(sizes) <= 0).any() or sizes[0] <= 0:
        raise ValueError(
            f"sizes={sizes.tolist()} must be two or more positive numbers that increase."
        )
    if errors.ndim != 2 or errors.shape[1] != len(sizes):
        raise ValueError(
            f"errors has shape {errors.shape}, but must have a column for each of the "
            f"{len(sizes)} sizes, and a row for each order."
        )
    if not ((errors >= 0) & (errors <= 1)).all():
        raise ValueError("errors must be shares of wrong rows, from 0 to 1, without NaN.")
    if targets.ndim != 1 or not len(targets) or not (targets > 0).all():
        raise ValueError(f"target_sizes={targets.tolist()} must be one or more positive numbers.")
    if floor is not None and not 0 <= scalar(floor, "floor") <= 1:
        raise ValueError(f"floor={floor!r} must be an error, from 0 to 1, or None.")
    if n_test is not None and not scalar(n_test, "n_test") >= 1:
        raise ValueError(f"n_test={n_test!r} must be a number of rows, 1 or more, or None.")
    return sizes, errors, targets


def _noise(errors: np.ndarray, n_test: int | None) -> tuple[float, np.ndarray]:
    """Return the noise that all sizes share, by the test rows, and that of each, (S,).

    The last size's error is a count: half an error more keeps a count of 0 uncertain.
    """
    n_orders, mean = len(errors), errors.mean(axis=0)
    shared = 0.0
    if n_test is not None:
        at_end = (mean[-1] * n_test + 0.5) / (n_test + 1)
        shared = float(np.sqrt(at_end * (1 - at_end) / n_test))
    # Differences from the curve of an order are free of what the sizes share.
    relative = errors - errors.mean(axis=1, keepdims=True)
    spread = relative.std(axis=0, ddof=1) if n_orders > 1 else SPREAD_OF_ONE * mean
    pooled = np.sqrt(np.mean(spread**2))
    own = np.sqrt((spread**2 + pooled**2) / 2 / n_orders)
    return shared, np.maximum(own, LEAST_NOISE)


def _laws(last: float, floor: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return final errors, rates and log prior weights of the laws, each (G,)."""
    finals = SHARES * last if floor is None else np.array([floor])
    final, rate = (part.ravel() for part in np.meshgrid(finals, RATES, indexing="ij"))
    log_prior = norm.logpdf(np.log(rate / LIKELY_RATE) / SPREAD_OF_RATES)
    return final, rate, log_prior


def _covariance(sizes: np.ndarray, mean: np.ndarray, shared: float, own: np.ndarray) -> np.ndarray:
    """Return the covariance of the mean errors, (S, S).

    The noise of the test rows moves all sizes together, in proportion to √(e(1 − e)). The misfit
    is a random walk of the logarithm of the size, from the largest one back.
    """
    profile = np.sqrt((mean * (1 - mean)).clip(1e-8))
    profile = shared * profile / profile[-1]
    back = np.log2(sizes[-1] / sizes)
    step = MISFIT_BACK * np.maximum(mean, 1e-3)
    walk = np.minimum(back[:, None], back) * np.outer(step, step)
    return np.outer(profile, profile) + walk + np.diag(own**2)


def _fitted(
    above: np.ndarray, basis: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each law, the scale b, its variance, and the log likelihood with b integrated.

    Generalised least squares of e − a on (m/n)^(−d), with a flat prior of b.
    """
    precision = np.linalg.inv(covariance)
    information = np.einsum("gs,st,gt->g", basis, precision, basis)
    scale = np.einsum("gs,st,gt->g", basis, precision, above) / information
    rest = above - scale[:, None] * basis
    misfit = np.einsum("gs,st,gt->g", rest, precision, rest)
    return scale, 1 / information, -(misfit + np.log(information)) / 2


def _positive(scale: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of b given that b ≥ 0, of normal laws."""
    deviation = np.sqrt(variance)
    z = scale / deviation
    ratio = np.exp(norm.logpdf(z) - norm.logcdf(z))
    mean = np.maximum(scale + deviation * ratio, 0)
    return mean, np.maximum(variance * (1 - ratio * (z + ratio)), 1e-6 * variance)


def _quantiles(
    centre: np.ndarray, spread: np.ndarray, weight: np.ndarray, levels: list[float]
) -> np.ndarray:
    """Return quantiles of mixtures of normal laws, of each column, (n_levels, n_targets).

    What lies outside of [0, 1] is moved to its end.
    """
    found = np.empty((len(levels), centre.shape[1]))
    for column in range(centre.shape[1]):
        mean, deviation = centre[:, column], np.maximum(spread[:, column], 1e-12)
        values = np.linspace((mean - 6 * deviation).min(), (mean + 6 * deviation).max(), GRID)
        below = weight @ norm.cdf((values - mean[:, None]) / deviation[:, None])
        found[:, column] = np.interp(levels, below, values)
    return found.clip(0, 1)
