"""Root of Eq. 3 for two classes, accurate to rounding over the whole range of float64.

Symbols: x is z_t and z the root after a flip of sign that puts z above x; ``soft`` and ``hard``
are the weights of Eq. 2, of which only the ratio matters: rho and 1 - rho, or rho T^2 and
1 - rho where the soft term carries Hinton's factor T^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd.distillation._arguments import loss_weights

# Newton's method squares the error, so a last step this small leaves nothing but rounding.
STEP_TOLERANCE = 1e-9
ROUNDING = 16 * torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny
MAX_STEPS = 200


def binary_roots(columns: list[Tensor], scaling: str) -> Tensor:
    """Root of Eq. 3 for vectors z_t, y, rho and T of shape (n,)."""
    z_t, y, rho, big_t = columns
    # By symmetry (z -> -z, y -> 1 - y) the root lies above z_t and below logit(y).
    limit = torch.where(
        (y - 0.5).abs() < 0.25, 2 * torch.atanh(2 * y - 1), torch.log(y) - torch.log1p(-y)
    )
    sign = torch.where(limit < z_t, -1.0, 1.0).to(z_t)
    x, limit = sign * z_t, sign * limit
    y = torch.where(sign < 0, 1 - y, y)
    soft, hard = loss_weights(rho, big_t, scaling)

    z = torch.where(rho == 1, x, torch.where(limit == x, x, math.nan))
    for is_hard in (True, False):
        rows = (z.isnan() & (torch.isinf(limit) == is_hard)).nonzero().squeeze(1)
        if rows.numel():
            log_odds = torch.log(soft[rows] / (hard[rows] * big_t[rows]))
            end = None if is_hard else limit[rows]
            z[rows] = _root_above(x[rows], end, big_t[rows], log_odds)
    z = _polish_near_zero(z, x, y, rho, big_t, scaling).clamp(x, limit)
    return torch.where(rho == 1, z_t, sign * z)


def _root_above(x: Tensor, limit: Tensor | None, big_t: Tensor, log_odds: Tensor) -> Tensor:
    """Root z of the logarithm of Eq. 3 above x and, for a fractional y, below limit = logit(y).

    With d = z - x, rest = limit - z and σ(b) - σ(a) = σ(-a) σ(b) (1 - exp(a - b)),

        log(soft / (hard T)) + log σ(-x/T) + log σ(z/T) + log(1 - exp(-d/T))
            = log σ(limit) + log σ(-z) + log(1 - exp(-rest)).

    Newton's method runs on v = log(exp(d) - 1) - log(1 - exp(-rest)), in which the difference
    of both sides is close to linear from d -> 0 to rest -> 0 or d -> infinity.
    """
    constant = log_odds + logsigmoid(-x / big_t)
    if limit is not None:
        constant = constant - logsigmoid(limit)
    d = _first_guess(x, limit, big_t, -constant)
    v = torch.where(d < 1, torch.log(torch.expm1(d.clamp(max=1))), d + _log1mexp(d))
    if limit is not None:
        v = v - _log1mexp(limit - x - d)
    z = _bracketed_newton(v, x, limit, big_t, constant)
    # Digits are lost where x + d or limit - rest cancels: one more step, on z itself.
    far = x.abs() if limit is None else x.abs().maximum(limit.abs())
    lost = (z.abs() < 0.5 * far).nonzero().squeeze(1)
    z_lost, d = z[lost], (z[lost] - x[lost]).clamp(min=TINY)
    rest = None if limit is None else (limit[lost] - z_lost).clamp(min=TINY)
    value, slope = _log_equation(z_lost, d, rest, big_t[lost], constant[lost])
    return z.index_copy(0, lost, z_lost - value / slope)


def _bracketed_newton(
    v: Tensor, x: Tensor, limit: Tensor | None, big_t: Tensor, constant: Tensor
) -> Tensor:
    """Newton's method on v (see :func:`_root_above`) from a first guess; returns z."""
    root = torch.empty_like(x)
    low, high = torch.full_like(v, -math.inf), torch.full_like(v, math.inf)
    last = high  # |value| of the step before
    todo = torch.arange(len(x), device=x.device)
    for _ in range(MAX_STEPS):
        z, d, rest = _place(v, x, limit)
        value, slope = _log_equation(z, d, rest, big_t, constant)
        dv_dz = -1 / torch.expm1(-d) + (0 if rest is None else 1 / torch.expm1(rest))
        low, high = torch.where(value < 0, v, low), torch.where(value > 0, v, high)
        move = -value / slope
        new = v + move * dv_dz
        size = (new - v).abs() / v.abs().clamp(min=1)
        done = size <= STEP_TOLERANCE
        # |x| is so large that the rounding of the value keeps v from settling.
        done |= (size <= 1e-3) & (move.abs() <= ROUNDING * (x.abs() + d))
        # The root is an end of its bracket, to more than 300 digits.
        done |= (d == TINY) & (value > 0)
        if rest is not None:
            done |= (rest == TINY) & (value < 0)
        # A step that leaves the bracket, or follows one that did not halve the value: halve the
        # bracket. While one of its ends is open only the first can happen, by rounding.
        is_open = torch.isinf(high - low)
        good = (new > low) & (new < high) & (is_open | (value.abs() <= 0.5 * last))
        middle = torch.where(is_open, v + move.sign(), (low + high) / 2)
        v, last = torch.where(done | good, new, middle), value.abs()
        root[todo] = _place(v, x, limit)[0]
        left = (~done).nonzero().squeeze(1)
        if not left.numel():
            return root
        todo, v, x, big_t, constant = todo[left], v[left], x[left], big_t[left], constant[left]
        low, high, last = low[left], high[left], last[left]
        limit = None if limit is None else limit[left]
    raise ArithmeticError(
        f"effective_logits did not converge for {len(x)} rows, the first with "
        f"|teacher logit| {x[0].abs().item():.17g} at temperature {big_t[0].item():.17g}; "
        "please report this as a bug."
    )


