r"""Shared parts of training in function space: products with Θ, losses and their derivatives.

In the wide limit a network is f = z₀ + Θ(·, X) a, so training finds the dual coefficients a. B runs
go side by side, since their products with Θ are one matrix product.

======  ============================================  ==============================
symbol  meaning                                       name, shape
======  ============================================  ==============================
Θ, K    tangent kernel of the training rows           ``kernel_matrix`` (n, n)
a       dual coefficients                             ``coefs`` (B, C, n)
f       logits on the training rows, z₀ + K a         ``logits`` like a
q       shares of the classes to reach                ``shares`` like a
z       targets of the squared error                  ``targets`` like a
ω       row weights                                   ``weights`` (B, n)
W       minus the derivative of ω r(f) in f           ``CurvatureRoot`` holds M, W = M Mᵀ
======  ============================================  ==============================

C is 1 for two classes that share one logit, with the sigmoid for σ; else the number of classes,
with the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["CrossEntropy", "CurvatureRoot", "KernelProduct", "Loss", "SquaredError", "Term"]


class KernelProduct:
    """The map a -> K a / unit of many columns. It counts its products, the cost of training.

    Parameters
    ----------
    kernel_matrix : Tensor of shape (n, n)
        Symmetric.
    unit : float, default=1.0
        A number of the size of the kernel's values, which may be extreme.
    """

    def __init__(self, kernel_matrix: Tensor, unit: float = 1.0) -> None:
        self.kernel_matrix = kernel_matrix
        self.root = math.sqrt(unit)  # half before and half after: neither overflows
        self.count = 0

    def __call__(self, coefs: Tensor) -> Tensor:
        self.count += 1
        rows = (coefs / self.root).reshape(-1, coefs.shape[-1])
        return (rows @ self.kernel_matrix).view_as(coefs) / self.root


class Loss(Protocol):
    """A loss of the logits, one for each run."""

    @property
    def shape(self) -> torch.Size:
        """(B, C, n)."""
        ...

    @property
    def never_ends(self) -> np.ndarray:
        """Whether some row's loss has no minimum, so that training never ends, (B,)."""
        ...

    def residual(self, logits: Tensor) -> Tensor:
        """Return minus the derivative r(f) of the loss, (B, C, n)."""
        ...

    def curvature_root(self, logits: Tensor, weights: Tensor) -> CurvatureRoot:
        """Return a root of ω times the second derivative."""
        ...

    def of(self, runs: Any) -> Loss:
        """Return the loss of some runs."""
        ...


