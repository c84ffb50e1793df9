"""Draws from a Gaussian prior: the initial network z₀ ~ N(0, K) of infinite width."""

from __future__ import annotations

from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._cholesky import factor_in_place
from sklearn_kd.rows._copies import merge_rows


class GaussianPrior:
    """The joint distribution N(0, K(X, X)) of a function's values on rows, K the NNGP kernel.

    Equal rows have equal values. A jitter of the factor, at most 1e-8 of the mean variance, is
    noise of that variance on the values.

    Parameters
    ----------
    kernel : KernelFunction
        The covariance.
    X : Tensor of shape (n, d)
        Rows.

    Raises
    ------
    NotPSDError
        If the covariance is not positive definite, beyond rounding.
    """

    def __init__(self, kernel: KernelFunction, X: Tensor) -> None:
        self._merged = merge_rows(X)
        rows = X[self._merged.first]
        n = len(rows)
        storage = rows.new_empty((n, n))
        with full_precision():
            self._lower, _ = factor_in_place(
                lambda: kernel.gram(rows, out=storage, symmetrize=False)
            )

    @property
    def n_distinct(self) -> int:
        """Number of distinct rows."""
        return self._merged.n_distinct

    @full_precision()
    def transform(self, noise: Tensor) -> Tensor:
        """Return L ε, shape (n, ...), for independent standard normal ε (n_distinct, ...)."""
        values = self._lower @ noise.reshape(self.n_distinct, -1)
        return values.reshape(noise.shape)[self._merged.group]
