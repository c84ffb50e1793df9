"""Rows without a label, and trust by row, in searches: learnt by the students, never scored."""

import numpy as np
import pytest
import sklearn
from scipy.special import expit
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
N = 72
X = RNG.normal(size=(N, 3))
Z = np.stack([np.sin(3 * X[:, 0]) + X[:, 1], 2 * X[:, 0], X[:, 2]], axis=1)
TRUTH = {
    2: (Z[:, 0] + RNG.logistic(size=N) > 0).astype(int),
    3: (Z + RNG.gumbel(size=Z.shape)).argmax(axis=1),
}
UNLABELLED = RNG.random(N) < 0.3
LABELS = {k: np.where(UNLABELLED, -1, y) for k, y in TRUTH.items()}
LOGITS = {2: 2 * Z[:, 0] + RNG.normal(size=N), 3: 2 * Z + RNG.normal(size=Z.shape)}
TRUST = RNG.uniform(0.1, 1, N)
GRID = {"soft_ratios": [0.4, 1.0], "temperatures": [1.0, 3.0], "ridges": [0.1]}
PARAMS = {"soft_ratio": [0.4, 1.0], "temperature": [1.0, 3.0], "ridge": [0.1]}
SCORING = {"accuracy": "accuracy", "log_loss": "neg_log_loss"}
ITERATION = PCG(tol=1e-13, max_iter=2000, random_state=0)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def refits(student, splits, y, scoring, *, trust=None, z_t=None):
    """Return scores of each fold by students refitted for it, on its rows that have a label."""
    scorer = check_scoring(LinearizedKDStudent(), scoring=scoring)
    scores = []
    for train, test in splits:
        test = test[y[test] >= 0]
        options = {} if trust is None else {"teacher_trust": trust[train]}
        options |= {} if z_t is None else {"teacher_logits": z_t[train]}
        scores.append(scorer(clone(student).fit(X[train], y[train], **options), X[test], y[test]))
    return scores


def check(search, splits, y, student, **options):
    trust, z_t = options.get("trust"), options.get("z_t")
    search.fit(X, y, teacher_trust=trust, teacher_logits=z_t)
    for index, params in enumerate(search.cv_results_["params"]):
        fitted = clone(student).set_params(**params)
        for k, of_fold in enumerate(refits(fitted, splits, y, search.scoring, **options)):
            for name, expected in of_fold.items():
                found = search.cv_results_[f"split{k}_test_{name}"][index]
                np.testing.assert_allclose(found, expected, err_msg=f"{params} {name}", **CLOSE)
    return search


