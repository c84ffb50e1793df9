"""Searches with a list of teachers: equal to refits of each mixture, and honest."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=(N, 3))
X[-6:] = X[:6]  # copies, in other folds
Z = np.stack([np.sin(3 * X[:, 0]) + X[:, 1], 2 * X[:, 0], X[:, 2]], axis=1)
LABELS = {
    2: np.where(Z[:, 0] + RNG.logistic(size=N) > 0, "yes", "no"),
    3: (Z + RNG.gumbel(size=Z.shape)).argmax(axis=1),
}
WEIGHTS = [[1, 1], [3, 1], [0, 1]]
GRID = {"soft_ratios": [0.4, 1.0], "temperatures": [1.0, 4.0], "ridges": [0.1]}
ITERATION = PCG(tol=1e-13, max_iter=2000, random_state=0)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def frozen(n_classes):
    y = LABELS[n_classes]
    teachers = LogisticRegression(C=0.1), GaussianNB()
    return [FrozenEstimator(teacher.fit(X[::2], y[::2])) for teacher in teachers]


def check(search, y, splits, student):
    search.fit(X, y)
    scorer = check_scoring(student, scoring=search.scoring)
    results = search.cv_results_
    assert len(results["params"]) == 12
    for index, params in enumerate(results["params"]):
        fitted = clone(student).set_params(**params)
        for k, (train, test) in enumerate(splits):
            scores = scorer(fitted.fit(X[train], y[train]), X[test], y[test])
            for name, expected in scores.items():
                found = results[f"split{k}_test_{name}"][index]
                np.testing.assert_allclose(found, expected, err_msg=f"{params} {name}", **CLOSE)
    best = search.best_estimator_
    again = clone(student).set_params(**search.best_params_).fit(X, y)
    np.testing.assert_allclose(best.decision_function(X), again.decision_function(X), **CLOSE)
    return search


@pytest.mark.parametrize("solver", ["auto", ITERATION], ids=["factor", "iteration"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_frozen_teachers_and_their_weights(n_classes, solver):
    y, teachers = LABELS[n_classes], frozen(n_classes)
    scoring = {"log_loss": "neg_log_loss", "risk": neg_transfer_risk_scorer}
    if solver == "auto":
        scoring["inefficiency"] = neg_data_inefficiency_scorer
    search = LinearizedKDStudentCV(
        teachers, **GRID, teacher_weights=WEIGHTS, cv=3, scoring=scoring, refit="log_loss",
        solver=solver,
    )  # fmt: skip
    splits = list(StratifiedKFold(3).split(X, y))
    check(search, y, splits, LinearizedKDStudent(teachers))
    assert search.best_params_["teacher_weights"] in [(0.5, 0.5), (0.75, 0.25), (0.0, 1.0)]
    assert "weights = " in search.verdict_
    assert len(search.teacher_) == 2
    assert search.best_estimator_.teacher[0].estimator.estimator is teachers[0].estimator


@pytest.mark.parametrize("n_classes", [2, 3])
def test_unfitted_teachers_are_cross_fitted_within_the_folds(n_classes):
    y = LABELS[n_classes]
    teachers = [LinearDiscriminantAnalysis(), frozen(n_classes)[0]]
    search = LinearizedKDStudentCV(
        teachers, **GRID, teacher_weights=WEIGHTS, cv=3, teacher_cv=3,
        scoring={"log_loss": "neg_log_loss"}, refit="log_loss",
    )  # fmt: skip
    splits = list(StratifiedKFold(3).split(X, y))
    check(search, y, splits, LinearizedKDStudent(teachers, cv=3))


@pytest.mark.parametrize("solver", ["auto", ITERATION], ids=["factor", "iteration"])
def test_pairs_of_folds_serve_every_unfitted_teacher(solver):
    y, first, second = LABELS[2], LogisticRegression(), frozen(2)[1]
    search = LinearizedKDStudentCV(
        [first, second], **GRID, cv=4, scoring="neg_log_loss", solver=solver
    ).fit(X, y)
    splits = list(StratifiedKFold(4).split(X, y))
    for index, params in enumerate(search.cv_results_["params"]):
        T = params["temperature"]
        for k, (train, test) in enumerate(splits):
            z = np.full(N, np.nan)
            for _, other in splits:
                neither = np.setdiff1d(train, other)
                z[other] = clone(first).fit(X[neither], y[neither]).decision_function(X[other])
            odds = np.log(second.predict_proba(X))
            other_z = odds[:, 1] - odds[:, 0]
            p = np.mean([1 / (1 + np.exp(-values / T)) for values in (z, other_z)], axis=0)
            z_t = T * np.log(p / (1 - p))
            student = LinearizedKDStudent(**params).fit(
                X[train], y[train], teacher_logits=z_t[train]
            )
            scorer = check_scoring(student, scoring="neg_log_loss")
            expected = scorer(student, X[test], y[test])
            found = search.cv_results_[f"split{k}_test_score"][index]
            np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("solver", ["auto", ITERATION], ids=["factor", "iteration"])
def test_rows_without_labels_and_trust_within_the_folds(solver):
    teachers = [LinearDiscriminantAnalysis(), frozen(3)[0]]
    y, trust = LABELS[3].copy(), np.random.default_rng(2).uniform(0.1, 1, N)
    y[1::3] = -1
    search = LinearizedKDStudentCV(
        teachers, **GRID, teacher_weights=WEIGHTS, cv=3, teacher_cv=3, scoring="neg_log_loss",
        solver=solver,
    ).fit(X, y, teacher_trust=trust)  # fmt: skip
    for index, params in enumerate(search.cv_results_["params"]):
        student = LinearizedKDStudent(teachers, cv=3, **params)
        for k, (train, test) in enumerate(StratifiedKFold(3).split(X, y)):
            student.fit(X[train], y[train], teacher_trust=trust[train])
            scored = test[y[test] != -1]
            p = student.predict_proba(X[scored])[np.arange(len(scored)), y[scored]]
            found = search.cv_results_[f"split{k}_test_score"][index]
            np.testing.assert_allclose(found, np.log(p).mean(), **CLOSE)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize("solver", ["auto", ITERATION], ids=["factor", "iteration"])
def test_random_labels_cannot_be_learnt_through_a_list(solver):
    rng = np.random.default_rng(3)
    scores = []
    for _ in range(6):
        rows, y = rng.normal(size=(100, 3)), rng.integers(2, size=100)
        teachers = [
            KNeighborsClassifier(5),
            DecisionTreeClassifier(max_leaf_nodes=9),
        ]
        search = LinearizedKDStudentCV(
            teachers, soft_ratios=[1.0], temperatures=[5.0], ridges=[0.1], cv=5, solver=solver,
            refit=False,
        )  # fmt: skip
        scores.append(search.fit(rows, y).cv_results_["mean_test_score"][0])
    assert abs(np.mean(scores) - 0.5) < 2 * 0.5 / np.sqrt(600)


def test_leave_one_out_and_landmarks():
    y, teachers = LABELS[2], frozen(2)
    by_row = LinearizedKDStudentCV(teachers, **GRID, teacher_weights=WEIGHTS).fit(X, y)
    splits = [(np.flatnonzero((X[i] != X).any(axis=1)), [i]) for i in range(N)]
    for params, found in zip(
        by_row.cv_results_["params"], by_row.cv_results_["mean_test_score"], strict=True
    ):
        student = LinearizedKDStudent(teachers, **params)
        hits = [student.fit(X[a], y[a]).score(X[b], y[b]) for a, b in splits]
        assert np.isclose(found, np.mean(hits))
    passed = clone(by_row).set_params(solver=Nystrom(N, random_state=0)).fit(X, y)
    np.testing.assert_allclose(
        passed.cv_results_["mean_test_score"], by_row.cv_results_["mean_test_score"]
    )


def test_grid_search_finds_the_same():
    y, teachers = LABELS[3], frozen(3)
    own = LinearizedKDStudentCV(teachers, **GRID, teacher_weights=WEIGHTS, cv=3).fit(X, y)
    grid = {
        "ridge": [0.1], "soft_ratio": [0.4, 1.0], "temperature": [1.0, 4.0],
        "teacher_weights": WEIGHTS,
    }  # fmt: skip
    search = GridSearchCV(LinearizedKDStudent(teachers), grid, cv=3).fit(X, y)

    def by_params(results):
        keys = [
            (
                p["soft_ratio"],
                p["temperature"],
                *np.divide(p["teacher_weights"], sum(p["teacher_weights"])),
            )
            for p in results["params"]
        ]
        return dict(zip(keys, results["mean_test_score"], strict=True))

    first, second = by_params(own.cv_results_), by_params(search.cv_results_)
    assert first.keys() == second.keys()
    np.testing.assert_allclose([first[k] for k in first], [second[k] for k in first])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "must be a list of weight vectors"),
        ([], "must be a list of weight vectors"),
        ([[1, 1], [2, 2]], "holds the same weights twice"),
        ([[1, 1, 1]], "must be 2 numbers"),
    ],
)
def test_weights_are_refused_by_name(weights, message):
    search = LinearizedKDStudentCV(frozen(2), teacher_weights=weights)
    with pytest.raises(ValueError, match=message):
        search.fit(X, LABELS[2])
    assert not hasattr(search, "classes_")


def test_given_logits_leave_nothing_to_weigh():
    search = LinearizedKDStudentCV(frozen(2), teacher_weights=WEIGHTS)
    with pytest.raises(ValueError, match="teacher_logits replace the teachers"):
        search.fit(X, LABELS[2], teacher_logits=X[:, 0])


def test_validation_rows_are_scored_with_the_mixture_of_each_candidate():
    y, teachers = LABELS[3], frozen(3)
    train, val = np.arange(40), np.arange(40, N)
    scoring = {"log_loss": "neg_log_loss", "inefficiency": neg_data_inefficiency_scorer}
    search = LinearizedKDStudentCV(
        teachers, **GRID, teacher_weights=WEIGHTS, scoring=scoring, refit="log_loss"
    ).fit(X[train], y[train], X_val=X[val], y_val=y[val])
    scorer = check_scoring(LinearizedKDStudent(), scoring=scoring)
    for index, params in enumerate(search.cv_results_["params"]):
        student = LinearizedKDStudent(teachers, **params).fit(X[train], y[train])
        for name, expected in scorer(student, X[val], y[val]).items():
            found = search.cv_results_[f"mean_test_{name}"][index]
            np.testing.assert_allclose(found, expected, err_msg=f"{params} {name}", **CLOSE)
