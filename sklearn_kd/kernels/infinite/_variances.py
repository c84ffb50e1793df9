"""What all kernel recursions do with rows first: their variances, within range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def input_variances(X: Tensor, weight_std: float | Tensor, bias_std: float | Tensor) -> Tensor:
    """Return q₁₁ = σ_w² |x|² / d + σ_b², shape (n,), for ``X`` of shape (n, d)."""
    norms = torch.linalg.vector_norm(X, dim=1)
    return (norms * (weight_std / math.sqrt(X.shape[1]))).square() + bias_std**2


def require_finite(variances: Tensor) -> Tensor:
    """Return ``variances`` of shape (L + 1, n) if they are finite.

    Raises
    ------
    ValueError
        If a row holds NaN or infinity, or values whose squares overflow.
    """
    bad = torch.nonzero(~torch.isfinite(variances).all(dim=0)).ravel()
    if len(bad):
        raise ValueError(
            f"The kernel of rows {bad[:10].tolist()} is not finite in {variances.dtype}: they hold "
            "NaN, infinity or values too large to be squared. Remove or rescale these rows."
        )
    return variances
