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

The kernels have a kink at θ = 0, as |x − x′| has. So even the smallest angles must be accurate.
A recursion on cos θ cannot do that, as 1 − cos θ is a difference of nearly equal numbers. With
cos θ = 1 − 2p, the arc-cosine kernels (Cho and Saul, 2009) become a recursion without cancellation:

    p ← f f′ p (1 − (λ/π) h Q(p)) + e,        e = (1 − f f′ − t t′)/2 = sin²((ψ − ψ′)/2)
    T ← 1 − 2p + f f′ T (1 − (2λ/π) h P(p)),  started at T = 1 − 2p

    P(p) = φ/h,   Q(p) = (sin θ − θ cos θ) / (2h³).

P and Q are power series in p. In the first layer θ may reach π, where they converge too slowly,
and closed forms take their place; later layers have θ ≤ π/2 (a little more for the leaky ReLU),
and deep ones small θ, for which a short polynomial replaces two transcendental functions.
Near θ = π, 1 − p = |u + u′|²/4 must not be lost to rounding: h P(p) = π/2 − arcsin √(1 − p).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from sklearn_kd.kernels.infinite._activations import PiecewiseLinear
from sklearn_kd.kernels.infinite._variances import input_variances, require_finite

# If p or 1 − p of two rows is below this fraction of the rows' spread, the matrix product has lost
# too many digits. Such pairs are recomputed from x − x′, or x + x′.
_CLOSE = {torch.float64: 1e-4, torch.float32: 1e-2}
_PAIR_ELEMENTS = 2**20  # entries of x − x′ held at a time
_SERIES_LIMIT = 0.52  # largest p that the series serve, a little above that of θ = π/2
_SERIES_BUCKET = -1
_TINY = {torch.float64: 1e-100, torch.float32: 1e-30}  # stands for p = 0, where 1/√p is not


