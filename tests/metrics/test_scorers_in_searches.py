"""Scorers that no fold can answer end a search in an error, not in NaN and the first candidate."""

import numpy as np
import pytest
import sklearn
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    learning_curve,
)

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.exceptions import NoTeacherError
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer

X, Y = make_classification(n_samples=40, n_features=4, random_state=0)
Z = 2 * X[:, 0]
GRID = {"soft_ratio": [0.5, 0.9]}
NO_TEACHER = r"(?s)has no teacher to ask.*set_score_request\(teacher_logits=True\)"


@pytest.mark.parametrize(
    "scoring",
    [
        neg_transfer_risk_scorer,
        neg_data_inefficiency_scorer,
        {"risk": neg_transfer_risk_scorer, "accuracy": "accuracy"},
    ],
    ids=["risk", "inefficiency", "several"],
)
@pytest.mark.parametrize("search", [GridSearchCV, RandomizedSearchCV])
@pytest.mark.parametrize("error_score", [np.nan, "raise"])
def test_a_student_without_a_teacher(search, scoring, error_score):
    options = {} if search is GridSearchCV else {"n_iter": 2}
    found = search(
        LinearizedKDStudent(), GRID, scoring=scoring, cv=2, error_score=error_score, **options
    )
    if isinstance(scoring, dict):
        found.set_params(refit="risk")
    with pytest.raises(ValueError, match=NO_TEACHER):
        found.fit(X, Y, teacher_logits=Z)
    assert not hasattr(found, "best_estimator_")


def test_other_callers_of_scorers():
    fitted = LinearizedKDStudent().fit(X, Y, teacher_logits=Z)
    with pytest.raises(NoTeacherError, match=NO_TEACHER):
        neg_transfer_risk_scorer(fitted, X, Y)
    with sklearn.config_context(enable_metadata_routing=True):
        student = LinearizedKDStudent().set_fit_request(teacher_logits=True)
        scorer = neg_transfer_risk_scorer.set_score_request(teacher_logits=False)
        with pytest.raises(ValueError, match=NO_TEACHER):
            cross_val_score(student, X, Y, scoring=scorer, params={"teacher_logits": Z}, cv=2)
        scorer = neg_transfer_risk_scorer.set_score_request(teacher_logits=True)
        scores = cross_val_score(student, X, Y, scoring=scorer, params={"teacher_logits": Z}, cv=2)
    assert np.isfinite(scores).all()


def test_a_solver_without_a_factor():
    student = LinearizedKDStudent(LogisticRegression(), solver="pcg")
    search = GridSearchCV(student, GRID, scoring=neg_data_inefficiency_scorer, cv=2)
    with pytest.raises(ValueError, match=r"(?s)solver='pcg' do not have; use another score"):
        search.fit(X, Y)


def test_no_student_at_all():
    with pytest.raises(ValueError, match="LogisticRegression is not a LinearizedKDStudent"):
        learning_curve(LogisticRegression(), X, Y, scoring=neg_transfer_risk_scorer, cv=2)
