"""The infinite-width tangent kernel as a scikit-learn Gaussian-process kernel."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._memory import require
from sklearn_kd.kernels._tiles import kernel_bytes
from sklearn_kd.kernels.infinite._activations import ACTIVATIONS
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel

_KINDS = ("ntk", "nngp")

# Within these bounds, σ_w⁴ and σ_b⁴ times powers of realistic data values fit into float64.
_SMALLEST_STD, _LARGEST_STD = 1e-50, 1e50


class NTK(Kernel):
    r"""Neural tangent kernel of an infinitely wide fully connected network.

    The kernel describes training by gradient descent: predictions of the trained network are those
    of kernel regression. The network is that of Eq. 1 of Ji and Zhu (2020), in the NTK
    parametrisation, with :math:`\sigma_w` and :math:`\sigma_b` shared by all layers, the readout
    included, and inputs scaled by :math:`1/\sqrt d`:

    .. math::

        \Sigma_0 &= \sigma_w^2\, x^\top x' / d + \sigma_b^2, &
        \Sigma_{l+1} &= \sigma_w^2\, \mathbb{E}_l[g g] + \sigma_b^2, \\
        \Theta_0 &= \Sigma_0, &
        \Theta_{l+1} &= \Sigma_{l+1} + \sigma_w^2\, \Theta_l\, \mathbb{E}_l[g' g'],

    where :math:`\mathbb{E}_l` averages over a pair of Gaussian pre-activations with covariance
    :math:`\Sigma_l`. It works wherever scikit-learn takes a Gaussian-process kernel, alone or in
    sums, products and powers, and as the callable ``kernel`` of
    :class:`~sklearn.svm.SVC` and :class:`~sklearn.decomposition.KernelPCA`.

    Parameters
    ----------
    depth : int, default=3
        Number of hidden layers, at least 1.
    activation : {"relu", "leaky_relu", "erf", "gelu"}, default="relu"
        The activation :math:`g`. The leaky ReLU has slope 0.01 for negative arguments; the GELU
        is the exact one, not the tanh approximation.
    weight_std : float, default=1.0
        Standard deviation :math:`\sigma_w > 0` of the weights, from 1e-50 to 1e50.
    bias_std : float, default=1.0
        Standard deviation :math:`\sigma_b` of the biases, 0 or from 1e-50 to 1e50. The search for
        hyper-parameters is on a logarithmic scale, so the value 0 always stays fixed.
    kind : {"ntk", "nngp"}, default="ntk"
        The kernel: ``"ntk"`` for :math:`\Theta`, ``"nngp"`` for :math:`\Sigma` of the output,
        the covariance of the network at initialisation.
    weight_std_bounds : pair of floats or "fixed", default=(1e-2, 1e2)
        Bounds of ``weight_std`` in a search for hyper-parameters.
    bias_std_bounds : pair of floats or "fixed", default=(1e-2, 1e2)
        Bounds of ``bias_std`` in a search for hyper-parameters.

    References
    ----------
    .. [1] G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data
       Efficiency and Imperfect Teacher", NeurIPS 2020.
    .. [2] A. Jacot, F. Gabriel and C. Hongler, "Neural Tangent Kernel: Convergence and
       Generalization in Neural Networks", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.kernels import NTK
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> kernel = NTK(depth=1)
    >>> kernel(X).round(4)
    array([[2.    , 1.9092],
           [1.9092, 3.    ]])
    >>> kernel.diag(X)
    array([2., 3.])

    As the kernel of a Gaussian process:

    >>> from sklearn.gaussian_process import GaussianProcessRegressor
    >>> y = np.array([0.0, 1.0])
    >>> model = GaussianProcessRegressor(kernel, optimizer=None).fit(X, y)
    >>> model.predict(X).round(4) + 0.0
    array([0., 1.])
    """

    def __init__(
        self,
        depth: int = 3,
        activation: str = "relu",
        weight_std: float = 1.0,
        bias_std: float = 1.0,
        kind: str = "ntk",
        weight_std_bounds: Any = (1e-2, 1e2),
        bias_std_bounds: Any = (1e-2, 1e2),
    ):
        self.depth = depth
        self.activation = activation
        self.weight_std = weight_std
        self.bias_std = bias_std
        self.kind = kind
        self.weight_std_bounds = weight_std_bounds
        self.bias_std_bounds = bias_std_bounds

    @property
    def hyperparameter_weight_std(self) -> Hyperparameter:
        """``weight_std``, free within its bounds."""
        return Hyperparameter("weight_std", "numeric", self.weight_std_bounds)

    @property
    def hyperparameter_bias_std(self) -> Hyperparameter:
        """``bias_std``, free within its bounds unless it is 0."""
        # the logarithm of 0 cannot be searched over
        bounds = "fixed" if self.bias_std == 0 else self.bias_std_bounds
        return Hyperparameter("bias_std", "numeric", bounds)

    def to_torch(self) -> InfiniteKernel:
        """Return the same kernel as a function on torch tensors.

        Raises
        ------
        ValueError
            If a parameter is out of range.
        """
        params = self.get_params()
        depth = params["depth"]
        if not isinstance(depth, Integral) or depth < 1:
            raise ValueError(f"depth={depth!r} must be an integer of at least 1.")
        for name, allowed in (("activation", tuple(ACTIVATIONS)), ("kind", _KINDS)):
            if params[name] not in allowed:
                raise ValueError(f"{name}={params[name]!r} must be one of {allowed}.")
        for name in ("weight_std", "bias_std"):
            value = params[name]
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0.")
            if value != 0 and not _SMALLEST_STD <= float(value) <= _LARGEST_STD:
                raise ValueError(
                    f"{name}={value!r} must lie between {_SMALLEST_STD:g} and {_LARGEST_STD:g}, "
                    "as powers of it leave the range of float64. Rescale the rows instead."
                )
        if self.weight_std == 0:
            raise ValueError("weight_std=0 makes the kernel constant; it must be positive.")
        return InfiniteKernel(
            depth=int(depth),
            activation=params["activation"],
            weight_std=float(self.weight_std),
            bias_std=float(self.bias_std),
            kind=params["kind"],
        )

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Return K(X, Y) and, if asked, its gradient.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows on the left.
        Y : array-like of shape (m, d), optional
            Rows on the right; ``X`` if not given.
        eval_gradient : bool, default=False
            Whether to return the gradient too; only without ``Y``.

        Returns
        -------
        K : ndarray of shape (n, m)
            Kernel matrix, always in float64.
        K_gradient : ndarray of shape (n, n, n_dims), only with ``eval_gradient``
            Derivatives of K(X, X) in the logarithms of the free hyper-parameters, in the order
            of ``theta``.

        Raises
        ------
        MemoryBudgetError
            If the matrices would take more than 90 % of the memory that is free.
        """
        if eval_gradient and Y is not None:
            raise ValueError("eval_gradient=True needs Y=None: the gradient is that of K(X, X).")
        kernel = self.to_torch()
        x_rows = as_rows(X, "X")
        if Y is not None:
            y_rows = as_rows(Y, "Y")
            if x_rows.shape[1] != y_rows.shape[1]:
                raise ValueError(
                    f"X has {x_rows.shape[1]} features but Y has {y_rows.shape[1]}; "
                    "both need the same columns."
                )
            self._require_memory(x_rows, y_rows)
            return to_numpy(kernel.block(x_rows, y_rows))
        self._require_memory(x_rows, x_rows, n_matrices=1 + 4 * eval_gradient)
        K = to_numpy(kernel.gram(x_rows))
        if not eval_gradient:
            return K
        # `hyperparameters` come in alphabetical order: bias_std, then weight_std
        columns = {"weight_std": 0, "bias_std": 1}
        free = [columns[h.name] for h in self.hyperparameters if not h.fixed]
        return K, to_numpy(kernel.gradient(x_rows))[..., free]

    def _require_memory(self, x_rows: Any, y_rows: Any, n_matrices: int = 1) -> None:
        n, m = len(x_rows), len(y_rows)
        matrix = kernel_bytes(n, m, x_rows.shape[1], x_rows.dtype, x_rows.device)
        require(
            n_matrices * matrix,
            "auto",
            x_rows.device,
            what=f"The kernel matrix of {n} and {m} rows",
            remedy="Use fewer rows, or an estimator of this package, which need not hold it.",
        )

    def diag(self, X: Any) -> np.ndarray:
        """Return K(x, x) for each row of ``X``, in O(n d).

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows.

        Returns
        -------
        diagonal : ndarray of shape (n,)
            The diagonal of the kernel matrix.
        """
        return to_numpy(self.to_torch().diag(as_rows(X, "X")))

    def is_stationary(self) -> bool:
        """Return False: the kernel depends on more than x − x′."""
        return False

    def __repr__(self) -> str:
        return (
            f"NTK(depth={self.depth}, activation={self.activation!r}, "
            f"weight_std={self.weight_std:.3g}, bias_std={self.bias_std:.3g}, kind={self.kind!r})"
        )


def as_rows(X: Any, name: str) -> Any:
    """Return ``X`` as a float64 tensor of rows, or raise an error that says why not."""
    rows = to_tensor(X, name=name)
    if rows.ndim != 2 or rows.shape[1] == 0:
        flatten = (
            f" Flatten them by {name}.reshape(len({name}), -1); EmpiricalNTK(module, "
            f"input_shape={tuple(rows.shape[1:])}) gives them back to its module."
            if rows.ndim > 2
            else ""
        )
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}; it must be an array of rows, "
            f"of shape (n, d) with d >= 1.{flatten}"
        )
    return rows
