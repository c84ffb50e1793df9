"""Scorers on fitted students, for `GridSearchCV` and everything else that takes ``scoring``."""

from __future__ import annotations

import copy
from typing import Any, Self

from sklearn.pipeline import Pipeline

from sklearn_kd._array import to_tensor
from sklearn_kd._sklearn import BaseScorer, score_in_search
from sklearn_kd._warnings import is_called_by
from sklearn_kd.distillation._arguments import row_weights
from sklearn_kd.exceptions import NoTeacherError
from sklearn_kd.metrics._inefficiency import held_out_data_inefficiency
from sklearn_kd.metrics._risk import disagreement, weighted_mean


class DistillationScorer(BaseScorer):
    """A score of a fitted student that uses its teacher; greater is better.

    Call it as ``scorer(estimator, X, y)``. ``estimator`` is a fitted student, a `Pipeline` that
    ends in one, or a search over either. In a pipeline the teacher sees what the student sees, the
    transformed rows.

    The teacher's logits on ``X`` come from the student's ``teacher_``, or from the metadata
    ``teacher_logits`` where the student was fitted on logits and has no teacher.

    The data inefficiency needs a student fitted with a factor of the kernel matrix,
    ``solver="cholesky"``. For other solvers an error names the solver.

    Where no fold can have a score, for want of a teacher, of such a factor or of a student, the
    searches of scikit-learn end in an error too, whatever their ``error_score``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.metrics import neg_transfer_risk_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> teacher = LogisticRegression().fit(X[::3], y[::3])
    >>> student = LinearizedKDStudent(FrozenEstimator(teacher)).fit(X[1::3], y[1::3])
    >>> neg_transfer_risk_scorer(student, X[2::3], y[2::3])
    -0.06
    """

    def __init__(self, name, score_func):
        super().__init__(score_func, sign=-1, kwargs={})
        self._name = name

    def __call__(
        self, estimator, X, y_true, *, teacher_logits=None, sample_weight=None, teacher_trust=None
    ):
        """Return the score of ``estimator`` on the held-out rows ``X`` with labels ``y_true``.

        Parameters
        ----------
        estimator : LinearizedKDStudent, or a Pipeline or search that ends in one
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Held-out rows.
        y_true : array-like of shape (n_samples,)
            Their hard labels.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``. None: those of the student's teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights.
        teacher_trust : array-like of shape (n_samples,), default=None
            As in the student's ``fit``; the data inefficiency takes each held-out row as the next
            training row.

        Returns
        -------
        float
            The score; greater is better.
        """
        metadata = {
            "teacher_logits": teacher_logits,
            "sample_weight": sample_weight,
            "teacher_trust": teacher_trust,
        }
        return self._score(None, estimator, X, y_true, **metadata)

    def _score(self, method_caller, estimator, X, y_true, **metadata):
        try:
            student, X = student_and_rows(estimator, X)
            return self._sign * self._score_func(student, X, y_true, **metadata)
        except (AttributeError, NoTeacherError, TypeError) as error:
            if is_called_by(score_in_search):
                return NoScore(str(error))
            raise

    def __repr__(self):
        return self._name

    def set_score_request(self, **kwargs: bool | str | None) -> Self:
        """Return a copy of this scorer that requests the named metadata.

        Parameters
        ----------
        **kwargs : bool, str or None
            ``teacher_logits=True``, ``sample_weight=True`` and ``teacher_trust=True`` ask for
            these, as in scikit-learn's metadata routing, which must be enabled.
        """
        return BaseScorer.set_score_request(copy.deepcopy(self), **kwargs)


class NoScore:
    """What a scorer returns to a search in place of a score that no fold can have.

    Searches of scikit-learn turn the errors of scorers into NaN and go on, to a "best" candidate
    that none of them has chosen. What is no number they refuse, and the error shows this text.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __str__(self) -> str:
        return f"none. {self.reason}"


def student_and_rows(estimator: Any, X: Any = None) -> tuple[Any, Any]:
    """Return the student inside ``estimator`` and the rows, if given, as the student sees them.

    Raises
    ------
    TypeError
        If there is no student.
    """
    while not hasattr(estimator, "effective_decision_function"):
        if isinstance(estimator, Pipeline):
            for _, step in estimator.steps[:-1]:
                is_open = X is None or step is None or step == "passthrough"
                X = X if is_open else step.transform(X)
            estimator = estimator.steps[-1][1]
        elif hasattr(estimator, "student_"):
            X = None if X is None else estimator._rows(X)
            estimator = estimator.student_
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            raise TypeError(
                f"{type(estimator).__name__} is not a LinearizedKDStudent, nor a fitted Pipeline "
                "or search that ends in one, but a student and its teacher are asked. Give the "
                "fitted student."
            )
    return estimator, X


def _transfer_risk(student, X, y, *, teacher_logits=None, sample_weight=None, teacher_trust=None):
    z_t = to_tensor(student.teacher_decision_function(X, teacher_logits))
    z_s = to_tensor(student.decision_function(X))
    weights = None if sample_weight is None else row_weights(sample_weight, len(z_t))
    return weighted_mean(disagreement(z_t, z_s, is_binary=z_t.ndim == 1).to(z_t), weights).item()


def _data_inefficiency(
    student, X, y, *, teacher_logits=None, sample_weight=None, teacher_trust=None
):
    terms = student._next_row_terms(X, y, teacher_logits, teacher_trust)
    squared_norm, errors, directions, n_rows = terms
    weights = None if sample_weight is None else row_weights(sample_weight, len(errors))
    return held_out_data_inefficiency(squared_norm, errors, directions, n_rows, weights).item()


neg_transfer_risk_scorer = DistillationScorer("neg_transfer_risk_scorer", _transfer_risk)
"""Negated transfer risk on held-out rows: minus the share of rows on which student and teacher
disagree (`transfer_risk`). Greater is better; in [-1, 0]."""

neg_data_inefficiency_scorer = DistillationScorer(
    "neg_data_inefficiency_scorer", _data_inefficiency
)
"""Negated data inefficiency 𝓘(n) (Eq. 10) with each held-out row as the next training row: exact,
without a refit. Greater is better; at most 0."""
