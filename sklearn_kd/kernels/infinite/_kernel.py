"""Kernels of infinitely wide fully connected networks, on torch tensors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels.infinite._activations import ACTIVATIONS, PiecewiseLinear
from sklearn_kd.kernels.infinite._angular import AngularRecursion
from sklearn_kd.kernels.infinite._covariance import CovarianceRecursion
from sklearn_kd.kernels.infinite._tiles import Recursion, fill_block, fill_gradient, fill_gram


@dataclass(frozen=True)
class InfiniteKernel(KernelFunction):
    r"""Tangent kernel of an infinitely wide fully connected network, or its NNGP kernel.

    The network is that of Eq. 1 of Ji and Zhu (2020), in the NTK parametrisation: inputs are
    scaled by :math:`1/\sqrt d`, and every layer, the readout included, has the same
    :math:`\sigma_w` and :math:`\sigma_b`. With :math:`g` the activation and
    :math:`\mathbb{E}_l` the average over a pair of Gaussian variables with covariance
    :math:`\Sigma_l`,

    .. math::

        \Sigma_0 &= \sigma_w^2\, x^\top x' / d + \sigma_b^2, &
        \Sigma_{l+1} &= \sigma_w^2\, \mathbb{E}_l[g g] + \sigma_b^2, \\
        \Theta_0 &= \Sigma_0, &
        \Theta_{l+1} &= \Sigma_{l+1} + \sigma_w^2\, \Theta_l\, \mathbb{E}_l[g' g'].

    Parameters
    ----------
    depth : int, default=3
        Number of hidden layers.
    activation : {"relu", "leaky_relu", "erf", "gelu"}, default="relu"
        The activation; the leaky ReLU has slope 0.01 for negative arguments.
    weight_std : float, default=1.0
        :math:`\sigma_w`.
    bias_std : float, default=1.0
        :math:`\sigma_b`.
    kind : {"ntk", "nngp"}, default="ntk"
        The kernel to return: :math:`\Theta` or :math:`\Sigma` of the output.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
    >>> kernel = InfiniteKernel(depth=1)
    >>> kernel.diag(torch.zeros(1, 2))
    tensor([2.])
    """

    depth: int = 3
    activation: Literal["relu", "leaky_relu", "erf", "gelu"] = "relu"
    weight_std: float = 1.0
    bias_std: float = 1.0
    kind: Literal["ntk", "nngp"] = "ntk"

    def block(self, X: Tensor, Y: Any) -> Tensor:
        """Return K(X, Y), shape (n, m), for ``X`` of shape (n, d) and ``Y`` of shape (m, d)."""
        rows = self.prepared(Y) if isinstance(Y, Tensor) else Y
        return fill_block(self._recursion, X, rows, X.new_empty(len(X), len(Y)))

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X), shape (n, n).

        Parameters
        ----------
        X : Tensor of shape (n, d)
        out : Tensor of shape (n, n), optional
            Row-major storage for the result, of the dtype and device of ``X``.
        symmetrize : bool, default=True
            Whether to fill the lower triangle too. Otherwise the entries of ``out`` strictly
            below the diagonal keep their values (zeros if ``out`` is not given).
        """
        if out is None:
            out = X.new_empty(len(X), len(X)) if symmetrize else X.new_zeros(len(X), len(X))
        return fill_gram(self._recursion, X, out, symmetrize=symmetrize)

    def prepared(self, Y: Tensor) -> Any:
        """Return rows with what the recursion needs of each, as large as they are again."""
        with full_precision():
            return self._recursion.rows(Y)

    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row of ``X``, shape (n,), in O(n d)."""
        recursion = self._recursion
        return recursion.diagonal(recursion.variances(X)).to(X.dtype)

    def gradient(self, X: Tensor) -> Tensor:
        """Return the derivatives of K(X, X) in log σ_w and log σ_b, shape (n, n, 2)."""
        return fill_gradient(self._recursion, X, X.new_empty(len(X), len(X), 2))

    @functools.cached_property
    def _recursion(self) -> Recursion:
        activation = ACTIVATIONS[self.activation]
        settings = (self.depth, self.weight_std, self.bias_std, self.kind)
        if isinstance(activation, PiecewiseLinear):
            return AngularRecursion(activation, *settings)
        return CovarianceRecursion(activation, *settings)
