"""The first step of all kernel recursions: the variances of the rows, within range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def input_variances(X: Tensor, weight_std: float | Tensor, bias_std: float | Tensor) -> Tensor:
    """Return q₁₁ = σ_w² |x|² / d + σ_b², shape (n,), for ``X`` of shape (n, d)."""
    # scaled first: squares of small numbers vanish
    unit = torch.as_tensor(weight_std, dtype=X.dtype, device=X.device) / math.sqrt(X.shape[1])
    return torch.linalg.vector_norm(X * unit.reshape(-1, 1), dim=1).square() + bias_std**2


def require_finite(variances: Tensor, diagonal: Tensor) -> Tensor:
    """Return ``variances`` of shape (L + 1, n) if they are finite, and so is K(x, x), (n,).

    Raises
    ------
    ValueError
        If a row holds NaN or infinity, or values whose squares overflow in any layer.
    """
    is_finite = torch.isfinite(variances).all(dim=0) & torch.isfinite(diagonal)
    bad = torch.nonzero(~is_finite).ravel()
    if len(bad):
        raise ValueError(
            f"The kernel of rows {bad[:10].tolist()} is not finite in {variances.dtype}: they hold "
            "NaN or infinity, or their squares overflow in some layer. Remove or rescale these "
            "rows, or use a smaller weight_std, bias_std or depth."
        )
    return variances
