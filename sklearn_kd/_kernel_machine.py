"""Base of the teacher and the students: a classifier f(x) = z₀(x) + Θ(x, X_fit) a."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import Tags
from torch import Tensor

from sklearn_kd._array import DTYPES, like, resolve_device, to_tensor
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd._sklearn import CallbackSupportMixin, HasMethods, Interval, StrOptions
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import UnscaledFeaturesWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import KERNELS_IN_WORDS, as_kernel_function, is_kernel
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels._scale import SCALE_RATIO, out_of_scale, weighs_columns_by_scale
from sklearn_kd.rows._checking import check_new_rows
from sklearn_kd.rows._streams import RowStream


def kernel_to_use(kernel: Any) -> Any:
    """Return a copy of the parameter ``kernel`` to keep; None is ``NTK()``."""
    return NTK() if kernel is None else clone(kernel, safe=False)


def warn_if_unscaled(estimator: Any, X: Tensor) -> None:
    """Warn with `UnscaledFeaturesWarning` if the kernel of ``estimator`` hardly sees a column."""
    kernel = estimator.kernel
    kernels = kernel if isinstance(kernel, (list, tuple)) else [kernel]
    found = out_of_scale(X) if any(map(weighs_columns_by_scale, kernels)) else None
    if found is None:
        return
    names = getattr(estimator, "feature_names_in_", range(X.shape[1]))
    # The same words for every fold: a warning of the same words and line is shown once.
    warn(
        f"Column {names[found]!r} of X varies over {SCALE_RATIO:.0f} times as much as others, "
        "which the kernel therefore hardly sees. Scale the columns first, such as by "
        f"make_pipeline(StandardScaler(), {type(estimator).__name__}(...)).",
        UnscaledFeaturesWarning,
    )


class KernelConstraint(HasMethods):
    """What the parameter ``kernel`` may be, in an error of scikit-learn's."""

    def __init__(self) -> None:
        super().__init__("__call__")

    def is_satisfied_by(self, value: Any) -> bool:
        """Whether ``value`` is a kernel."""
        return is_kernel(value)

    def __str__(self) -> str:
        return KERNELS_IN_WORDS


class PreparedKernel:
    """A kernel as a function on tensors, and the rows of a fit as its products take them.

    An estimator has it from its fit on; predictions change what it holds, not the estimator.

    Parameters
    ----------
    kernel : callable
        As estimators take it.
    function : KernelFunction
    """

    def __init__(self, kernel: Any, function: KernelFunction) -> None:
        self.kernel, self.function = kernel, function
        self._rows: tuple[Any, torch.device | None, Any] = None, None, None

    def product(
        self, X: Tensor, X_fit: Any, columns: Tensor, to_working: Callable[[Any], Tensor]
    ) -> Tensor:
        """Return Θ(X, X_fit) V; preparing ``X_fit`` takes longer than to predict a row."""
        fitted, device, rows = self._rows
        if fitted is not X_fit or device != X.device:
            rows = self.function.prepared(to_working(X_fit))
            self._rows = X_fit, X.device, rows
        return self.function.matmat(X, rows, columns)


class TangentKernelClassifier(CallbackSupportMixin, LogitClassifier):
    """Base of the classifiers whose logits are a kernel expansion, f(x) = Θ(x, X_fit) a.

    Subclasses store ``kernel``, ``device`` and ``dtype``, and set ``classes_``, ``X_fit_``,
    ``dual_coef_`` and ``kernel_`` in ``fit``.
    """

    _parameter_constraints: ClassVar[dict] = {
        "kernel": [KernelConstraint(), None],
        "device": [str, torch.device],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "memory_limit": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    }

    def _check_new_rows(self, X: Any, method: str) -> Any:
        return check_new_rows(self, X, method)

    @property
    def _dtype(self) -> torch.dtype:
        """The precision of the fit."""
        return DTYPES[self.fit_report_.dtype]

    def _to_working(self, X: Any) -> Tensor:
        """Return rows or coefficients in the precision of the fit, on ``device``."""
        if isinstance(X, RowStream):
            X = X.take(np.arange(len(X)))
        return to_tensor(X, dtype=self._dtype, device=resolve_device(self.device), name="X")

    def _prepared_kernel(self) -> PreparedKernel:
        """Return ``kernel_`` on tensors; cached, as a network's kernel is slow to prepare."""
        prepared = vars(self).get("_prepared")
        if prepared is None or prepared.kernel is not self.kernel_:
            prepared = PreparedKernel(self.kernel_, as_kernel_function(self.kernel_))
            self._prepared = prepared
        return prepared

    def _kernel_function(self) -> KernelFunction:
        return self._prepared_kernel().function

    def _logits(self, X: Any) -> Tensor:
        return self._expansion(X, self.dual_coef_)

    def _staged_logits(self, X: Any) -> Iterator[Any]:
        """Yield the logits of checked rows at every stopping time, like them."""
        stages = self._to_working(self.staged_dual_coef_)
        # All stages in one pass over the kernel: stage and class become columns.
        logits = self._expansion(X, stages.movedim(0, 1))
        for stage in range(len(stages)):
            yield like(logits[:, stage], X)

    def _expansion(self, X: Any, coefficients: Any) -> Tensor:
        """Return the logits of rows for given coefficients, in blocks of bounded memory."""
        # Moved to the device once, for all blocks.
        coefficients = self._to_working(coefficients)
        if not isinstance(X, RowStream):
            return self._expansion_in_memory(self._to_working(X), coefficients)
        blocks = X.blocks(dtype=self._dtype, device=coefficients.device)
        return torch.cat([self._expansion_in_memory(block, coefficients) for _, block in blocks])

    def _expansion_in_memory(self, X: Tensor, coefficients: Tensor) -> Tensor:
        """Return Θ(X, X_fit) a, few kernel entries at a time."""
        columns = coefficients.reshape(len(coefficients), -1)
        logits = self._kernel_product(X, columns)
        return logits.reshape(-1, *coefficients.shape[1:])

    def _kernel_product(self, X: Tensor, columns: Tensor) -> Tensor:
        return self._prepared_kernel().product(X, self.X_fit_, columns, self._to_working)

    def __getstate__(self) -> dict:
        """Return the state without the n² factor, tensors on the CPU so that it loads anywhere."""
        state = super().__getstate__().copy()
        state.pop("_frame", None)
        state.pop("_prepared", None)
        return {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags


def gram_with_noise(kernel: KernelFunction, X: Tensor, row_noise: Tensor) -> Tensor:
    """Return Θ + ν W⁻¹, shape (n, n), for ν / w (n,): the w copies of a row share its noise ν."""
    matrix = kernel.gram(X)
    matrix.diagonal().add_(row_noise)
    return matrix


@full_precision()
def weight_change_norm(kernel_matrix: Tensor, coefficients: Tensor, row_noise: Tensor) -> float:
    """Return ‖Δ_w‖₂ = √(aᵀ Θ a) from Θ + ν W⁻¹, squares summed over the classes."""
    squared = (coefficients * (kernel_matrix @ coefficients)).sum()
    squared -= (row_noise @ coefficients.square()).sum()
    return squared.clamp_min(0).sqrt().item()
