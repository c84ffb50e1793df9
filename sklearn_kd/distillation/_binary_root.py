"""Root of Eq. 3 for two classes, accurate to rounding over the whole range of float64.

Symbols: x is z_t and z the root, after a flip of sign that puts z above x. ``soft`` and ``hard``
are the weights of the two terms of Eq. 3: those of Eq. 2, the soft one divided by T (see
`loss_weights`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd.distillation._arguments import log_weight_ratio, loss_weights
from sklearn_kd.distillation._bracketed_newton import (
    STEP_TOLERANCE,
    TINY,
    Place,
    bracketed_newton,
    log1mexp,
    log_shrink,
    place_to_v,
    shrink_slope,
    softplus,
)

STEPS_NEAR_ZERO = 8


def binary_roots(columns: list[Tensor], scaling: str) -> Tensor:
    """Root of Eq. 3 for vectors z_t, y, soft_ratio and T of shape (n,)."""
    z_t, y, soft_ratio, temperature = columns
    # By symmetry (z -> -z, y -> 1 - y) the root lies above z_t and below logit(y).
    limit = torch.where(
        (y - 0.5).abs() < 0.25, 2 * torch.atanh(2 * y - 1), torch.log(y) - torch.log1p(-y)
    )
    sign = torch.where(limit < z_t, -1.0, 1.0).to(z_t)
    x, limit = sign * z_t, sign * limit
    y = torch.where(sign < 0, 1 - y, y)
    log_odds = log_weight_ratio(soft_ratio, temperature, scaling)

    z = torch.where(soft_ratio == 1, x, torch.where(limit == x, x, math.nan))
    for is_hard in (True, False):
        rows = (z.isnan() & (torch.isinf(limit) == is_hard)).nonzero().squeeze(1)
        if rows.numel():
            end = None if is_hard else limit[rows]
            z[rows] = _root_above(x[rows], end, temperature[rows], log_odds[rows])
    z = _polish_near_zero(z, x, y, soft_ratio, temperature, scaling).clamp(x, limit)
    return torch.where(soft_ratio == 1, z_t, sign * z)


def _root_above(x: Tensor, limit: Tensor | None, temperature: Tensor, log_odds: Tensor) -> Tensor:
    """Root z of the logarithm of Eq. 3 above x and, for a fractional y, below limit = logit(y).

    With d = z - x, rest = limit - z and σ(b) - σ(a) = σ(-a) σ(b) (1 - exp(a - b)),

        log(soft / hard) + log σ(-x/T) + log σ(z/T) + log(1 - exp(-d/T))
            = log σ(limit) + log σ(-z) + log(1 - exp(-rest)).

    Newton's method runs on the v of `_bracketed_newton`.
    """
    constant = log_odds + logsigmoid(-x / temperature)
    if limit is not None:
        constant = constant - logsigmoid(limit)
    d = _first_guess(x, limit, temperature, -constant)
    v = place_to_v(d, None if limit is None else limit - x - d)
    z = bracketed_newton(_log_equation, v, x, limit, temperature, constant).z
    # Digits are lost where x + d or limit - rest cancels.
    far = x.abs() if limit is None else x.abs().maximum(limit.abs())
    lost = (z.abs() < 0.5 * far).nonzero().squeeze(1)
    limit = None if limit is None else limit[lost]
    return z.index_copy(
        0, lost, _near_zero(z[lost], x[lost], limit, temperature[lost], constant[lost])
    )


def _near_zero(
    z: Tensor, x: Tensor, limit: Tensor | None, temperature: Tensor, constant: Tensor
) -> Tensor:
    """Return roots far below x or the limit in size, by Newton's method on z itself.

    At low temperatures the equation bends on the scale of T, below the rounding of x.
    """
    for _ in range(STEPS_NEAR_ZERO):
        d = (z - x).clamp(min=TINY)
        rest = None if limit is None else (limit - z).clamp(min=TINY)
        value, slope = _log_equation(Place(z, d, rest), temperature, constant)
        new = (z - value / slope).maximum(z - d / 2)
        # Above zero the equation is flat; a step from there that spans many T would cancel.
        new = torch.where(z > 0, new.maximum(-4000 * temperature), new)
        new = new if rest is None else new.minimum(z + rest / 2)
        is_settled = (new - z).abs() <= STEP_TOLERANCE * new.abs()
        z = new
        if is_settled.all():
            break
    return z


def _log_equation(at: Place, temperature: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Return left minus right of the logarithm of Eq. 3, and its slope in z."""
    log_soft, log_hard = logsigmoid(at.z / temperature), logsigmoid(-at.z)
    value = constant + log_soft + log_shrink(at.d, temperature) - log_hard
    slope = -torch.expm1(log_soft) / temperature + shrink_slope(at.d, temperature)
    slope = slope - torch.expm1(log_hard)
    if at.rest is not None:
        value = value - log1mexp(at.rest)
        slope = slope + 1 / torch.expm1(at.rest)
    return value, slope