@pytest.mark.parametrize("trust", [None, TRUST], ids=["full trust", "trust"])
@pytest.mark.parametrize("n_folds", [3, 6], ids=["factor per fold", "one factor"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_equal_refits_on_all_rows_scored_where_labelled(n_classes, n_folds, trust):
    y, z_t = LABELS[n_classes], LOGITS[n_classes]
    search = LinearizedKDStudentCV(**GRID, cv=n_folds, scoring=SCORING, refit=False)
    splits = list(StratifiedKFold(n_folds).split(X, y))
    check(search, splits, y, LinearizedKDStudent(), trust=trust, z_t=z_t)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_by_iteration(n_classes):
    y, z_t = LABELS[n_classes], LOGITS[n_classes]
    search = LinearizedKDStudentCV(**GRID, cv=4, scoring=SCORING, refit=False, solver=ITERATION)
    splits = list(StratifiedKFold(4).split(X, y))
    check(search, splits, y, LinearizedKDStudent(), trust=TRUST, z_t=z_t)


@pytest.mark.parametrize("n_landmarks", [None, 30], ids=["all rows", "landmarks"])
def test_leave_one_out(n_landmarks):
    y, z_t = LABELS[2], LOGITS[2]
    solver = "auto" if n_landmarks is None else Nystrom(n_landmarks, random_state=0)
    search = LinearizedKDStudentCV(**GRID, scoring="neg_log_loss", solver=solver)
    search.fit(X, y, teacher_logits=z_t, teacher_trust=TRUST)
    fixed, kernel, ridge = search.best_estimator_.X_fit_, NTK(), GRID["ridges"][0]
    for params, found in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        student = LinearizedKDStudent(**params).fit(X, y, teacher_logits=z_t, teacher_trust=TRUST)
        losses = []
        for i in np.flatnonzero(y >= 0):
            rest = np.delete(np.arange(N), i)
            # The ridge regression of the span of the landmarks, or of all rows, without row i.
            basis = fixed if n_landmarks else X[rest]
            to_rows = kernel(X[rest], basis)
            matrix = to_rows.T @ to_rows + ridge * kernel(basis, basis)
            coef = np.linalg.solve(matrix, to_rows.T @ student.effective_logits_[rest])
            logit = kernel(X[[i]], basis)[0] @ coef
            losses.append(np.log(expit(logit if y[i] else -logit)))
        assert np.isclose(found, np.mean(losses), rtol=1e-6)


@pytest.mark.parametrize("inner", [None, 3], ids=["pairs", "inner folds"])
@pytest.mark.parametrize("solver", ["auto", ITERATION], ids=["factor", "iteration"])
def test_unfitted_teachers_stay_honest(inner, solver):
    y = LABELS[3]
    teacher = LogisticRegression(C=3.0)
    search = LinearizedKDStudentCV(
        teacher, **GRID, cv=4, scoring="neg_log_loss", teacher_cv=inner, solver=solver
    ).fit(X, y)
    splits = list(StratifiedKFold(4).split(X, y))
    known = y >= 0

    def logits(train, rows):
        train = train[known[train]]
        values = clone(teacher).fit(X[train], y[train]).decision_function(X[rows])
        return values

    for index, params in enumerate(search.cv_results_["params"]):
        for k, (train, test) in enumerate(splits):
            scored = test[known[test]]
            if inner is None:
                z_t = np.full((N, 3), np.nan)
                for _, other in splits:
                    if other is not test:
                        z_t[other] = logits(np.setdiff1d(train, other), other)
                rest = train[~known[train]]
                z_t[rest] = logits(train, rest)
                student = LinearizedKDStudent(**params)
                student.fit(X[train], y[train], teacher_logits=z_t[train])
            else:
                student = LinearizedKDStudent(teacher, cv=inner, **params).fit(X[train], y[train])
            p = student.predict_proba(X[scored])[np.arange(len(scored)), y[scored]]
            found = search.cv_results_[f"split{k}_test_score"][index]
            np.testing.assert_allclose(found, np.log(p).mean(), **CLOSE)
    if inner is None:
        z_t = search.best_estimator_.teacher_logits_
        expected = logits(np.arange(N), np.flatnonzero(~known))
        expected = expected - expected.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(z_t[~known], expected, **CLOSE)
    assert search.score(X, y) == search.score(X[known], y[known])


@pytest.mark.parametrize("trust", [np.ones(N), TRUST], ids=["full trust", "trust"])
def test_distillation_scores_of_labelled_rows(trust):
    y, z_t = LABELS[2], LOGITS[2]
    scoring = {"risk": neg_transfer_risk_scorer, "inefficiency": neg_data_inefficiency_scorer}
    search = LinearizedKDStudentCV(**GRID, cv=3, scoring=scoring, refit=False)
    search.fit(X, y, teacher_logits=z_t, teacher_trust=trust)
    splits = list(StratifiedKFold(3).split(X, y))
    for index, params in enumerate(search.cv_results_["params"]):
        for k, (train, test) in enumerate(splits):
            scored = test[y[test] >= 0]
            student = LinearizedKDStudent(**params)
            student.fit(X[train], y[train], teacher_logits=z_t[train], teacher_trust=trust[train])
            for name, scorer in scoring.items():
                own = {"teacher_logits": z_t[scored], "teacher_trust": trust[scored]}
                expected = scorer(student, X[scored], y[scored], **own)
                found = search.cv_results_[f"split{k}_test_{name}"][index]
                np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("piped", [False, True])
def test_grid_search_slices_trust_and_scores_labelled_rows(piped):
    y, z_t = LABELS[3], LOGITS[3]
    student = LinearizedKDStudent()
    model = make_pipeline(StandardScaler(with_std=False), student) if piped else student
    name = "linearizedkdstudent__" if piped else ""
    grid = {name + key: values for key, values in PARAMS.items()}
    metadata = {"teacher_logits": z_t, "teacher_trust": TRUST}
    search = GridSearchCV(model, grid, cv=3)
    search.fit(X, y, **{name + key: value for key, value in metadata.items()})
    if not piped:
        own = LinearizedKDStudentCV(**GRID, cv=3).fit(X, y, **metadata)
        scores = own.cv_results_["mean_test_score"]
        by_params = {
            tuple(sorted(p.items())): s
            for p, s in zip(own.cv_results_["params"], scores, strict=True)
        }
        for params, score in zip(
            search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
        ):
            assert np.isclose(by_params[tuple(sorted(params.items()))], score)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = clone(student).set_fit_request(teacher_logits=True, teacher_trust=True)
        model = make_pipeline(StandardScaler(with_std=False), routed) if piped else routed
        again = GridSearchCV(model, grid, cv=3).fit(X, y, **metadata)
    np.testing.assert_array_equal(
        again.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_strings_with_missing_labels():
    y = np.array(["a", "b", "c"], dtype=object)[TRUTH[3]]
    y[UNLABELLED] = None
    search = LinearizedKDStudentCV(**GRID, cv=3).fit(X, y, teacher_logits=LOGITS[3])
    same = LinearizedKDStudentCV(**GRID, cv=3).fit(X, LABELS[3], teacher_logits=LOGITS[3])
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], same.cv_results_["mean_test_score"]
    )
    assert search.classes_.tolist() == ["a", "b", "c"]


def test_a_fold_without_labels_is_named():
    y = np.where(np.arange(N) < N // 3, -1, TRUTH[2])
    search = LinearizedKDStudentCV(cv=KFold(3))
    with pytest.raises(ValueError, match=r"cv=KFold.* tests 24 rows, and none of them has a label"):
        search.fit(X, y, teacher_logits=LOGITS[2])
    assert not hasattr(search, "classes_")


def test_frozen_teachers_answer_for_all_rows():
    y = LABELS[2]
    teacher = LogisticRegression().fit(X[::2], TRUTH[2][::2])
    search = LinearizedKDStudentCV(FrozenEstimator(teacher), **GRID, cv=3).fit(X, y)
    found = search.best_estimator_.teacher_logits_
    np.testing.assert_array_equal(found, teacher.decision_function(X))
