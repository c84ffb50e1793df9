"""LogitClassifier: classes and probabilities of every classifier that returns logits."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from sklearn_kd._array import like, to_numpy
from sklearn_kd._logits import class_indices, class_probabilities


class LogitClassifier(ClassifierMixin, BaseEstimator):
    """Base of the classifiers that return logits; their predictions follow from these.

    Subclasses set ``classes_``, check their input in `_check_new_rows` and compute logits in
    `_logits`.
    """

    @abstractmethod
    def _check_new_rows(self, X: Any, method: str) -> Any:
        """Return the rows given to ``method``, checked."""

    @abstractmethod
    def _logits(self, X: Any) -> Tensor:
        """Return the logits of checked rows, (n,) for two classes or (n, K) with sum zero."""

    def _finite_logits(self, X: Any) -> Tensor:
        """Return the logits of checked rows; raise rather than return NaN or infinity."""
        logits = self._logits(X)
        finite = logits.reshape(len(logits), -1).isfinite().all(dim=1)
        if not finite.all():
            row = int((~finite).nonzero()[0, 0])
            raise ValueError(
                f"{type(self).__name__}: the logits of {int((~finite).sum())} of {len(logits)} "
                f"rows of X are not finite, first of row {row}: values leave the range of the "
                "dtype. Scale the features, such as by StandardScaler, or use dtype='float64'."
            )
        return logits

    def decision_function(self, X: Any) -> Any:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to predict. The students and :class:`NTKTeacher` read memory maps, dask arrays
            and folders of ``.npy`` or ``.npz`` files block by block.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Log-odds of ``classes_[1]`` for two classes; for more, one logit per class, which sum
            to zero in each row. Natural logarithms.
        """
        X = self._check_new_rows(X, "decision_function")
        return like(self._finite_logits(X), X)

    def predict_proba(self, X: Any) -> Any:
        """Return the class probabilities at temperature 1.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to predict, as for ``decision_function``.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            The sigmoid (two classes) or softmax of the logits.
        """
        X = self._check_new_rows(X, "predict_proba")
        return like(class_probabilities(self._finite_logits(X)), X)

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to predict, as for ``decision_function``.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        X = self._check_new_rows(X, "predict")
        labels = self.classes_[to_numpy(class_indices(self._finite_logits(X)))]
        return like(labels, X)
