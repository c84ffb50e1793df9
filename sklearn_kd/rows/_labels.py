"""Hard labels of rows, and rows without one: -1 among numbers, a missing value among objects."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from sklearn_kd._logits import hard_labels
from sklearn_kd._sklearn import is_pandas_na, move_to

# In y, scikit-learn's convention for semi-supervised data; among class indices it is always this.
NO_LABEL = -1


class RowLabels(NamedTuple):
    """Class indices of rows, and the share of the soft ratio ρ that their teacher is trusted with.

    The soft ratio of row i is trust_i ρ, and 1 for a row without a label.
    """

    indices: Tensor  # (n,) class indices, -1 for a row without a label
    n_columns: int  # logits in each row
    trust: Tensor | None  # (n,) in (0, 1], float64; None is 1

    @property
    def is_labelled(self) -> Tensor:
        """Whether each row has a label, (n,)."""
        return self.indices != NO_LABEL

    @property
    def hard(self) -> Tensor:
        """Labels (n,) of class 1, or indicators (n, K). Those of rows without a label count not."""
        return hard_labels(self.indices.clamp_min(0), self.n_columns)

    def soft_ratios(self, soft_ratio: float) -> Tensor | None:
        """Return the soft ratio of each row, (n,) in float64; None if all have the one given."""
        is_labelled = self.is_labelled
        if self.trust is None and bool(is_labelled.all()):
            return None
        share = torch.ones_like(is_labelled, dtype=torch.float64)
        ratios = soft_ratio * (share if self.trust is None else self.trust)
        return torch.where(is_labelled, ratios, share)

    def take(self, rows: Tensor) -> Self:
        """Return the labels of some rows."""
        trust = None if self.trust is None else self.trust[rows]
        return self._replace(indices=self.indices[rows], trust=trust)

    def cpu(self) -> Self:
        """Return a copy on the CPU."""
        trust = None if self.trust is None else self.trust.cpu()
        return self._replace(indices=self.indices.cpu(), trust=trust)


class ClassHints(NamedTuple):
    """What a teacher tells about the classes before the labels are read."""

    classes: np.ndarray | None = None  # those of a fitted teacher, or named in fit; sorted
    n_columns: int | None = None  # columns of given logits


def without_missing(y: Any) -> tuple[Any, np.ndarray | None]:
    """Return labels on the host, with missing ones filled in, and which of them were missing.

    None, NaN and `pandas.NA` are missing among objects, NaT among times; what is filled in is the
    first value that is not. The mask is None if none is missing.

    Raises
    ------
    ValueError
        If all labels are missing, or y holds floats and NaN among them.
    """
    given, y = y, move_to(y, xp=np, device="cpu")
    values = np.asarray(y)
    is_nullable = hasattr(given, "iloc") and not isinstance(getattr(given, "dtype", 0), np.dtype)
    if is_nullable or (isinstance(given, (list, tuple)) and values.dtype.kind in "US"):
        # numpy makes a missing value NaN among numbers, and "nan" among strings.
        values = np.asarray(given, dtype=object)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(
            f"y holds NaN in row {int(np.argwhere(np.isnan(values))[0, 0])}; a row without a "
            "label is -1 among numbers."
        )
    if values.dtype.kind not in "OMm" or values.size != len(values):
        return y, None
    values = values.reshape(-1)
    is_object = values.dtype.kind == "O"
    missing = np.array([_is_missing(v) for v in values]) if is_object else np.isnat(values)
    if not missing.any():
        return y, None
    if missing.all():
        raise ValueError("y holds no label: the values of all rows are missing.")
    filled = values.copy()
    filled[missing] = values[~missing][0]
    if all(isinstance(value, (Real, np.bool_)) for value in filled):
        filled = np.asarray(filled.tolist())
    return filled, missing


def _is_missing(value: Any) -> bool:
    return value is None or is_pandas_na(value) or bool(np.isscalar(value) and value != value)


def has_label(y: np.ndarray, missing: np.ndarray | None, hints: ClassHints) -> np.ndarray:
    """Return which rows have a label, (n,): those that are not missing and not -1.

    -1 is a class like any other among two, if a fitted teacher knows it, or if given logits have a
    column for it.
    """
    present = np.ones(len(y), dtype=bool) if missing is None else ~missing
    if y.dtype.kind not in "if":
        return present
    others = np.unique(y[present & (y != NO_LABEL)])
    if hints.classes is not None:
        is_class = NO_LABEL in hints.classes
    else:
        is_class = len(others) < 2 or hints.n_columns == len(others) + 1
    return present if is_class else present & (y != NO_LABEL)


def labelled_among(y: Any, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of rows (n,), and which of them have one, given the classes of a fit.

    Raises
    ------
    ValueError
        If none has.
    """
    y, missing = without_missing(y)
    y = column_or_1d(np.asarray(y))
    labelled = has_label(y, missing, ClassHints(np.asarray(classes)))
    if len(y) and not labelled.any():
        raise ValueError(
            f"y holds no label, only {np.unique(y).tolist()}, but rows are to be compared with "
            f"theirs; give rows of the classes {np.asarray(classes).tolist()}."
        )
    return y, labelled
