"""The kernel recursion on angles, for piecewise linear activations.

=========  ========================================================  ========================
symbol     meaning                                                   name (shape)
=========  ========================================================  ========================
u          (σ_w x / √d, σ_b) / a₀, a unit vector per row
a_l        √q₁₁ in layer l, a pre-activation's standard deviation    ``stds`` (L + 1, n)
θ, φ       angle between two pre-activations; φ = θ/2
p, h       sin²φ = |u − u′|²/4 in the first layer; h = √p            ``p`` (n, m)
T          Θ / (a a′)                                                ``T`` (n, m)
w          σ_w² c, with c the activation's gain                      ``growth``
λ          the activation's kink                                     ``kink``
f, t       √w a_l / a_{l+1} and σ_b / a_{l+1}, so f² + t² = 1        ``f``
ψ          arctan(t / f)                                             ``turn``
=========  ========================================================  ========================

The kernels have a kink at θ = 0, as |x − x′| has, so angles must be accurate however small they
are. A recursion on cos θ cannot do that, as 1 − cos θ is a difference of nearly equal numbers.
With cos θ = 1 − 2p the arc-cosine kernels (Cho and Saul, 2009) become a recursion without
cancellation:

    p ← f f′ p (1 − (λ/π) h Q(p)) + e,        e = (1 − f f′ − t t′)/2 = sin²((ψ − ψ′)/2)
    T ← 1 − 2p + f f′ T (1 − (2λ/π) h P(p)),  started at T = 1 − 2p

    P(p) = φ/h,   Q(p) = (sin θ − θ cos θ) / (2h³).

P and Q are power series in p. In the first layer θ may reach π, where they converge too slowly,
and closed forms take their place; later layers have θ ≤ π/2 (a little more for the leaky ReLU),
and deep ones small θ, for which a short polynomial replaces two transcendental functions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from ._activations import PiecewiseLinear
from ._rows import require_finite, scaled_inputs

# Of two rows whose p is below this fraction of the rows' spread, the matrix product has lost too
# many digits: such pairs are recomputed from x − x′.
_CLOSE = {torch.float64: 1e-4, torch.float32: 1e-2}
_PAIR_ELEMENTS = 2**20  # entries of x − x′ held at a time
_SERIES_LIMIT = 0.52  # largest p that the series serve


@dataclass(frozen=True)
class AngularRows:
    """Rows ready for products, with what each layer needs of them."""

    inputs: Tensor  # (n, d), σ_w x / √d
    left: Tensor  # (n, d + 3), left[i] · right[j] = p
    right: Tensor  # (n, d + 3)
    spread: Tensor  # (n,), |u − mean u|²/4
    stds: Tensor  # (L + 1, n)
    f: Tensor  # (L, n)
    turn_left: Tensor  # (L, n, 4), turn_left[l, i] · turn_right[l, j] = e
    turn_right: Tensor  # (L, n, 4)
    origin: tuple[Tensor, Tensor]  # mean u (d + 1,) and mean ψ (L,), shared by both sides
    ranges: list[tuple[float, float, float]]  # per layer: least and largest ψ, largest f

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> AngularRows:
        return AngularRows(
            self.inputs[rows],
            self.left[rows],
            self.right[rows],
            self.spread[rows],
            self.stds[:, rows],
            self.f[:, rows],
            self.turn_left[:, rows],
            self.turn_right[:, rows],
            self.origin,
            self.ranges,
        )


@dataclass(frozen=True)
class AngularRecursion:
    """The recursion of this module for one kernel."""

    activation: PiecewiseLinear
    depth: int
    weight_std: float
    bias_std: float
    kind: str

    buffers = 5  # arrays of a tile's size that `tile` works in

    @property
    def growth(self) -> float:
        """Return w: without biases, variances grow by this factor per layer."""
        return self.weight_std**2 * self.activation.gain

    def rows(self, X: Tensor, like: AngularRows | None = None) -> AngularRows:
        """Prepare rows ``X`` of shape (n, d), for products with rows prepared ``like`` these."""
        inputs, variances = self._variances(X)
        stds = variances.sqrt_()
        divisors = torch.where(stds > 0, stds, 1)  # a zero row without bias is scaled by 0 anyway
        f = math.sqrt(self.growth) * stds[:-1] / divisors[1:]
        turn = torch.atan2(self.bias_std / divisors[1:], f)

        unit = torch.cat([inputs, torch.full_like(inputs[:, :1], self.bias_std)], dim=1)
        unit /= divisors[0][:, None]
        origin = (unit.mean(dim=0), turn.mean(dim=1)) if like is None else like.origin

        # |u − u′|²/4 with both sides relative to the mean, which cancels in it.
        unit -= origin[0]
        spread = unit.square().sum(dim=1) / 4
        ones = torch.ones_like(spread)
        left = torch.cat([-unit / 2, spread[:, None], ones[:, None]], dim=1)
        right = torch.cat([unit, ones[:, None], spread[:, None]], dim=1)

        # sin²((ψ − ψ′)/2) = (v + v′ − v v′ − s s′)/2 with v = 1 − cos ψ and s = sin ψ, again
        # relative to the mean. The added rounding unit keeps the sum from falling below 0.
        turn = turn - origin[1][:, None]
        v, s = 2 * torch.sin(turn / 2).square(), torch.sin(turn)
        ones = torch.ones_like(v)
        floor = 8 * torch.finfo(X.dtype).eps * v.amax(dim=1, keepdim=True)
        turn_left = torch.stack([v + floor, ones, -v, -s], dim=2) / 2
        turn_right = torch.stack([ones, v, v, s], dim=2)
        ranges = torch.stack([turn.amin(dim=1), turn.amax(dim=1), f.amax(dim=1)], dim=1).tolist()
        return AngularRows(
            inputs, left, right, spread, stds, f, turn_left, turn_right, origin, ranges
        )

    def diagonal(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row of ``X``."""
        # Θ_{l+1}(x, x) = q_{l+1}(x, x) + w Θ_l(x, x)
        _, variances = self._variances(X)
        if self.kind == "nngp":
            return variances[-1]
        ntk = variances[0]
        for variance in variances[1:]:
            ntk = variance + self.growth * ntk
        return ntk

    def _variances(self, X: Tensor) -> tuple[Tensor, Tensor]:
        inputs, variance = scaled_inputs(X, self.weight_std, self.bias_std)
        variances = [variance]
        for _ in range(self.depth):
            variance = self.growth * variance + self.bias_std**2
            variances.append(variance)
        return inputs, require_finite(torch.stack(variances))

    def tile(
        self, x: AngularRows, y: AngularRows, out: Tensor, work: list[Tensor], *, same: bool
    ) -> None:
        """Write K(x, y) into ``out`` (n, m); ``same`` says that x and y are the same rows."""
        p, T, F, A, B = (buffer[: out.numel()].view(out.shape) for buffer in work)
        torch.mm(x.left, y.right.T, out=p)
        close = _CLOSE[p.dtype]
        threshold = close * float(x.spread.amax() + y.spread.amax())
        if same:
            p.fill_diagonal_(threshold)
        p_least, p_max = (float(extreme) for extreme in torch.aminmax(p))
        pairs = None
        if p_least < threshold:
            pairs = torch.nonzero(p < close * (x.spread[:, None] + y.spread), as_tuple=True)
        p.clamp_(0, 1)
        p_max = min(max(p_max, 0.0), 1.0)

        torch.add(torch.ones((), dtype=p.dtype, device=p.device), p, alpha=-2, out=T)
        for layer in range(self.depth):
            p_max = self._advance(x, y, layer, p, p_max, T, F, A, B)
        if self.kind == "nngp":
            torch.add(torch.ones((), dtype=p.dtype, device=p.device), p, alpha=-2, out=T)
        torch.mul(T, x.stds[-1][:, None], out=T)
        torch.mul(T, y.stds[-1], out=out)
        if pairs is not None:
            self._fill_close_pairs(x, y, out, *pairs)

    def _advance(
        self,
        x: AngularRows,
        y: AngularRows,
        layer: int,
        p: Tensor,
        p_max: float,
        T: Tensor,
        F: Tensor,
        A: Tensor,
        B: Tensor,
    ) -> float:
        """Take p and T one layer further, in place; return a bound on the new p."""
        kink = self.activation.kink
        one = torch.ones((), dtype=p.dtype, device=p.device)
        if layer == 0:
            _angular_factors(p, kink, A, B)
        else:
            _series_factors(p, p_max, kink, A, B)
        # now A = p (1 − (λ/π) h Q) and B = 1 − (2λ/π) h P
        T *= B
        if self.bias_std:
            torch.mul(x.f[layer][:, None], y.f[layer], out=F)
            torch.mm(x.turn_left[layer], y.turn_right[layer].T, out=p)
            p.addcmul_(A, F)
            torch.add(one, p, alpha=-2, out=B)
            torch.addcmul(B, T, F, out=T)
        else:
            p.copy_(A)
            T += one
            T.sub_(p, alpha=2)
        (x_low, x_high, x_f), (y_low, y_high, y_f) = x.ranges[layer], y.ranges[layer]
        turn = max(x_high, y_high) - min(x_low, y_low)
        return x_f * y_f * _shrunk(p_max, kink) + math.sin(min(turn, math.pi) / 2) ** 2

    def _fill_close_pairs(
        self, x: AngularRows, y: AngularRows, out: Tensor, i: Tensor, j: Tensor
    ) -> None:
        """Overwrite ``out[i, j]`` from differences of rows instead of matrix products."""
        step = max(1, _PAIR_ELEMENTS // x.inputs.shape[1])
        for start in range(0, len(i), step):
            i_part, j_part = i[start : start + step], j[start : start + step]
            a, b = x.stds[:, i_part], y.stds[:, j_part]
            p, T = self._pair_layers(x.inputs[i_part], y.inputs[j_part], a, b)
            out[i_part, j_part] = a[-1] * b[-1] * (T if self.kind == "ntk" else 1 - 2 * p)

    def _pair_layers(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and T of the last layer for pairs of close rows, without any cancellation."""
        p, gap = self._pair_chords(x, y, a[0], b[0])
        kink = self.activation.kink
        T = 1 - 2 * p
        A, B = torch.empty_like(p), torch.empty_like(p)
        for layer in range(self.depth):
            _series_factors(p, float(p.amax()), kink, A, B)
            scale = _nonzero(a[layer + 1] * b[layer + 1])
            product = self.growth * a[layer] * b[layer]
            F = product / scale
            # e = w σ_b² (a − b)² / (2a′b′ (a′b′ + w a b + σ_b²)) with a, b in this layer
            e = (
                self.growth
                * (self.bias_std * gap).square()
                / _nonzero(2 * scale * (scale + product + self.bias_std**2))
            )
            p = F * A + e
            T = 1 - 2 * p + F * T * B
            # b′ − a′ = w (b − a)(b + a)/(b′ + a′)
            gap = self.growth * gap * (a[layer] + b[layer]) / _nonzero(a[layer + 1] + b[layer + 1])
        return p, T

    def _pair_chords(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and −|b − a| of the first layer for pairs of close rows."""
        # u − u′ = (x − y + y (b − a)/b) / a, and σ_b (b − a)/(ab) in the last coordinate, where
        # b − a = (y − x)·(y + x)/(a + b) is free of cancellation. Rounding is relative to the
        # larger row, so that one has to be x.
        ordered = a >= b
        x, y = torch.where(ordered[:, None], x, y), torch.where(ordered[:, None], y, x)
        a, b = torch.maximum(a, b), torch.minimum(a, b)
        difference = x - y
        gap = -(difference * (x + y)).sum(dim=1) / _nonzero(a + b)
        chord = (difference + y * (gap / _nonzero(b))[:, None]) / _nonzero(a)[:, None]
        last = self.bias_std * gap / _nonzero(a * b)
        return (chord.square().sum(dim=1) + last.square()) / 4, gap

    def gradient(self, x: AngularRows, y: AngularRows) -> Tensor:
        """Return the derivatives of K(x, y) in log σ_w and log σ_b, shape (2, n, m)."""
        p = torch.mm(x.left, y.right.T)
        close = _CLOSE[p.dtype]
        i, j = torch.nonzero(p < close * (x.spread[:, None] + y.spread), as_tuple=True)
        p[i, j] = self._pair_chords(x.inputs[i], y.inputs[j], x.stds[0, i], y.stds[0, j])[0]
        p.clamp_(0, 1)

        kink, variance_b = self.activation.kink, self.bias_std**2
        a, b = _nonzero(x.stds)[:, :, None], _nonzero(y.stds)[:, None, :]
        # log-derivatives in σ_w and σ_b: of w, σ_b², a and b; scaling both leaves angles as are
        d_growth, d_bias = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=p.dtype)[..., None, None]
        d_a = (d_growth * (1 - variance_b / a[0] ** 2) + d_bias * variance_b / a[0] ** 2) / 2
        d_b = (d_growth * (1 - variance_b / b[0] ** 2) + d_bias * variance_b / b[0] ** 2) / 2
        d_p = (1 / a[0] - 1 / b[0]) ** 2 - 2 * p * (1 / a[0] ** 2 + 1 / b[0] ** 2)
        d_p = torch.stack([-d_p, d_p]) * (variance_b / 2)
        T, d_T = 1 - 2 * p, -2 * d_p
        A, B = torch.empty_like(p), torch.empty_like(p)
        for layer in range(self.depth):
            _angular_factors(p, kink, A, B)
            slope = 2 * torch.sqrt(p * (1 - p))
            d_B = d_p / _nonzero(slope) * (slope > 0) * (-2 * kink / math.pi)
            F = self.growth * a[layer] * b[layer] / (a[layer + 1] * b[layer + 1])
            G = variance_b / (a[layer + 1] * b[layer + 1])
            fa2 = self.growth * a[layer] ** 2 / a[layer + 1] ** 2
            fb2 = self.growth * b[layer] ** 2 / b[layer + 1] ** 2
            d_F = d_growth + d_a + d_b
            d_a = (fa2 * (d_growth + 2 * d_a) + (1 - fa2) * d_bias) / 2
            d_b = (fb2 * (d_growth + 2 * d_b) + (1 - fb2) * d_bias) / 2
            d_F = F * (d_F - d_a - d_b)
            d_G = G * (d_bias - d_a - d_b)
            # p ← F A + (1 − F − G)/2, with dA/dp = B (Price's theorem)
            d_p = d_F * A + F * B * d_p - (d_F + d_G) / 2
            p = (F * A + (1 - F - G) / 2).clamp_(0, 1)
            d_T = -2 * d_p + (d_F * B + F * d_B) * T + F * B * d_T
            T = 1 - 2 * p + F * B * T
        if self.kind == "nngp":
            T, d_T = 1 - 2 * p, -2 * d_p
        return x.stds[-1][:, None] * y.stds[-1] * (T * (d_a + d_b) + d_T)


def _nonzero(divisor: Tensor) -> Tensor:
    """Return ``divisor`` with 1 in place of 0."""
    return torch.where(divisor == 0, 1, divisor)


def _shrunk(p: float, kink: float) -> float:
    """Return p (1 − (λ/π) h Q(p)), a non-decreasing function of p, for a number p in [0, 1]."""
    h = math.sqrt(p)
    phi = math.asin(h)
    return max(p + kink / math.pi * (phi * (1 - 2 * p) - h * math.sqrt(1 - p)), 0.0)


def _angular_factors(p: Tensor, kink: float, A: Tensor, B: Tensor) -> None:
    """Set A = p (1 − (λ/π) h Q(p)) and B = 1 − (2λ/π) h P(p) for p in [0, 1]."""
    # A = p + (λ/π)(φ (1 − 2p) − √(p (1 − p))),  B = 1 − (2λ/π) φ
    torch.addcmul(p, p, p, value=-1, out=A)
    torch.pow(A, 0.5, out=A)
    torch.pow(p, 0.5, out=B)
    torch.asin(B, out=B)
    torch.sub(B, A, out=A)
    A.addcmul_(p, B, value=-2)
    torch.add(p, A, alpha=kink / math.pi, out=A)
    B.mul_(-2 * kink / math.pi).add_(1)


def _series_factors(p: Tensor, p_max: float, kink: float, A: Tensor, B: Tensor) -> None:
    """Set A and B as `_angular_factors` does, for 0 <= p <= p_max <= 0.52, by power series."""
    # The bound is rounded up to a power of √2, so that few polynomials serve all tiles.
    bucket = math.ceil(2 * math.log2(max(p_max, 1e-12))) if p_max < _SERIES_LIMIT else 0
    p_series, q_series = _half_angle_series(bucket, p.dtype, str(p.device))
    h = torch.pow(p, 0.5)
    _horner(q_series, p, A)
    A.mul_(h).mul_(-kink / math.pi).add_(1).mul_(p)
    _horner(p_series, p, B)
    B.mul_(h).mul_(-2 * kink / math.pi).add_(1)


def _horner(coefficients: list[Tensor], p: Tensor, out: Tensor) -> None:
    """Evaluate a polynomial in p, highest coefficient first."""
    out.copy_(coefficients[0].expand(p.shape))
    for coefficient in coefficients[1:]:
        torch.addcmul(coefficient, out, p, out=out)


@functools.cache
def _half_angle_series(
    bucket: int, dtype: torch.dtype, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Return polynomials for P and Q on [0, 2^(bucket/2)], as short as ``dtype`` allows."""
    # P = Σ c_k p^k with c_k = (2k)! / (4^k k!² (2k + 1)), the series of arcsin;
    # d(p h Q)/dp = 2 h P gives Q = Σ 4 c_k p^k / (2k + 3).
    p_max = _SERIES_LIMIT if bucket == 0 else 2 ** (bucket / 2)
    k = np.arange(80.0)
    central = np.cumprod(np.append(1.0, 1 - 0.5 / k[1:]))  # (2k)! / (4^k k!²)
    c = central / (2 * k + 1)
    series: list[list[Tensor]] = []
    for taylor in (c, 4 * c / (2 * k + 3)):
        # In units of p_max, then economised: the Chebyshev coefficients below rounding go.
        scaled = Polynomial(taylor * p_max**k, domain=[0, 1], window=[0, 1])
        chebyshev = scaled.convert(domain=[0, 1], kind=Chebyshev, window=[-1, 1])
        degree = int(np.flatnonzero(np.abs(chebyshev.coef) > torch.finfo(dtype).eps / 4)[-1])
        short = chebyshev.truncate(degree + 1).convert(
            domain=[0, 1], kind=Polynomial, window=[0, 1]
        )
        coefficients = np.asarray(short.coef, dtype=float) / p_max ** k[: degree + 1]
        series.append(
            [torch.tensor(value, dtype=dtype, device=device) for value in coefficients[::-1]]
        )
    return series[0], series[1]
