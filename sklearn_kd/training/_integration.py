r"""Integration of many gradient flows side by side, by an exponential Rosenbrock method.

The method is exprb53s3 (Luan and Ostermann, J. Comput. Appl. Math. 255, 2014), of order 5 with an
embedded order 3. It solves the flow linearised at the state exactly: phi functions of the Jacobian
J = -W K - μ act through short Lanczos recurrences (`_krylov_space`). Symbols as in
`_function_space`; each run has a time and a step of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.training._function_space import KernelProduct, Loss
from sklearn_kd.training._krylov_space import KrylovSpaces, Room, column, host, selection

__all__ = ["Flow", "Integration"]

# Of one run between two stopping times. 400 rows with random labels take 3000 products to time
# 1e10; 20 rows, whose products are cheap, take 8000 to the longest time allowed.
MAX_PRODUCTS = 10_000
# The flow slows down as 1 / t, so only rounding makes a step this small relative to t.
LEAST_RELATIVE_STEP = 1e-6
MAX_ROUNDING = 0.1  # of the logits; step sizes cannot be controlled much beyond


@dataclass(frozen=True)
class Flow:
    """da/dt = ω r(z₀ + K a) - μ a in units of the kernel: K / unit and t * unit give unit * a."""

    product: KernelProduct  # with K / unit
    loss: Loss
    weights: Tensor  # (B, n)
    initial_logits: Tensor | None  # (C, n)
    decay: np.ndarray  # (B,)
    unit: float
    rooms: tuple[Room, Room, Room]  # for the three spaces of a step

    def of(self, runs: Any, kept: np.ndarray) -> Self:
        """Return the equations of some runs, named by an index of tensors and by one of numpy."""
        return replace(
            self, loss=self.loss.of(runs), weights=self.weights[runs], decay=self.decay[kept]
        )

    def logits(self, state: Tensor) -> Tensor:
        """Return z₀ + K a."""
        return state[1] if self.initial_logits is None else state[1] + self.initial_logits

    def push(self, state: Tensor) -> Tensor:
        """Return ω r, the part of the force that is not linear."""
        return self.weights[:, None] * self.loss.residual(self.logits(state))

    def linearised(self, state: Tensor) -> KrylovSpaces:
        """Return the spaces of the Jacobians at a state that start from the force there."""
        root = self.loss.curvature_root(self.logits(state), self.weights)
        force = self.push(state)
        if self.decay.any():
            force = force - column(self.decay, state) * state[0]
        return KrylovSpaces(self.product, root, force, self.decay, self.rooms[0])


class Integration:
    """Runs in progress: their states (a, K a), their times, and their next steps' lengths."""

    def __init__(self, flow: Flow, times: list[float], tol: float) -> None:
        self.flow, self.tol, self.times = flow, tol, times
        n_runs = len(flow.weights)
        self.state = flow.weights.new_zeros(2, *flow.loss.shape)
        self.coefs = flow.weights.new_empty(len(times), *flow.loss.shape)
        # Beyond this time a squared error does not move; the log loss is refused before.
        eternity = math.sqrt(torch.finfo(self.state.dtype).max)
        self.ends = np.array([min(time * flow.unit, eternity) for time in times])
        self.t, self.stage = np.zeros(n_runs), np.zeros(n_runs, dtype=int)
        self.step: np.ndarray | None = None
        self.speed = self.first = np.zeros(n_runs)  # of the logits, and the first step
        self.n_products, self.n_since, self.n_steps, self.n_rejected = (
            np.zeros(n_runs, dtype=int) for _ in range(4)
        )

    def run(self, report: Callable[[float], None] | None) -> Tensor:
        """Integrate up to the last stopping time; return the coefficients a at each, (S, B, C, n).

        The runs that have not arrived take one step at a time, together.
        """
        self._arrive()
        while (under_way := self.stage < len(self.ends)).any():
            self._advance(under_way)
            self._require_accuracy()
            self._arrive()
            if report is not None:
                start, end = np.log(self.first), np.log(self.ends[-1] + self.first)
                done = (np.log(self.t + self.first) - start) / np.maximum(end - start, 1e-300)
                report(float(np.clip(done.min(), 0, 1)))
        return self.coefs

    def _arrive(self) -> None:
        """Store the coefficients of the runs that have reached a stopping time."""
        while True:
            under_way = self.stage < len(self.ends)
            end = self.ends[np.minimum(self.stage, len(self.ends) - 1)]
            arrived = under_way & (self.t >= end)
            if not arrived.any():
                return
            runs = selection(arrived, self.state.device)
            # Drops accumulated rounding.
            self.state[1, runs] = self.flow.product(self.state[0, runs])
            self.n_products[arrived] += 1
            coefs = self.state[0] / self.flow.unit
            for run in np.flatnonzero(arrived):
                self.coefs[self.stage[run], run] = coefs[run]
            self.stage[arrived] += 1
            self.n_since[arrived] = 0
            if not coefs[runs].isfinite().all():
                raise FloatingPointError(
                    f"gradient flow: coefficients leave the range of {coefs.dtype} against kernel "
                    f"values of at most {self.flow.unit:.3g}; scale the inputs so that these are "
                    "of order one."
                )

    def _advance(self, under_way: np.ndarray) -> None:
        """Try one step of some runs, at most up to their next stopping times."""
        runs, kept = selection(under_way, self.state.device), np.flatnonzero(under_way)
        flow, state = self.flow.of(runs, kept), self.state[:, runs]
        space = flow.linearised(state)
        if self.step is None:
            self._choose_first_steps(space)
        assert self.step is not None, "chosen at the first step"
        end = self.ends[self.stage[kept]]
        remaining, step = end - self.t[kept], self.step[kept]
        # Two equal steps rather than a full one and a sliver.
        trial = np.where(remaining <= step, remaining, np.minimum(step, remaining / 2))
        while not (resolved := space.resolve(1, trial, 0.03 * self.tol)).all():
            trial = np.where(resolved, trial, 0.7 * trial)
            self._require_progress(trial, kept)
        proposal, error, n_products = exprb53(flow, space, state, trial, self.tol)
        self._count(kept, n_products)
        factor = np.clip(0.8 * np.maximum(error, 1e-9) ** -0.25, 0.1, 5.0)
        accepted = error <= 1
        self.n_steps[kept[accepted]] += 1
        self.n_rejected[kept[~accepted]] += 1
        longer = accepted & (factor > 1)
        self.step[kept] = np.where(longer, np.maximum(step, trial * factor), trial * factor)
        self._require_progress(self.step[kept[~accepted]], kept[~accepted])
        arrives = accepted & (trial == remaining)
        self.t[kept] += np.where(accepted, trial, 0.0)
        self.t[kept[arrives]] = end[arrives]
        if proposal.shape[2] > 1:  # rounding leaves the sum-zero gauge
            proposal = centred(proposal.mT).mT
        into = torch.as_tensor(kept[accepted], device="cpu").to(proposal.device)
        self.state[:, into] = proposal[:, selection(accepted, proposal.device)]

    def _choose_first_steps(self, space: KrylovSpaces) -> None:
        """Choose steps in which no logit moves far: by 0.1."""
        self.speed = host(space.state[1].abs().amax(dim=(1, 2)))
        if not np.isfinite(self.speed).all():
            raise ValueError("kernel_matrix has non-finite entries.")
        self._require_range()
        with np.errstate(divide="ignore"):
            self.step = 0.1 / self.speed
        self.first = np.minimum(self.step, self.ends[-1])

    def _count(self, kept: np.ndarray, n_products: np.ndarray) -> None:
        self.n_products[kept] += n_products
        self.n_since[kept] += n_products
        slowest = int(self.n_since.argmax())
        if self.n_since[slowest] > MAX_PRODUCTS:
            unit = self.flow.unit
            raise FloatingPointError(
                f"gradient flow: {MAX_PRODUCTS} products with the kernel matrix lead to time "
                f"{self.t[slowest] / unit:.3g}, not to stopping_time="
                f"{self.ends[self.stage[slowest]] / unit:.3g}; logits start out at "
                f"{self.speed[slowest] * unit:.3g} per unit of time. Use a smaller stopping_time, "
                "or scale the inputs so that kernel values are of order one."
            )

    def _require_range(self) -> None:
        # With x = speed * t, residuals fall as 1/x, M as x^(-1/2), and the norm of Mᵀ K r has
        # squares of size x^-3.
        dtype, unit = self.state.dtype, self.flow.unit
        longest = torch.finfo(dtype).tiny ** (-1 / 3)
        never_ends = self.flow.loss.never_ends & (self.flow.decay == 0)
        speed = float(np.where(never_ends, self.speed, 0.0).max())
        if self.times[-1] * speed * unit > longest:
            raise ValueError(
                f"stopping_time={self.times[-1]:.3g} is beyond {dtype} for the log loss: "
                f"logits start out at {speed * unit:.3g} per unit of time, and residuals, "
                "which fall as 1 / time, leave its range. Use a stopping_time of at most "
                f"{longest / (speed * unit):.3g}, or scale the inputs so that kernel values "
                "are of order one."
            )

    def _require_progress(self, steps: np.ndarray, kept: np.ndarray) -> None:
        stuck = ~(steps > LEAST_RELATIVE_STEP * self.t[kept])
        if stuck.any():
            unit, first = self.flow.unit, np.flatnonzero(stuck)[0]
            raise FloatingPointError(
                f"gradient flow: the step size collapsed to {steps[first] / unit:.3g} at time "
                f"{self.t[kept[first]] / unit:.3g}, where rounding decides; use a smaller "
                f"stopping_time, raise tol={self.tol} or use float64."
            )

    def _require_accuracy(self) -> None:
        is_lost = ~(rounding_of(self.state) < MAX_ROUNDING)
        if is_lost.any():
            unit, run = self.flow.unit, np.flatnonzero(is_lost)[0]
            end = self.ends[min(self.stage[run], len(self.ends) - 1)]
            raise FloatingPointError(
                f"gradient flow: at time {self.t[run] / unit:.3g} rounding in products with the "
                "kernel matrix decides the logits, since the kernel does not tell rows with "
                f"different labels apart; stopping_time={end / unit:.3g} is too long for it. Use a "
                "smaller stopping_time, remove near-duplicate rows, or use float64."
            )

    def warn_if_rounding_shows(self) -> None:
        """Warn if rounding moves logits by more than the steps' errors do."""
        rounding = rounding_of(self.state).max()
        if rounding > 10 * self.tol:
            warn(
                f"Rounding moves the logits by about {rounding:.2g} of their size: the kernel "
                "matrix is numerically singular, and the coefficients of rows with different "
                "labels that it does not tell apart have grown large. Use a smaller "
                "stopping_time, or remove near-duplicate rows.",
                IllConditionedWarning,
            )


