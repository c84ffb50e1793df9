"""A student on transformed rows, with a teacher that reads them as they come."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._progress import restored_on_error
from sklearn_kd._sklearn import HasMethods, fit_context
from sklearn_kd.rows._views import TwoViews


class StudentPipeline(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """A transformer before a student, whose teacher is given the rows as they come.

    It is ``make_pipeline(transformer, student)``, but for the teacher: there both learn from the
    transformed rows. Here the transformer stands between the rows and the student only, so that
    a teacher that reads categories, missing values or columns by name can teach a student, which
    needs numbers.

    Parameters
    ----------
    transformer : transformer
        Turns rows into numbers for the student, such as a
        :class:`~sklearn.compose.ColumnTransformer` or a pipeline of transformers.
    student : LinearizedKDStudent or LinearizedKDStudentCV
        With a ``teacher`` that takes the rows as they come; the teacher None, which is
        ``NTKTeacher()``, takes the transformed ones.

    Attributes
    ----------
    transformer_ : transformer
        The fitted transformer.
    student_ : LinearizedKDStudent or LinearizedKDStudentCV
        The fitted student.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_features_in_ : int
        Number of features that the transformer has seen, where it counts them.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, where they are strings.

    See Also
    --------
    sklearn.pipeline.make_pipeline : For teachers that take the same numbers as the student.

    Notes
    -----
    Searches over it, such as :class:`~sklearn.model_selection.GridSearchCV` with
    ``student__soft_ratio`` in its grid, fit the transformer to the training rows of each fold.
    A :class:`LinearizedKDStudentCV` inside it is given rows of a transformer that was fitted to
    all of them, held-out ones too.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.ensemble import HistGradientBoostingClassifier
    >>> from sklearn.preprocessing import OneHotEncoder, StandardScaler
    >>> from sklearn_kd import LinearizedKDStudent, StudentPipeline
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"size": rng.normal(size=200)})
    >>> frame["kind"] = pd.Categorical(rng.choice(["red", "blue"], 200))
    >>> y = (frame["size"] > 0) ^ (frame["kind"] == "red")
    >>> encode = make_column_transformer(
    ...     (StandardScaler(), ["size"]), (OneHotEncoder(), ["kind"])
    ... )
    >>> teacher = HistGradientBoostingClassifier()  # takes categories as they are
    >>> student = StudentPipeline(encode, LinearizedKDStudent(teacher)).fit(frame[:100], y[:100])
    >>> student.score(frame[100:], y[100:]) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "transformer": [HasMethods(["fit", "transform"])],
        "student": [HasMethods(["fit", "decision_function"])],
    }

    def __init__(self, transformer: Any, student: Any) -> None:
        self.transformer = transformer
        self.student = student

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        teacher_logits: Any = None,
        teacher_trust: Any = None,
    ) -> Self:
        """Fit the transformer, then the student on transformed rows; its teacher is given ``X``.

        Parameters
        ----------
        X : array-like or data frame of n_samples rows
            What transformer and teacher take.
        y : array-like of shape (n_samples,)
            Hard labels, as in :class:`LinearizedKDStudent`.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights of the student. The transformer is not given them.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``; they replace the teacher.
        teacher_trust : array-like of shape (n_samples,), default=None
            Share of the soft ratio with which each row is learnt.

        Returns
        -------
        self : StudentPipeline
            The fitted pipeline.
        """
        given = {"teacher_logits": teacher_logits, "teacher_trust": teacher_trust}
        given = {name: values for name, values in given.items() if values is not None}
        with restored_on_error(self):
            transformer = clone(self.transformer)
            rows = _dense(transformer.fit(X, y).transform(X))
            student = clone(self.student)
            student.fit(_views(student, X, rows), y, sample_weight, **given)
            self.__dict__.update(transformer_=transformer, student_=student)
        return self

    def _rows(self, X: Any) -> Any:
        """Return rows as the student is given them."""
        check_is_fitted(self)
        return _views(self.student_, X, _dense(self.transformer_.transform(X)))

    def decision_function(self, X: Any) -> Any:
        """Return the student's logits.

        Parameters
        ----------
        X : array-like or data frame of n_samples rows
            Rows to predict.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            As the student's.
        """
        rows = self._rows(X)
        return self.student_.decision_function(rows)

    def predict_proba(self, X: Any) -> Any:
        """Return the student's class probabilities.

        Parameters
        ----------
        X : array-like or data frame of n_samples rows
            Rows to predict.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            As the student's.
        """
        rows = self._rows(X)
        return self.student_.predict_proba(rows)

    def predict(self, X: Any) -> Any:
        """Return the student's classes.

        Parameters
        ----------
        X : array-like or data frame of n_samples rows
            Rows to predict.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        rows = self._rows(X)
        return self.student_.predict(rows)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the student's score, its accuracy.

        Parameters
        ----------
        X : array-like or data frame of n_samples rows
            Rows.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights.

        Returns
        -------
        float
            The score.
        """
        rows = self._rows(X)
        return self.student_.score(rows, y, sample_weight)

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.student_.classes_

    @property
    def n_features_in_(self) -> int:
        """Number of features that the transformer has seen."""
        return self.transformer_.n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the transformer has seen."""
        return self.transformer_.feature_names_in_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "student_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = get_tags(self.transformer).input_tags.sparse
        tags.classifier_tags = get_tags(self.student).classifier_tags
        return tags


def _dense(rows: Any) -> Any:
    """Return transformed rows as an array that a kernel takes."""
    return rows.toarray() if issparse(rows) else rows


def _views(student: Any, X: Any, rows: Any) -> Any:
    """Return rows for a student, and as they came for its teacher, if it names one."""
    return rows if student.teacher is None else TwoViews(rows, X)
