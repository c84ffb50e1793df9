"""Training rows that are not in memory: checked, exact copies found, asked what a fit needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from sklearn_kd._array import to_numpy
from sklearn_kd._base import DistinctRows, TangentKernelClassifier, TrainingRows, distinct_rows
from sklearn_kd._streams import RowStream
from sklearn_kd.linalg import MergedRows

# Odd constants of the finaliser of the splitmix64 generator, and its increment.
_MIX = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15], dtype=np.uint64)


def distinct_of_stream(rows: TrainingRows) -> tuple[DistinctRows, RowStream]:
    """Return the distinct rows of positive weight without their X, and a stream of their X.

    A pass that reads every row once.
    """
    stream = rows.stream
    assert stream is not None
    distinct = distinct_rows(rows, copies_in(stream, rows.X.dtype))
    kept = distinct.kept[distinct.merged.first]
    return distinct, stream.only(to_numpy(kept))


def copies_in(stream: RowStream, dtype: torch.dtype) -> MergedRows:
    """Return which rows are copies of which, once rounded to ``dtype``; reads every row once.

    Rows are told apart by 128 bits of a hash of theirs. Among 10⁹ rows two that differ have the
    same with a probability of 10⁻²¹.

    Raises
    ------
    ValueError
        If a row holds NaN or infinity.
    """
    hashes = np.empty((len(stream), 2), dtype=np.uint64)
    for block, X in stream.blocks(dtype=dtype):
        hashes[block] = row_hashes(to_numpy(X))
    first, group = np.arange(len(hashes)), np.arange(len(hashes))
    if len(np.unique(hashes[:, 0])) < len(hashes):
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: copies stay in order
        is_new = np.concatenate([[True], (np.diff(hashes[order], axis=0) != 0).any(axis=1)])
        of_sorted = np.flatnonzero(is_new)[np.cumsum(is_new) - 1]
        first_copy = np.empty_like(order)
        first_copy[order] = order[of_sorted]
        first, group = np.unique(first_copy, return_inverse=True)
    return MergedRows(torch.from_numpy(first), torch.from_numpy(group))


def row_hashes(X: np.ndarray) -> np.ndarray:
    """Return two 64-bit hashes of each row (n, d), shape (n, 2).

    Each entry's bits are mixed with the number of its column, and the results summed.
    """
    bits = np.ascontiguousarray(X + 0.0)  # −0.0 becomes 0.0, which it equals
    bits = bits.view(f"u{bits.itemsize}").astype(np.uint64)
    columns = np.arange(1, X.shape[1] + 1, dtype=np.uint64)
    out = np.empty((len(X), 2), dtype=np.uint64)
    for half in range(2):
        salt = columns * _MIX[2] + np.uint64(half) * _MIX[0]
        mixed = _mixed(_mixed(bits ^ salt) + salt)
        out[:, half] = mixed.sum(axis=1, dtype=np.uint64)
    return out


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def check_streamed_rows(
    estimator: TangentKernelClassifier, X: Any, y: Any, sample_weight: Any
) -> TrainingRows:
    """Return the checked input of a fit on rows that stay where they are.

    Raises
    ------
    ValueError
        If ``X`` is no source of rows, or ``y`` or ``sample_weight`` does not match it.
    """
    stream = estimator._check_stream(X, reset=True)
    if y is None:
        raise ValueError(f"{type(estimator).__name__}.fit requires y, but y is None.")
    y = column_or_1d(np.asarray(y), warn=True)
    if len(y) != len(stream):
        raise ValueError(
            f"X has {len(stream)} rows, but y has {len(y)} labels; every row needs one."
        )
    classes, labels, sample_weight = estimator._check_labels(y, sample_weight)
    nothing = np.empty((0, stream.n_features))
    return TrainingRows(
        nothing, estimator._to_working(nothing), classes, labels, sample_weight, stream
    )
