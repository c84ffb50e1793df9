"""Newton's method for many roots at once, each in its own interval.

A root z lies above x, d = z - x > 0, and below a limit, rest = limit - z > 0. Without a limit it
may lie anywhere above x. The method runs on

    v = log(exp(d) - 1) - log(1 - exp(-rest)),

which goes from -infinity at d -> 0 to infinity at rest -> 0 (or d -> infinity). d and rest follow
from v without cancellation, however small they are. Logarithms of differences of exponentials are
close to linear in v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Newton's method squares the error, so after a last step this small only rounding remains.
STEP_TOLERANCE = 1e-9
ROUNDING = 16 * torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny
SMALL_VALUE = 1e-6  # where Newton's method converges, however large v is
MAX_STEPS = 200
SMALL = 1e-8  # where two terms of a series are exact to rounding


class Place(NamedTuple):
    """Where a root is: z, d = z - x and rest = limit - z (None without a limit)."""

    z: Tensor
    d: Tensor
    rest: Tensor | None


# Returns a value that increases in z, with a zero at the root, and its slope in z.
Equation = Callable[..., tuple[Tensor, Tensor]]


def bracketed_newton(
    equation: Equation,
    v: Tensor,  # (n,), the first guess
    x: Tensor,  # (n,)
    limit: Tensor | None,  # (n,)
    *constants: Tensor,  # (n,), what the equation takes beside the place
) -> Place:
    """Return where ``equation(place, *constants)`` is zero.

    Raises
    ------
    ArithmeticError
        If a root is not found.
    """
    roots = torch.empty_like(x)
    low, high = torch.full_like(v, -math.inf), torch.full_like(v, math.inf)
    last = high  # |value| of the step before
    todo = torch.arange(len(x), device=x.device)
    every = x, limit
    for _ in range(MAX_STEPS):
        at = place(v, x, limit)
        value, slope = equation(at, *constants)
        dv_dz = -1 / torch.expm1(-at.d) + (0 if at.rest is None else 1 / torch.expm1(at.rest))
        low, high = torch.where(value < 0, v, low), torch.where(value > 0, v, high)
        move = -value / slope
        new = v + move * dv_dz
        size = (new - v).abs() / v.abs().clamp(min=1)
        # |x| may be so large that the rounding of the value keeps it, or v, from settling.
        is_rounding = move.abs() <= ROUNDING * (x.abs() + at.d)
        done = (size <= STEP_TOLERANCE) & ((value.abs() <= SMALL_VALUE) | is_rounding)
        done |= (size <= 1e-3) & is_rounding
        done |= high - low <= ROUNDING * v.abs()
        # The root is an end of its bracket, to more than 300 digits.
        done |= (at.d == TINY) & (value > 0)
        if at.rest is not None:
            done |= (at.rest == TINY) & (value < 0)
        # Halve the bracket if a step leaves it, or follows one that did not halve the value. The
        # scale is such that 1e300 is not far. While an end of the bracket is open only the first
        # case can occur, by rounding.
        is_open = torch.isinf(high - low)
        good = (new > low) & (new < high) & (is_open | (value.abs() <= 0.5 * last))
        middle = torch.where(is_open, v + move.sign(), torch.sinh((low.asinh() + high.asinh()) / 2))
        v, last = torch.where(done | good, new, middle), value.abs()
        roots[todo] = v
        left = (~done).nonzero().squeeze(1)
        if not left.numel():
            return place(roots, *every)
        todo, v, x, low, high, last = (t[left] for t in (todo, v, x, low, high, last))
        limit = None if limit is None else limit[left]
        constants = tuple(constant[left] for constant in constants)
    raise ArithmeticError(
        f"effective_logits did not converge for {len(x)} rows, the first above "
        f"{x[0].item():.17g} with {[constant[0].item() for constant in constants]}; please report "
        "this as a bug."
    )


def place(v: Tensor, x: Tensor, limit: Tensor | None) -> Place:
    """Return z, d and rest at v, free of cancellation."""
    if limit is None:
        d = softplus(v).clamp(min=TINY)
        return Place(x + d, d, None)
    gap = limit - x
    log_gap = log1mexp(gap)
    d = softplus(v + log_gap - softplus(v - gap)).clamp(min=TINY)
    rest = softplus(gap + log_gap - softplus(v)).clamp(min=TINY)
    return Place(torch.where(rest < d, limit - rest, x + d), d, rest)


def place_to_v(d: Tensor, rest: Tensor | None) -> Tensor:
    """Return v at d and rest."""
    v = torch.where(d < 1, torch.log(torch.expm1(d.clamp(max=1))), d + log1mexp(d))
    return v if rest is None else v - log1mexp(rest)


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact in both tails (torch's own is linear from 20 on)."""
    return -logsigmoid(-x)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(-x)) for positive x."""
    return torch.log(-torch.expm1(-x))


def log_shrink(d: Tensor, temperature: Tensor) -> Tensor:
    """Return log(1 - exp(-d/T)) for positive d, whose quotient by T may underflow."""
    scaled = d / temperature
    tiny = torch.log(d) - torch.log(temperature)
    return torch.where(scaled < SMALL, tiny - scaled / 2, log1mexp(scaled))


def shrink_slope(d: Tensor, temperature: Tensor) -> Tensor:
    """Return the derivative of `log_shrink` in d, 1 / (T (exp(d/T) - 1))."""
    scaled = d / temperature
    exact = 1 / (temperature * torch.expm1(scaled))
    return torch.where(scaled < SMALL, (1 - scaled / 2) / d, exact)
