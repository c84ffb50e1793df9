r"""Training in function space: gradient flow of the dual coefficients.

Gradient descent with a small learning rate on the mean loss moves the dual coefficients a of
f = Θ(·, X) a along

    da/dt = ω r(K a),   a(0) = 0,   t = learning rate x epochs,

(symbols as in `_function_space`). The flow is stiff, since eigenvalues of K spread over many
orders of magnitude and t reaches 1e5 and more, and K is too large to factor at every step. The
exponential Rosenbrock method exprb53s3 (Luan and Ostermann, J. Comput. Appl. Math. 255, 2014;
order 5 with an embedded order 3) solves the linearised flow exactly and needs K only in products:
phi functions of the Jacobian J = -W K act through short Lanczos recurrences. The squared loss is
linear, hence exact in one step wherever the recurrence converges.

Measured on 1000 MNIST digits (ReLU network of depth 3) up to t = 1e4: logits within 5e-6 (two
classes) and 3e-5 (ten) of a reference after 362 and 790 products with K. The stabilised explicit
method RKC2 takes 2650 and 3376 products for 4e-5; of the same family, exprb43 takes about 15 %
more than exprb53s3 at equal error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct, residual
from sklearn_kd.training._krylov_space import MAX_KRYLOV_DIMENSION, KrylovSpace

__all__ = ["FlowInfo", "gradient_flow", "squared_error_targets"]

# Between two stopping times. 400 rows with random labels take 3000 products to time 1e10; 20 rows,
# whose products are cheap, take 8000 to the longest time allowed.
MAX_PRODUCTS = 10_000
# The flow slows down as 1 / t, so only rounding makes a step this small relative to t.
LEAST_RELATIVE_STEP = 1e-6
MAX_ROUNDING = 0.1  # of the logits; step sizes cannot be controlled much beyond
# Three Krylov spaces at a time, each with a basis and its images under K, in copies of the labels.
KRYLOV_COPIES = 6 * MAX_KRYLOV_DIMENSION


class FlowInfo(NamedTuple):
    """Cost of an integration.

    Parameters
    ----------
    n_products : int
        Products with the kernel matrix.
    n_steps, n_rejected : int
        Steps taken, and steps rejected.
    """

    n_products: int
    n_steps: int
    n_rejected: int


def squared_error_targets(
    labels: Tensor,  # (n,) or (n, C)
) -> Tensor:
    """Return the targets of the squared error: 2 y - 1, or Y - 1/C.

    With C = 2 the difference of the two outputs has the target of the single binary logit.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.training._gradient_flow import squared_error_targets
    >>> squared_error_targets(torch.tensor([0.0, 1.0, 0.75])).tolist()
    [-1.0, 1.0, 0.5]
    """
    return 2 * labels - 1 if labels.ndim == 1 else labels - 1 / labels.shape[1]


class _Flow(NamedTuple):
    """The equation da/dt = ω r(K a) in units of the kernel: K / unit and t * unit give unit * a."""

    product: KernelProduct  # with K / unit
    targets: Tensor  # (n,) or (n, C)
    weights: Tensor  # (n,)
    loss: str
    unit: float

    @property
    def row_weights(self) -> Tensor:
        return self.weights if self.targets.ndim == 1 else self.weights[:, None]

    def linearised(self, state: Tensor) -> KrylovSpace:
        """Return the space of the Jacobian at a state that starts from the force there."""
        force = self.row_weights * residual(state[1], self.targets, self.loss)
        root = CurvatureRoot(state[1], self.weights, self.loss)
        return KrylovSpace(self.product, root, force)


def gradient_flow(
    kernel_matrix: Tensor,  # (n, n)
    labels: Tensor,  # (n,) or (n, C)
    weights: Tensor,  # (n,)
    *,
    stopping_times: list[float] | np.ndarray,
    loss: str = "log_loss",
    tol: float = 3e-4,
    report: Callable[[float], None] | None = None,
) -> tuple[Tensor, FlowInfo]:
    r"""Train in function space by gradient flow up to each of several stopping times.

    Solves, from a(0) = 0,

    .. math:: \dot a = \omega \odot \bigl(y - \sigma(K a)\bigr)
              \quad\text{(log loss)}, \qquad
              \dot a = \omega \odot (z - K a) \quad\text{(squared error)},

    where :math:`\sigma` is the sigmoid or, for C classes, the softmax, and the target :math:`z` is
    :math:`2y - 1` or, for C classes, :math:`Y - 1/C`. Time is learning rate times epochs on the
    weighted mean of the loss. The logits of the trained network at a new row x are
    :math:`\Theta(x, X) a`. Coefficients of C classes sum to zero in each row.

    Parameters
    ----------
    kernel_matrix : Tensor of shape (n, n)
        Tangent kernel of the training rows: symmetric, positive semi-definite, float64 or float32.
        It is only multiplied with.
    labels : Tensor of shape (n,) or (n, C)
        Probabilities of the positive class, in [0, 1], or rows of the simplex.
    weights : Tensor of shape (n,)
        Positive row weights that sum to 1.
    stopping_times : sequence of S floats
        Non-negative, strictly increasing.
    loss : {"log_loss", "squared_error"}, default="log_loss"
    tol : float, default=3e-4
        Bound, per step, on the third-order estimate of the error in the logits f, as a multiple of
        1 + \|f\|. The result is of fifth order. At the default its error after all steps was at
        most 4e-5 in comparisons with a reference.
    report : callable, default=None
        Called after each step with the fraction of the way to the last stopping time. As steps
        grow with time, the scale is logarithmic beyond the first step.

    Returns
    -------
    coefs : Tensor of shape (S, n) or (S, n, C)
        Dual coefficients a at each stopping time.
    info : FlowInfo
        Products with the kernel matrix, steps taken and rejected.

    Raises
    ------
    ValueError
        If ``stopping_times`` do not increase, ``tol`` is beyond the dtype, or the kernel matrix
        has non-finite entries; for the log loss also if a stopping time, in units of the time in
        which a logit moves by one at the start, is beyond 4e102 (float64) or 4e12 (float32):
        residuals of separable rows fall as 1 / t, and squares of derived quantities would leave
        the range of the dtype.
    NotPSDError
        If the kernel matrix shows a negative eigenvalue.
    FloatingPointError
        If rounding moves logits by more than a tenth or makes the step size collapse, or 10 000
        products with the kernel matrix do not lead from one stopping time to the next.

    Warns
    -----
    IllConditionedWarning
        If coefficients are so large that rounding in K a moves logits by more than
        ``10 * tol * (1 + |f|)``. The cause is rows with different labels that the kernel cannot
        tell apart: their coefficients grow in proportion to time.

    Notes
    -----
    Two classes can be trained as one logit, or as two outputs that are networks of their own. Under
    the squared error the difference of the two outputs equals the single logit at all times. Under
    the log loss it moves twice as fast: the softmax at time t is the sigmoid at time 2 t.

    Examples
    --------
    With one row and squared error, f(t) = z (1 - exp(-K t)):

    >>> import torch
    >>> from sklearn_kd.training._gradient_flow import gradient_flow
    >>> K, y, weights = torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([1.0])
    >>> coefs, _ = gradient_flow(K, y, weights, loss="squared_error", stopping_times=[0.0, 1.0])
    >>> (coefs @ K).flatten().tolist()
    [0.0, 0.86466...]
    """
    if tol < 100 * torch.finfo(kernel_matrix.dtype).eps:
        raise ValueError(
            f"tol={tol} is too small for {kernel_matrix.dtype}; raise it or use float64."
        )
    unit = kernel_matrix.diagonal().abs().max().item() or 1.0
    if not math.isfinite(unit):
        raise ValueError("kernel_matrix has non-finite entries.")
    targets = labels if loss == "log_loss" else squared_error_targets(labels)
    flow = _Flow(KernelProduct(kernel_matrix, unit), targets, weights, loss, unit)
    integration = _Integration(flow, _increasing(stopping_times), tol)
    coefs = [integration.run_to(end, report) for end in integration.ends]
    integration.warn_if_rounding_shows()
    info = FlowInfo(flow.product.count, integration.n_steps, integration.n_rejected)
    return torch.stack(coefs), info


def _increasing(stopping_times: list[float] | np.ndarray) -> list[float]:
    """Return the stopping times as numbers; checked."""
    times = [float(t) for t in stopping_times]
    if not all(math.isfinite(t) and t >= 0 for t in times) or sorted(set(times)) != times:
        raise ValueError(
            f"stopping_times={times} must be finite, non-negative and strictly increasing; sort "
            "them, each once."
        )
    return times


class _Integration:
    """An integration in progress: the state (a, K a) at time t, and the next step's length."""

    def __init__(self, flow: _Flow, times: list[float], tol: float) -> None:
        self.flow, self.tol = flow, tol
        zero = torch.zeros_like(flow.targets)
        # Beyond this time a squared error does not move; the log loss is refused before.
        eternity = math.sqrt(torch.finfo(zero.dtype).max)
        self.last_time = times[-1]
        self.ends = [min(time * flow.unit, eternity) for time in times]
        self.state = torch.stack([zero, zero])
        self.t, self.step = 0.0, math.inf
        self.speed = self.first = 0.0  # of the logits, and the step that it allows, at the start
        self.n_steps = self.n_rejected = 0

    def run_to(self, stopping_time: float, report: Callable[[float], None] | None) -> Tensor:
        """Integrate up to a stopping time; return the coefficients a there."""
        flow, n_products = self.flow, self.flow.product.count
        while self.t < stopping_time:
            space = flow.linearised(self.state)
            if self.n_steps == 0:
                self._choose_first_step(space, stopping_time)
            self._advance(space, stopping_time)
            self._require_accuracy(stopping_time)
            if flow.product.count - n_products > MAX_PRODUCTS:
                raise FloatingPointError(
                    f"gradient flow: {MAX_PRODUCTS} products with the kernel matrix lead to time "
                    f"{self.t / flow.unit:.3g}, not to stopping_time="
                    f"{stopping_time / flow.unit:.3g}; logits start out at "
                    f"{self.speed * flow.unit:.3g} per unit of time. Use a smaller stopping_time, "
                    "or scale the inputs so that kernel values are of order one."
                )
            if report is not None:
                start, end = math.log(self.first), math.log(self.ends[-1] + self.first)
                report((math.log(self.t + self.first) - start) / (end - start))
        self.state[1] = flow.product(self.state[0])  # drops accumulated rounding
        coefs = self.state[0] / flow.unit
        if not coefs.isfinite().all():
            raise FloatingPointError(
                f"gradient flow: coefficients leave the range of {coefs.dtype} against kernel "
                f"values of at most {flow.unit:.3g}; scale the inputs so that these are of order "
                "one."
            )
        return coefs

    def _choose_first_step(self, space: KrylovSpace, stopping_time: float) -> None:
        """Choose a step in which no logit moves far: by 0.1."""
        self.speed = space.state[1].abs().max().item()
        if not math.isfinite(self.speed):
            raise ValueError("kernel_matrix has non-finite entries.")
        if self.flow.loss == "log_loss":
            self._require_range()
        self.step = 0.1 / self.speed if self.speed else math.inf
        self.first = min(self.step, stopping_time)

    def _advance(self, space: KrylovSpace, stopping_time: float) -> None:
        """Take one step within the tolerance, at most up to a stopping time."""
        while True:
            remaining = stopping_time - self.t
            # Two equal steps rather than a full one and a sliver.
            trial = remaining if remaining <= self.step else min(self.step, remaining / 2)
            while not space.resolve(1, trial, 0.03 * self.tol):
                trial *= 0.7
                self._require_progress(trial)
            proposal, error = _exprb53(self.flow, space, self.state, trial, self.tol)
            factor = min(5.0, max(0.1, 0.8 * max(error, 1e-9) ** -0.25))
            if error <= 1:
                break
            self.n_rejected += 1
            self.step = trial * factor
            self._require_progress(self.step)
        # Rounding leaves the sum-zero gauge.
        self.state = torch.stack([centred(part) for part in proposal])
        self.t = stopping_time if trial == remaining else self.t + trial
        self.step = max(self.step, trial * factor) if factor > 1 else trial * factor
        self.n_steps += 1

    def _require_range(self) -> None:
        # With x = speed * t, residuals fall as 1/x, M as x^(-1/2), and the norm of Mᵀ K r has
        # squares of size x^-3.
        dtype, unit = self.state.dtype, self.flow.unit
        longest = torch.finfo(dtype).tiny ** (-1 / 3)
        if self.last_time * self.speed * unit > longest:
            raise ValueError(
                f"stopping_time={self.last_time:.3g} is beyond {dtype} for the log loss: "
                f"logits start out at {self.speed * unit:.3g} per unit of time, and residuals, "
                "which fall as 1 / time, leave its range. Use a stopping_time of at most "
                f"{longest / (self.speed * unit):.3g}, or scale the inputs so that kernel values "
                "are of order one."
            )

    def _require_progress(self, step: float) -> None:
        if not step > LEAST_RELATIVE_STEP * self.t:
            unit = self.flow.unit
            raise FloatingPointError(
                f"gradient flow: the step size collapsed to {step / unit:.3g} at time "
                f"{self.t / unit:.3g}, where rounding decides; use a smaller stopping_time, raise "
                f"tol={self.tol} or use float64."
            )

    def _require_accuracy(self, stopping_time: float) -> None:
        if not _rounding(self.state) < MAX_ROUNDING:
            unit = self.flow.unit
            raise FloatingPointError(
                f"gradient flow: at time {self.t / unit:.3g} rounding in products with the kernel "
                "matrix decides the logits, since the kernel does not tell rows with different "
                f"labels apart; stopping_time={stopping_time / unit:.3g} is too long for it. Use a "
                "smaller stopping_time, remove near-duplicate rows, or use float64."
            )

    def warn_if_rounding_shows(self) -> None:
        """Warn if rounding moves logits by more than the steps' errors do."""
        rounding = _rounding(self.state)
        if rounding > 10 * self.tol:
            warn(
                f"Rounding moves the logits by about {rounding:.2g} of their size: the kernel "
                "matrix is numerically singular, and the coefficients of rows with different "
                "labels that it does not tell apart have grown large. Use a smaller "
                "stopping_time, or remove near-duplicate rows.",
                IllConditionedWarning,
            )


