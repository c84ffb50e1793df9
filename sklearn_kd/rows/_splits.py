"""Splits of rows into training and test rows, by the splitter that `check_cv` returned."""

from __future__ import annotations

import reprlib
from numbers import Integral
from typing import Any

import numpy as np

# Folds of an iterator that is not yet read, and of scikit-learn's default.
_USUAL_SPLITS = 5


def splits_of(splitter: Any, labels: np.ndarray, *, cv: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (train, test) row numbers of a splitter, for rows with these labels.

    Raises
    ------
    ValueError
        If the splitter cannot split them, or is a class. If it needs groups, the error says how
        to pass them.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import KFold
    >>> from sklearn_kd.rows._splits import splits_of
    >>> [test.tolist() for _, test in splits_of(KFold(2), np.zeros(4), cv=2)]
    [[0, 1], [2, 3]]
    """
    if isinstance(splitter, type):
        raise ValueError(f"cv={splitter.__name__} is a class; pass an instance of it.")
    try:
        return list(splitter.split(np.zeros((len(labels), 1)), labels))
    except (TypeError, ValueError) as error:
        if "groups" in str(error):
            raise ValueError(
                f"cv={cv!r} needs groups, and fit takes none. Pass the folds themselves: "
                "cv=list(splitter.split(X, y, groups))."
            ) from error
        if isinstance(cv, Integral) or hasattr(cv, "split"):
            raise
        raise ValueError(
            f"cv={reprlib.repr(cv)} must hold pairs (train, test) of row numbers ({error}). For "
            "groups, pass cv=list(GroupKFold().split(X, y, groups))."
        ) from error


def about_n_splits(cv: Any, n_rows: int) -> int:
    """Return how many folds ``cv`` makes of so many rows, without reading an iterator.

    Examples
    --------
    >>> from sklearn.model_selection import LeaveOneOut
    >>> from sklearn_kd.rows._splits import about_n_splits
    >>> [about_n_splits(cv, 9) for cv in (3, LeaveOneOut(), [([0], [1])], iter([]), None)]
    [3, 9, 1, 5, 5]
    """
    if isinstance(cv, Integral):
        return int(cv)
    if hasattr(cv, "n_splits"):
        return int(cv.n_splits)
    if hasattr(cv, "n_repeats"):
        return int(cv.get_n_splits())
    if hasattr(cv, "split"):
        return n_rows
    return len(cv) if hasattr(cv, "__len__") else _USUAL_SPLITS
