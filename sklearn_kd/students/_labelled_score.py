"""The accuracy of a student on the rows that have a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score

from sklearn_kd._classifier import LogitClassifier
from sklearn_kd._sklearn import move_to
from sklearn_kd.rows._labels import labelled_among


class ScoresLabelledRows(LogitClassifier):
    """A classifier whose ``score`` leaves out the rows without a label."""

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy on the rows that have a label.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : array-like of shape (n_samples,)
            Their labels; -1 where it is not among ``classes_``, or a missing value among objects,
            is no label.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights.

        Returns
        -------
        float
            Share of the labels that ``predict`` returns.

        Raises
        ------
        ValueError
            If no row has a label.
        """
        predicted = self.predict(X)
        known, labelled = labelled_among(y, self.classes_)
        if labelled.all():
            return accuracy_score(y, predicted, sample_weight=sample_weight)
        predicted = move_to(predicted, xp=np, device="cpu")
        if sample_weight is not None:
            sample_weight = np.asarray(move_to(sample_weight, xp=np, device="cpu"))[labelled]
        return accuracy_score(known[labelled], predicted[labelled], sample_weight=sample_weight)
