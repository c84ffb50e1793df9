"""Dual activations: Gaussian averages of an activation g and of its derivative g′.

=========  =============================================  ===========================
symbol     meaning                                        name
=========  =============================================  ===========================
h, h′      jointly Gaussian pre-activations of x, x′
q₁₁, q₂₂   variances of h and h′                          ``q11``, ``q22``
q₁₂        covariance of h and h′                         ``q12``
θ          angle, cos θ = q₁₂ / √(q₁₁ q₂₂)
p          sin²(θ/2)                                      ``p``
c          E[g(h)²] / q₁₁ of a piecewise linear g         ``gain``
λ          weight of the kink of a piecewise linear g     ``kink``
=========  =============================================  ===========================

There are two families. The averages of the piecewise linear activations depend on the angle alone,
up to the scale √(q₁₁ q₂₂). They have a singularity at θ = 0 that needs care (:mod:`._angular`). The
averages of the smooth activations are smooth functions of the covariances (:mod:`._covariance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Slope of the leaky ReLU for negative arguments (the default of ``torch.nn.LeakyReLU``).
LEAKY_RELU_SLOPE = 0.01


@dataclass(frozen=True)
class PiecewiseLinear:
    """g(h) = max(h, 0) + slope · min(h, 0)."""

    slope: float

    @property
    def gain(self) -> float:
        """E[g(h)²] / E[h²] = (1 + slope²) / 2."""
        return (1 + self.slope**2) / 2

    @property
    def kink(self) -> float:
        """(1 − slope)² / (1 + slope²): 1 for the ReLU, 0 for the identity."""
        return (1 - self.slope) ** 2 / (1 + self.slope**2)


@dataclass(frozen=True)
class Smooth:
    """A smooth activation, given by averages as functions of the covariances."""

    dual: Callable[..., tuple[Tensor, Tensor]]
    """``(q11, q12, q22, sin2=None) -> (E[g(h) g(h′)], E[g′(h) g′(h′)])``."""
    gaps: Callable[[Pairs], tuple[Tensor, Tensor, Tensor]]
    """ρ, E[g(h)²] − ρ E[g(h) g(h′)] and E[g(h′)²] − E[g(h) g(h′)]/ρ of `Pairs`."""
    scale: float
    """κ, the factor of the variances in ω: sin ω = κ q₁₂ / √((1 + κ q₁₁)(1 + κ q₂₂))."""
    is_odd: bool = False
    """Whether g(−h) = −g(h)."""
    saturates: bool = False
    """Whether g is bounded, so that E[g′g′] of equal rows decays as variances grow."""


class Pairs(NamedTuple):
    """Covariances of pairs of pre-activations, and the small parts that rounding would lose."""

    q11: Tensor
    q12: Tensor
    q22: Tensor
    sin2: Tensor  # sin²θ = 1 − q₁₂² / (q₁₁ q₂₂), free of cancellation
    difference: Tensor  # q₁₁ − q₂₂, likewise


def require_resolved(activation: Smooth, variances: Tensor) -> Tensor:
    """Return ``variances`` of shape (L + 1, n) unless rounding decides the kernel there.

    Raises
    ------
    ValueError
        If the activation saturates and a variance q₁₁ is too large. The kernel changes within a
        squared angle of 1/q₁₁, which must be far above the resolution of cos θ.
    """
    limit = 1e-4 / torch.finfo(variances.dtype).eps
    bad = torch.nonzero((variances > limit).any(dim=0)).ravel()
    if activation.saturates and len(bad):
        raise ValueError(
            f"The kernel of rows {bad[:10].tolist()} is not resolved in {variances.dtype}: their "
            f"pre-activations have a variance above {limit:.2g}, where activation='erf' is a step "
            "function. Rescale these rows, or use activation='relu'."
        )
    return variances


def erf_dual(
    q11: Tensor, q12: Tensor, q22: Tensor, sin2: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Averages for g = erf (Williams, "Computing with infinite networks", 1996)."""
    # With α = 1 + 2q₁₁, β = 1 + 2q₂₂ and sin ω = 2q₁₂ / √(αβ):
    #   E[g g] = 2ω/π,   E[g′g′] = 4 / (π √(αβ) cos ω).
    root, sine, cosine = _sine_and_cosine(1 + 2 * q11, 2 * q12, 1 + 2 * q22, sin2)
    values = torch.atan2(sine, cosine) * (2 / math.pi)
    slopes = (4 / math.pi) / (root * cosine)
    return values, slopes