class CurvatureRoot(NamedTuple):
    """A square root M of the loss's curvature, W = M Mᵀ: C rows for each row of X, or a multiple.

    Parameters
    ----------
    scales : sequence of P tensors that broadcast to (B, C, n)
    probabilities : sequence of P tensors of shape (B, C, n), or None
        Softmax probabilities p: M is then [diag(s) - p sᵀ] side by side, s the scales.
    """

    # squared error        W_i = ω_i I
    # cross-entropies      W_i = ω_i Σ_j (c_j/T_j²) V(σ(f/T_j)), with
    #     V = p (1 - p), or V = diag(p) - p pᵀ = (diag(q) - p qᵀ)(diag(q) - q pᵀ), q = √p.
    scales: Sequence[Tensor]
    probabilities: Sequence[Tensor] | None = None
    likeliest: Sequence[Tensor] = ()  # (B, 1, n), the class of the largest p

    @property
    def largest_squared(self) -> Tensor:
        """The size of W in each run: the square of M's largest entry, up to a small factor."""
        return torch.stack([scale.amax(dim=(1, 2)) for scale in self.scales]).amax(dim=0).square()

    def of(self, runs: Any) -> Self:
        """Return the root of some runs."""
        scales = [scale[runs] for scale in self.scales]
        if self.probabilities is None:
            return self._replace(scales=scales)
        return type(self)(
            scales, [p[runs] for p in self.probabilities], [c[runs] for c in self.likeliest]
        )

    def apply(self, vector: Tensor) -> Tensor:
        """Return M x, from (B, P C, n) to (B, C, n)."""
        if self.probabilities is None:
            return self.scales[0] * vector
        total: Tensor | None = None
        parts = vector.chunk(len(self.scales), dim=1)
        for scale, p, part in zip(self.scales, self.probabilities, parts, strict=True):
            scaled = scale * part
            image = scaled - p * scaled.sum(dim=1, keepdim=True)
            total = image if total is None else total + image
        assert total is not None, "there is a part"
        return total

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Return Mᵀ x, from (B, C, n) to (B, P C, n)."""
        if self.probabilities is None:
            return self.scales[0] * vector
        parts = []
        for scale, p, best in zip(self.scales, self.probabilities, self.likeliest, strict=True):
            # Only differences between classes count; from the likeliest class they do not cancel.
            differences = vector - vector.gather(1, best)
            parts.append(scale * (differences - (p * differences).sum(dim=1, keepdim=True)))
        return torch.cat(parts, dim=1)

    def curvature(self, vector: Tensor) -> Tensor:
        """Return W x."""
        return self.apply(self.apply_transpose(vector))


class SquaredError(NamedTuple):
    """The loss ½ (z - f)²."""

    targets: Tensor  # (B, C, n)

    @property
    def shape(self) -> torch.Size:
        """(B, C, n)."""
        return self.targets.shape

    @property
    def never_ends(self) -> np.ndarray:
        """A parabola has its minimum."""
        return np.zeros(len(self.targets), dtype=bool)

    def residual(self, logits: Tensor) -> Tensor:
        """Return z - f."""
        return self.targets - logits

    def curvature_root(self, logits: Tensor, weights: Tensor) -> CurvatureRoot:
        """Return √ω."""
        return CurvatureRoot([weights.sqrt()[:, None]])

    def of(self, runs: Any) -> Self:
        """Return the loss of some runs."""
        return self._replace(targets=self.targets[runs])


class Term(NamedTuple):
    """c H(q, σ(f/T)): a cross-entropy to fixed shares, at a temperature."""

    shares: Tensor  # q, (B, C, n)
    complements: Tensor  # 1 - q, without cancellation
    weight: Tensor  # c, (B, 1, 1), or (B, 1, n) where rows differ
    temperature: Tensor  # T, (B, 1, 1)

    @classmethod
    def of_labels(cls, shares: Tensor) -> Self:
        """Return the log loss of hard labels or shares (B, C, n)."""
        one = shares.new_ones(len(shares), 1, 1)
        return cls(shares, 1 - shares, weight=one, temperature=one)

    def of(self, runs: Any) -> Self:
        """Return the term of some runs."""
        return type(self)(*(part[runs] for part in self))


class CrossEntropy(NamedTuple):
    """A weighted sum of cross-entropies: the log loss, or that of distillation (Eq. 2)."""

    terms: Sequence[Term]

    @property
    def shape(self) -> torch.Size:
        """(B, C, n)."""
        return self.terms[0].shares.shape

    @property
    def never_ends(self) -> np.ndarray:
        """Whether all terms of some row give all or nothing to a class: its logit is infinite."""
        to_all = torch.stack([(t.weight * t.shares > 0) for t in self.terms]).any(dim=0)
        to_others = torch.stack([(t.weight * t.complements > 0) for t in self.terms]).any(dim=0)
        return (to_all ^ to_others).flatten(1).any(dim=1).cpu().numpy()

    def value(self, logits: Tensor) -> Tensor:
        """Return Σ_j c_j H(q_j, σ(f/T_j)) of every row, (B, n)."""
        total = logits.new_zeros(len(logits), logits.shape[2])
        for shares, complements, weight, temperature in self.terms:
            f = logits / temperature
            if f.shape[1] == 1:
                entropy = shares * softplus(-f) + complements * softplus(f)
            else:
                entropy = -(shares * torch.log_softmax(f, dim=1)).sum(dim=1, keepdim=True)
            total += (weight * entropy)[:, 0]
        return total

    def residual(self, logits: Tensor) -> Tensor:
        """Return Σ_j (c_j/T_j) (q_j - σ(f/T_j)), without cancellation once a share is reached."""
        total = torch.zeros_like(logits)
        for shares, complements, weight, temperature in self.terms:
            p, others = _probabilities(logits / temperature)
            total += weight / temperature * (shares * others - complements * p)
        return total

    def curvature_root(self, logits: Tensor, weights: Tensor) -> CurvatureRoot:
        """Return a root of ω Σ_j (c_j/T_j²) V(σ(f/T_j)), V the covariance of one draw."""
        sizes, probabilities = [], []
        for _, _, weight, temperature in self.terms:
            p, others = _probabilities(logits / temperature)
            size = weights[:, None] * weight / temperature.square()
            sizes.append(size * p * others if logits.shape[1] == 1 else size * p)
            probabilities.append(p)
        if logits.shape[1] == 1:
            return CurvatureRoot([torch.stack(sizes).sum(dim=0).sqrt()])
        likeliest = [p.argmax(dim=1, keepdim=True) for p in probabilities]
        return CurvatureRoot([size.sqrt() for size in sizes], probabilities, likeliest)

    def of(self, runs: Any) -> Self:
        """Return the loss of some runs."""
        return self._replace(terms=[term.of(runs) for term in self.terms])


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return σ(f) and 1 - σ(f), each to its own digits."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits), torch.sigmoid(-logits)
    p = torch.softmax(logits, dim=1)
    rest = 1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    return p, rest @ p
