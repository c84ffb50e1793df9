r"""Root of the softmax form of Eq. 3 at any temperature, in differences that do not cancel.

In the gauge Σ exp(z) = 1, with q = softmax(z_t/T) and a common shift b, Eq. 3 says of each class

    soft q_k (exp((z_k - c_k)/T) - 1) + hard (exp(z_k) - y_k) = 0,   c_k = z_t,k + b,

one increasing function of z_k, whose root lies between c_k and log y_k. As both softmaxes sum to
one, b is where either of

    F(b) = log Σ exp(z_k),   Ψ(b) = -T log Σ q_k exp((z_k - c_k)/T)

vanishes. Both increase in b along the roots z(b), with dz_k/db = w_k, the soft term's share of the
slope in z_k:

    F' = Σ p_k w_k,   Ψ' = Σ π_k (1 - w_k),   p = softmax(z),   π_k ∝ q_k exp((z_k - c_k)/T).

p and π are largest at the same class, so one of the two slopes is at least 1/(2K).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd.distillation._bracketed_newton import (
    MAX_STEPS,
    ROUNDING,
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


def nested_softmax_roots(
    z_t: Tensor,  # (n, K)
    y: Tensor,  # (n, K)
    log_odds: Tensor,  # (n, 1), log(soft / hard)
    temperature: Tensor,  # (n, 1)
) -> Tensor:
    """Return the root of the K-class form of Eq. 3, (n, K) with rows that sum to zero."""
    log_q = torch.log_softmax(z_t / temperature, dim=1)
    log_y = torch.log(y)
    kappa = log_odds + log_q
    # Where T is large, hard exp(z_k) = soft q_k (c_k - z_k)/T + hard y_k; c_k - z_k is taken as 1.
    guess = torch.log_softmax(torch.logaddexp(log_y, kappa - torch.log(temperature)), dim=1)
    b = (torch.exp(log_q) * (guess - z_t)).sum(dim=1, keepdim=True)
    low, high = torch.full_like(b, -math.inf), torch.full_like(b, math.inf)
    last = high  # |value| of the step before
    out = torch.empty_like(z_t)
    todo = torch.arange(len(z_t), device=z_t.device)
    for _ in range(MAX_STEPS):
        z, d = _class_roots(z_t + b, log_y, kappa, temperature)
        share = torch.sigmoid(kappa - torch.log(temperature) - d / temperature - z)
        value, slope, size = _normalisation(z, d, log_q, share, temperature)
        low, high = torch.where(value < 0, b, low), torch.where(value > 0, b, high)
        step = -value / slope
        done = (step.abs() <= STEP_TOLERANCE * b.abs().clamp(min=1)) | (
            value.abs() <= ROUNDING * (1 + size)
        )
        good = (b + step > low) & (b + step < high) & (value.abs() <= 0.5 * last)
        is_open = torch.isinf(high - low)
        step = torch.where(done | good | is_open, step, (low + high) / 2 - b)
        last = value.abs()
        b = b + step
        out[todo] = z + share * step  # the tangent: at convergence its error is the step squared
        left = (~done).nonzero()[:, 0]
        if not left.numel():
            return centred(out)
        todo, z_t, log_y, log_q, kappa = (t[left] for t in (todo, z_t, log_y, log_q, kappa))
        temperature, b, low, high, last = (t[left] for t in (temperature, b, low, high, last))
    raise ArithmeticError(
        f"effective_logits did not converge for {len(z_t)} rows at temperature "
        f"{temperature[0].item():.17g}; please report this as a bug."
    )


def _normalisation(
    z: Tensor, d: Tensor, log_q: Tensor, share: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return F or Ψ, whichever is steeper, its slope, and the size of its terms."""
    soft = log_q - d / temperature
    p, pi = torch.softmax(z, dim=1), torch.softmax(soft, dim=1)
    hard_slope = (p * share).sum(dim=1, keepdim=True)
    soft_slope = (pi * (1 - share)).sum(dim=1, keepdim=True)
    hard_value = torch.logsumexp(z, dim=1, keepdim=True)
    # log Σ q exp(-d/T) = log(1 + Σ q (exp(-d/T) - 1)), which keeps its digits where it is small.
    excess = (torch.exp(log_q) * torch.expm1(-d / temperature)).sum(dim=1, keepdim=True)
    far = torch.logsumexp(soft, dim=1, keepdim=True)
    soft_value = -temperature * torch.where(excess.abs() < 0.5, torch.log1p(excess), far)
    hard_size = (p * z).abs().sum(dim=1, keepdim=True)
    soft_size = (pi * (z + d)).abs().sum(dim=1, keepdim=True)
    is_hard = hard_slope > soft_slope
    return (
        torch.where(is_hard, hard_value, soft_value),
        torch.where(is_hard, hard_slope, soft_slope),
        torch.where(is_hard, hard_size, soft_size),
    )


