"""Arguments of `distillation` and `metrics`: conversion and checks.

An argument is first converted to a tensor of numbers; then each entry is checked. Every error names
the argument, the value and the remedy.
"""

from __future__ import annotations

import math
import reprlib
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import is_array_like, to_tensor
from sklearn_kd._logits import hard_labels

TEMPERATURE_SCALINGS = ("none", "squared")
# Rounding moves effective logits of K classes by 4e-17 / T of their size, and those of fractional
# labels by 1e-21 / T.
LEAST_OF_CLASSES, LEAST_OF_FRACTIONS = 1e-5, 1e-10
LARGEST_LOGIT, LARGEST_QUOTIENT = 1e300, 1e305


def numbers(value: Any, name: str, device: str | torch.device = "cpu") -> Tensor:
    """Return the argument ``name`` as a float64 tensor."""
    if not (isinstance(value, (Integral, np.bool_)) or is_array_like(value)):
        raise TypeError(
            f"{name} must be a number or an array of numbers; got {reprlib.repr(value)} of type "
            f"{type(value).__name__}. Check the order of the arguments."
        )
    return to_tensor(value, device=device, name=name)


def scalar(value: Any, name: str) -> float:
    """Return one number; checked."""
    number = numbers(value, name)
    if number.ndim > 0 or not number.isfinite():
        raise ValueError(f"{name} must be one finite number; got {reprlib.repr(value)}.")
    return number.item()


def positive_scalar(value: Any, name: str) -> float:
    """Return one positive number; checked."""
    number = numbers(value, name)
    if number.ndim > 0 or not 0 < number < math.inf:
        raise ValueError(f"{name} must be one positive, finite number; got {number.tolist()}.")
    return number.item()


def fraction(value: Any, name: str) -> float:
    """Return one number strictly between 0 and 1; checked."""
    number = scalar(value, name)
    if not 0 < number < 1:
        raise ValueError(
            f"{name} must be between 0 and 1, both excluded; got {number}. Give 95 % as 0.95."
        )
    return number


def count(value: Any, name: str, least: int) -> int:
    """Return one integer of at least ``least``; checked."""
    number = scalar(value, name)
    if number < least or number != round(number):
        raise ValueError(f"{name} must be an integer of at least {least}; got {number:g}.")
    return round(number)


def vector(value: Any, name: str) -> Tensor:
    """Return finite numbers, one for each of one or more rows; checked."""
    values = numbers(value, name)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} must have shape (n,) with at least one row; got shape {tuple(values.shape)}. "
            "Flatten a column with ravel()."
        )
    check_finite(values, name)
    return values


def row_logits(value: Any, name: str) -> Tensor:
    """Return finite logits of one or more rows, (n,) or (n, K) with K >= 2; checked."""
    logits = numbers(value, name)
    if logits.ndim not in (1, 2) or 0 in logits.shape or logits.shape[1:] == (1,):
        raise ValueError(
            f"{name} must have shape (n,), or (n, K) for K classes, with at least one row; got "
            f"{tuple(logits.shape)}. Flatten a column with ravel()."
        )
    check_finite(logits, name)
    return logits


def row_weights(value: Any, n_rows: int, name: str = "sample_weight") -> Tensor:
    """Return non-negative row weights that are not all zero; checked."""
    weights = numbers(value, name)
    if weights.shape != (n_rows,):
        raise ValueError(
            f"{name} must have shape ({n_rows},), one weight a row; got {tuple(weights.shape)}."
        )
    require_each(
        (weights >= 0) & torch.isfinite(weights),
        name,
        weights,
        "must be non-negative and finite",
        "a weight counts how often a row is there; 0 leaves it out.",
    )
    if not weights.sum() > 0:
        raise ValueError(f"{name} are 0 for all {n_rows} rows; leave at least one row in.")
    return weights


def double(value: Tensor | float, device_of: Tensor) -> Tensor:
    """Return ``value`` as a float64 tensor on the device of another tensor; not checked."""
    return torch.as_tensor(value, dtype=torch.float64, device=device_of.device)


def loss_weights(soft_ratio: Tensor, temperature: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Return weights of the soft and of the hard term of Eq. 3, up to a common factor.

    Eq. 3 has ρ/T and 1 - ρ; with Hinton's factor T² it has ρ T and 1 - ρ.
    """
    if scaling == "none":
        return soft_ratio, (1 - soft_ratio) * temperature
    return soft_ratio * temperature, 1 - soft_ratio


def log_weight_ratio(soft_ratio: Tensor, temperature: Tensor, scaling: str) -> Tensor:
    """Return the logarithm of the ratio of the `loss_weights`; the ratio itself may overflow."""
    log_t = torch.log(temperature)
    log_odds = torch.log(soft_ratio) - torch.log1p(-soft_ratio)
    return log_odds - log_t if scaling == "none" else log_odds + log_t


def is_class_last(teacher_logits: Tensor) -> bool:
    """Whether the last axis of ``teacher_logits`` counts classes (the rule of the docstring)."""
    return teacher_logits.ndim >= 2 and teacher_logits.shape[-1] >= 2


def check_word(value: Any, name: str, words: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of the accepted words."""
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} must be one of {words}; got {reprlib.repr(value)}.")


