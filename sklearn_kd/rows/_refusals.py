"""What rows, labels and weights cannot be, refused by name and with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import torch

from sklearn_kd._array import refuse_data_sets, require_numbers
from sklearn_kd._sklearn import move_to

# Kinds of numpy's dtypes that are no numbers, in words.
_NO_NUMBERS = {"M": "dates", "m": "durations", "V": "records"}


def require_rows(X: Any, y: Any = None) -> None:
    """Raise unless ``X`` may be rows of numbers, as far as its type, shape and dtype tell.

    Raises
    ------
    TypeError
        If ``X`` or ``y`` is a torch data set or loader.
    ValueError
        If ``X`` has masked entries, no numbers or more than two axes, or is swapped with ``y``.
    """
    for name, value in (("X", X), ("y", y)):
        refuse_data_sets(value, name)
        if np.ma.is_masked(value):
            raise ValueError(f"{name} has masked entries; fill or drop them.")
    shape, y_shape = _shape(X), _shape(y)
    if len(shape) == 1 and len(y_shape) == 2 and y_shape[1] > 1:
        raise ValueError(
            f"X has shape {shape} and y has shape {y_shape}, as if they were swapped; the order is "
            "fit(X, y)."
        )
    if len(shape) > 2:
        raise ValueError(
            f"X has shape {shape}; rows must be flat, X.reshape(len(X), -1). A network that "
            f"takes such inputs has input_shape={shape[1:]}, in TorchStudent and EmpiricalNTK."
        )
    _require_numeric_dtypes(X)


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of an array or frame, () of anything else."""
    shape = getattr(value, "shape", ())
    return tuple(shape) if isinstance(shape, (tuple, torch.Size)) else ()


def _require_numeric_dtypes(X: Any) -> None:
    """Raise for arrays and columns of dates, durations and records, which numpy casts silently."""
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    if kind in {"M", "m", "V"}:
        remedy = {
            "V": "numpy.lib.recfunctions.structured_to_unstructured(X) makes columns of them.",
        }.get(kind, "subtract a reference, and divide by a unit such as numpy.timedelta64(1, 'D').")
        raise ValueError(f"X holds {X.dtype} values, {_NO_NUMBERS[kind]}, not numbers; {remedy}")
    names = columns_that(X, lambda column: getattr(column.dtype, "kind", "") in {"M", "m"})
    if names:
        raise ValueError(
            f"X holds dates or durations in {_in_words(names)}; convert them to numbers, such as "
            "by (column - column.min()).dt.days, or drop them."
        )


def columns_that(X: Any, condition: Any) -> list[str]:
    """Return the names of the columns of a data frame that meet a condition; [] of an array."""
    if not (hasattr(X, "columns") and hasattr(X, "dtypes") and hasattr(X, "__getitem__")):
        return []
    return [name for name in X.columns if condition(X[name])]


def _in_words(names: list[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return f"column {shown}" if len(names) == 1 else f"columns {shown}"


def why_not_numbers(X: Any) -> str | None:
    """Return which columns of a data frame are no numbers or miss some; None if that is not it."""
    text = columns_that(X, _is_no_number)
    missing = columns_that(X, _has_missing)
    reasons = [f"no numbers in {_in_words(text)}"] if text else []
    reasons += [f"missing values in {_in_words(missing)}"] if missing else []
    return f"X holds {' and '.join(reasons)}" if reasons else None


@contextlib.contextmanager
def naming_columns(X: Any, remedy: str) -> Iterator[None]:
    """Let an error of the block name the columns of a data frame that are the reason, if any."""
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = why_not_numbers(X)
        if reason is None:
            raise
        raise ValueError(f"{reason}; {remedy}.") from error


def _is_no_number(column: Any) -> bool:
    try:
        np.asarray(column.dropna() if hasattr(column, "dropna") else column).astype(np.float64)
    except (TypeError, ValueError):
        return True
    return False


def _has_missing(column: Any) -> bool:
    return hasattr(column, "isna") and bool(column.isna().any())


def require_labels(y: np.ndarray) -> None:
    """Raise where labels are objects of no kind that a classifier takes.

    Raises
    ------
    ValueError
        If they are, with a message that begins as scikit-learn's.
    """
    if y.dtype.kind == "V":
        raise ValueError(f"Unknown label type: y holds {y.dtype} records; pass one label a row.")
    if y.dtype.kind != "O" or all(isinstance(label, str) for label in y.flat):
        return
    kinds = sorted({type(label).__name__ for label in y.flat})
    raise ValueError(
        f"Unknown label type: y holds objects of type {', '.join(kinds)}; convert them to one "
        "type, such as y.astype(str), or y.astype(int) for whole numbers."
    )


def numeric_weights(sample_weight: Any, n_rows: int) -> np.ndarray:
    """Return row weights as an array of numbers.

    Raises
    ------
    ValueError
        If they are not.
    """
    if isinstance(sample_weight, (str, dict)):
        raise ValueError(
            f"sample_weight={sample_weight!r} must be an array of {n_rows} numbers; for classes, "
            f"pass sklearn.utils.class_weight.compute_sample_weight({sample_weight!r}, y)."
        )
    if isinstance(sample_weight, Real):
        return np.full(n_rows, float(sample_weight))
    if np.ma.is_masked(sample_weight):
        raise ValueError("sample_weight has masked entries; fill or drop them.")
    return require_numbers(move_to(sample_weight, xp=np, device="cpu"), "sample_weight")
