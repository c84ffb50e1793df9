"""What the teacher and the student share: a classifier f(x) = Θ(x, X_fit) a."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn.functional import one_hot

from sklearn_kd._array import like, resolve_device, resolve_dtype, to_numpy, to_tensor
from sklearn_kd._logits import class_indices, class_probabilities
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    check_same_namespace,
    check_sample_weight,
    get_namespace,
    move_to,
)
from sklearn_kd._streams import RowStream, as_row_stream, is_streamed
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._function import KernelFunction, as_kernel_function
from sklearn_kd.kernels._tiles import matmat
from sklearn_kd.linalg import MergedRows, merge_rows
from sklearn_kd.linalg._memory import MEMORY_REMEDY, frame_bytes, require


class TrainingRows(NamedTuple):
    """Checked input of a fit: rows as given and as a tensor, class indices, row weights."""

    array: Any  # (n, d) in the caller's array library
    X: Tensor  # (n, d) in the working dtype on the working device
    classes: np.ndarray  # (K,)
    labels: np.ndarray  # (n,) indices into classes
    sample_weight: np.ndarray | None  # (n,)
    stream: RowStream | None = None  # rows that are not in memory; array and X are then (0, d)

    @property
    def weights(self) -> Tensor:
        """Row weights (n,), ones where none were given, beside ``X``."""
        if self.sample_weight is None:
            return self.X.new_ones(len(self.labels))
        return torch.as_tensor(self.sample_weight, dtype=self.X.dtype, device=self.X.device)


class DistinctRows(NamedTuple):
    """The rows of positive weight with exact copies merged: one row, mean labels, total weight."""

    kept: Tensor  # (n_kept,) the samples of positive weight
    kept_weights: Tensor  # (n_kept,)
    merged: MergedRows  # of the n_kept samples
    X: Tensor  # (n, d)
    hard_labels: Tensor  # (n,) share of class 1, or (n, K) class shares
    weights: Tensor  # (n,) total weight of the copies

    def to_host(self) -> Self:
        """Return a copy to keep: on the CPU, without the rows, which ``X_fit_`` holds."""
        first, group = self.merged
        return self._replace(
            kept=self.kept.cpu(),
            kept_weights=self.kept_weights.cpu(),
            merged=MergedRows(first.cpu(), group.cpu()),
            X=self.X.new_empty((0, self.X.shape[1]), device="cpu"),
            hard_labels=self.hard_labels.cpu(),
            weights=self.weights.cpu(),
        )


def distinct_rows(rows: TrainingRows, copies: MergedRows | None = None) -> DistinctRows:
    """Merge exact copies, which a loss that is linear in the labels cannot tell apart.

    ``copies`` says which of all rows are copies, for rows that are not in memory: X is then empty.
    """
    weights = rows.weights
    kept = weights.nonzero()[:, 0]
    kept_weights = weights[kept]
    if copies is None:
        X = rows.X[kept]
        merged = merge_rows(X)
        X = X[merged.first]
    else:
        X, merged = rows.X[:0], copies.among(kept)
    labels = torch.as_tensor(rows.labels, device=X.device)[kept]
    hard_labels = labels if len(rows.classes) == 2 else one_hot(labels, len(rows.classes))
    return DistinctRows(
        kept=kept,
        kept_weights=kept_weights,
        merged=merged,
        X=X,
        hard_labels=merged.mean(hard_labels.to(X.dtype), kept_weights),
        weights=merged.total(kept_weights),
    )


def rows_report(rows: TrainingRows, distinct: DistinctRows) -> dict[str, Any]:
    """Return what every fit reports: how many rows became what, and where it was computed."""
    return {
        "n_rows": len(rows.labels),
        "n_distinct_rows": distinct.merged.n_distinct,
        "n_merged_rows": distinct.merged.n_merged,
        "n_zero_weight_rows": len(rows.labels) - len(distinct.kept),
        "device": str(distinct.X.device),
        "dtype": str(distinct.X.dtype).removeprefix("torch."),
    }


@contextlib.contextmanager
def restored_on_error(estimator: Any) -> Iterator[None]:
    """Leave ``estimator`` exactly as it was if the block raises: no half-fitted state."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextlib.contextmanager
def fit_task(
    estimator: Any, X: Any, y: Any, sample_weight: Any, *, n_stages: int
) -> Iterator[FitTask]:
    """Announce the fit of ``estimator``, in at most ``n_stages``; it is restored on any error."""
    # Not undone by `restored_on_error`: the teardown of the callbacks finds its context there.
    context = estimator._init_callback_context(max_subtasks=n_stages)
    seen = {
        "estimator": estimator,
        "X": X,
        "y": y,
        "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
    }
    with restored_on_error(estimator):
        context.call_on_fit_task_begin(**seen)
        yield FitTask(estimator, context)
        # Nothing is missing from the estimator: callbacks that score take it as it is.
        context.call_on_fit_task_end(**seen, reconstruction_attributes={})


