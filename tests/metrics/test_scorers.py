"""The scorers alone and inside every search scikit-learn offers."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer, transfer_risk

GRID = {"soft_ratio": [0.3, 0.95], "temperature": [1.0, 4.0]}
SCORING = {
    "accuracy": "accuracy",
    "risk": neg_transfer_risk_scorer,
    "inefficiency": neg_data_inefficiency_scorer,
}


@pytest.fixture(scope="module", params=[load_breast_cancer, load_iris])
def data(request):
    X, y = request.param(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(X))[:150]
    return StandardScaler().fit_transform(X)[rows], y[rows]


@pytest.fixture(scope="module")
def teacher(data):
    X, y = data
    forest = RandomForestClassifier(20, max_depth=3, random_state=0)
    return CalibratedClassifierCV(forest, ensemble=False).fit(X[:60], y[:60])


@pytest.fixture(scope="module")
def student(teacher):
    return LinearizedKDStudent(FrozenEstimator(teacher), ridge=1e-3)


def refitted_inefficiency(student, X, y, X_new, y_new):
    """Append each held-out row to the training rows, one at a time, and solve afresh."""
    z_eff = student.effective_decision_function(X, y)
    z_new = student.effective_decision_function(X_new, y_new)

    def norm(rows, logits):
        gram = NTK()(rows) + student.ridge * np.eye(len(rows))
        return np.sqrt(np.sum(logits * np.linalg.solve(gram, logits)))

    grown = [
        norm(np.vstack([X, x]), np.concatenate([z_eff, z[None]]))
        for x, z in zip(X_new, z_new, strict=True)
    ]
    return len(X) * (np.log(np.mean(grown)) - np.log(norm(X, z_eff)))


def test_scores_are_what_they_say(student, teacher, data):
    X, y = data
    X, first = np.unique(X, axis=0, return_index=True)
    y = y[first]
    student = student.fit(X[:90], y[:90])
    agreement = np.mean(student.predict(X[90:]) == teacher.predict(X[90:]))
    assert neg_transfer_risk_scorer(student, X[90:], y[90:]) == pytest.approx(agreement - 1)
    expected = refitted_inefficiency(student, X[:90], y[:90], X[90:], y[90:])
    actual = neg_data_inefficiency_scorer(student, X[90:], y[90:])
    assert actual == pytest.approx(-expected, rel=1e-7)


def test_training_rows_add_nothing(teacher, data):
    X, y = data
    student = LinearizedKDStudent(FrozenEstimator(teacher)).fit(X, y)
    assert neg_data_inefficiency_scorer(student, X, y) == 0


def test_sample_weight_is_repetition(student, data):
    X, y = data
    student = student.fit(X[:90], y[:90])
    counts = np.random.default_rng(0).integers(0, 3, size=len(X) - 90)
    for scorer in (neg_transfer_risk_scorer, neg_data_inefficiency_scorer):
        repeated = scorer(student, X[90:].repeat(counts, axis=0), y[90:].repeat(counts))
        assert scorer(student, X[90:], y[90:], sample_weight=counts) == pytest.approx(repeated)


@pytest.mark.parametrize(
    "scorer", [neg_transfer_risk_scorer, neg_data_inefficiency_scorer], ids=repr
)
def test_alone_in_a_grid_search(student, data, scorer):
    X, y = data
    search = GridSearchCV(student, GRID, scoring=scorer, cv=3).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert (scores <= 0).all()
    folds = StratifiedKFold(3)
    expected = cross_val_score(
        student.set_params(**search.best_params_), X, y, scoring=scorer, cv=folds
    )
    assert search.best_score_ == pytest.approx(expected.mean())
    assert scorer(search, X, y) == scorer(search.best_estimator_, X, y)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("routing", [False, True])
def test_multi_metric_search_with_refit(student, data, n_jobs, routing):
    X, y = data
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            student, GRID, scoring=SCORING, refit="risk", cv=3, n_jobs=n_jobs
        ).fit(X, y)
    results = search.cv_results_
    alone = GridSearchCV(student, GRID, scoring=neg_transfer_risk_scorer, cv=3).fit(X, y)
    np.testing.assert_allclose(results["mean_test_risk"], alone.cv_results_["mean_test_score"])
    assert results["mean_test_risk"][search.best_index_] == results["mean_test_risk"].max()
    assert np.isfinite(results["mean_test_inefficiency"]).all()


def test_in_a_pipeline_the_teacher_sees_the_transformed_rows(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), LinearizedKDStudent(LogisticRegression(), ridge=0.1))
    search = GridSearchCV(
        pipeline,
        {f"linearizedkdstudent__{name}": values for name, values in GRID.items()},
        scoring=SCORING,
        refit="inefficiency",
        cv=3,
    ).fit(X * 5 + 3, y)
    assert np.isfinite(search.best_score_)
    best = search.best_estimator_
    rows = best[:-1].transform(X * 5 + 3)
    risk = transfer_risk(
        best[-1].teacher_.decision_function(rows), best[-1].decision_function(rows)
    )
    # The student's gauge centres the teacher's logits, which changes no class.
    assert neg_transfer_risk_scorer(search, X * 5 + 3, y) == pytest.approx(-risk)


@pytest.mark.parametrize(
    "steps",
    [
        lambda scaler, student: make_pipeline(student),
        lambda scaler, student: make_pipeline("passthrough", student),
        lambda scaler, student: make_pipeline(None, scaler, None, student),
        lambda scaler, student: make_pipeline(scaler, make_pipeline(student)),
        lambda scaler, student: make_pipeline(make_pipeline(scaler, None), make_pipeline(student)),
        lambda scaler, student: GridSearchCV(make_pipeline(student), {}, cv=2),
    ],
    ids=["one step", "passthrough", "None", "nested", "nested twice", "search"],
)
@pytest.mark.parametrize(
    "scorer", [neg_transfer_risk_scorer, neg_data_inefficiency_scorer], ids=repr
)
def test_pipelines_score_as_their_student_does(data, steps, scorer):
    X, y = data
    scaler, student = StandardScaler(), LinearizedKDStudent(LogisticRegression(), ridge=0.1)
    pipeline = steps(scaler, student).fit(X[:90], y[:90])
    scaled = "Scaler" in repr(pipeline)
    if scaled:
        scaler.fit(X[:90])
    rows = scaler.transform(X) if scaled else X
    expected = scorer(student.fit(rows[:90], y[:90]), rows[90:], y[90:])
    assert scorer(pipeline, X[90:], y[90:]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("end", ["passthrough", None])
def test_a_pipeline_without_a_student_at_its_end_is_refused(data, end):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), end).fit(X, y)
    with pytest.raises(TypeError, match="is not a LinearizedKDStudent"):
        neg_transfer_risk_scorer(pipeline, X, y)


def test_what_the_student_refuses_is_passed_on(student, data, monkeypatch):
    X, y = data

    def refuse(self, X, y, teacher_logits=None, teacher_trust=None):
        raise ValueError("solver='pcg' has no factor")

    monkeypatch.setattr(LinearizedKDStudent, "_next_row_terms", refuse)
    with pytest.raises(ValueError, match="solver='pcg' has no factor"):
        neg_data_inefficiency_scorer(make_pipeline(student).fit(X, y), X, y)


@pytest.mark.parametrize("solver", ["pcg", "refinement", "nystrom"])
def test_data_inefficiency_needs_a_factor(data, solver):
    X, y = data
    student = LinearizedKDStudent(LogisticRegression(), ridge=0.1, solver=solver)
    pipeline = make_pipeline(student).fit(X[:90], y[:90])
    assert np.isfinite(neg_transfer_risk_scorer(pipeline, X[90:], y[90:]))
    with pytest.raises((AttributeError, ValueError), match=f"(?s){solver}.*cholesky"):
        neg_data_inefficiency_scorer(pipeline, X[90:], y[90:])


def test_teacher_logits_routed_through_a_search(teacher, data):
    X, y = data
    method = "predict_log_proba" if len(np.unique(y)) > 2 else "decision_function"
    logits = cross_val_predict(LogisticRegression(), X, y, method=method)
    with config_context(enable_metadata_routing=True):
        student = LinearizedKDStudent(ridge=0.01).set_fit_request(teacher_logits=True)
        scoring = {
            "accuracy": "accuracy",
            "risk": neg_transfer_risk_scorer.set_score_request(teacher_logits=True),
            "inefficiency": neg_data_inefficiency_scorer.set_score_request(teacher_logits=True),
        }
        search = GridSearchCV(student, GRID, scoring=scoring, refit="risk", cv=3)
        search.fit(X, y, teacher_logits=logits)
        assert np.isfinite(search.cv_results_["mean_test_inefficiency"]).all()
        pipeline = make_pipeline(StandardScaler(), student)
        routed = cross_validate(
            pipeline, X, y, scoring=scoring, params={"teacher_logits": logits}, error_score="raise"
        )
    assert np.isfinite(routed["test_risk"]).all()
    assert search.best_estimator_.teacher_ is None


def test_requests_do_not_change_the_shared_scorer():
    with config_context(enable_metadata_routing=True):
        requesting = neg_transfer_risk_scorer.set_score_request(teacher_logits=True)
        assert requesting.get_metadata_routing().score.requests == {"teacher_logits": True}
        shared = neg_transfer_risk_scorer.get_metadata_routing().score.requests
        assert not any(shared.values())


def test_sample_weights_in_a_multi_metric_search_without_routing(student, data):
    X, y = data
    search = GridSearchCV(student, GRID, scoring=SCORING, refit=False, cv=3)
    search.fit(X, y, sample_weight=np.ones(len(y)))
    plain = GridSearchCV(student, GRID, scoring=SCORING, refit=False, cv=3).fit(X, y)
    for name in ("risk", "inefficiency"):
        np.testing.assert_allclose(
            search.cv_results_[f"mean_test_{name}"], plain.cv_results_[f"mean_test_{name}"]
        )


def test_search_without_a_teacher_to_ask_fails_with_the_remedy(data):
    X, y = data
    logits = np.zeros((len(y), len(np.unique(y))))
    student = LinearizedKDStudent().fit(X, y, teacher_logits=logits)
    with pytest.raises(ValueError, match=r"set_score_request\(teacher_logits=True\)"):
        neg_transfer_risk_scorer(student, X, y)


def test_other_estimators_are_refused(data):
    X, y = data
    with pytest.raises(TypeError, match="LogisticRegression is not a LinearizedKDStudent"):
        neg_transfer_risk_scorer(LogisticRegression().fit(X, y), X, y)


def test_student_that_never_moved_has_no_inefficiency(data):
    X, y = data
    student = LinearizedKDStudent(soft_ratio=1.0).fit(
        X, y, teacher_logits=np.zeros((len(y), len(np.unique(y))))
    )
    with pytest.raises(ValueError, match="weight change is 0"):
        neg_data_inefficiency_scorer(student, X, y, teacher_logits=student.teacher_logits_)
