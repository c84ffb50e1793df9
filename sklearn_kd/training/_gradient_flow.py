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
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import IllConditionedWarning, NotPSDError
from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct, residual

__all__ = ["FlowInfo", "gradient_flow", "squared_error_targets"]

MAX_KRYLOV_DIMENSION = 100
# Between two stopping times. 400 rows with labels at random take 3000 to time 1e10; 20 rows, whose
# products cost next to nothing, 8000 to the longest time that there is.
MAX_PRODUCTS = 10_000
# The flow slows down as 1 / t: a step so far below t is one that rounding asks for.
LEAST_RELATIVE_STEP = 1e-6
MAX_ROUNDING = 0.1  # of the logits; step sizes cannot be controlled much beyond
# Three Krylov spaces at a time, each with a basis and its images under K, in copies of the labels.
KRYLOV_COPIES = 6 * MAX_KRYLOV_DIMENSION


class FlowInfo(NamedTuple):
    """What an integration cost.

    Parameters
    ----------
    n_products : int
        Products with the kernel matrix.
    n_steps, n_rejected : int
        Steps taken, and steps tried in vain.
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

    >>> squared_error_targets(torch.tensor([0.0, 1.0, 0.75])).tolist()
    [-1.0, 1.0, 0.5]
    """
    return 2 * labels - 1 if labels.ndim == 1 else labels - 1 / labels.shape[1]


def _phi(order: int, x: np.ndarray) -> np.ndarray:
    """Return phi_order(-x) for x >= 0."""
    # phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z;  phi_k(z) = sum_i z^i / (i + k)!
    z = -np.asarray(x, dtype=np.float64)
    near = np.where(z > -1, z, 0.0)  # the recursion cancels near 0, the series is short there
    series = sum(near**i * (1 / math.factorial(i + order)) for i in range(18))
    far = np.where(z > -1, -1.0, z)
    recursion = np.exp(far)
    for k in range(order):
        recursion = (recursion - 1 / math.factorial(k)) / far
    return np.where(z > -1, series, recursion)