def _class_roots(
    c: Tensor, log_y: Tensor, kappa: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return z and d = c - z of each class, with kappa = log(soft q / hard)."""
    shape = c.shape
    columns = [t.expand(shape).reshape(-1) for t in (c, log_y, kappa, temperature)]
    c, log_y = columns[:2]
    z, d = c.clone(), torch.zeros_like(c)  # where c = log y
    no_label = torch.isneginf(log_y)
    for rows, solve in (
        (no_label, _roots_below),
        (~no_label & (log_y < c), _roots_below),
        (log_y > c, _roots_above),
    ):
        index = rows.nonzero().squeeze(1)
        if index.numel():
            z[index], d[index] = solve(*(column[index] for column in columns))
    return z.view(shape), d.view(shape)


def _roots_below(
    c: Tensor, log_y: Tensor, kappa: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    # kappa + log(1 - exp(-d/T)) = z, or z + log(1 - exp(-rest)) with a label: rest = z - log y.
    limit = None if torch.isneginf(log_y[0]) else -log_y
    gap = None if limit is None else c - log_y
    v = _guess_below(c, kappa, temperature, gap)
    at = bracketed_newton(_equation_below, v, -c, limit, kappa, temperature)
    return -at.z, at.d


def _roots_above(
    c: Tensor, log_y: Tensor, kappa: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    # kappa + log(exp(d/T) - 1) = log y + log(1 - exp(-rest)),  rest = log y - z.
    gap = log_y - c
    d = (temperature * softplus(log_y - kappa)).clamp(min=TINY)  # at most, as rest is large
    log_rest = kappa - log_y + gap / temperature + log1mexp(gap / temperature)
    rest = torch.exp(log_rest.clamp(max=0)).minimum(gap / 2).clamp(min=TINY)  # as d nears the gap
    is_near = d < gap / 2
    v = place_to_v(torch.where(is_near, d, gap - rest), torch.where(is_near, gap - d, rest))
    at = bracketed_newton(_equation_above, v, c, log_y, kappa - log_y, temperature)
    return at.z, -at.d


def _guess_below(c: Tensor, kappa: Tensor, temperature: Tensor, gap: Tensor | None) -> Tensor:
    # d + log(1 - exp(-d/T)) = c - kappa: log(d/T) for small d, about d for d beyond T
    reach = c - kappa
    near = reach + torch.log(temperature)
    d = torch.where(near < 1, torch.exp(near.clamp(max=1)), near - torch.log(near.clamp(min=1)))
    d = d.maximum(reach).clamp(min=TINY)
    if gap is None:
        return place_to_v(d, None)
    d = d.minimum(gap / 2)
    return place_to_v(d, gap - d)


def _equation_below(at: Place, kappa: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the equation of a class below c, upside down (at.z is -z), and its slope."""
    value = kappa + log_shrink(at.d, temperature) + at.z
    slope = shrink_slope(at.d, temperature) + 1
    if at.rest is not None:
        value = value - log1mexp(at.rest)
        slope = slope + 1 / torch.expm1(at.rest)
    return value, slope


def _equation_above(at: Place, log_ratio: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the equation of a class above c, and its slope."""
    _, d, rest = at
    assert rest is not None, "log y is a limit"
    value = log_ratio + d / temperature + log_shrink(d, temperature) - log1mexp(rest)
    slope = 1 / temperature + shrink_slope(d, temperature) + 1 / torch.expm1(rest)
    return value, slope
