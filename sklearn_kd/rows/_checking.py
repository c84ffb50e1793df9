"""Checks of the input of an estimator: rows, labels and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from sklearn_kd._array import plain, resolve_device, resolve_dtype, to_tensor
from sklearn_kd._logits import n_logits
from sklearn_kd._sklearn import check_same_namespace, check_sample_weight, get_namespace, move_to
from sklearn_kd.rows._labels import (
    NO_LABEL,
    ClassHints,
    RowLabels,
    has_label,
    labelled_among,
    without_missing,
)
from sklearn_kd.rows._refusals import (
    naming_columns,
    numeric_weights,
    require_labels,
    require_rows,
)
from sklearn_kd.rows._streams import RowStream, as_row_stream, is_streamed
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.rows._views import rows_of_student


def check_rows(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    hints: ClassHints | None = None,
    *,
    as_given: bool = False,
) -> TrainingRows:
    """Return the checked input of a fit on rows in memory.

    With ``hints``, y may be missing or -1 for rows without a label, and lack classes that are
    known from elsewhere. ``as_given`` keeps the precision of X, for an estimator without a
    parameter ``dtype``.

    Raises
    ------
    ValueError
        If ``estimator`` cannot be fitted to ``X``, ``y`` or ``sample_weight``.
    """
    require_rows(X, y)
    X, y, missing = plain(X), plain(y, "y"), None
    if y is not None and hints is not None:
        y, missing = without_missing(y)
    elif y is not None:
        y = move_to(y, xp=np, device="cpu")
    X, y = validated(estimator, X, y, ensure_min_samples=2)
    labelled = None if hints is None else has_label(y, missing, hints)
    classes, labels = _check_labels(estimator, y, labelled, hints)
    dtype = precision_of(X) if as_given else resolve_dtype(estimator.dtype)
    sample_weight = _check_fit_weights(sample_weight, len(y), dtype)
    working = to_tensor(X, dtype=dtype, device=resolve_device(estimator.device), name="X")
    return TrainingRows(X, working, classes, labels, sample_weight)


def check_streamed_rows(
    estimator: Any, X: Any, y: Any, sample_weight: Any, hints: ClassHints
) -> TrainingRows:
    """Return the checked input of a fit on rows that are read block by block.

    Raises
    ------
    ValueError
        If ``X`` is no source of rows, or ``y`` or ``sample_weight`` does not match it.
    """
    stream = check_stream(estimator, X, reset=True)
    if y is None:
        raise ValueError(f"{type(estimator).__name__}.fit requires y, but y is None.")
    y, missing = without_missing(y)
    y = column_or_1d(np.asarray(y), warn=True)
    if len(y) != len(stream):
        raise ValueError(
            f"X has {len(stream)} rows, but y has {len(y)} labels; every row needs one, or -1."
        )
    classes, labels = _check_labels(estimator, y, has_label(y, missing, hints), hints)
    dtype = resolve_dtype(estimator.dtype)
    sample_weight = _check_fit_weights(sample_weight, len(y), dtype)
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
    X = rows_of_student(X)
    if is_streamed(X):
        return check_stream(estimator, X, reset=False)
    require_rows(X)
    X = plain(X)
    # Rows may be on another device than those of the fit, which a copy or a pickle has on the CPU.
    if not (isinstance(X, Tensor) and isinstance(estimator.X_fit_, Tensor)):
        check_same_namespace(X, estimator, attribute="X_fit_", method=method)
    return validated(estimator, X, reset=False)


def validated(estimator: Any, X: Any, *y: Any, **options: Any) -> Any:
    """Return what `validate_data` does, in floating point; its errors name columns of a frame."""
    xp, _ = get_namespace(X)
    remedy = "encode or impute them first, in a pipeline"
    if hasattr(estimator, "teacher"):
        remedy += ", or in StudentPipeline(transformer, student) if the teacher reads them"
    with naming_columns(X, remedy):
        return validate_data(estimator, X, *y, dtype=[xp.float64, xp.float32], **options)


def class_indices_of(y: Any, classes: np.ndarray) -> Tensor:
    """Return the index of each label among the classes of a fit, -1 where there is none, (m,).

    Raises
    ------
    ValueError
        If a label is not among the classes, or no row has one.
    """
    y, labelled = labelled_among(y, classes)
    unknown = labelled & ~np.isin(y, classes)
    if unknown.any():
        raise ValueError(
            f"y holds the label {y[unknown][:1].tolist()} (row {unknown.argmax()}), which the "
            f"student was not fitted on; its classes are {classes.tolist()}."
        )
    indices = np.full(len(y), NO_LABEL)
    indices[labelled] = np.searchsorted(classes, y[labelled])
    return torch.from_numpy(indices)


def row_labels(y: Any, classes: np.ndarray, teacher_trust: Any) -> RowLabels:
    """Return checked labels of rows that are not those of the fit, and the trust in their teacher.

    Raises
    ------
    ValueError
        If a label is not among the classes, no row has one, or trust is not in (0, 1].
    """
    indices = class_indices_of(y, classes)
    trust = check_trust(teacher_trust, len(indices))
    shares = None if trust is None else torch.from_numpy(trust)
    return RowLabels(indices, n_logits(len(classes)), shares)


def to_working(estimator: Any, X: Any) -> Tensor:
    """Return rows as a tensor of the estimator's ``dtype``, on its ``device``."""
    if isinstance(X, RowStream):
        X = X.take(np.arange(len(X)))
    dtype, device = resolve_dtype(estimator.dtype), resolve_device(estimator.device)
    return to_tensor(X, dtype=dtype, device=device, name="X")