class _KrylovSpace:
    r"""phi functions of the Jacobian J = -W K acting on one vector v, by Lanczos.

    A state is a stacked pair (a, K a), so logits never cost a product of their own.
    """

    # J is not symmetric, B = Mᵀ K M is:
    #     phi_k(-h W K) v = v / k! - h M phi_{k+1}(-h B) Mᵀ K v,
    # since phi_k(z) = 1/k! + z phi_{k+1}(z).
    # Lanczos: B V = V T + ..., first column of V = Mᵀ K v / β, so
    #     phi_{k+1}(-h B) Mᵀ K v = β V phi_{k+1}(-h T) e_1,
    # and the stored columns of K M V give K times it.
    def __init__(self, product: KernelProduct, root: CurvatureRoot, vector: Tensor) -> None:
        self.product, self.root = product, root
        self.state = torch.stack([vector, product(vector)])
        start = root.apply_transpose(self.state[1])
        self.norm = start.norm().item()
        capacity = min(MAX_KRYLOV_DIMENSION, vector.numel())
        self.basis = vector.new_empty(capacity, vector.numel())
        self.images = torch.empty_like(self.basis)
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.exhausted = self.norm == 0
        self.next = start / (self.norm or 1.0)

    @property
    def is_full(self) -> bool:
        return len(self.diagonal) == len(self.basis)

    def extend(self) -> None:
        """Add one dimension: one product with K."""
        m = len(self.diagonal) + 1
        self.basis[m - 1] = self.next.flatten()
        image = self.product(self.root.apply(self.next))
        self.images[m - 1] = image.flatten()
        following = self.root.apply_transpose(image).flatten()
        basis = self.basis[:m]
        overlap = basis @ following
        following = following - overlap @ basis
        correction = basis @ following  # orthogonal to working precision only after a second pass
        following = following - correction @ basis
        self.diagonal.append((overlap[-1] + correction[-1]).item())
        self.off_diagonal.append(following.norm().item())
        if not math.isfinite(self.diagonal[-1]):
            raise FloatingPointError("gradient flow: a product with kernel_matrix is not finite.")
        eps = torch.finfo(following.dtype).eps
        self.ritz, self.rotation = eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        # Kernels of low rank have zero eigenvalues, which rounding of K makes negative; a vector
        # may have no part along the others.
        if self.ritz[0] < -math.sqrt(eps) * max(self.ritz[-1], self.root.largest_squared):
            raise NotPSDError(
                "kernel_matrix is not positive semi-definite: the curvature Mᵀ K M has eigenvalues "
                f"{self.ritz[0]:.3g} and {self.ritz[-1]:.3g} relative to the diagonal of K. Use a "
                "positive semi-definite kernel."
            )
        self.exhausted = self.off_diagonal[-1] <= 10 * eps * self.ritz[-1]
        self.next = (following / (self.off_diagonal[-1] or 1.0)).view_as(self.next)

    def coefficients(self, order: int, step: float) -> np.ndarray:
        """Return h β phi_{order+1}(-h T) e_1."""
        phi = _phi(order + 1, step * self.ritz.clip(min=0))
        return step * self.norm * (self.rotation @ (phi * self.rotation[0]))

    def last_term(self, order: int, step: float) -> float:
        """Return how much the newest dimension moves the logits of ``h phi_order(h J) v``."""
        image = self.images[len(self.diagonal) - 1]
        return step * abs(self.coefficients(order, step)[-1].item()) * image.abs().max().item()

    def resolve(self, order: int, step: float, accuracy: float) -> bool:
        """Extend until ``h phi_order(h J) v`` is as accurate as asked; tell whether it is."""
        while not self.exhausted:
            if self.diagonal and self.last_term(order, step) <= accuracy:
                return True
            if self.is_full:
                return False
            self.extend()
        return True

    def phi(self, order: int, step: float) -> Tensor:
        """Return phi_order(h J) v and K times it, stacked."""
        state = self.state / math.factorial(order)
        if not self.diagonal:
            return state
        m = len(self.diagonal)
        c = torch.as_tensor(self.coefficients(order, step)).to(state)
        moved = (c @ self.basis[:m]).view_as(state[0])
        return state - torch.stack([self.root.apply(moved), (c @ self.images[:m]).view_as(moved)])


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
        1 + \|f\|. The result is of fifth order: at the default its error after all steps was at
        most 4e-5 where compared with a reference.
    report : callable, default=None
        Told after each step what fraction of the last stopping time is behind, on a scale that is
        logarithmic beyond the first step, as the steps grow with time.

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
        residuals of separable rows fall as 1 / t, and squares of what is made of them would leave
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
        ``10 * tol * (1 + |f|)``. So it comes of rows that the kernel does not tell apart, but that
        have different labels: their coefficients grow in proportion to time.

    Notes
    -----
    Two classes can be trained as one logit or as two outputs. The logit z of the former and the
    difference of the two outputs of the latter, each output a network of its own, relate by: for
    the squared error they are equal at all times; for the log loss the difference moves twice as
    fast, a softmax at time t being the sigmoid at time 2 t.

    Examples
    --------
    With one row and squared error, f(t) = z (1 - exp(-K t)):

    >>> import torch

    >>> K, y, weights = torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([1.0])
    >>> coefs, _ = gradient_flow(K, y, weights, loss="squared_error", stopping_times=[0.0, 1.0])
    >>> (coefs @ K).flatten().tolist()
    [0.0, 0.86466...]
    """
    times = [float(t) for t in stopping_times]
    if not all(math.isfinite(t) and t >= 0 for t in times) or sorted(set(times)) != times:
        raise ValueError(
            f"stopping_times={times} must be finite, non-negative and strictly increasing."
        )
    if tol < 100 * torch.finfo(kernel_matrix.dtype).eps:
        raise ValueError(
            f"tol={tol} is too small for {kernel_matrix.dtype}; raise it or use float64."
        )

    targets = labels if loss == "log_loss" else squared_error_targets(labels)
    # In units of the kernel: K / unit and t * unit give unit * a.
    unit = kernel_matrix.diagonal().abs().max().item() or 1.0
    if not math.isfinite(unit):
        raise ValueError("kernel_matrix has non-finite entries.")
    product = KernelProduct(kernel_matrix, unit)
    row_weights = weights if labels.ndim == 1 else weights[:, None]
    state = torch.zeros_like(labels).repeat(2, *[1] * labels.ndim)  # a and K a
    coefs = []
    n_steps = n_rejected = 0
    t, step = 0.0, math.inf
    # Beyond this time a squared error does not move; the log loss is refused before.
    eternity = math.sqrt(torch.finfo(labels.dtype).max)
    for stopping_time in (min(time * unit, eternity) for time in times):
        n_products = product.count
        while t < stopping_time:
            force = row_weights * residual(state[1], targets, loss)
            root = CurvatureRoot(state[1], weights, loss)
            flow = _KrylovSpace(product, root, force)
            if n_steps == 0:
                speed = flow.state[1].abs().max().item()
                if not math.isfinite(speed):
                    raise ValueError("kernel_matrix has non-finite entries.")
                if loss == "log_loss":
                    _require_range(times[-1], speed * unit, labels.dtype)
                step = 0.1 / speed if speed else math.inf  # no logit has moved far by then
                first, last = min(step, stopping_time), min(times[-1] * unit, eternity)
            while True:
                remaining = stopping_time - t
                # Two equal steps rather than a full one and a sliver.
                trial = remaining if remaining <= step else min(step, remaining / 2)
                while not flow.resolve(1, trial, 0.03 * tol):
                    trial *= 0.7
                    _require_progress(trial, t, unit, tol)
                proposal, error = _exprb53(flow, state, targets, row_weights, loss, trial, tol)
                factor = min(5.0, max(0.1, 0.8 * max(error, 1e-9) ** -0.25))
                if error <= 1:
                    break
                n_rejected += 1
                step = trial * factor
                _require_progress(step, t, unit, tol)
            state = proposal
            if labels.ndim == 2:  # the sum-zero gauge, which rounding leaves
                state = state - state.mean(dim=2, keepdim=True)
            n_steps += 1
            if not _rounding(state) < MAX_ROUNDING:
                raise FloatingPointError(
                    f"gradient flow: at time {t / unit:.3g} rounding in products with the kernel "
                    "matrix decides the logits, since the kernel does not tell rows with "
                    f"different labels apart; stopping_time={stopping_time / unit:.3g} is too "
                    "long for it. Stop earlier, remove near-duplicate rows, or use float64."
                )
            if product.count - n_products > MAX_PRODUCTS:
                raise FloatingPointError(
                    f"gradient flow: {MAX_PRODUCTS} products with the kernel matrix lead to time "
                    f"{t / unit:.3g}, not to stopping_time={stopping_time / unit:.3g}; logits "
                    f"start out at {speed * unit:.3g} per unit of time. Use a smaller "
                    "stopping_time, or scale the inputs so that kernel values are of order one."
                )
            t = stopping_time if trial == remaining else t + trial
            step = max(step, trial * factor) if factor > 1 else trial * factor
            if report is not None:
                start, end = math.log(first), math.log(last + first)
                report((math.log(t + first) - start) / (end - start))
        state[1] = product(state[0])  # drops the rounding that the steps have gathered
        coefs.append(state[0] / unit)
        if not coefs[-1].isfinite().all():
            raise FloatingPointError(
                f"gradient flow: coefficients leave the range of {labels.dtype} against kernel "
                f"values of at most {unit:.3g}; scale the inputs so that these are of order one."
            )
    if _rounding(state) > 10 * tol:
        warn(
            f"Rounding moves the logits by about {_rounding(state):.2g} of their size: the kernel "
            "matrix is numerically singular, and the coefficients of rows with different labels "
            "that it does not tell apart have grown large. Use a smaller stopping_time, or remove "
            "near-duplicate rows.",
            IllConditionedWarning,
        )
    return torch.stack(coefs), FlowInfo(product.count, n_steps, n_rejected)


def _require_range(stopping_time: float, speed: float, dtype: torch.dtype) -> None:
    # With x = speed * t, residuals fall as 1/x, M as x^(-1/2), and the norm of Mᵀ K r has squares
    # of size x^-3.
    longest = torch.finfo(dtype).tiny ** (-1 / 3)
    if stopping_time * speed > longest:
        raise ValueError(
            f"stopping_time={stopping_time:.3g} is beyond {dtype} for the log loss: logits start "
            f"out at {speed:.3g} per unit of time, and residuals, which fall as 1 / time, leave "
            f"its range. Use a stopping_time of at most {longest / speed:.3g}, or scale the inputs "
            "so that kernel values are of order one."
        )


def _require_progress(step: float, t: float, unit: float, tol: float) -> None:
    if not step > LEAST_RELATIVE_STEP * t:
        raise FloatingPointError(
            f"gradient flow: the step size collapsed to {step / unit:.3g} at time {t / unit:.3g}, "
            f"where rounding decides; use a smaller stopping_time, raise tol={tol} or use float64."
        )


def _rounding(state: Tensor) -> float:
    """Return about how much rounding in K a moves logits, as a multiple of 1 + |f|."""
    # K has entries up to 1 here, and the errors of its products random signs. Within a factor of
    # two of the error where measured, from 1e-5 to 0.1 (single against double precision).
    moved = torch.finfo(state.dtype).eps * torch.linalg.vector_norm(state[0], dim=0).max()
    return (moved / (1 + state[1].abs().max())).item()


def _exprb53(
    flow: _KrylovSpace,
    state: Tensor,  # (2, n) or (2, n, C)
    targets: Tensor,
    row_weights: Tensor,
    loss: str,
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
        change = residual(stage[1], targets, loss) - residual(state[1], targets, loss)
        return row_weights * change + flow.root.curvature(moved)

    accuracy = 0.03 * tol
    D_2 = remainder(state + h / 2 * flow.phi(1, h / 2))
    second = _KrylovSpace(flow.product, flow.root, D_2)
    if not second.resolve(3, h, accuracy):
        return state, 16.0
    c = 9 / 10
    bend = 27 / 25 * second.phi(3, h / 2) + 729 / 125 * second.phi(3, c * h)
    E = remainder(state + c * h * flow.phi(1, c * h) + h * bend) - (2 * c) ** 2 * D_2
    third = _KrylovSpace(flow.product, flow.root, E)
    if not third.resolve(3, h, accuracy):
        return state, 16.0
    correction = h * (500 / 27 * third.phi(4, h) - 250 / 81 * third.phi(3, h))
    proposal = state + h * (flow.phi(1, h) + 8 * second.phi(3, h)) + correction
    scale = tol * (1 + torch.maximum(state[1].abs(), proposal[1].abs()))
    error = (correction[1].abs() / scale).max().item()
    return proposal, error if math.isfinite(error) else math.inf
