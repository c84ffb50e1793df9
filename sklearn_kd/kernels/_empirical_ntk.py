"""The tangent kernel of a torch module as a scikit-learn Gaussian-process kernel."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.gaussian_process.kernels import Kernel
from torch import nn

from sklearn_kd._array import DTYPES, resolve_device, to_numpy, to_tensor
from sklearn_kd._memory import CPU, budget_bytes, require
from sklearn_kd._modules import on_device
from sklearn_kd.kernels._ntk import as_rows
from sklearn_kd.kernels.empirical._kernel import WORKSPACE_BYTES, EmpiricalKernel

_OUTPUTS = ("trace", "full")


class EmpiricalNTK(Kernel):
    r"""Neural tangent kernel of a torch module at its current weights.

    This is the kernel of the module's linearization. With the gradients
    :math:`J_k(x) = \partial f_k(x)/\partial\theta` of the outputs :math:`f_k`,

    .. math:: \Theta_{kl}(x, x') = J_k(x)\, J_l(x')^\top.

    Estimators need one value for each pair of rows. It is

    * for one output, :math:`\Theta(x, x')`;
    * for two outputs, the kernel of their difference, the log-odds :math:`f_1 - f_0`;
    * for K ≥ 3 outputs, the mean :math:`\frac1K \sum_k \Theta_{kk}(x, x')`, shared by all classes.
      Outputs of a wide network have the same kernel and are independent; their mean is an
      estimate of that kernel whose size does not depend on K, so a ridge means the same for any K.

    A network whose weights stay close to their initial values behaves like its linearization. The
    wider the network, the closer they stay. For a fully connected network in the NTK
    parametrisation, this kernel then also approaches :class:`NTK`.

    The kernel works wherever :class:`NTK` does, and has no hyper-parameters to optimise. It neither
    trains nor changes the module. :func:`sklearn.base.clone` copies the module with its weights.
    A fitted student therefore keeps the weights of the time of the fit, even if the module is
    trained further.

    Parameters
    ----------
    module : torch.nn.Module
        Takes a batch of n inputs, n first, and returns a tensor of shape (n, K) or (n,): a row of
        outputs for each input, which depends on that input alone. It is evaluated in evaluation
        mode; layers that are in training mode and behave differently there (dropout, batch
        normalisation) are refused. Only parameters with ``requires_grad=True`` count.
    input_shape : tuple of int, default=None
        Shape of one input, such as (3, 32, 32). Rows of that many features, in row-major order, are
        reshaped to it. None: the rows are passed to the module unchanged.
    output : {"trace", "full"}, default="trace"
        "trace": one value for each pair of rows, as above, the mean over outputs. "full": rows and
        columns for every output; row i K + k is output k for input i. Only for direct calls, since
        estimators need one value for each pair of rows.
    batch_size : int or "auto", default="auto"
        Number of rows evaluated at a time; "auto" takes as many as fit into a part of
        ``memory_limit``, at most 1 GiB. Gradients are never held for all rows and parameters.
    device : str or torch.device, default="auto"
        Where the module is evaluated; "auto" is where the rows are.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the module's evaluation; "auto" is that of the rows, float64 in direct calls.
    memory_limit : "auto" or float, default="auto"
        Bytes that a direct call may take; "auto" is 90 % of what is free.

    Raises
    ------
    ValueError
        If a parameter is out of range, or the module is not of the kind described. Raised by the
        first call that uses the module.
    MemoryBudgetError
        If the requested matrix does not fit ``memory_limit``.

    Notes
    -----
    Linear layers, convolutions, embeddings and normalisations are recognised when the module calls
    their functions. The class of the layer does not matter, nor how often it is called, nor whether
    its weights are shared. Per-row gradients are formed from the inputs of the layers and the
    gradients of their outputs. For products of single vectors the kernel follows without them:
    :math:`\Theta_l = (A A'^\top + 1) \circ (G G'^\top)`, A the inputs and G the gradients. All else
    is differentiated row by row, such as the weights of attention, recurrent layers and parameters
    that a module uses directly. Every parameter's rule is compared with plain differentiation on
    two rows before it is used. In every batch a second backward pass checks that the recognised
    layers see the rows in their order.

    If the first layer registered in the module is a `torch.nn.Embedding`, rows hold token ids and
    are converted to integers. A module with its embedding elsewhere must convert its input itself.

    Some layers see only some of the rows, depending on their values. If the first rows show this,
    such layers are differentiated row by row. If only later rows show it, an error is raised.

    Hooks on gradients are ignored.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_kd.kernels import EmpiricalNTK
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(
    ...     torch.nn.Linear(2, 50), torch.nn.ReLU(), torch.nn.Linear(50, 1)
    ... )
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -1.0]])
    >>> kernel = EmpiricalNTK(module)
    >>> kernel(X).shape
    (3, 3)
    >>> kernel.initial_outputs(X).shape
    (3,)

    As the kernel of a student, which starts from the module's outputs:

    >>> from sklearn_kd import LinearizedKDStudent
    >>> student = LinearizedKDStudent(kernel=kernel)
    >>> student.fit(X, [0, 1, 1], teacher_logits=[-1.0, 2.0, 1.0]).decision_function(X).round(3)
    array([-1.388,  2.226,  1.388])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        input_shape: tuple[int, ...] | None = None,
        output: str = "trace",
        batch_size: int | str = "auto",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
    ):
        self.module = module
        self.input_shape = input_shape
        self.output = output
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit

    def to_torch(self) -> EmpiricalKernel:
        """Return the same kernel as a function on torch tensors, with a copy of the module.

        Raises
        ------
        ValueError
            If a parameter is out of range, if the module is in training mode where that matters, or
            if ``output="full"``: a kernel function returns one value for each pair of rows.
        """
        if self.output == "full":
            raise ValueError(
                "EmpiricalNTK(output='full') has a row for each output of each input, but "
                "estimators need one value for each pair of inputs; use output='trace'."
            )
        return self._to_torch()

    def _to_torch(self) -> EmpiricalKernel:
        self._check_parameters()
        device = None if str(self.device) == "auto" else resolve_device(self.device)
        budget = budget_bytes(self.memory_limit, device or torch.device("cpu"))
        return EmpiricalKernel(
            self.module,
            input_shape=None if self.input_shape is None else tuple(self.input_shape),
            full=self.output == "full",
            batch_size=None if isinstance(self.batch_size, str) else int(self.batch_size),
            workspace_bytes=min(WORKSPACE_BYTES, budget // 2),
            device=device,
            dtype=None if self.dtype == "auto" else DTYPES[self.dtype],
        )

    def _check_parameters(self) -> None:
        params = self.get_params()
        module, shape = params["module"], params["input_shape"]
        size, limit = params["batch_size"], params["memory_limit"]
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module={module!r} is a {type(module).__name__}; it must be an instance of "
                "torch.nn.Module."
            )
        if shape is not None and not (
            isinstance(shape, (tuple, list))
            and shape
            and all(isinstance(side, Integral) and int(side) > 0 for side in shape)
        ):
            raise ValueError(
                f"input_shape={shape!r} must be None or a tuple of positive integers, such as "
                "(3, 32, 32)."
            )
        for name, allowed in (("output", _OUTPUTS), ("dtype", ("auto", *DTYPES))):
            if params[name] not in allowed:
                raise ValueError(f"{name}={params[name]!r} must be one of {allowed}.")
        if size != "auto" and not (isinstance(size, Integral) and int(size) > 0):
            raise ValueError(f"batch_size={size!r} must be 'auto' or a positive integer.")
        if limit != "auto" and not (isinstance(limit, Real) and float(limit) > 0):
            raise ValueError(
                f"memory_limit={limit!r} must be 'auto' or a positive number of bytes."
            )

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Return Θ(X, Y) and, if asked, its gradient, which has no entries.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows on the left.
        Y : array-like of shape (m, d), optional
            Rows on the right; ``X`` if not given.
        eval_gradient : bool, default=False
            Whether to return the gradient in the hyper-parameters too. There are none.

        Returns
        -------
        K : ndarray of shape (n, m), or (n K, m K) with ``output="full"``
            Kernel matrix, always in float64.
        K_gradient : ndarray of shape (n, n, 0), only with ``eval_gradient``
            Empty, as scikit-learn expects of a kernel without hyper-parameters.
        """
        if eval_gradient and Y is not None:
            raise ValueError("eval_gradient=True needs Y=None: the gradient is that of K(X, X).")
        x_rows = as_rows(X, "X")
        y_rows = x_rows if Y is None else self._rows_beside(Y, x_rows)
        kernel = self._to_torch()
        self._require_memory(kernel, x_rows, y_rows)
        K = to_numpy(kernel.gram(x_rows) if Y is None else kernel.block(x_rows, y_rows))
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X: Any) -> np.ndarray:
        """Return Θ(x, x) for each row of ``X``.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows.

        Returns
        -------
        diagonal : ndarray of shape (n,) or (n K,)
            The diagonal of the kernel matrix, the latter with ``output="full"``.
        """
        return to_numpy(self._to_torch().diag(as_rows(X, "X")))

    def initial_outputs(self, X: Any) -> np.ndarray:
        """Return z₀, the logits of the module at its current weights.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows.

        Returns
        -------
        ndarray of shape (n,) or (n, K)
            Logits: the output itself if there is one, the log-odds f₁ − f₀ if there are two,
            and otherwise all outputs, shifted to sum to zero in each row.
        """
        return to_numpy(self._to_torch().outputs(as_rows(X, "X")))

    def matmat(self, X: Any, Y: Any, V: Any) -> np.ndarray:
        """Return Θ(X, Y) V without Θ: the change of the outputs on X for the weights J(Y)ᵀ V.

        For few columns, and for ``output="full"``, neither the n m entries nor the gradients of all
        rows are formed. Where entries are cheaper, 64 MiB of them are held at a time.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows on the left.
        Y : array-like of shape (m, d)
            Rows on the right.
        V : array-like of shape (m,) or (m, c); (m K,) or (m K, c) with ``output="full"``
            The matrix to multiply by.

        Returns
        -------
        ndarray of shape (n,) or (n, c); (n K,) or (n K, c) with ``output="full"``
            The product, in float64.
        """
        x_rows = as_rows(X, "X")
        y_rows = self._rows_beside(Y, x_rows)
        V = to_tensor(V)
        kernel = self._to_torch()
        n_expected = len(y_rows) * (kernel.n_outputs(y_rows) if kernel.full else 1)
        if V.ndim not in (1, 2) or len(V) != n_expected:
            raise ValueError(
                f"V has shape {tuple(V.shape)}; it must have {n_expected} rows, for {len(y_rows)} "
                f"rows of Y and output={self.output!r}."
            )
        product = kernel.matmat(x_rows, y_rows, V if V.ndim == 2 else V[:, None])
        return to_numpy(product if V.ndim == 2 else product[:, 0])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the module on the CPU, so that it loads anywhere."""
        state = vars(self).copy()
        if isinstance(self.module, nn.Module):
            state["module"] = on_device(self.module, CPU)
        return state

    def is_stationary(self) -> bool:
        """Return False: the kernel depends on more than x − x′."""
        return False

    def __repr__(self) -> str:
        return f"EmpiricalNTK({type(self.module).__name__}(...), output={self.output!r})"

    def _rows_beside(self, Y: Any, x_rows: torch.Tensor) -> torch.Tensor:
        y_rows = as_rows(Y, "Y")
        if x_rows.shape[1] != y_rows.shape[1]:
            raise ValueError(
                f"X has {x_rows.shape[1]} features but Y has {y_rows.shape[1]}; "
                "both need the same columns."
            )
        return y_rows

    def _require_memory(
        self, kernel: EmpiricalKernel, x_rows: torch.Tensor, y_rows: torch.Tensor
    ) -> None:
        per_input = kernel.n_outputs(x_rows) if kernel.full and len(x_rows) else 1
        sides = len(x_rows) * per_input, len(y_rows) * per_input
        require(
            sides[0] * sides[1] * x_rows.element_size() + kernel.workspace_bytes,
            self.memory_limit,
            x_rows.device,
            what=f"The kernel matrix of shape {sides} (output={self.output!r})",
            remedy="Use fewer rows, output='trace', the method matmat, or raise memory_limit.",
        )