def _check_labels(
    estimator: Any, y: np.ndarray, labelled: np.ndarray | None, hints: ClassHints | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, and the index of each label among them, -1 for rows without one."""
    labelled = np.ones(len(y), dtype=bool) if labelled is None else labelled
    require_labels(y[labelled])
    check_classification_targets(y[labelled])
    indices = np.full(len(y), NO_LABEL)
    classes, indices[labelled] = np.unique(y[labelled], return_inverse=True)
    if hints is not None and hints.classes is not None:
        indices[labelled] = _positions(classes, hints.classes)[indices[labelled]]
        classes = hints.classes
    if len(classes) < 2:
        beside = "" if labelled.all() else f", beside {(~labelled).sum()} rows without a label"
        raise ValueError(
            f"y holds only one class, {classes.tolist()}{beside}; {type(estimator).__name__} needs "
            "two or more."
        )
    return classes, indices


def _positions(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the position of each label among the classes of a teacher, or those named in fit.

    Raises
    ------
    ValueError
        If a label is not among them.
    """
    position = {label: index for index, label in enumerate(classes.tolist())}
    unknown = [label for label in labels.tolist() if label not in position]
    if unknown:
        raise ValueError(
            f"y holds the class {unknown[0]!r}, which is not among those of the fitted teacher, or "
            f"of the parameter classes: {classes.tolist()}. Fit teacher and student on the same "
            "labels, or name all classes."
        )
    return np.array([position[label] for label in labels.tolist()], dtype=int)


def precision_of(X: Any) -> torch.dtype:
    """Return the precision of checked rows, of whatever array library."""
    return torch.float32 if str(X.dtype).endswith("float32") else torch.float64


def _check_fit_weights(sample_weight: Any, n_rows: int, dtype: torch.dtype) -> np.ndarray | None:
    """Return checked row weights."""
    if sample_weight is None:
        return None
    sample_weight = check_weights(sample_weight, n_rows)
    _require_representable(sample_weight, dtype)
    return sample_weight


def check_weights(sample_weight: Any, n_rows: int) -> np.ndarray:
    """Return row weights as finite numbers of 0 or more, in double precision.

    Raises
    ------
    ValueError
        If they are not, or their number is not that of the rows.
    """
    return check_sample_weight(
        numeric_weights(sample_weight, n_rows),
        np.empty((n_rows, 0)),
        dtype=np.float64,
        copy=True,  # teachers may pass it to torch, which warns of arrays that are not writable
        ensure_non_negative=True,
    )


def check_trust(teacher_trust: Any, n_rows: int) -> np.ndarray | None:
    """Return the shares of the soft ratio that rows are learnt with, (n,).

    Raises
    ------
    ValueError
        If a share is not in (0, 1], or their number is not that of the rows.
    """
    if teacher_trust is None:
        return None
    trust = to_tensor(teacher_trust, name="teacher_trust").numpy()
    if trust.shape != (n_rows,):
        raise ValueError(
            f"teacher_trust has shape {trust.shape}, but X has {n_rows} rows; give one number in "
            "(0, 1] for each."
        )
    outside = ~((trust > 0) & (trust <= 1))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"teacher_trust must be in (0, 1], but row {row} holds {trust[row]}; it is the share "
            "of soft_ratio with which the row is learnt, 1 for a row whose teacher is trusted."
        )
    return trust


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
