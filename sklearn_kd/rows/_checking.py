"""Checks of the input of an estimator: rows, labels and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from sklearn_kd._array import plain, resolve_device, resolve_dtype, to_tensor
from sklearn_kd._sklearn import check_same_namespace, check_sample_weight, get_namespace, move_to
from sklearn_kd.rows._streams import RowStream, as_row_stream, is_streamed
from sklearn_kd.rows._training_rows import TrainingRows


def check_rows(estimator: Any, X: Any, y: Any, sample_weight: Any) -> TrainingRows:
    """Return the checked input of a fit on rows in memory.

    Raises
    ------
    ValueError
        If ``estimator`` cannot be fitted to ``X``, ``y`` or ``sample_weight``.
    """
    X, y = plain(X), plain(y, "y")
    xp, _ = get_namespace(X)
    if y is not None:
        y = move_to(y, xp=np, device="cpu")
    X, y = validate_data(estimator, X, y, dtype=[xp.float64, xp.float32], ensure_min_samples=2)
    classes, labels, sample_weight = _check_labels(estimator, y, sample_weight)
    return TrainingRows(X, to_working(estimator, X), classes, labels, sample_weight)


def check_streamed_rows(estimator: Any, X: Any, y: Any, sample_weight: Any) -> TrainingRows:
    """Return the checked input of a fit on rows that are read block by block.

    Raises
    ------
    ValueError
        If ``X`` is no source of rows, or ``y`` or ``sample_weight`` does not match it.
    """
    stream = check_stream(estimator, X, reset=True)
    if y is None:
        raise ValueError(f"{type(estimator).__name__}.fit requires y, but y is None.")
    y = column_or_1d(np.asarray(y), warn=True)
    if len(y) != len(stream):
        raise ValueError(
            f"X has {len(stream)} rows, but y has {len(y)} labels; every row needs one."
        )
    classes, labels, sample_weight = _check_labels(estimator, y, sample_weight)
    nothing = np.empty((0, stream.n_features))
    working = to_working(estimator, nothing)
    return TrainingRows(nothing, working, classes, labels, sample_weight, stream)


def check_stream(estimator: Any, X: Any, *, reset: bool) -> RowStream:
    """Return rows that need not be in memory; their values are checked as they are read."""
    stream = as_row_stream(X)
    validate_data(estimator, np.empty((1, stream.n_features)), reset=reset, skip_check_array=True)
    return stream


def check_new_rows(estimator: Any, X: Any, method: str) -> Any:
    """Return rows to predict, checked against those of the fit."""
    check_is_fitted(estimator)
    if is_streamed(X):
        return check_stream(estimator, X, reset=False)
    X = plain(X)
    check_same_namespace(X, estimator, attribute="X_fit_", method=method)
    xp, _ = get_namespace(X)
    return validate_data(estimator, X, dtype=[xp.float64, xp.float32], reset=False)


def class_indices_of(y: Any, classes: np.ndarray) -> Tensor:
    """Return the index of each label among the classes of a fit, shape (m,).

    Raises
    ------
    ValueError
        If a label is not among the classes.
    """
    y = column_or_1d(move_to(y, xp=np, device="cpu"))
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y holds the label {y[unknown][:1].tolist()} (row {unknown.argmax()}), which the "
            f"student was not fitted on; its classes are {classes.tolist()}."
        )
    return torch.from_numpy(np.searchsorted(classes, y))


def to_working(estimator: Any, X: Any) -> Tensor:
    """Return rows as a tensor of the estimator's ``dtype``, on its ``device``."""
    if isinstance(X, RowStream):
        X = X.take(np.arange(len(X)))
    dtype, device = resolve_dtype(estimator.dtype), resolve_device(estimator.device)
    return to_tensor(X, dtype=dtype, device=device, name="X")


def _check_labels(
    estimator: Any, y: np.ndarray, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the classes, the index of each label among them, and checked weights."""
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds only one class, {classes.tolist()}; {type(estimator).__name__} needs two or "
            "more."
        )
    if sample_weight is not None:
        sample_weight = check_sample_weight(
            move_to(sample_weight, xp=np, device="cpu"),
            np.empty((len(y), 0)),
            dtype=np.float64,
            ensure_non_negative=True,
        )
        _require_representable(sample_weight, resolve_dtype(estimator.dtype))
    return classes, labels, sample_weight


def _require_representable(sample_weight: np.ndarray, dtype: torch.dtype) -> None:
    """Raise where a weight, or the sum of them all, is 0 or infinite in the working dtype."""
    weights = to_tensor(sample_weight, dtype=dtype)
    vanished = (weights == 0).numpy() & (sample_weight > 0)
    if vanished.any() or not weights.sum().isfinite():
        shown = sample_weight[vanished][0] if vanished.any() else sample_weight.max()
        raise ValueError(
            f"sample_weight holds {shown:.3g}, with which weights leave the range of "
            f"{str(dtype).removeprefix('torch.')}; rescale them."
        )
