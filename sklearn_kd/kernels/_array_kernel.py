"""Kernels given as callables on numpy arrays, and the conversion to kernel functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.kernels._noise import noise_of
from sklearn_kd.kernels._protocol import KernelFunction

_ROW_BLOCK = 512

# What estimators take as ``kernel``.
KERNELS_IN_WORDS = (
    "a kernel such as sklearn_kd.kernels.NTK(), for a torch module EmpiricalNTK(module), a "
    "Gaussian-process kernel of scikit-learn, or a callable K(X, Y) on two arrays of rows"
)


@dataclass(frozen=True)
class ArrayKernel(KernelFunction):
    """A kernel given as a callable on numpy arrays, such as a scikit-learn GP kernel.

    Its values are those of ``function(X, Y)``, without the `noise` that ``function(X)`` adds to
    the diagonal.

    Parameters
    ----------
    function : callable
        ``function(X, Y)`` returns K(X, Y) of shape (n, m) for arrays of shapes (n, d), (m, d).
        If it has a method ``diag(X)``, that gives the diagonal.
    """

    function: Callable[..., Any]

    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return K(X, Y), shape (n, m)."""
        values = np.asarray(self.function(to_numpy(X), to_numpy(Y)))
        if values.shape != (len(X), len(Y)):
            raise ValueError(
                f"kernel={self.function!r} returned an array of shape {values.shape} for "
                f"{len(X)} and {len(Y)} rows; it must return one of shape ({len(X)}, {len(Y)})."
            )
        return to_tensor(values, dtype=X.dtype, device=X.device)

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X), shape (n, n), in ``out`` if given, one block of rows at a time."""
        n = len(X)
        if out is None:
            out = X.new_empty(n, n) if symmetrize else X.new_zeros(n, n)
        for i in range(0, n, _ROW_BLOCK):
            block = self.block(X[i : i + _ROW_BLOCK], X[i:])
            side = len(block)
            out[i : i + side, i + side :] = block[:, side:]
            above = torch.ones(side, side, dtype=torch.bool, device=X.device).triu()
            corner = out[i : i + side, i : i + side]
            corner[above] = block[:, :side][above]
            if symmetrize:
                out[i + side :, i : i + side] = block[:, side:].T
                corner.copy_(corner.triu() + corner.triu(1).T)
        return out

    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row, shape (n,)."""
        if hasattr(self.function, "diag"):
            values = np.asarray(self.function.diag(to_numpy(X))) - self.noise(X)
            return to_tensor(values, dtype=X.dtype, device=X.device)
        return torch.cat([self.block(row[None], row[None])[0] for row in X])

    def noise(self, X: Tensor) -> float:
        """Return what ``function(X)`` adds to the diagonal of K(X, X), such as a WhiteKernel's."""
        return noise_of(self.function, to_numpy(X))


def as_kernel_function(kernel: Any) -> KernelFunction:
    """Return ``kernel`` as a function on tensors.

    Parameters
    ----------
    kernel : object with a method ``to_torch``, or callable
        A callable, scikit-learn's Gaussian-process kernels among them, takes two arrays of rows
        and returns the matrix K(X, Y).

    Raises
    ------
    TypeError
        If ``kernel`` is neither.
    """
    if not is_kernel(kernel):
        raise TypeError(f"kernel={kernel!r} is not a kernel: it must be {KERNELS_IN_WORDS}.")
    return kernel.to_torch() if hasattr(kernel, "to_torch") else ArrayKernel(kernel)


def is_kernel(kernel: Any) -> bool:
    """Whether `as_kernel_function` takes ``kernel``; classes and torch modules are none."""
    if isinstance(kernel, (type, nn.Module)):
        return False
    return hasattr(kernel, "to_torch") or callable(kernel)
