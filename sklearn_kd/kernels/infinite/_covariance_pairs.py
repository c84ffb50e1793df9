"""The kernel recursion on covariances for pairs of rows that are nearly parallel, or opposite.

There cos²ω is small, and 1 − sin²ω has lost it to rounding. So the small quantities are carried
from layer to layer beside q₁₂, free of cancellation:

=========  =====================================================  ===================
symbol     meaning                                                name (shape)
=========  =====================================================  ===================
s          sin²θ = 1 − q₁₂² / (q₁₁ q₂₂)                           ``sin2`` (k,)
δ          q₁₁ − q₂₂                                              ``difference`` (k,)
v          σ_w² E[g(h) g(h′)]                                     ``v`` (k,)
ρ          1, or √(q₁₁/q₂₂) of a g that grows                     ``ratio`` (k,)
l, r       σ_w² E[g(h)²] − ρ v, σ_w² E[g(h′)²] − v/ρ              ``left``, ``right``
=========  =====================================================  ===================

With q₁₁ = ρ v + l + σ_b², q₁₂ = v + σ_b² and q₂₂ = v/ρ + r + σ_b² in the next layer,

    s = [v (ρ r + l/ρ) + l r + σ_b² (l + r) + σ_b² v (ρ + 1/ρ − 2)] / (q₁₁ q₂₂),
    δ = v (ρ − 1/ρ) + l − r.

If g is odd, pairs with q₁₂ < 0 are treated as pairs of h and −h′. Their v is negative; then |v|
replaces v in these formulas, and ρ + 1/ρ + 2 replaces ρ + 1/ρ − 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklearn_kd.kernels.infinite._activations import Pairs, Smooth


def first_pairs(
    x: Tensor,
    y: Tensor,
    q11: Tensor,
    q22: Tensor,
    weight_std: float | Tensor,
    bias_std: float | Tensor,
) -> Pairs:
    """Return the covariances of the first layer for rows ``x``, ``y`` of shape (k, d)."""
    unit = torch.as_tensor(weight_std, dtype=x.dtype, device=x.device) / math.sqrt(x.shape[1])
    unit = unit.reshape(-1, 1)
    # Rounding is relative to the longer row, so x must be the longer one.
    ordered = q11 >= q22
    x, y = torch.where(ordered[:, None], x, y), torch.where(ordered[:, None], y, x)
    gap, total = (x - y) * unit, (x + y) * unit  # no rounding in x − y of close rows
    x, y = x * unit, y * unit
    product = (x * y).sum(dim=1)
    difference = (gap * total).sum(dim=1)
    x_length = torch.linalg.vector_norm(x, dim=1)
    y_length = torch.linalg.vector_norm(y, dim=1)
    # x/|x| ∓ y/|y| with |x| − |y| = (|x|² − |y|²)/(|x| + |y|), whichever is the shorter
    is_opposite = (product < 0)[:, None]
    near, sign = torch.where(is_opposite, total, gap), torch.where(is_opposite, -1, 1)
    excess = _over(_over(difference, x_length + y_length), y_length)
    chord = _over(near - sign * y * excess[:, None], x_length[:, None])
    p = chord.square().sum(dim=1) / 4  # sin² of half the angle
    # s = [|x|²|y|² 4p (1 − p) + σ_b² |x − y|²] / (q₁₁ q₂₂)
    stds = torch.maximum(q11, q22).sqrt(), torch.minimum(q11, q22).sqrt()
    sin2 = (x_length / stds[0] * (y_length / stds[1])).square() * (4 * p * (1 - p))
    sin2 = sin2 + (bias_std / stds[0] * (torch.linalg.vector_norm(gap, dim=1) / stds[1])).square()
    difference = torch.where(ordered, difference, -difference)
    return Pairs(q11, product + bias_std**2, q22, sin2.clamp(0, 1), difference)


def next_pairs(
    activation: Smooth,
    pairs: Pairs,
    values: Tensor,
    q11: Tensor,
    q22: Tensor,
    weight_std: float | Tensor,
    bias_std: float | Tensor,
) -> Pairs:
    """Return the covariances of the next layer, whose variances are ``q11``, ``q22``.

    ``values`` (k,) is E[g g] of the ``pairs``.
    """
    w, b2 = weight_std**2, bias_std**2
    v, sign = w * values, torch.ones_like(values)
    if activation.is_odd:
        v, sign = v.abs(), torch.where(pairs.q12 < 0, -sign, sign)
    ratio, left, right = activation.gaps(pairs._replace(q12=sign * pairs.q12))
    left, right = w * left, w * right
    # ρ − 1/ρ, and ρ + 1/ρ ∓ 2 by (ρ − 1/ρ)² = (ρ + 1/ρ − 2)(ρ + 1/ρ + 2)
    both = ratio + 1 / ratio
    skew = pairs.difference / pairs.q11.sqrt() / pairs.q22.sqrt() * (not activation.is_odd)
    apart = torch.where(sign < 0, both + 2, skew.square() / (both + 2))
    sin2 = (
        v / q11 * (ratio * right / q22)
        + v / q22 * (left / ratio / q11)
        + left / q11 * (right / q22)
        + b2 / q11 * ((left + right) / q22)
        + b2 / q11 * (v / q22 * apart)
    )
    return Pairs(q11, sign * v + b2, q22, sin2.clamp(0, 1), v * skew + (left - right))


def _over(values: Tensor, divisor: Tensor) -> Tensor:
    """Return the quotient, with 0 / 0 = 0."""
    return values / torch.where(divisor == 0, 1, divisor)