@dataclass(frozen=True)
class AngularRows:
    """Rows ready for products, with the quantities that each layer needs."""

    inputs: Tensor  # (n, d)
    centred: Tensor  # (n, d + 1), z = u − mean u
    spread: Tensor  # (n,), |z|²/4
    variances: Tensor  # (L + 1, n), a²
    stds: Tensor  # (L + 1, n), a
    f: Tensor  # (L, n)
    sine: Tensor  # (L, n), sin(ψ/2) with ψ relative to its mean
    cosine: Tensor  # (L, n), cos(ψ/2)
    origin: tuple[Tensor, Tensor]  # mean u (d + 1,) and mean ψ (L,), shared by both sides
    ranges: list[tuple[float, float, float]]  # per layer: least and largest ψ, largest f

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> AngularRows:
        return AngularRows(
            self.inputs[rows],
            self.centred[rows],
            self.spread[rows],
            self.variances[:, rows],
            self.stds[:, rows],
            self.f[:, rows],
            self.sine[:, rows],
            self.cosine[:, rows],
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

    buffers = 6  # arrays of a tile's size that `tile` works in

    @property
    def growth(self) -> float:
        """Return w: without biases, variances grow by this factor per layer."""
        return self.weight_std**2 * self.activation.gain

    def rows(self, X: Tensor, like: AngularRows | None = None) -> AngularRows:
        """Prepare rows ``X`` of shape (n, d), for products with rows prepared ``like`` these."""
        variances = self.variances(X)
        stds = variances.sqrt()
        divisors = _nonzero(stds)  # a zero row without bias is scaled by 0 in the end
        f = math.sqrt(self.growth) * stds[:-1] / divisors[1:]
        turn = torch.atan2(self.bias_std / divisors[1:], f)

        n, d = X.shape
        scale = self.weight_std / math.sqrt(d) / divisors[0]
        last = self.bias_std / divisors[0]
        if like is None:
            mean = torch.cat([torch.mv(X.T, scale), last.sum(dim=0, keepdim=True)]) / n
            origin = mean, turn.mean(dim=1)
        else:
            origin = like.origin
        centred = X.new_empty(n, d + 1)
        torch.addcmul(-origin[0][:-1], X, scale[:, None], out=centred[:, :d])
        centred[:, d] = last - origin[0][-1]
        spread = torch.linalg.vector_norm(centred, dim=1).square() / 4

        turn = turn - origin[1][:, None]
        sine, cosine = torch.sin(turn / 2), torch.cos(turn / 2)
        ranges = torch.stack([turn.amin(dim=1), turn.amax(dim=1), f.amax(dim=1)], dim=1).tolist()
        return AngularRows(X, centred, spread, variances, stds, f, sine, cosine, origin, ranges)

    def variances(self, X: Tensor) -> Tensor:
        """Return q₁₁ of the rows of ``X`` in every layer, shape (L + 1, n)."""
        variance = input_variances(X, self.weight_std, self.bias_std)
        variances = [variance]
        for _ in range(self.depth):
            variance = self.growth * variance + self.bias_std**2
            variances.append(variance)
        stacked = torch.stack(variances)
        return require_finite(stacked, self.diagonal(stacked))

    def diagonal(self, variances: Tensor) -> Tensor:
        """Return K(x, x) for rows with these variances, shape (n,)."""
        # Θ_{l+1}(x, x) = q_{l+1}(x, x) + w Θ_l(x, x)
        if self.kind == "nngp":
            return variances[-1]
        ntk = variances[0]
        for variance in variances[1:]:
            ntk = variance + self.growth * ntk
        return ntk

    def tile(
        self, x: AngularRows, y: AngularRows, out: Tensor, work: list[Tensor], *, same: bool
    ) -> None:
        """Write K(x, y) into ``out`` (n, m); ``same`` says that x and y are the same rows."""
        p, T, F, A, B, h = (buffer[: out.numel()].view(out.shape) for buffer in work)
        one = torch.ones((), dtype=p.dtype, device=p.device)
        _chords(x, y, p)
        close = _CLOSE[p.dtype]
        threshold = close * float(x.spread.amax() + y.spread.amax())
        if same:
            p.fill_diagonal_(max(threshold, close**2))
        p_least, p_max = (float(extreme) for extreme in torch.aminmax(p))
        least = close**2 if p_max > _SERIES_LIMIT else 0.0  # that the closed forms serve
        pairs = opposites = None
        if p_least < max(threshold, least):
            lost = (close * (x.spread[:, None] + y.spread)).clamp_min_(least)
            pairs = torch.nonzero(p < lost, as_tuple=True)
        if p_max > 1 - close:
            opposites = torch.nonzero(p > 1 - close, as_tuple=True)
        if p_least < _TINY[p.dtype] or p_max > 1:
            p.clamp_(_TINY[p.dtype], 1)
            p_max = min(max(p_max, 0.0), 1.0)

        # Each layer lowers p by at most this factor. Where p may fall below the smallest number,
        # p = 0 and 1/√p is not finite.
        least_p = _TINY[p.dtype] * (self.growth / (1 + self.growth)) ** self.depth
        fades = least_p < torch.finfo(p.dtype).tiny

        torch.add(one, p, alpha=-2, out=T)
        for layer in range(self.depth):
            if fades:
                p.clamp_min_(_TINY[p.dtype])
            _factors(p, p_max, self.activation.kink, A, B, h)
            p_max = self._bound(x.ranges[layer], y.ranges[layer], p_max)
            if self.bias_std:
                torch.mul(x.f[layer][:, None], y.f[layer], out=F)
                A.mul_(F)
                # √e = sin(ψ/2) cos(ψ′/2) − cos(ψ/2) sin(ψ′/2)
                torch.mul(x.sine[layer][:, None], y.cosine[layer], out=h)
                h.addcmul_(x.cosine[layer][:, None], y.sine[layer], value=-1)
                torch.addcmul(A, h, h, out=p)
            else:
                p, A = A, p
            if self.kind == "ntk":
                T.mul_(B)
                torch.add(one, p, alpha=-2, out=B)
                if self.bias_std:
                    torch.addcmul(B, T, F, out=T)
                else:
                    T.add_(B)
        if self.kind == "nngp":
            torch.add(one, p, alpha=-2, out=T)
        T.mul_(x.stds[-1][:, None])
        torch.mul(T, y.stds[-1], out=out)
        if pairs is not None:
            self._fill_pairs(x, y, out, *pairs, are_opposite=False)
        if opposites is not None:
            self._fill_pairs(x, y, out, *opposites, are_opposite=True)

    def _bound(
        self, x: tuple[float, float, float], y: tuple[float, float, float], p_max: float
    ) -> float:
        """Return a bound on the next layer's p, for two ranges of ψ and f and a bound on p."""
        (x_low, x_high, x_f), (y_low, y_high, y_f) = x, y
        turn = max(x_high, y_high) - min(x_low, y_low)
        return x_f * y_f * _shrunk(p_max, self.activation.kink) + math.sin(turn / 2) ** 2

    def _fill_pairs(
        self,
        x: AngularRows,
        y: AngularRows,
        out: Tensor,
        i: Tensor,
        j: Tensor,
        *,
        are_opposite: bool,
    ) -> None:
        """Overwrite ``out[i, j]`` from differences or sums of rows, not from matrix products."""
        step = max(1, _PAIR_ELEMENTS // x.inputs.shape[1])
        for start in range(0, len(i), step):
            i_part, j_part = i[start : start + step], j[start : start + step]
            a, b = x.stds[:, i_part], y.stds[:, j_part]
            rows = x.inputs[i_part], y.inputs[j_part]
            p, T = self._pair_layers(*rows, a, b, are_opposite=are_opposite)
            out[i_part, j_part] = a[-1] * b[-1] * (T if self.kind == "ntk" else 1 - 2 * p)

    def _pair_layers(
        self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, *, are_opposite: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return p and T of the last layer for close or opposite rows, without any cancellation."""
        chord, gap = self._pair_chords(x, y, a[0], b[0], are_opposite=are_opposite)
        kink = self.activation.kink
        p = 1 - chord if are_opposite else chord
        T = 1 - 2 * p
        A, B, h = torch.empty_like(p), torch.empty_like(p), torch.empty_like(p)
        for layer in range(self.depth):
            if layer == 0 and are_opposite:
                A, B = _opposite_factors(chord, kink)
            else:
                _factors(p.clamp_min_(_TINY[p.dtype]), float(p.amax()), kink, A, B, h)
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

    def _pair_chords(
        self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, *, are_opposite: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return p, or 1 − p of opposite rows, and −|b − a| of the first layer for pairs."""
        # With x and y in units of √d / σ_w, u − u′ = (x − y + y (b − a)/b) / a, and
        # σ_b (b − a)/(ab) in the last coordinate, where b − a = (y − x)·(y + x)/(a + b) is free
        # of cancellation; u + u′ = (x + y − y (b − a)/b) / a, and σ_b (1/a + 1/b).
        # Rounding is relative to the larger row, so x must be the larger one.
        ordered = a >= b
        x, y = torch.where(ordered[:, None], x, y), torch.where(ordered[:, None], y, x)
        a, b = torch.maximum(a, b), torch.minimum(a, b)
        unit = self.weight_std / math.sqrt(x.shape[1])
        difference, total, y = (x - y) * unit, (x + y) * unit, y * unit  # no rounding in x ∓ y
        gap = -(difference * total).sum(dim=1) / _nonzero(a + b)
        stretch = y * (gap / _nonzero(b))[:, None]
        if are_opposite:
            chord, last = total - stretch, self.bias_std * (1 / _nonzero(a) + 1 / _nonzero(b))
        else:
            chord, last = difference + stretch, self.bias_std * gap / _nonzero(a * b)
        chord /= _nonzero(a)[:, None]
        return (chord.square().sum(dim=1) + last.square()) / 4, gap

    def gradient(self, x: AngularRows, y: AngularRows) -> Tensor:
        """Return the derivatives of K(x, y) in log σ_w and log σ_b, shape (2, n, m)."""
        p = _chords(x, y, x.centred.new_empty(len(x), len(y))).clamp_(0, 1)
        lost = (_CLOSE[p.dtype] * (x.spread[:, None] + y.spread)).clamp_min_(_CLOSE[p.dtype] ** 2)
        i, j = torch.nonzero(p < lost, as_tuple=True)
        p[i, j] = self._pair_chords(x.inputs[i], y.inputs[j], x.stds[0, i], y.stds[0, j])[0]
        opposites = i, j = torch.nonzero(p > 1 - _CLOSE[p.dtype], as_tuple=True)
        rest, _ = self._pair_chords(
            x.inputs[i], y.inputs[j], x.stds[0, i], y.stds[0, j], are_opposite=True
        )
        p[i, j] = 1 - rest

        kink, w, b2 = self.activation.kink, self.growth, self.bias_std**2
        # Derivatives of log w and log σ_b²; a leading axis of two runs over the parameters.
        d_w, d_b2 = p.new_tensor([[2, 0], [0, 2]])[..., None, None]
        a, b = _nonzero(x.stds)[:, :, None], _nonzero(y.stds)[:, None, :]
        by_a, by_b = self.bias_std / a[0], self.bias_std / b[0]
        share_a, share_b = by_a.square(), by_b.square()
        d_a = (d_w * (1 - share_a) + d_b2 * share_a) / 2  # of log a
        d_b = (d_w * (1 - share_b) + d_b2 * share_b) / 2
        # scaling both parameters leaves the first angle as it is
        d_p = ((by_a - by_b).square() - 2 * p * (by_a.square() + by_b.square())) / 2
        d_p = torch.stack([-d_p, d_p])
        T, d_T = 1 - 2 * p, -2 * d_p
        A, B, h = torch.empty_like(p), torch.empty_like(p), torch.empty_like(p)
        for layer in range(self.depth):
            # dB = −(2λ/π) dφ with dp = 2 √(p (1 − p)) dφ; where p stays 0, dp = 0
            slope = 2 * torch.sqrt(p * (1 - p))
            _factors(p.clamp(min=_TINY[p.dtype]), float(p.amax()), kink, A, B, h)
            if layer == 0:
                A[opposites], B[opposites] = _opposite_factors(rest, kink)
                slope[opposites] = 2 * torch.sqrt(p[opposites] * rest)
            d_B = torch.where(slope > 0, d_p / _nonzero(slope), 0) * (-2 * kink / math.pi)
            product, scale = w * a[layer] * b[layer], _nonzero(a[layer + 1] * b[layer + 1])
            d_product = d_w + d_a + d_b
            gap = a[layer] - b[layer]
            d_gap = a[layer] * d_a - b[layer] * d_b
            share_a = (self.bias_std / a[layer + 1]).square()
            share_b = (self.bias_std / b[layer + 1]).square()
            d_a = ((1 - share_a) * (d_w + 2 * d_a) + share_a * d_b2) / 2
            d_b = ((1 - share_b) * (d_w + 2 * d_b) + share_b * d_b2) / 2
            F = w * (a[layer] / a[layer + 1]) * (b[layer] / b[layer + 1])
            d_F = F * (d_product - d_a - d_b)
            # e = w σ_b² (a − b)² / (2 a′b′ (a′b′ + w a b + σ_b²)), so that equal rows have e = 0
            total = scale + product + b2
            d_total = scale * (d_a + d_b) + product * d_product + b2 * d_b2
            share, slope_e = self.bias_std * gap / scale, w * self.bias_std / total
            e = share * slope_e * gap / 2
            d_e = share * slope_e * d_gap + e * (d_w + d_b2 - d_a - d_b - d_total / total)
            # p ← F A + e, and dA/dp = B (Price's theorem)
            d_p = d_F * A + F * B * d_p + d_e
            p = F * A + e
            d_T = -2 * d_p + (d_F * B + F * d_B) * T + F * B * d_T
            T = 1 - 2 * p + F * B * T
        if self.kind == "nngp":
            T, d_T = 1 - 2 * p, -2 * d_p
        return x.stds[-1][:, None] * y.stds[-1] * (T * (d_a + d_b) + d_T)


def _chords(x: AngularRows, y: AngularRows, out: Tensor) -> Tensor:
    """Write p = |z|²/4 + |z′|²/4 − z·z′/2 into ``out`` of shape (n, m)."""
    torch.add(x.spread[:, None], y.spread, out=out)
    return out.addmm_(x.centred, y.centred.T, alpha=-0.5)


def _nonzero(divisor: Tensor) -> Tensor:
    """Return ``divisor`` with 1 in place of 0."""
    return torch.where(divisor == 0, 1, divisor)


def _shrunk(p: float, kink: float) -> float:
    """Return p (1 − (λ/π) h Q(p)), a non-decreasing function of p, for a number p in [0, 1]."""
    h = math.sqrt(p)
    phi = math.asin(h)
    return max(p + kink / math.pi * (phi * (1 - 2 * p) - h * math.sqrt(1 - p)), 0.0)


def _factors(p: Tensor, p_max: float, kink: float, A: Tensor, B: Tensor, h: Tensor) -> None:
    """Set A = p (1 − (λ/π) h Q(p)), B = 1 − (2λ/π) h P(p) and h = √p for 0 < p <= p_max <= 1."""
    one = torch.ones((), dtype=p.dtype, device=p.device)
    if p_max > _SERIES_LIMIT:
        # A = p + (λ/π)(φ (1 − 2p) − r),  B = 1 − (2λ/π) φ,  r = √(p (1 − p)),  tan φ = p/r
        torch.addcmul(p, p, p, value=-1, out=A).clamp_min_(_TINY[p.dtype])
        torch.rsqrt(A, out=h)
        A.mul_(h)
        torch.atan2(p, A, out=B)
        torch.sub(B, A, out=A)
        A.addcmul_(p, B, value=-2)
        torch.add(p, A, alpha=kink / math.pi, out=A)
        torch.add(one, B, alpha=-2 * kink / math.pi, out=B)
        return
    # Series, with the constants in their coefficients. The bound is rounded up to a power of √2,
    # so that few polynomials serve all tiles. √p = p/√p is faster than the square root.
    bucket = min(math.ceil(2 * math.log2(max(p_max, 1e-12))), _SERIES_BUCKET)
    b_series, a_series = _series(bucket, kink, p.dtype, str(p.device))
    torch.rsqrt(p, out=h)
    h.mul_(p)
    _horner(a_series, p, A)
    torch.addcmul(one, A, h, out=A)
    A.mul_(p)
    _horner(b_series, p, B)
    torch.addcmul(one, B, h, out=B)


def _opposite_factors(rest: Tensor, kink: float) -> tuple[Tensor, Tensor]:
    """Return A and B of `_factors` from 1 − p near 0."""
    p = 1 - rest
    left = torch.asin(rest.sqrt())  # π/2 − φ
    A = p + kink / math.pi * ((math.pi / 2 - left) * (1 - 2 * p) - torch.sqrt(p * rest))
    return A, (1 - kink) + 2 * kink / math.pi * left


def _horner(coefficients: list[Tensor], p: Tensor, out: Tensor) -> None:
    """Evaluate a polynomial in p, highest coefficient first."""
    first, *others = coefficients
    if not others:
        out.copy_(first.expand(p.shape))
        return
    torch.add(others[0], p, alpha=float(first), out=out)
    for coefficient in others[1:]:
        torch.addcmul(coefficient, out, p, out=out)


@functools.cache
def _series(
    bucket: int, kink: float, dtype: torch.dtype, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Return polynomials for −(2λ/π) P and −(λ/π) Q, as short as ``dtype`` allows.

    They are valid for p up to 2^(bucket/2), at most 0.52; highest coefficients come first.
    """
    # P = Σ c_k p^k with c_k = (2k)! / (4^k k!² (2k + 1)), the series of arcsin;
    # d(p h Q)/dp = 2 h P gives Q = Σ 4 c_k p^k / (2k + 3).
    p_max = min(2 ** (bucket / 2), _SERIES_LIMIT)
    k = np.arange(80.0)
    central = np.cumprod(np.append(1.0, 1 - 0.5 / k[1:]))  # (2k)! / (4^k k!²)
    c = central / (2 * k + 1)
    series = []
    for taylor in (-2 * kink / math.pi * c, -4 * kink / math.pi * c / (2 * k + 3)):
        # In units of p_max, then economised: Chebyshev coefficients below rounding are dropped.
        scaled = Polynomial(taylor * p_max**k, domain=[0, 1], window=[0, 1])
        chebyshev = scaled.convert(domain=[0, 1], kind=Chebyshev, window=[-1, 1])
        size = np.abs(chebyshev.coef) * math.sqrt(p_max)
        needed = np.flatnonzero(size > torch.finfo(dtype).eps / 4)
        degree = int(needed[-1]) if len(needed) else 0
        short = chebyshev.truncate(degree + 1).convert(
            domain=[0, 1], kind=Polynomial, window=[0, 1]
        )
        coefficients = np.asarray(short.coef, dtype=float) / p_max ** k[: degree + 1]
        series.append([torch.tensor(c, dtype=dtype, device=device) for c in coefficients[::-1]])
    return series[0], series[1]
