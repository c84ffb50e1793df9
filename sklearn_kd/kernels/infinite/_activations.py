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

There are two families. The piecewise linear activations have averages that depend on the angle
alone, up to the scale √(q₁₁ q₂₂), with a singularity at θ = 0 that asks for care
(:mod:`._angular`). The averages of the smooth activations are smooth functions of the
covariances (:mod:`._covariance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    """A smooth activation, given by its two averages as functions of the covariances."""

    dual: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """``(q11, q12, q22) -> (E[g(h) g(h′)], E[g′(h) g′(h′)])``."""
    saturates: bool = False
    """Whether g is bounded, so that E[g′g′] of equal rows decays as variances grow."""


def require_resolved(activation: Smooth, variances: Tensor) -> Tensor:
    """Return ``variances`` of shape (L + 1, n) unless rounding decides the kernel at them.

    Raises
    ------
    ValueError
        If the activation saturates and a variance q₁₁ is so large that 1/q₁₁, the squared angle
        within which it still changes, is not far above the resolution of cos θ.
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


def erf_dual(q11: Tensor, q12: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
    """Averages for g = erf (Williams, "Computing with infinite networks", 1996)."""
    # With α = 1 + 2q₁₁, β = 1 + 2q₂₂ and sin ω = 2q₁₂ / √(αβ):
    #   E[g g] = 2ω/π,   E[g′g′] = 4 / (π √(αβ) cos ω).
    root, sine, cosine = _sine_and_cosine(1 + 2 * q11, 2 * q12, 1 + 2 * q22)
    values = torch.atan2(sine, cosine) * (2 / math.pi)
    slopes = (4 / math.pi) / (root * cosine)
    return values, slopes


def gelu_dual(q11: Tensor, q12: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
    """Averages for the exact GELU, g(h) = h Φ(h), with Φ the standard normal distribution."""
    # With α = 1 + q₁₁, β = 1 + q₂₂, sin ω = q₁₂ / √(αβ) and ϕ the standard normal density:
    #   P = E[Φ(h) Φ(h′)] = 1/4 + ω/2π,   N = E[ϕ(h) ϕ(h′)] = 1 / (2π √(αβ) cos ω).
    # Integration by parts (Stein's lemma), first in h, then in h′, leaves only P and N:
    #   E[g g] = q₁₂ P + N B,   B = q₁₁q₂₂ − q₁₂² + q₁₂² (1/α + 1/β),
    # and E[g′g′] is its derivative in q₁₂ (Price's theorem):
    #   E[g′g′] = P + tan ω [1/α + 1/β + 1/(αβ cos²ω)] / 2π.
    alpha, beta = 1 + q11, 1 + q22
    root, sine, cosine = _sine_and_cosine(alpha, q12, beta)
    inverses = 1 / alpha + 1 / beta
    both_positive = 0.25 + torch.atan2(sine, cosine) / (2 * math.pi)
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


def _sine_and_cosine(alpha: Tensor, q12: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return √(αβ), sin ω = q12 / √(αβ) and cos ω, for α − 1 and β − 1 the variances of q12."""
    # Cauchy–Schwarz, q₁₂² ≤ (α − 1)(β − 1), bounds cos²ω from below by 1/α + 1/β − 1/(αβ) > 0,
    # which rounding must not undo. No product of two variances is formed: it could overflow.
    root = alpha.sqrt() * beta.sqrt()
    sine = q12 / root
    least = 1 / alpha + (1 - 1 / alpha) / beta
    cosine = torch.maximum((1 - sine) * (1 + sine), least).sqrt()
    return root, sine, cosine


ACTIVATIONS: dict[str, PiecewiseLinear | Smooth] = {
    "relu": PiecewiseLinear(slope=0.0),
    "leaky_relu": PiecewiseLinear(slope=LEAKY_RELU_SLOPE),
    "erf": Smooth(erf_dual, saturates=True),
    "gelu": Smooth(gelu_dual),
}
