"""The kernel recursion on covariances, for smooth activations.

=========  ======================================================  =====================
symbol     meaning                                                 name (shape)
=========  ======================================================  =====================
q₁₁        variance of the pre-activation of a row, per layer      ``variances`` (L+1, n)
q₁₂        covariance of two rows, the NNGP kernel                 ``q12`` (n, m)
Θ          tangent kernel, the NTK                                 ``ntk`` (n, m)
σ_w, σ_b   weight and bias scales of Eq. 1                         ``weight_std``, ``bias_std``
=========  ======================================================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_kd.kernels.infinite._activations import Smooth, require_resolved
from sklearn_kd.kernels.infinite._covariance_pairs import first_pairs, next_pairs
from sklearn_kd.kernels.infinite._variances import input_variances, require_finite

# For pairs with cos²ω below this, 1 − sin²ω has lost two digits or more.
_SMALLEST_COSINE2 = 1e-2
_PAIR_ELEMENTS = 2**20  # entries of x − x′ held at a time


@dataclass(frozen=True)
class CovarianceRows:
    """Rows ready for products, with their variance in every layer; in float64."""

    inputs: Tensor  # (n, d), x
    variances: Tensor  # (L + 1, n)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> CovarianceRows:
        return CovarianceRows(self.inputs[rows], self.variances[:, rows])


@dataclass(frozen=True)
class CovarianceRecursion:
    """q₁₂ ← σ_w² E[g g] + σ_b² and Θ ← q₁₂ + σ_w² Θ E[g′g′], layer by layer.

    Computed in float64 whatever the dtype of the rows, and rounded once. cos²ω is small for rows
    that are nearly parallel or opposite and far from 0. There 1 − sin²ω loses it to rounding, so
    such pairs are recomputed by `_covariance_pairs`.
    """

    activation: Smooth
    depth: int
    weight_std: float
    bias_std: float
    kind: str

    buffers = 0  # arrays of a tile's size that `tile` works in

    def rows(self, X: Tensor, like: CovarianceRows | None = None) -> CovarianceRows:
        """Prepare rows ``X`` of shape (n, d); ``like`` is not needed here."""
        return CovarianceRows(X.double(), self.variances(X))

    def _first_covariances(self, x: CovarianceRows, y: CovarianceRows) -> Tensor:
        """Return q₁₂ of the first layer, shape (n, m)."""
        unit = self.weight_std / math.sqrt(x.inputs.shape[1])
        return torch.mm(x.inputs * unit, y.inputs.T * unit).add_(self.bias_std**2)

    def variances(self, X: Tensor) -> Tensor:
        """Return q₁₁ of the rows of ``X`` in every layer, shape (L + 1, n)."""
        variances = self._variances(X.double(), self.weight_std, self.bias_std)
        require_finite(variances, self.diagonal(variances))
        return require_resolved(self.activation, variances)

    def _variances(self, X: Tensor, weight_std: float | Tensor, bias_std: float | Tensor) -> Tensor:
        variance = input_variances(X, weight_std, bias_std)
        variances = [variance]
        for _ in range(self.depth):
            average, _ = self.activation.dual(variance, variance, variance, sin2=0.0)
            variance = weight_std**2 * average + bias_std**2
            variances.append(variance)
        return torch.stack(variances)

    def diagonal(self, variances: Tensor) -> Tensor:
        """Return K(x, x) for rows with these variances, shape (n,)."""
        return self._propagate(variances[0], variances, variances, sin2=0.0)

    def tile(
        self, x: CovarianceRows, y: CovarianceRows, out: Tensor, work: list[Tensor], *, same: bool
    ) -> None:
        """Write K(x, y) into ``out`` of shape (n, m)."""
        q12 = self._first_covariances(x, y)
        lost = torch.zeros_like(q12, dtype=torch.bool)
        out.copy_(self._propagate(q12, x.variances[:, :, None], y.variances[:, None, :], lost=lost))
        if same:
            lost.fill_diagonal_(False)
        for i, j in _split_pairs(lost, x.inputs.shape[1]):
            q = x.variances[:, i], y.variances[:, j]
            out[i, j] = self._propagate_pairs(
                x.inputs[i], y.inputs[j], *q, self.weight_std, self.bias_std
            ).to(out.dtype)

    def _propagate(
        self,
        q12: Tensor,
        q11: Tensor,
        q22: Tensor,
        *,
        sin2: float | None = None,
        lost: Tensor | None = None,
    ) -> Tensor:
        """Return K for covariances, and mark as ``lost`` the entries that rounding may decide."""
        ntk = q12
        for layer in range(self.depth):
            if lost is not None:
                self._mark_lost(q11[layer], q12, q22[layer], lost)
            values, slopes = self.activation.dual(q11[layer], q12, q22[layer], sin2=sin2)
            q12 = self.weight_std**2 * values + self.bias_std**2
            if self.kind == "ntk":
                ntk = q12 + self.weight_std**2 * ntk * slopes
        return ntk if self.kind == "ntk" else q12

    def _mark_lost(self, q11: Tensor, q12: Tensor, q22: Tensor, lost: Tensor) -> None:
        """Mark the pairs with cos²ω below `_SMALLEST_COSINE2`, if their variances allow any."""
        alpha, beta = 1 + self.activation.scale * q11, 1 + self.activation.scale * q22
        if float(1 / alpha.amax() + 1 / beta.amax()) < _SMALLEST_COSINE2:
            # |sin ω| = κ |q₁₂| / √(αβ)
            share = self.activation.scale / math.sqrt(1 - _SMALLEST_COSINE2)
            lost |= q12.abs() > (alpha.sqrt() / share) * beta.sqrt()

    def _propagate_pairs(
        self,
        x: Tensor,
        y: Tensor,
        q11: Tensor,
        q22: Tensor,
        weight_std: float | Tensor,
        bias_std: float | Tensor,
    ) -> Tensor:
        """Return K of pairs of rows (k, d) with variances (L + 1, k), shape (k,)."""
        pairs = first_pairs(x, y, q11[0], q22[0], weight_std, bias_std)
        ntk = pairs.q12
        for layer in range(self.depth):
            values, slopes = self.activation.dual(*pairs[:4])
            q = q11[layer + 1], q22[layer + 1]
            pairs = next_pairs(self.activation, pairs, values, *q, weight_std, bias_std)
            ntk = pairs.q12 + weight_std**2 * ntk * slopes
        return ntk if self.kind == "ntk" else pairs.q12

    def _pair_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the derivatives of K of pairs of rows (k, d), shape (2, k)."""
        with torch.enable_grad():
            # Each pair has parameters of its own, so that one pass finds the derivatives of all.
            logs = [x.new_zeros(len(x), requires_grad=True) for _ in range(2)]
            weight_std, bias_std = self.weight_std * logs[0].exp(), self.bias_std * logs[1].exp()
            q11, q22 = (self._variances(rows, weight_std, bias_std) for rows in (x, y))
            K = self._propagate_pairs(x, y, q11, q22, weight_std, bias_std)
            return torch.stack(torch.autograd.grad(K.sum(), logs))

    def gradient(self, x: CovarianceRows, y: CovarianceRows) -> Tensor:
        """Return the derivatives of K(x, y) in log σ_w and log σ_b, shape (2, n, m)."""
        variance_w, variance_b = self.weight_std**2, self.bias_std**2
        # derivatives of log σ_w² and of σ_b²; a leading axis of two runs over the parameters
        d_w, d_bias = x.inputs.new_tensor([[2, 0], [0, 2 * variance_b]])[..., None, None]

        def advance(q: list[Tensor], d_q: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            values, slopes, value_partials, slope_partials = self._partials(*q)
            d_values = sum(partial * d for partial, d in zip(value_partials, d_q, strict=True))
            d_slopes = sum(partial * d for partial, d in zip(slope_partials, d_q, strict=True))
            return (
                variance_w * values + variance_b,
                variance_w * (d_values + d_w * values) + d_bias,
                variance_w * slopes,
                variance_w * (d_slopes + d_w * slopes),
            )

        q12 = self._first_covariances(x, y)
        lost = torch.zeros_like(q12, dtype=torch.bool)
        q = [x.variances[0][:, None], q12, y.variances[0][None, :]]
        d_q = [d_w * (covariance - variance_b) + d_bias for covariance in q]
        ntk, d_ntk = q[1], d_q[1]
        for _ in range(self.depth):
            self._mark_lost(q[0], q[1], q[2], lost)
            q12, d_q12, slopes, d_slopes = advance(q, d_q)
            d_ntk = d_q12 + d_ntk * slopes + ntk * d_slopes
            ntk = q12 + ntk * slopes
            (q11, d_q11, *_), (q22, d_q22, *_) = (
                advance(3 * [q[side]], 3 * [d_q[side]]) for side in (0, 2)
            )
            q, d_q = [q11, q12, q22], [d_q11, d_q12, d_q22]
        gradient = d_ntk if self.kind == "ntk" else d_q[1]
        for i, j in _split_pairs(lost, x.inputs.shape[1]):
            gradient[:, i, j] = self._pair_gradient(x.inputs[i], y.inputs[j])
        return gradient

    def _partials(
        self, *q: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return E[g g], E[g′g′] and the three partial derivatives of each, entry by entry."""
        with torch.enable_grad():
            full = [side.clone().requires_grad_() for side in torch.broadcast_tensors(*q)]
            values, slopes = self.activation.dual(*full)
            value_partials = torch.autograd.grad(values.sum(), full, retain_graph=True)
            slope_partials = torch.autograd.grad(slopes.sum(), full)
        return values.detach(), slopes.detach(), value_partials, slope_partials


def _split_pairs(lost: Tensor, n_features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the positions (k,), (k,) of the marked pairs in (n, m), few at a time."""
    i, j = torch.nonzero(lost, as_tuple=True)
    step = max(1, _PAIR_ELEMENTS // n_features)
    for start in range(0, len(i), step):
        yield i[start : start + step], j[start : start + step]