def erf_gaps(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = 1 and E[g²] − E[g g] for g = erf, from both sides of pairs with q₁₂ ≥ 0."""
    # 2 (ω₁₁ − ω₁₂)/π
    left, right = _angle_gaps(pairs, ERF_SCALE)
    return torch.ones_like(left), left * (2 / math.pi), right * (2 / math.pi)


def gelu_dual(
    q11: Tensor, q12: Tensor, q22: Tensor, sin2: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Averages for the exact GELU, g(h) = h Φ(h), with Φ the standard normal distribution."""
    # With α = 1 + q₁₁, β = 1 + q₂₂, sin ω = q₁₂ / √(αβ) and ϕ the standard normal density:
    #   P = E[Φ(h) Φ(h′)] = 1/4 + ω/2π,   N = E[ϕ(h) ϕ(h′)] = 1 / (2π √(αβ) cos ω).
    # Integration by parts (Stein's lemma), first in h, then in h′, leaves only P and N:
    #   E[g g] = q₁₂ P + N B,   B = q₁₁q₂₂ − q₁₂² + q₁₂² (1/α + 1/β),
    # and E[g′g′] is its derivative in q₁₂ (Price's theorem):
    #   E[g′g′] = P + tan ω [1/α + 1/β + 1/(αβ cos²ω)] / 2π.
    alpha, beta = 1 + q11, 1 + q22
    root, sine, cosine = _sine_and_cosine(alpha, q12, beta, sin2)
    inverses = 1 / alpha + 1 / beta
    # 1/4 + ω/2π without cancellation at ω = −π/2
    both_positive = torch.atan2(cosine, -sine) / (2 * math.pi)
    # B / (αβ), written in each case with two terms that are not negative
    bracket = torch.where(
        inverses < 1,
        cosine.square() * (1 - inverses) + 1 / alpha / beta,
        (q11 / alpha) * (q22 / beta) + sine.square() * (inverses - 1),
    )
    values = root * (sine * both_positive + bracket / (2 * math.pi * cosine))
    excess = (1 / (root * cosine)).square()
    slopes = both_positive + sine / cosine * (inverses + excess) / (2 * math.pi)
    return values, slopes


def gelu_gaps(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """ρ = √(q₁₁/q₂₂) and E[g²] − ρ E[g g] for the GELU, from both sides of pairs."""
    # With C₁₂ = √(αβ) cos ω₁₂ = √(1 + q₁₁ + q₂₂ + D), D = q₁₁q₂₂ sin²θ, and C₁₁ = √(1 + 2q₁₁):
    #   2π E[g g] = q₁₂ (π/2 + ω₁₂) + C₁₂ (1 − 1/α − 1/β) + 1/C₁₂,
    # so that 2π (E[g²] − ρ E[g g]) is, with no difference of large terms that are nearly equal,
    #   (q₁₁ − ρ q₁₂)(π/2 + ω₁₁) + ρ q₁₂ (ω₁₁ − ω₁₂) + (C₁₁ − ρ C₁₂)(1 − 2/α)
    #   + ρ C₁₂ (q₁₁ − q₂₂)/(αβ) + 1/C₁₁ − ρ/C₁₂,
    #   q₁₁ − ρ q₁₂ = q₁₁ (1 − cos θ),
    #   C₁₁ − ρ C₁₂ = −(α (q₁₁ − q₂₂)/q₂₂ + q₁₁² sin²θ)/(C₁₁ + ρ C₁₂).
    q11, q12, q22, sin2, difference = pairs
    angle_gaps = _angle_gaps(pairs, GELU_SCALE)
    root, _, cosine = _sine_and_cosine(1 + q11, q12, 1 + q22, sin2)
    mixed = root * cosine
    ratio = q11.sqrt() / q22.sqrt()
    cosine_theta = q12 / q11.sqrt() / q22.sqrt()
    fall = torch.where(q12 > 0, sin2 / (1 + cosine_theta.abs()), 1 - cosine_theta)  # 1 − cos θ

    def gap(
        q11: Tensor, q22: Tensor, difference: Tensor, ratio: Tensor, angle_gap: Tensor
    ) -> Tensor:
        alpha, own, other = 1 + q11, (1 + 2 * q11).sqrt(), ratio * mixed
        own_angle = torch.atan2(own, -q11)  # π/2 + ω₁₁
        slack = alpha / (own + other) * (difference / q22) + q11 * sin2 * (q11 / (own + other))
        total = q11 * fall * own_angle + ratio * q12 * angle_gap - slack * (1 - 2 / alpha)
        total += other / alpha * (difference / (1 + q22)) + 1 / own - ratio / mixed
        return total / (2 * math.pi)

    left = gap(q11, q22, difference, ratio, angle_gaps[0])
    return ratio, left, gap(q22, q11, -difference, 1 / ratio, angle_gaps[1])


def _sine_and_cosine(
    alpha: Tensor, q12: Tensor, beta: Tensor, sin2: Tensor | float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return √(αβ), sin ω = q12 / √(αβ) and cos ω, for α − 1 and β − 1 the variances of q12.

    ``sin2`` is sin²θ of the pre-activations, where it is known better than from q12. Without it
    cos ω is wrong by ε / cos ω.
    """
    # cos²ω = 1/α + 1/β − 1/(αβ) + (1 − 1/α)(1 − 1/β) sin²θ. The first part bounds it from below,
    # which rounding must not undo. No product of two variances is formed: it could overflow.
    root = alpha.sqrt() * beta.sqrt()
    sine = q12 / root
    least = 1 / alpha + (1 - 1 / alpha) / beta
    if sin2 is None:
        squared = torch.maximum((1 - sine) * (1 + sine), least)
    else:
        squared = least + ((alpha - 1) / alpha) * ((beta - 1) / beta) * sin2
    return root, sine, squared.sqrt()


def _angle_gaps(pairs: Pairs, scale: float) -> tuple[Tensor, Tensor]:
    """Return ω₁₁ − ω₁₂ and ω₂₂ − ω₁₂, accurate where q₁₂ ≥ 0."""
    # With Q = κ q and q₁₂ ≥ 0:
    #   sin(ω₁₁ − ω₁₂) = Q₁₁ [(Q₁₁ − Q₂₂) + α Q₂₂ sin²θ] / (α² β sin(ω₁₁ + ω₁₂))
    q11, q12, q22, _, difference = (scale * part for part in pairs)
    sin2 = pairs.sin2
    _, sine, cosine = _sine_and_cosine(1 + q11, q12, 1 + q22, sin2)

    def gap(q11: Tensor, q22: Tensor, difference: Tensor) -> Tensor:
        alpha, beta = 1 + q11, 1 + q22
        own_sine, own_cosine = q11 / alpha, (1 + 2 * q11).sqrt() / alpha
        of_sum = own_sine * cosine + own_cosine * sine
        of_gap = own_sine * ((difference / alpha + q22 * sin2) / beta) / of_sum
        of_gap = torch.where(sine < 0, own_sine * cosine - own_cosine * sine, of_gap)
        return torch.atan2(of_gap, own_cosine * cosine + own_sine * sine)

    return gap(q11, q22, difference), gap(q22, q11, -difference)


ERF_SCALE, GELU_SCALE = 2.0, 1.0

ACTIVATIONS: dict[str, PiecewiseLinear | Smooth] = {
    "relu": PiecewiseLinear(slope=0.0),
    "leaky_relu": PiecewiseLinear(slope=LEAKY_RELU_SLOPE),
    "erf": Smooth(erf_dual, erf_gaps, ERF_SCALE, is_odd=True, saturates=True),
    "gelu": Smooth(gelu_dual, gelu_gaps, GELU_SCALE),
}