def _rounding(state: Tensor) -> float:
    """Estimate how far rounding in K a moves logits, as a multiple of 1 + |f|."""
    # K has entries up to 1 here, and the errors of its products have random signs. The estimate was
    # within a factor of two of measured errors from 1e-5 to 0.1 (single against double precision).
    moved = torch.finfo(state.dtype).eps * torch.linalg.vector_norm(state[0], dim=0).max()
    return (moved / (1 + state[1].abs().max())).item()


def _exprb53(
    flow: _Flow,
    space: KrylovSpace,  # of the Jacobian at the state, acting on the force there
    state: Tensor,  # (2, n) or (2, n, C)
    h: float,
    tol: float,
) -> tuple[Tensor, float]:
    """Return the state after a step h and its error estimate in units of the tolerance."""

    # u_2 = u + h/2 phi_1(hJ/2) F,
    # u_3 = u + c h phi_1(c hJ) F + h (27/25 phi_3(hJ/2) + 729/125 phi_3(c hJ)) D_2,   c = 9/10,
    # D_i = F(u_i) - F(u) - J (u_i - u),
    # u+ = u + h phi_1 F + h (18 phi_3 - 60 phi_4) D_2 + h (-250/81 phi_3 + 500/27 phi_4) D_3
    #    = u + h phi_1 F + 8 h phi_3 D_2 + h (-250/81 phi_3 + 500/27 phi_4) E,  phi_k at hJ,
    # E = D_3 - (2 c)^2 D_2. The last term is the error of the embedded third-order method; E
    # vanishes for a quadratic F, so it needs few products.
    def remainder(stage: Tensor) -> Tensor:
        moved = stage[1] - state[1]
        change = residual(stage[1], flow.targets, flow.loss) - here
        return flow.row_weights * change + space.root.curvature(moved)

    here = residual(state[1], flow.targets, flow.loss)
    accuracy = 0.03 * tol
    D_2 = remainder(state + h / 2 * space.phi(1, h / 2))
    second = KrylovSpace(flow.product, space.root, D_2)
    if not second.resolve(3, h, accuracy):
        return state, 16.0
    c = 9 / 10
    bend = 27 / 25 * second.phi(3, h / 2) + 729 / 125 * second.phi(3, c * h)
    E = remainder(state + c * h * space.phi(1, c * h) + h * bend) - (2 * c) ** 2 * D_2
    third = KrylovSpace(flow.product, space.root, E)
    if not third.resolve(3, h, accuracy):
        return state, 16.0
    correction = h * (500 / 27 * third.phi(4, h) - 250 / 81 * third.phi(3, h))
    proposal = state + h * (space.phi(1, h) + 8 * second.phi(3, h)) + correction
    scale = tol * (1 + torch.maximum(state[1].abs(), proposal[1].abs()))
    error = (correction[1].abs() / scale).max().item()
    return proposal, error if math.isfinite(error) else math.inf