def _first_guess(x: Tensor, limit: Tensor | None, temperature: Tensor, target: Tensor) -> Tensor:
    """Least of three upper bounds of d, each the limit of Eq. 3 in one regime."""
    # Large z: σ(z/T) >= 1/2 and 1 - exp(-d/T) >= 1/2.
    d = (target + 2 * math.log(2)).clamp(min=0).maximum(x + temperature * math.log(2)) - x
    # Small d: σ(z/T) >= σ(x/T) and σ(-z) <= σ(-x).
    small = target - logsigmoid(x / temperature) + logsigmoid(-x)
    if limit is not None:
        small = small + log1mexp(limit - x)
    d = torch.where(small < 0, d.minimum(-temperature * torch.log1p(-torch.exp(small))), d)
    # Very negative z: σ(-z) <= 1.
    wide = temperature * (softplus(target - x / temperature) - torch.log1p(-torch.exp(target)))
    d = torch.where(target < 0, d.minimum(wide), d).clamp(min=TINY)
    return d if limit is None else torch.where(d < limit - x, d, (limit - x) / 2)


def _polish_near_zero(
    z: Tensor, x: Tensor, y: Tensor, soft_ratio: Tensor, temperature: Tensor, scaling: str
) -> Tensor:
    """One step on Eq. 3 in a form that keeps the relative accuracy of a root near zero.

    soft tanh(z/2T) + hard tanh(z/2) = soft tanh(x/2T) + hard (2y - 1)
    """
    near = ((z.abs() < 0.5 * temperature.clamp(max=1)) & (soft_ratio < 1)).nonzero().squeeze(1)
    if not near.numel():
        return z
    w, x, y = z[near], x[near], y[near]
    soft_ratio, temperature = soft_ratio[near], temperature[near]
    soft, hard = loss_weights(soft_ratio, temperature, scaling)
    right = soft * torch.tanh(x / (2 * temperature)) + hard * (2 * y - 1)
    # A saturated wrong teacher against y = 1: the two terms cancel up to exp(x/T).
    saturated = (y == 1) & (x < -2 * temperature)
    excess = soft_excess(soft_ratio, temperature, scaling)
    excess = 2 * soft * torch.sigmoid(x / temperature) - excess
    right = torch.where(saturated, excess, right)
    # The left side is odd in z: the chord through the origin keeps every digit of z.
    w = torch.where(w == 0, TINY, w)
    left = soft * torch.tanh(w / (2 * temperature)) + hard * torch.tanh(w / 2)
    return z.index_copy(0, near, right / (left / w))


def soft_excess(soft_ratio: Tensor, temperature: Tensor, scaling: str) -> Tensor:
    """Return soft - hard of `loss_weights`, exact to rounding even where the terms cancel.

    It is positive iff a confidently wrong teacher can win over a hard label.
    """
    # ρ + ρ T - T, or ρ + ρ T - 1: three terms with an exact product (Dekker's two-product) and an
    # exact difference (Knuth's two-sum).
    base = temperature if scaling == "none" else torch.ones_like(temperature)
    product = soft_ratio * temperature
    ratio_high, t_high = _high_half(soft_ratio), _high_half(temperature)
    ratio_low, t_low = soft_ratio - ratio_high, temperature - t_high
    product_error = ((ratio_high * t_high - product) + ratio_high * t_low + ratio_low * t_high) + (
        ratio_low * t_low
    )
    difference = soft_ratio - base
    back = difference - soft_ratio
    difference_error = (soft_ratio - (difference - back)) - (base + back)
    return (difference + product) + (difference_error + product_error)


def _high_half(a: Tensor) -> Tensor:
    """Leading 26 bits of a float64 (Veltkamp's splitting)."""
    scaled = (2.0**27 + 1) * a
    return scaled - (scaled - a)