class TangentKernelClassifier(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
    """Base of the classifiers whose logits are f(x) = Θ(x, X_fit) a.

    Subclasses store ``kernel``, ``device`` and ``dtype``, and set ``classes_``, ``X_fit_`` and
    ``dual_coef_``, ``kernel_`` in ``fit``.
    """

    _parameter_constraints: ClassVar[dict] = {
        "kernel": [callable, None],
        "device": [str, torch.device],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "memory_limit": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    }

    def _check_rows(self, X: Any, y: Any, sample_weight: Any) -> TrainingRows:
        xp, _ = get_namespace(X)
        if y is not None:
            y = move_to(y, xp=np, device="cpu")
        X, y = validate_data(self, X, y, dtype=[xp.float64, xp.float32], ensure_min_samples=2)
        classes, labels, sample_weight = self._check_labels(y, sample_weight)
        return TrainingRows(X, self._to_working(X), classes, labels, sample_weight)

    def _check_stream(self, X: Any, *, reset: bool) -> RowStream:
        """Return rows that need not be in memory; their values are checked as they are read."""
        stream = as_row_stream(X)
        validate_data(self, np.empty((1, stream.n_features)), reset=reset, skip_check_array=True)
        return stream

    def _check_labels(
        self, y: np.ndarray, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the classes, the index of each label among them, and checked weights."""
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds only one class, {classes.tolist()}; {type(self).__name__} needs two or "
                "more."
            )
        if sample_weight is not None:
            sample_weight = check_sample_weight(
                move_to(sample_weight, xp=np, device="cpu"),
                np.empty((len(y), 0)),
                dtype=np.float64,
                ensure_non_negative=True,
            )
            self._require_representable(sample_weight)
        return classes, labels, sample_weight

    def _require_representable(self, sample_weight: np.ndarray) -> None:
        """Raise where a weight, or the sum of them all, is 0 or infinite in the working dtype."""
        weights = torch.as_tensor(sample_weight, dtype=resolve_dtype(self.dtype))
        vanished = (weights == 0).numpy() & (sample_weight > 0)
        if vanished.any() or not weights.sum().isfinite():
            shown = sample_weight[vanished][0] if vanished.any() else sample_weight.max()
            raise ValueError(
                f"sample_weight holds {shown:.3g}, with which weights leave the range of "
                f"{str(weights.dtype).removeprefix('torch.')}; rescale them."
            )

    def _to_working(self, X: Any) -> Tensor:
        if isinstance(X, RowStream):
            X = X.take(np.arange(len(X)))
        return to_tensor(X, dtype=resolve_dtype(self.dtype), device=resolve_device(self.device))

    def _kernel_to_use(self) -> Any:
        return NTK() if self.kernel is None else clone(self.kernel, safe=False)

    def _kernel_function(self) -> KernelFunction:
        """Return ``kernel_`` on tensors; kept, as that of a network takes a while to prepare."""
        kernel, function = vars(self).get("_prepared", (None, None))
        if function is None or kernel is not self.kernel_:
            function = as_kernel_function(self.kernel_)
            self._prepared = self.kernel_, function
        return function

    def _require_memory(self, X: Tensor, n_classes: int, *, extra: int = 0) -> None:
        """Raise `MemoryBudgetError` before anything slow or large if the kernel will not fit."""
        n_rows, n_features = X.shape
        require(
            frame_bytes(n_rows, n_features, n_classes, X.dtype, X.device) + extra,
            self.memory_limit,
            X.device,
            what=f"{type(self).__name__}.fit on n={n_rows} distinct rows",
            remedy=MEMORY_REMEDY,
        )

    def _check_new_rows(self, X: Any, method: str) -> Any:
        check_is_fitted(self)
        if is_streamed(X):
            return self._check_stream(X, reset=False)
        check_same_namespace(X, self, attribute="X_fit_", method=method)
        xp, _ = get_namespace(X)
        return validate_data(self, X, dtype=[xp.float64, xp.float32], reset=False)

    def _logits(self, X: Any, coefficients: Any) -> Tensor:
        """Return the logits of rows, in blocks of bounded memory."""
        if not isinstance(X, RowStream):
            return self._logits_in_memory(X, coefficients)
        blocks = X.blocks(dtype=resolve_dtype(self.dtype), device=resolve_device(self.device))
        return torch.cat([self._logits_in_memory(block, coefficients) for _, block in blocks])

    def _logits_in_memory(self, X: Any, coefficients: Any) -> Tensor:
        """Return Θ(X, X_fit) a, few kernel entries at a time."""
        coefficients = self._to_working(coefficients)
        columns = coefficients.reshape(len(coefficients), -1)
        rows, fitted = self._to_working(X), self._to_working(self.X_fit_)
        logits = self._kernel_product(rows, fitted, columns)
        return logits.reshape(-1, *coefficients.shape[1:])

    def _kernel_product(self, X: Tensor, fitted: Tensor, columns: Tensor) -> Tensor:
        return matmat(self._kernel_function(), X, fitted, columns)

    def decision_function(self, X: Any) -> Any:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), dask array or path of a folder
            Rows to predict. Memory maps, dask arrays and folders of ``.npy`` or ``.npz`` files
            are read block by block.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Log-odds of ``classes_[1]`` for two classes; for more, one logit per class, which sum
            to zero in each row. Natural logarithms.
        """
        X = self._check_new_rows(X, "decision_function")
        return like(self._logits(X, self.dual_coef_), X)

    def predict_proba(self, X: Any) -> Any:
        """Return the class probabilities at temperature 1.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), dask array or path of a folder
            Rows to predict. Memory maps, dask arrays and folders of ``.npy`` or ``.npz`` files
            are read block by block.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The sigmoid (two classes) or softmax of the logits.
        """
        X = self._check_new_rows(X, "predict_proba")
        return like(class_probabilities(self._logits(X, self.dual_coef_)), X)

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), dask array or path of a folder
            Rows to predict. Memory maps, dask arrays and folders of ``.npy`` or ``.npz`` files
            are read block by block.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        X = self._check_new_rows(X, "predict")
        labels = self.classes_[to_numpy(class_indices(self._logits(X, self.dual_coef_)))]
        return labels if labels.dtype.kind in "OUS" else like(torch.as_tensor(labels), X)

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
