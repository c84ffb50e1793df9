"""The noise of a kernel: what a row's own variance holds beyond its kernel with an equal row.

Kernels of scikit-learn tell "the same rows", k(X), from "equal rows", k(X, Y). A `WhiteKernel`
adds σ² to the diagonal of the former only. So k(X) = K(X, X) + ν I, and a row's w copies, which
share their kernel values, have ν / w together: to a kernel machine the noise ν is a ridge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import (
    Exponentiation,
    KernelOperator,
    Product,
    Sum,
    WhiteKernel,
)

# Rows on which k(X) and k(X, X) are compared.
_N_PROBES = 8

# Differences below this share of the largest value are rounding, in float32 too.
_ROUNDING = 1e-6


def noise_of(kernel: Callable[..., Any], X: np.ndarray) -> float:
    """Return the noise ν of a kernel, k(X) = K(X, X) + ν I; 0 for callables of two arguments.

    Parameters
    ----------
    kernel : callable
        A Gaussian-process kernel of scikit-learn, or a function of arrays.
    X : ndarray of shape (n, d)
        Rows on which it is to be the same.

    Raises
    ------
    ValueError
        If k(X) differs from K(X, X) by more than a multiple of the identity.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.gaussian_process.kernels import RBF, WhiteKernel
    >>> from sklearn_kd.kernels._noise import noise_of
    >>> noise_of((RBF() + WhiteKernel(0.5)) ** 2, np.zeros((3, 1)))  # 1.5² − 1²
    1.25
    """
    noise = np.broadcast_to(_noise(kernel, X), len(X))
    if noise.max() - noise.min() <= _ROUNDING * noise.max():
        return float(noise[0])
    raise ValueError(
        f"kernel={kernel!r} has a noise, as of a WhiteKernel, that differs from row to row "
        f"(between {noise.min():.3g} and {noise.max():.3g}). Only a noise that is the same for all "
        "rows can be used: add the WhiteKernel to the other kernels last, or leave it out and set "
        "ridge."
    )


def _noise(kernel: Any, X: np.ndarray) -> np.ndarray | float:
    """Return the noise of every row, (n,), or one number for all rows."""
    if isinstance(kernel, WhiteKernel):
        return kernel.noise_level
    if isinstance(kernel, KernelOperator):
        first, second = _noise(kernel.k1, X), _noise(kernel.k2, X)
        if isinstance(kernel, Sum) or not (np.any(first) or np.any(second)):
            return first + second
        if isinstance(kernel, Product):
            # (k₁ + ν₁)(k₂ + ν₂) − k₁ k₂
            k1, k2 = kernel.k1.diag(X) - first, kernel.k2.diag(X) - second
            return first * k2 + second * k1 + first * second
    if isinstance(kernel, Exponentiation):
        inner = _noise(kernel.kernel, X)
        if not np.any(inner):
            return 0.0
        with_noise = kernel.kernel.diag(X)
        return with_noise**kernel.exponent - (with_noise - inner) ** kernel.exponent
    return _measured_noise(kernel, X[:_N_PROBES])


def _measured_noise(kernel: Any, X: np.ndarray) -> float:
    """Return the noise of a kernel that is no composition, from its values on a few rows."""
    if hasattr(kernel, "to_torch") or not _takes_one_argument(kernel):
        return 0.0
    same, equal = np.asarray(kernel(X)), np.asarray(kernel(X, X))
    if same.shape != equal.shape or same.shape != (len(X), len(X)):
        return 0.0  # no kernel matrix, which its first use says
    difference = same - equal
    noise = np.diag(difference)
    tolerance = _ROUNDING * np.abs(same).max()
    if np.abs(difference).max() <= tolerance:
        return 0.0
    is_diagonal = np.abs(difference - np.diag(noise)).max() <= tolerance
    if is_diagonal and noise.min() > 0 and noise.max() - noise.min() <= tolerance:
        return float(noise.mean())
    raise ValueError(
        f"kernel={kernel!r} gives other values for kernel(X) than for kernel(X, X), and not only a "
        "constant on the diagonal, as WhiteKernel adds: it is no function of two rows. Pass one "
        "that is, such as lambda X, Y: kernel(X, Y)."
    )


def _takes_one_argument(kernel: Any) -> bool:
    """Whether ``kernel(X)`` means something: its second argument is None by default."""
    try:
        parameters = list(inspect.signature(kernel).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return len(parameters) > 1 and parameters[1].default is None