def rounding_of(state: Tensor) -> np.ndarray:
    """Estimate how far rounding in K a moves the logits of each run, as a multiple of 1 + |f|."""
    # K has entries up to 1 here, and the errors of its products have random signs. The estimate was
    # within a factor of two of measured errors from 1e-5 to 0.1 (single against double precision).
    size = torch.linalg.vector_norm(state[0], dim=2).amax(dim=1)
    moved = torch.finfo(state.dtype).eps * size
    return host(moved / (1 + state[1].abs().amax(dim=(1, 2))))


def exprb53(
    flow: Flow,
    space: KrylovSpaces,  # of the Jacobian at the state, acting on the force there
    state: Tensor,  # (2, B, C, n)
    steps: np.ndarray,  # (B,)
    tol: float,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the states after a step, their errors in units of the tolerance, and products."""

    # u_2 = u + h/2 phi_1(hJ/2) F,
    # u_3 = u + c h phi_1(c hJ) F + h (27/25 phi_3(hJ/2) + 729/125 phi_3(c hJ)) D_2,   c = 9/10,
    # D_i = F(u_i) - F(u) - J (u_i - u),
    # u+ = u + h phi_1 F + h (18 phi_3 - 60 phi_4) D_2 + h (-250/81 phi_3 + 500/27 phi_4) D_3
    #    = u + h phi_1 F + 8 h phi_3 D_2 + h (-250/81 phi_3 + 500/27 phi_4) E,  phi_k at hJ,
    # E = D_3 - (2 c)^2 D_2. The last term is the error of the embedded third-order method; E
    # vanishes for a quadratic F, so it needs few products.
    def remainder(stage: Tensor) -> Tensor:  # the decay is linear, and cancels
        return flow.push(stage) - here + space.root.curvature(stage[1] - state[1])

    here, accuracy = flow.push(state), 0.03 * tol
    c, h = 9 / 10, column(steps, state)
    half, most, whole = space.phi([(1, steps / 2), (1, c * steps), (1, steps)])
    D_2 = remainder(state + h / 2 * half)
    second = KrylovSpaces(flow.product, space.root, D_2, flow.decay, flow.rooms[1])
    resolved = second.resolve(3, steps, accuracy)
    n_products = space.n_products + second.n_products
    if not resolved.any():
        return state, np.full(len(steps), 16.0), n_products
    bend_half, bend_most, bend = second.phi([(3, steps / 2), (3, c * steps), (3, steps)])
    bend_3 = 27 / 25 * bend_half + 729 / 125 * bend_most
    E = remainder(state + c * h * most + h * bend_3) - (2 * c) ** 2 * D_2
    third = KrylovSpaces(flow.product, space.root, E, flow.decay, flow.rooms[2])
    resolved &= third.resolve(3, steps, accuracy)
    fourth, cubic = third.phi([(4, steps), (3, steps)])
    correction = h * (500 / 27 * fourth - 250 / 81 * cubic)
    proposal = state + h * (whole + 8 * bend) + correction
    scale = tol * (1 + torch.maximum(flow.logits(state).abs(), flow.logits(proposal).abs()))
    error = host((correction[1].abs() / scale).amax(dim=(1, 2)))
    error = np.where(np.isfinite(error), error, np.inf)
    return proposal, np.where(resolved, error, 16.0), n_products + third.n_products
