"""What was computed once and is looked up: logits of given rows, a kernel between known rows."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.kernels._protocol import KernelFunction


class KnownLogits(LogitClassifier):
    """A teacher that is known by its logits on some sets of rows, and cannot be asked about others.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Class labels.
    known : list of (array-like of shape (n, d), array-like of shape (n,) or (n, n_classes))
        Rows, and their logits.
    """

    def __init__(self, classes: np.ndarray, known: list[tuple[Any, Any]]) -> None:
        self.classes = classes
        self.known = known

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return "KnownLogits()"

    def fit(self, X: Any, y: Any) -> Self:
        """Return itself."""
        return self

    def _check_new_rows(self, X: Any, method: str) -> Any:
        return X

    def _logits(self, X: Any) -> Tensor:
        for rows, logits in self.known:
            if X is rows or np.array_equal(np.asarray(X), np.asarray(rows)):
                return to_tensor(logits)
        raise ValueError(
            "The plan was given teacher_logits on the rows of the fit, and no teacher that could "
            "be asked about others; pass the teacher itself to DistillationPlan(teachers=...)."
        )


class KnownKernel(KernelFunction):
    """A kernel whose matrix between known rows is computed once, and looked up by their values.

    Parameters
    ----------
    kernel : kernel
        As estimators take it.
    X : Tensor of shape (n, d)
        The rows to know, as kernels are given them.
    """

    def __init__(self, kernel: Any, X: Tensor) -> None:
        self._function = as_kernel_function(kernel)
        keys = _keys(X)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        self._position = {key: position for position, key in enumerate(first)}
        rows = X[list(first.values())]
        self._matrix = self._function.gram(rows)
        self._outputs = self._function.outputs(rows)

    def __sklearn_clone__(self) -> Self:
        """Return itself: what a student keeps remembers, too."""
        return self

    def to_torch(self) -> Self:
        """Return itself."""
        return self

    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return K(X, Y)."""
        rows, columns = self._positions(X), self._positions(Y)
        if rows is None or columns is None:
            return self._function.block(X, Y)
        return self._matrix[rows[:, None], columns].to(X)

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X)."""
        if self._positions(X) is None:
            return self._function.gram(X, out=out, symmetrize=symmetrize)
        matrix = self.block(X, X)
        return matrix if out is None else out.copy_(matrix)

    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row."""
        rows = self._positions(X)
        return self._function.diag(X) if rows is None else self._matrix.diagonal()[rows].to(X)

    def outputs(self, X: Tensor) -> Tensor | None:
        """Return z₀(X)."""
        rows = self._positions(X)
        if rows is None or self._outputs is None:
            return self._function.outputs(X)
        return self._outputs[rows].to(X)

    def _positions(self, X: Tensor) -> Tensor | None:
        """Return where rows are in the matrix; None if one is not."""
        found = [self._position.get(key, -1) for key in _keys(X)]
        positions = torch.tensor(found, device=X.device, dtype=torch.long)
        return None if (positions < 0).any() else positions


def _keys(X: Tensor) -> list[bytes]:
    """Return the bytes of each row; −0 and 0 are one."""
    return [row.tobytes() for row in to_numpy(X.double() + 0.0)]
