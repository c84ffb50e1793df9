"""Arguments of the tangent frame: tensors on its rows and of its dtype."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sklearn_kd.kernels._protocol import KernelFunction


def require_kernel_function(kernel: Any) -> None:
    """Raise `TypeError` unless ``kernel`` is a function of tensors."""
    if not isinstance(kernel, KernelFunction):
        remedy = (
            "pass kernel.to_torch()" if hasattr(kernel, "to_torch") else "pass NTK().to_torch()"
        )
        raise TypeError(
            f"kernel={kernel!r} is no kernel function of tensors; {remedy}, or take "
            "tangent_frame() of a fitted student."
        )


def require_tensor(value: Any, name: str) -> None:
    """Raise `TypeError` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}, but a TangentFrame takes tensors; pass "
            f"torch.as_tensor({name})."
        )


def require_like(value: Any, name: str, reference: Tensor) -> None:
    """Raise unless ``value`` is a tensor with the dtype and device of the frame's rows."""
    require_tensor(value, name)
    if value.dtype != reference.dtype or value.device != reference.device:
        raise TypeError(
            f"{name} is of {value.dtype} on {value.device}, but the frame is of {reference.dtype} "
            f"on {reference.device}; pass {name}.to(frame.X)."
        )


def require_rows(X: Any, reference: Tensor) -> None:
    """Raise unless ``X`` holds rows with the features of the frame's."""
    require_like(X, "X", reference)
    if X.ndim != 2 or X.shape[1] != reference.shape[1]:
        raise ValueError(
            f"X has shape {tuple(X.shape)}, but the rows of the frame have {reference.shape[1]} "
            f"features; pass rows of shape (m, {reference.shape[1]})."
        )


def require_targets(targets: Any, reference: Tensor) -> None:
    """Raise unless ``targets`` hold a value for each of the frame's rows."""
    require_like(targets, "targets", reference)
    if targets.ndim == 0 or len(targets) != len(reference):
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but the frame has {len(reference)} rows; "
            "pass a value, or a row of values, for each of them in their order."
        )
