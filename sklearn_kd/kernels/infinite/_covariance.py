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
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_kd.kernels.infinite._activations import Smooth, require_resolved
from sklearn_kd.kernels.infinite._variances import input_variances, require_finite


@dataclass(frozen=True)
class CovarianceRows:
    """Rows ready for products, with their variance in every layer; in float64."""

    inputs: Tensor  # (n, d), σ_w x / √d
    variances: Tensor  # (L + 1, n)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> CovarianceRows:
        return CovarianceRows(self.inputs[rows], self.variances[:, rows])


@dataclass(frozen=True)
class CovarianceRecursion:
    """q₁₂ ← σ_w² E[g g] + σ_b² and Θ ← q₁₂ + σ_w² Θ E[g′g′], layer by layer.

    Computed in float64 whatever the dtype of the rows, and rounded once: of nearly parallel rows
    cos ω = √(1 − sin²ω) is known to ε/cos²ω, and 1/cos²ω is as large as the variance.
    """

    activation: Smooth
    depth: int
    weight_std: float
    bias_std: float
    kind: str

    buffers = 0  # arrays of a tile's size that `tile` works in

    def rows(self, X: Tensor, like: CovarianceRows | None = None) -> CovarianceRows:
        """Prepare rows ``X`` of shape (n, d); ``like`` is not needed here."""
        inputs = X.double() * (self.weight_std / math.sqrt(X.shape[1]))
        return CovarianceRows(inputs, self.variances(X))

    def variances(self, X: Tensor) -> Tensor:
        """Return q₁₁ of the rows of ``X`` in every layer, shape (L + 1, n)."""
        variance = input_variances(X.double(), self.weight_std, self.bias_std)
        variances = [variance]
        for _ in range(self.depth):
            average, _ = self.activation.dual(variance, variance, variance)
            variance = self.weight_std**2 * average + self.bias_std**2
            variances.append(variance)
        return require_resolved(self.activation, require_finite(torch.stack(variances)))

    def diagonal(self, variances: Tensor) -> Tensor:
        """Return K(x, x) for rows with these variances, shape (n,)."""
        return self._propagate(variances[0], variances, variances)

    def tile(
        self, x: CovarianceRows, y: CovarianceRows, out: Tensor, work: list[Tensor], *, same: bool
    ) -> None:
        """Write K(x, y) into ``out`` of shape (n, m)."""
        q12 = torch.mm(x.inputs, y.inputs.T).add_(self.bias_std**2)
        out.copy_(self._propagate(q12, x.variances[:, :, None], y.variances[:, None, :]))

    def _propagate(self, q12: Tensor, q11: Tensor, q22: Tensor) -> Tensor:
        ntk = q12
        for layer in range(self.depth):
            values, slopes = self.activation.dual(q11[layer], q12, q22[layer])
            q12 = self.weight_std**2 * values + self.bias_std**2
            if self.kind == "ntk":
                ntk = q12 + self.weight_std**2 * ntk * slopes
        return ntk if self.kind == "ntk" else q12

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

        q12 = torch.mm(x.inputs, y.inputs.T).add_(variance_b)
        q = [x.variances[0][:, None], q12, y.variances[0][None, :]]
        d_q = [d_w * (covariance - variance_b) + d_bias for covariance in q]
        ntk, d_ntk = q[1], d_q[1]
        for _ in range(self.depth):
            q12, d_q12, slopes, d_slopes = advance(q, d_q)
            d_ntk = d_q12 + d_ntk * slopes + ntk * d_slopes
            ntk = q12 + ntk * slopes
            (q11, d_q11, *_), (q22, d_q22, *_) = (
                advance(3 * [q[side]], 3 * [d_q[side]]) for side in (0, 2)
            )
            q, d_q = [q11, q12, q22], [d_q11, d_q12, d_q22]
        return d_ntk if self.kind == "ntk" else d_q[1]

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
