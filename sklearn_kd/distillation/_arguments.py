"""Arguments of the distillation targets: how they are read, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_kd._logits import hard_labels

TEMPERATURE_SCALINGS = ("none", "squared")
# Rounding moves effective logits of K classes by 4e-17 / T of their size, and those of fractional
# labels by 1e-21 / T.
LEAST_OF_CLASSES, LEAST_OF_FRACTIONS = 1e-5, 1e-10


def double(value: Tensor | float, device_of: Tensor) -> Tensor:
    """Return ``value`` as a float64 tensor on the device of another tensor."""
    return torch.as_tensor(value, dtype=torch.float64, device=device_of.device)


def loss_weights(soft_ratio: Tensor, temperature: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Return weights of the soft and of the hard term of Eq. 3, up to a common factor.

    Eq. 3 has ρ/T and 1 - ρ; Hinton's factor T² makes the former ρ T.
    """
    if scaling == "none":
        return soft_ratio, (1 - soft_ratio) * temperature
    return soft_ratio * temperature, 1 - soft_ratio


def log_weight_ratio(soft_ratio: Tensor, temperature: Tensor, scaling: str) -> Tensor:
    """Return the logarithm of the ratio of the `loss_weights`, which itself may overflow."""
    log_t = torch.log(temperature)
    log_odds = torch.log(soft_ratio) - torch.log1p(-soft_ratio)
    return log_odds - log_t if scaling == "none" else log_odds + log_t


def is_class_last(teacher_logits: Tensor) -> bool:
    """Whether the last axis of ``teacher_logits`` counts classes (the rule of the docstring)."""
    return teacher_logits.ndim >= 2 and teacher_logits.shape[-1] >= 2


def check_temperature_scaling(temperature_scaling: str) -> None:
    """Raise unless ``temperature_scaling`` is one of the accepted words."""
    if temperature_scaling not in TEMPERATURE_SCALINGS:
        raise ValueError(
            f"temperature_scaling must be one of {TEMPERATURE_SCALINGS}; "
            f"got {temperature_scaling!r}."
        )


def check_soft_ratio(soft_ratio: Tensor) -> None:
    """Raise unless every soft ratio is in (0, 1]."""
    require(
        (soft_ratio > 0) & (soft_ratio <= 1),
        "soft_ratio",
        soft_ratio,
        "must be in (0, 1]",
        "hard labels alone (soft_ratio=0) have no finite effective logit; use a small positive "
        "value such as 1e-3.",
    )


def check_temperature(temperature: Tensor) -> None:
    """Raise unless every temperature is positive and finite."""
    require(
        (temperature > 0) & torch.isfinite(temperature),
        "temperature",
        temperature,
        "must be positive and finite",
        "1.0 leaves the teacher's logits as they are.",
    )


def check_resolved_temperature(temperature: Tensor, least: float, case: str) -> None:
    """Raise unless every temperature is high enough for float64 to resolve effective logits.

    Where a hard label holds against a soft one they are differences of size T.
    """
    require(
        temperature >= least,
        "temperature",
        temperature,
        f"must be at least {least:g} {case}",
        "soft labels at so low a temperature are hard ones; give those as y.",
    )


def check_finite(logits: Tensor, name: str) -> None:
    """Raise unless every logit is finite."""
    require(
        torch.isfinite(logits),
        name,
        logits,
        "must be finite",
        "clip the teacher's probabilities away from 0 and 1 before taking log-odds.",
    )


def check_binary_labels(y: Tensor) -> None:
    """Raise unless every label is in [0, 1]."""
    require(
        (y >= 0) & (y <= 1),
        "y",
        y,
        "must be in [0, 1] for binary logits",
        "encode the two classes as 0 and 1, or give teacher_logits a class axis of length >= 2.",
    )


def simplex_rows(y: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return class indices or rows of the simplex as rows of the simplex (..., K); checked."""
    n_classes = teacher_logits.shape[-1]
    if y.shape == teacher_logits.shape:
        total = y.sum(dim=-1, keepdim=True)
        require(
            (y >= 0).all(dim=-1) & ((total[..., 0] - 1).abs() <= 1e-6),
            "y",
            y,
            "must have nonnegative rows that sum to 1 (the last axis of teacher_logits counts "
            "classes)",
            "normalise its rows, pass class indices, or, if the logits are binary, give "
            "teacher_logits a last axis of length one.",
        )
        return y / total
    if y.shape != teacher_logits.shape[:-1]:
        raise ValueError(
            f"y must have shape {tuple(teacher_logits.shape[:-1])} (class indices) or "
            f"{tuple(teacher_logits.shape)} (rows of the simplex) for teacher_logits with "
            f"{n_classes} classes on the last axis; got shape {tuple(y.shape)}. If the logits "
            "are binary, give teacher_logits a last axis of length one."
        )
    require(
        (y >= 0) & (y < n_classes) & (y == y.round()),
        "y",
        y,
        f"must hold class indices 0, ..., {n_classes - 1}",
        "encode the classes by their position on the last axis of teacher_logits.",
    )
    return hard_labels(y.long(), n_classes).to(teacher_logits)


def check_broadcast(shape: torch.Size | None, **tensors: Tensor) -> None:
    """Raise unless the tensors broadcast together (with the result ``shape``, if given)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        common = torch.broadcast_shapes(*shapes.values(), *([] if shape is None else [shape]))
    except RuntimeError as error:
        raise ValueError(
            f"shapes do not broadcast: {shapes}"
            + ("" if shape is None else f" against rows of shape {tuple(shape)}")
            + "; give scalars or arrays that match."
        ) from error
    if shape is not None and common != shape:
        raise ValueError(
            f"{shapes} must broadcast to the rows of teacher_logits, of shape {tuple(shape)}; "
            "give scalars or one value a row."
        )


def require(ok: Tensor, name: str, value: Tensor, requirement: str, remedy: str) -> None:
    """Raise a ValueError that names the first offending entry (or row) of ``value``."""
    if bool(ok.all()):
        return
    position = tuple((~ok).nonzero()[0].tolist())
    where = f" at index {position if len(position) > 1 else position[0]}" if position else ""
    raise ValueError(f"{name} {requirement}; got {value[position].tolist()}{where}; {remedy}")