def _place(v: Tensor, x: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return z, d and rest for v (see :func:`_root_above`), free of cancellation."""
    if limit is None:
        d = softplus(v).clamp(min=TINY)
        return x + d, d, None
    gap = limit - x
    log_gap = _log1mexp(gap)
    d = softplus(v + log_gap - softplus(v - gap)).clamp(min=TINY)
    rest = softplus(gap + log_gap - softplus(v)).clamp(min=TINY)
    return torch.where(rest < d, limit - rest, x + d), d, rest


def _log_equation(
    z: Tensor, d: Tensor, rest: Tensor | None, big_t: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor]:
    """Left minus right of the logarithm of Eq. 3, and its slope in z."""
    log_soft, log_hard = logsigmoid(z / big_t), logsigmoid(-z)
    shrink = torch.expm1(-d / big_t)  # 1 / expm1(d/T) = -1 - 1 / expm1(-d/T)
    value = constant + log_soft + torch.log(-shrink) - log_hard
    slope = (-torch.expm1(log_soft) - 1 - 1 / shrink) / big_t - torch.expm1(log_hard)
    if rest is not None:
        value = value - _log1mexp(rest)
        slope = slope + 1 / torch.expm1(rest)
    return value, slope


def _first_guess(x: Tensor, limit: Tensor | None, big_t: Tensor, target: Tensor) -> Tensor:
    """Least of three upper bounds of d, each the limit of Eq. 3 in one regime."""
    # Large z: σ(z/T) >= 1/2 and 1 - exp(-d/T) >= 1/2.
    d = (target + 2 * math.log(2)).clamp(min=0).maximum(x + big_t * math.log(2)) - x
    # Small d: σ(z/T) >= σ(x/T) and σ(-z) <= σ(-x).
    small = target - logsigmoid(x / big_t) + logsigmoid(-x)
    if limit is not None:
        small = small + _log1mexp(limit - x)
    d = torch.where(small < 0, d.minimum(-big_t * torch.log1p(-torch.exp(small))), d)
    # Very negative z: σ(-z) <= 1.
    wide = big_t * (softplus(target - x / big_t) - torch.log1p(-torch.exp(target)))
    d = torch.where(target < 0, d.minimum(wide), d).clamp(min=TINY)
    return d if limit is None else torch.where(d < limit - x, d, (limit - x) / 2)


def _polish_near_zero(
    z: Tensor, x: Tensor, y: Tensor, rho: Tensor, big_t: Tensor, scaling: str
) -> Tensor:
    """One step on Eq. 3 in a form that keeps the relative accuracy of a root near zero.

    soft tanh(z/2T) + hard T tanh(z/2) = soft tanh(x/2T) + hard T (2y - 1)
    """
    near = ((z.abs() < 0.5 * big_t.clamp(max=1)) & (rho < 1)).nonzero().squeeze(1)
    if not near.numel():
        return z
    w, x, y, rho, big_t = z[near], x[near], y[near], rho[near], big_t[near]
    soft, hard = loss_weights(rho, big_t, scaling)
    right = soft * torch.tanh(x / (2 * big_t)) + hard * big_t * (2 * y - 1)
    # A saturated wrong teacher against y = 1: the two terms cancel but for exp(x/T).
    saturated = (y == 1) & (x < -2 * big_t)
    excess = 2 * soft * torch.sigmoid(x / big_t) - soft_excess(rho, big_t, scaling)
    right = torch.where(saturated, excess, right)
    # The left side is odd in z: the chord through the origin keeps every digit of z.
    w = torch.where(w == 0, TINY, w)
    left = soft * torch.tanh(w / (2 * big_t)) + hard * big_t * torch.tanh(w / 2)
    return z.index_copy(0, near, right / (left / w))


def soft_excess(rho: Tensor, big_t: Tensor, scaling: str) -> Tensor:
    """Return soft - T hard, exact to rounding even where the terms cancel.

    It is positive iff a confidently wrong teacher can win over a hard label.
    """
    # rho + rho T - T, times T where soft is rho T^2: both are sums of three terms with an
    # exact product (Dekker's two-product) and an exact difference (Knuth's two-sum).
    base = big_t if scaling == "none" else torch.ones_like(big_t)
    product = rho * big_t
    rho_high, t_high = _high_half(rho), _high_half(big_t)
    rho_low, t_low = rho - rho_high, big_t - t_high
    product_error = ((rho_high * t_high - product) + rho_high * t_low + rho_low * t_high) + (
        rho_low * t_low
    )
    difference = rho - base
    back = difference - rho
    difference_error = (rho - (difference - back)) - (base + back)
    excess = (difference + product) + (difference_error + product_error)
    return excess if scaling == "none" else big_t * excess


def _high_half(a: Tensor) -> Tensor:
    """Leading 26 bits of a float64 (Veltkamp's splitting)."""
    scaled = (2.0**27 + 1) * a
    return scaled - (scaled - a)


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact in both tails (torch's own is linear from 20 on)."""
    return -logsigmoid(-x)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(-x)) for positive x."""
    return torch.log(-torch.expm1(-x))