def check_temperature_scaling(temperature_scaling: Any) -> None:
    """Raise unless ``temperature_scaling`` is one of the accepted words."""
    check_word(temperature_scaling, "temperature_scaling", TEMPERATURE_SCALINGS)


def check_soft_ratio(soft_ratio: Tensor) -> None:
    """Raise unless every soft ratio is in (0, 1]."""
    require_each(
        (soft_ratio > 0) & (soft_ratio <= 1),
        "soft_ratio",
        soft_ratio,
        "must be in (0, 1]",
        "hard labels alone (soft_ratio=0) have no finite effective logit; use a small positive "
        "value such as 1e-3.",
    )


def check_temperature(temperature: Tensor) -> None:
    """Raise unless every temperature is positive, finite and far from the ends of float64."""
    require_each(
        (temperature > 0) & torch.isfinite(temperature),
        "temperature",
        temperature,
        "must be positive and finite",
        "1.0 leaves the teacher's logits as they are.",
    )
    require_each(
        (temperature >= 1e-300) & (temperature <= 1e300),
        "temperature",
        temperature,
        "must be in [1e-300, 1e300]",
        "1.0 leaves the teacher's logits as they are.",
    )


def check_resolved_temperature(temperature: Tensor, least: float, case: str) -> None:
    """Raise unless every temperature is high enough for float64 to resolve effective logits.

    Where hard and soft label balance, effective logits are differences of size T.
    """
    require_each(
        temperature >= least,
        "temperature",
        temperature,
        f"must be at least {least:g} {case}",
        "soft labels at so low a temperature are hard ones; give those as y.",
    )


def check_quotients(teacher_logits: Tensor, temperature: Tensor) -> None:
    """Raise unless logits, and logits over temperatures, leave room below the largest float64."""
    size = teacher_logits.abs()
    require_each(
        (size <= LARGEST_LOGIT) & (size / temperature <= LARGEST_QUOTIENT),
        "teacher_logits",
        teacher_logits,
        f"must be at most {LARGEST_LOGIT:g} in size, and {LARGEST_QUOTIENT:g} over temperature",
        "raise temperature, or give probabilities p a floor, np.log(np.maximum(p, 1 / n)), before "
        "they become logits; n is the number of rows that the teacher was fitted on.",
    )


def check_finite(logits: Tensor, name: str) -> None:
    """Raise unless every logit is finite."""
    require_each(
        torch.isfinite(logits),
        name,
        logits,
        "must be finite",
        "leave such rows out, or clip probabilities to [0.001, 0.999] before taking log-odds.",
    )


def check_binary_labels(y: Tensor) -> None:
    """Raise unless every label is in [0, 1]."""
    require_each(
        (y >= 0) & (y <= 1),
        "y",
        y,
        "must be in [0, 1] for binary logits",
        "encode the two classes as 0 and 1, or give teacher_logits a class axis of length >= 2; "
        "teacher_logits come first, then y.",
    )


def simplex_rows(y: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return class indices or rows of the simplex as rows of the simplex (..., K); checked."""
    n_classes = teacher_logits.shape[-1]
    if y.shape == teacher_logits.shape:
        total = y.sum(dim=-1, keepdim=True)
        require_each(
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
    require_each(
        (y >= 0) & (y < n_classes) & (y == y.round()),
        "y",
        y,
        f"must hold class indices 0, ..., {n_classes - 1}",
        "encode the classes by their position on the last axis of teacher_logits, which come "
        "first, then y.",
    )
    return hard_labels(y.long(), n_classes).to(teacher_logits)


def check_no_outer(teacher_logits: Tensor, y: Tensor) -> None:
    """Raise if a column and a vector of equal length would broadcast to a square."""
    shapes = {tuple(teacher_logits.shape), tuple(y.shape)}
    n_rows = max(teacher_logits.numel(), y.numel())
    if n_rows > 1 and shapes == {(n_rows,), (n_rows, 1)}:
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)} and y has shape "
            f"{tuple(y.shape)}: every logit would meet every label. Flatten the column with "
            "ravel()."
        )


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


def require_each(ok: Tensor, name: str, value: Tensor, requirement: str, remedy: str) -> None:
    """Raise a ValueError that names the first offending entry (or row) of ``value``."""
    if bool(ok.all()):
        return
    position = tuple((~ok).nonzero()[0].tolist())
    where = f" at index {position if len(position) > 1 else position[0]}" if position else ""
    raise ValueError(f"{name} {requirement}; got {value[position].tolist()}{where}; {remedy}")
