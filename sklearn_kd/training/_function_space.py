r"""Shared parts of training in function space: products with Θ and loss derivatives.

In the wide limit a network is f = Θ(·, X) a, so training finds the dual coefficients a.

======  ============================================  ==============================
symbol  meaning                                       name, shape
======  ============================================  ==============================
Θ, K    tangent kernel of the training rows           ``kernel_matrix`` (n, n)
a       dual coefficients                             ``coefs`` (n,) or (n, C)
f       logits on the training rows, K a              ``logits`` like a
y       labels in [0, 1] or rows of the simplex       ``labels`` like a
z       targets of the squared error                  ``targets`` like a
ω       row weights                                   ``weights`` (n,)
W       minus the derivative of ω r(f) in f           ``CurvatureRoot`` holds M, W = M Mᵀ
======  ============================================  ==============================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["CurvatureRoot", "KernelProduct", "residual"]


class KernelProduct:
    """The map a -> K a / unit. It counts its products, which are the cost of training.

    Parameters
    ----------
    kernel_matrix : Tensor of shape (n, n)
    unit : float, default=1.0
        A number of the size of the kernel's values, which may be extreme.
    """

    def __init__(self, kernel_matrix: Tensor, unit: float = 1.0) -> None:
        self.kernel_matrix = kernel_matrix
        self.root = math.sqrt(unit)  # half before and half after: neither overflows
        self.count = 0

    def __call__(self, coefs: Tensor) -> Tensor:
        self.count += 1
        return self.kernel_matrix @ (coefs / self.root) / self.root


def residual(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Return minus the derivative of the loss in the logits, row by row."""
    # log_loss       r = y - sigmoid(f)  or  Y - softmax(f)
    # squared_error  r = z - f           of the loss (z - f)^2 / 2
    if loss == "squared_error":
        return targets - logits
    # r = y (1 - p) - (1 - y) p, without the cancellation of 1 - p once a label is fitted.
    if logits.ndim == 1:
        p, others = torch.sigmoid(logits), torch.sigmoid(-logits)
    else:
        p = torch.softmax(logits, dim=1)
        others = p @ (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))
    return targets * others - (1 - targets) * p


class CurvatureRoot:
    """A square root M of the loss's curvature: W = M Mᵀ, one C x C block per row.

    Parameters
    ----------
    logits : Tensor of shape (n,) or (n, C)
        Where the curvature is taken.
    weights : Tensor of shape (n,)
        Positive row weights.
    loss : {"log_loss", "squared_error"}
    """

    # squared_error        W_i = ω_i I
    # log_loss, binary     W_i = ω_i p (1 - p)
    # log_loss, C classes  W_i = ω_i (diag(p) - p pᵀ) = ω_i (diag(q) - p qᵀ)(diag(q) - q pᵀ), q = √p
    def __init__(self, logits: Tensor, weights: Tensor, loss: str) -> None:
        self.probabilities: Tensor | None = None
        if logits.ndim == 1:
            curvature = torch.sigmoid(logits) * torch.sigmoid(-logits)
            self.scale = (weights if loss == "squared_error" else weights * curvature).sqrt()
        elif loss == "squared_error":
            self.scale = weights.sqrt()[:, None]
        else:
            p = torch.softmax(logits, dim=1)
            self.probabilities = p
            self.likeliest = p.argmax(dim=1, keepdim=True)
            self.scale = (weights[:, None] * p).sqrt()

    @property
    def largest_squared(self) -> float:
        """The size of W: the square of the largest entry of M, up to a factor of two."""
        return self.scale.max().item() ** 2

    def apply(self, vector: Tensor) -> Tensor:
        """Return M x."""
        scaled = self.scale * vector
        if self.probabilities is None:
            return scaled
        return scaled - self.probabilities * scaled.sum(dim=1, keepdim=True)

    def apply_transpose(self, vector: Tensor) -> Tensor:
        """Return Mᵀ x."""
        if self.probabilities is None:
            return self.scale * vector
        # Only differences between classes count; from the likeliest class they do not cancel.
        differences = vector - vector.gather(1, self.likeliest)
        mean = (self.probabilities * differences).sum(dim=1, keepdim=True)
        return self.scale * (differences - mean)

    def curvature(self, vector: Tensor) -> Tensor:
        """Return W x."""
        return self.apply(self.apply_transpose(vector))
