"""Splits of rows into training and test rows, by the splitter that `check_cv` returned."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    except ValueError as error:
        if "groups" not in str(error):
            raise
        raise ValueError(
            f"cv={cv!r} needs groups, and fit takes none. Pass the folds themselves: "
            "cv=list(splitter.split(X, y, groups))."
        ) from error
