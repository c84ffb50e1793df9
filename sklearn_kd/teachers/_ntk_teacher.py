"""The teacher: a wide network trained on hard labels by gradient flow, in function space.

Symbols (paper -> code -> shape), with n distinct rows, K classes (no K axis for two) and S
stopping times:

====  =====================  ===============
z_t   decision function      f(x) = Θ(x, X) a
a(t)  ``staged_dual_coef_``  (S, n) or (S, n, K)
Θ     ``kernel_matrix``      (n, n)
====  =====================  ===============
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch
from torch import Tensor

from sklearn_kd._array import like
from sklearn_kd._kernel_machine import (
    PreparedKernel,
    TangentKernelClassifier,
    gram_with_noise,
    kernel_to_use,
    warn_if_unscaled,
    weight_change_norm,
)
from sklearn_kd._logits import n_logits
from sklearn_kd._memory import MEMORY_REMEDY, require
from sklearn_kd._progress import PERCENT, FitTask, fit_task
from sklearn_kd._sklearn import Interval, StrOptions, fit_context
from sklearn_kd._warnings import is_called_by, warn
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._forecast import (
    HALF,
    Speed,
    Work,
    factor_work,
    n_sampled,
    product_work,
    warn_if_long,
)
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.rows._checking import check_rows
from sklearn_kd.rows._training_rows import DistinctRows, distinct_rows, rows_report
from sklearn_kd.teachers._cross_fitting import fit_teacher
from sklearn_kd.training._gradient_flow import (
    KRYLOV_COPIES,
    gradient_flow,
    squared_error_targets,
    usual_products,
)
from sklearn_kd.training._ridge_minimum import ridge_minimum
from sklearn_kd.training._stopping_time import stopping_times


class NTKTeacher(TangentKernelClassifier):
    """A wide network trained on hard labels, in function space.

    In the wide-network limit gradient descent on the weights is gradient flow on the function,
    df/dt = −Θ ∂ℓ/∂f, with Θ the neural tangent kernel. The teacher integrates that flow from
    f = 0 to a stopping time, or goes to the minimum of the ridge-penalized loss.

    Parameters
    ----------
    kernel : callable, default=None
        Tangent kernel: `sklearn_kd.kernels.NTK`, any Gaussian-process kernel of scikit-learn, or
        a callable ``kernel(X, Y)`` that returns a positive definite (n, m) array. None: ``NTK()``.
    loss : {"log_loss", "squared_error"}, default="log_loss"
        Loss per row. "log_loss" is the cross-entropy; "squared_error" is ½ (target − f)², the
        target ±1 for two classes and e_y − 1/K for K.
    stopping_time : float > 0, increasing sequence of them, or None, default=None
        Learning rate × number of epochs of gradient descent on the mean loss over the rows. The
        last of a sequence is used to predict, all of them by ``staged_decision_function``. None:
        converged, at the minimum of Σᵢ wᵢ ℓᵢ + ½ ridge ‖Δ_w‖².
    ridge : float ≥ 0, default=1.0
        Ridge of the converged teacher, as in :class:`~sklearn.kernel_ridge.KernelRidge`; unused
        with a stopping time. The log loss of hard labels has no finite minimum without it.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is CUDA where available, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Working precision. "auto" is float64 whatever the dtype of ``X``.
    memory_limit : "auto" or float, default="auto"
        Bytes that the fit may take; "auto" is 90 % of what is free.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    dual_coef_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        Coefficients of the kernel expansion, at the last stopping time.
    staged_dual_coef_ : ndarray of shape (n_stages, n_distinct) or (n_stages, n_distinct, n_classes)
        Coefficients at every stopping time; one stage if converged.
    X_fit_ : ndarray of shape (n_distinct, n_features)
        The distinct training rows of positive weight, in order of appearance.
    kernel_ : callable
        The kernel that was used.
    weight_change_norm_ : float
        ‖Δ_w‖₂, the distance the weights moved; squares are summed over the classes.
    fit_report_ : Bunch
        ``n_rows``, ``n_distinct_rows``, ``n_merged_rows``, ``n_zero_weight_rows``,
        ``n_kernel_products`` (products with the kernel matrix), ``converged``, ``device`` and
        ``dtype``.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Feature names, where ``X`` has string names.

    Raises
    ------
    MemoryBudgetError
        If the kernel matrix does not fit ``memory_limit``.
    NotPSDError
        If the kernel matrix must be factored ("squared_error", converged) and is not positive
        definite, beyond rounding.
    ValueError
        If the stopping time is beyond the range of the dtype: for the log loss from 1e102
        (float64) or 1e12 (float32) on, in units of the time in which a logit moves by one.
    FloatingPointError
        If 10 000 products with the kernel matrix do not lead from one stopping time to the next,
        or rounding stops the gradient flow: stop earlier, or scale the inputs.

    Warns
    -----
    ConvergenceWarning
        If the converged log loss stopped before reaching its stationary point.
    LongFitWarning
        Before its work begins, if the fit will take minutes.
    IllConditionedWarning
        If rounding decides part of the logits, as it does where the kernel does not tell rows
        with different labels apart and the stopping time is long.
    UnscaledFeaturesWarning
        If standard deviation and range of a column are over 300 times those of another one.

    Notes
    -----
    Each logit of K ≥ 3 classes is an output of its own, so for two classes coded as two outputs
    the difference of logits would move twice as fast as the single logit used here.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data Efficiency
    and Imperfect Teacher", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_kd import NTKTeacher
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> teacher = NTKTeacher(stopping_time=[10.0, 100.0, 1000.0]).fit(X[:400], y[:400])
    >>> teacher.score(X[400:], y[400:]) > 0.95
    True
    >>> [logits.shape for logits in teacher.staged_decision_function(X[400:])]
    [(169,), (169,), (169,)]
    """

    _parameter_constraints: ClassVar[dict] = {
        **TangentKernelClassifier._parameter_constraints,
        "loss": [StrOptions({"log_loss", "squared_error"})],
        "stopping_time": [Interval(Real, 0, None, closed="neither"), "array-like", None],
        "ridge": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        kernel: Any = None,
        *,
        loss: str = "log_loss",
        stopping_time: Any = None,
        ridge: float = 1.0,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
    ) -> None:
        self.kernel = kernel
        self.loss = loss
        self.stopping_time = stopping_time
        self.ridge = ridge
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on hard labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights. Rows of weight 0 are left out.

        Returns
        -------
        self : NTKTeacher
            The fitted teacher.
        """
        times = self._check_stopping_time()
        with fit_task(self, X, y, sample_weight) as progress:
            progress.begin(2 if times is None else 1 + PERCENT)
            rows = check_rows(self, X, y, sample_weight)
            if not is_called_by(fit_teacher):  # the student has these rows, too
                warn_if_unscaled(self, rows.X)
            distinct = distinct_rows(rows)
            self._require_memory(distinct, len(rows.classes))
            kernel = kernel_to_use(self.kernel)
            function = as_kernel_function(kernel)
            self._warn_if_long(function, distinct, len(rows.classes))

            if times is not None:
                trained = self._train(function, distinct, times, progress)
            elif self.loss == "log_loss":
                trained = self._minimize(function, distinct, progress)
            else:
                trained = self._solve(function, distinct, progress)

            self.__dict__.update(
                classes_=rows.classes,
                kernel_=kernel,
                _prepared=PreparedKernel(kernel, function),
                staged_dual_coef_=like(trained.stages, rows.array, copy=True),
                dual_coef_=like(trained.stages[-1], rows.array, copy=True),
                X_fit_=like(distinct.X, rows.array, copy=True),
                weight_change_norm_=trained.weight_change_norm,
                fit_report_=Bunch(**rows_report(rows, distinct), **trained.report),
            )
        return self

    def _check_stopping_time(self) -> list[float] | None:
        if self.stopping_time is None and self.loss == "log_loss" and self.ridge == 0:
            raise ValueError(
                "ridge=0 with stopping_time=None and loss='log_loss' has no finite minimum; "
                "use ridge > 0 or a stopping_time."
            )
        return stopping_times(self.stopping_time)

    def _require_memory(self, rows: DistinctRows, n_classes: int) -> None:
        """Raise `MemoryBudgetError` before anything slow or large if the fit will not fit."""
        n_rows, n_features = rows.X.shape
        planned = frame_bytes(n_rows, n_features, n_classes, rows.X.dtype, rows.X.device)
        if self.stopping_time is not None:  # what the gradient flow needs beside the kernel matrix
            planned += KRYLOV_COPIES * rows.hard_labels.numel() * rows.X.dtype.itemsize
        require(
            planned,
            self.memory_limit,
            rows.X.device,
            what=f"NTKTeacher.fit on n={n_rows} distinct rows",
            remedy=MEMORY_REMEDY,
        )

    def _warn_if_long(self, kernel: KernelFunction, rows: DistinctRows, n_classes: int) -> None:
        """Warn with `LongFitWarning` if the fit will take minutes."""
        n = len(rows.X)

        def work(n_rows: int) -> list[Work]:
            if self.loss == "squared_error" and self.stopping_time is None:
                rest = factor_work(n_rows)
            else:
                rest = self._usual_products() * product_work(n_rows, n_logits(n_classes))
            return [Work(rows.X.dtype, n_rows**2 / 2, rest)]

        warn_if_long(
            f"NTKTeacher.fit on n={n} distinct rows",
            work(n),
            lambda: {HALF: work(n // 2)},
            lambda: Speed([kernel], rows.X[: n_sampled(n)]),
        )

    def _usual_products(self) -> float:
        """Return the products with Θ that the training takes, as fitted to problems of all kinds.

        These were within a factor of two of the truth for two to ten classes.
        """
        if self.stopping_time is None:
            return 80 * self.ridge**-0.35
        return usual_products(float(np.max(self.stopping_time)), self.loss)

    def _train(
        self,
        kernel: KernelFunction,
        rows: DistinctRows,
        times: list[float],
        progress: FitTask,
    ) -> Trained:
        """Gradient flow of the mean loss from f = 0, with a(t) at every stopping time."""
        with progress.step("kernel"):
            row_noise = kernel.noise(rows.X) / rows.weights
            kernel_matrix = gram_with_noise(kernel, rows.X, row_noise)
        with progress.parts("gradient-flow", PERCENT) as on_progress, full_precision():
            stages, info = gradient_flow(
                kernel_matrix,
                rows.hard_labels,
                rows.weights / rows.weights.sum(),
                loss=self.loss,
                stopping_times=times,
                report=on_progress,
            )
        report = {"n_kernel_products": int(info.n_products[0]), "converged": True}
        return Trained(stages, weight_change_norm(kernel_matrix, stages[-1], row_noise), report)

    def _minimize(self, kernel: KernelFunction, rows: DistinctRows, progress: FitTask) -> Trained:
        """Minimum of Σ w ℓ + ½ ridge aᵀ Θ a for the log loss."""
        with progress.step("kernel"):
            row_noise = kernel.noise(rows.X) / rows.weights
            kernel_matrix = gram_with_noise(kernel, rows.X, row_noise)
        with progress.step("minimum"), full_precision():
            coefficients, info = ridge_minimum(
                kernel_matrix, rows.hard_labels, rows.weights, ridge=self.ridge
            )
        if not info.converged:
            warn(
                f"The teacher stopped at a relative residual of {info.residual:.2g} before "
                f"reaching the minimum of its loss; increase ridge={self.ridge!r}.",
                ConvergenceWarning,
            )
        report = {"n_kernel_products": info.n_products, "converged": info.converged}
        norm = weight_change_norm(kernel_matrix, coefficients, row_noise)
        return Trained(coefficients[None], norm, report)

    def _solve(self, kernel: KernelFunction, rows: DistinctRows, progress: FitTask) -> Trained:
        """Minimum of the squared loss: a = (Θ + ridge W⁻¹)⁻¹ targets."""
        with progress.step("kernel-and-factor"):
            frame = TangentFrame(
                kernel,
                rows.X,
                ridge=self.ridge,
                weights=rows.weights,
                memory_limit=self.memory_limit,
            )
        with progress.step("solve"):
            targets = squared_error_targets(rows.hard_labels)
            coefficients = frame.solve(targets)
        norm = frame.weight_change_norm(targets, coefficients)
        report = {"n_kernel_products": 0, "converged": True}
        return Trained(coefficients[None], norm, report)

    def staged_decision_function(self, X: Any) -> Iterator[Any]:
        """Yield the logits at every stopping time of the one training run.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to predict.

        Yields
        ------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            What ``decision_function`` would return at that stopping time.
        """
        X = self._check_new_rows(X, "staged_decision_function")
        yield from self._staged_logits(X)


class Trained(NamedTuple):
    """The result of training."""

    stages: Tensor  # (S, n) or (S, n, K), the coefficients at every stopping time
    weight_change_norm: float
    report: dict[str, Any]
