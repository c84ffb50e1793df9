"""LinearizedKDStudentCV against explicit refits by scikit-learn's own searches."""

import numpy as np
import pandas as pd
import pytest
from recorder import Recorder
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import Matern
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    LeaveOneOut,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    StratifiedKFold,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SCORING = {
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "risk": neg_transfer_risk_scorer,
    "inefficiency": neg_data_inefficiency_scorer,
}
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0, 4.0], "ridges": [0.0, 0.1]}
KERNELS = [NTK(depth=1), Matern(3.0, nu=0.5)]


@pytest.fixture(scope="module", params=[load_breast_cancer, load_digits], ids=["binary", "ten"])
def data(request):
    """Return rows, labels and a frozen teacher that has seen others."""
    X, y = request.param(return_X_y=True)
    X = scale(X)
    return X[150:300], y[150:300], FrozenEstimator(LogisticRegression(C=0.01).fit(X[:150], y[:150]))


def explicit(teacher, cv, scoring, kernels=(None,)):
    """Return the search that refits every candidate on every fold."""
    grid = {
        "ridge": GRID["ridges"],
        "kernel": list(kernels),
        "soft_ratio": GRID["soft_ratios"],
        "temperature": GRID["temperatures"],
    }
    refit = not isinstance(scoring, dict)
    return GridSearchCV(LinearizedKDStudent(teacher), grid, cv=cv, scoring=scoring, refit=refit)


def by_candidate(results, column):
    """Return a column of cv_results_ by parameters, whatever their order."""
    keys = [
        (p["ridge"], repr(p.get("kernel")), p["soft_ratio"], p["temperature"])
        for p in results["params"]
    ]
    return dict(zip(keys, results[column], strict=True))


def check_same(ours, theirs, columns):
    for column in columns:
        actual, expected = by_candidate(ours, column), by_candidate(theirs, column)
        for key, value in expected.items():
            np.testing.assert_allclose(actual[key], value, err_msg=f"{column} {key}", **CLOSE)


@pytest.mark.parametrize("with_copies", [False, True], ids=["distinct", "copies"])
def test_k_fold_equals_refits(data, with_copies):
    X, y, teacher = data
    if with_copies:  # copies of rows, some of them in other folds, some with other labels
        X, y = np.vstack([X, X[:40]]), np.hstack([y, y[:30], y[40:50]])
    search = LinearizedKDStudentCV(
        teacher, **GRID, kernel=KERNELS, cv=3, scoring=SCORING, refit="accuracy"
    ).fit(X, y)
    reference = explicit(teacher, 3, SCORING, KERNELS).fit(X, y)
    kinds = ["mean", "std", "split0", "split1", "split2"]
    columns = [f"{kind}_test_{name}" for kind in kinds for name in SCORING]
    check_same(search.cv_results_, reference.cv_results_, columns)
    assert search.n_splits_ == 3
    stderr = np.std([search.cv_results_[f"split{i}_test_risk"] for i in range(3)], axis=0, ddof=1)
    np.testing.assert_allclose(search.cv_results_["stderr_test_risk"], stderr / np.sqrt(3))


NUMBERS = {
    "size": lambda student, X, y: np.abs(student.decision_function(X)).mean(),
    "inefficiency": neg_data_inefficiency_scorer,
}


@pytest.mark.parametrize(
    "cv",
    [
        StratifiedKFold(5),
        KFold(8, shuffle=True, random_state=0),
        RepeatedStratifiedKFold(n_splits=6, n_repeats=2, random_state=0),
        ShuffleSplit(6, test_size=0.1, random_state=0),
        ShuffleSplit(6, test_size=0.1, train_size=0.8, random_state=0),  # not all others
    ],
    ids=["5", "8 shuffled", "repeated", "random", "subsets"],
)
def test_folds_left_out_of_one_factor_equal_refits(data, cv):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, **GRID, cv=cv, scoring=NUMBERS, refit=False).fit(X, y)
    reference = explicit(teacher, cv, NUMBERS).fit(X, y)
    check_same(
        search.cv_results_, reference.cv_results_, ["mean_test_size", "mean_test_inefficiency"]
    )


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.IllConditionedWarning")
@pytest.mark.parametrize("distance", [1e-8, 1e-13])
def test_folds_that_are_far_better_conditioned_than_all_rows_together(data, distance):
    """Of near-copies every fold leaves one out; with both the second kernel matrix is singular."""
    X, y, teacher = data
    X = X.copy()
    X[5:10] = X[:5] * (1 + distance)
    cv = []
    for some in np.array_split(np.arange(10, 150), 10):
        test = np.concatenate([np.arange(5, 10), some])
        cv.append((np.setdiff1d(np.arange(150), test), test))
    search = LinearizedKDStudentCV(teacher, **GRID, cv=cv, scoring=NUMBERS, refit=False).fit(X, y)
    reference = explicit(teacher, cv, NUMBERS).fit(X, y)
    # A held-out near-copy adds a direction at the limit of rounding: no inefficiency here.
    check_same(search.cv_results_, reference.cv_results_, ["mean_test_size"])


def test_leave_one_out_equals_refits(data):
    X, y, teacher = data
    X, y = X[:60], y[:60]
    keep = np.isin(y, np.unique(y)[np.unique(y, return_counts=True)[1] > 1])
    scoring = {name: SCORING[name] for name in ("accuracy", "risk")}
    search = LinearizedKDStudentCV(teacher, **GRID, scoring=scoring, refit=False)
    search.fit(X[keep], y[keep])
    reference = explicit(teacher, LeaveOneOut(), scoring).fit(X[keep], y[keep])
    check_same(search.cv_results_, reference.cv_results_, ["mean_test_accuracy", "mean_test_risk"])


def test_leave_one_out_logits_and_inefficiency_equal_refits(data):
    """Every row is left out once; the data inefficiency compares all rows with all but one."""
    X, y, teacher = data
    recorded = {}

    def record(student, X, y):
        if len(y) == 100:
            recorded["logits"] = student.decision_function(X)
            recorded["inefficiency"] = -neg_data_inefficiency_scorer(student, X, y)
        return 0.0

    single = {"soft_ratios": [0.6], "temperatures": [2.0], "ridges": [0.1]}
    LinearizedKDStudentCV(teacher, **single, scoring=record).fit(X[:100], y[:100])
    z_eff = LinearizedKDStudent(teacher, soft_ratio=0.6).fit(X[:100], y[:100]).effective_logits_
    gram = NTK()(X[:100]) + 0.1 * np.eye(100)
    norms = []
    for i in range(100):
        rest = np.delete(np.arange(100), i)
        a = np.linalg.solve(gram[np.ix_(rest, rest)], z_eff[rest])
        np.testing.assert_allclose(recorded["logits"][i], gram[i, rest] @ a, **CLOSE)
        norms.append(np.sqrt(np.sum(z_eff[rest] * a)))
    full = np.sqrt(np.sum(z_eff * np.linalg.solve(gram, z_eff)))
    expected = 99 * (np.log(full) - np.log(np.mean(norms)))
    assert recorded["inefficiency"] == pytest.approx(expected, rel=1e-8)


def test_copies_are_left_out_together(data):
    X, y, teacher = data
    once = LinearizedKDStudentCV(teacher, **GRID).fit(X, y)
    twice = LinearizedKDStudentCV(teacher, **GRID | {"ridges": [0.0, 0.2]}).fit(
        np.vstack([X, X]), np.hstack([y, y])
    )
    np.testing.assert_allclose(
        twice.cv_results_["mean_test_score"], once.cv_results_["mean_test_score"]
    )


def test_the_best_is_refitted_on_all_rows(data):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, **GRID, cv=3).fit(X[:100], y[:100])
    best = LinearizedKDStudent(teacher, **search.best_params_).fit(X[:100], y[:100])
    np.testing.assert_allclose(
        search.decision_function(X[100:]), best.decision_function(X[100:]), **CLOSE
    )
    assert search.score(X[100:], y[100:]) == best.score(X[100:], y[100:])
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    assert (search.predict(X[100:]) == search.best_estimator_.predict(X[100:])).all()


def test_ties_go_to_the_larger_soft_ratio(data):
    X, y, teacher = data
    grid = {"soft_ratios": [1.0, 0.5, 0.7], "temperatures": [4.0, 1.0], "ridges": [0.0, 0.1]}
    search = LinearizedKDStudentCV(teacher, **grid, cv=3, scoring=lambda *_: 0.5).fit(X, y)
    assert search.best_params_ == {"soft_ratio": 1.0, "temperature": 1.0, "ridge": 0.1}
    assert (search.cv_results_["rank_test_score"] == 1).all()


def test_one_standard_error_prefers_the_teacher(data):
    X, y, teacher = data
    soft_ratios = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    settings = {"soft_ratios": soft_ratios, "temperatures": [2.0], "cv": 5}
    best = LinearizedKDStudentCV(teacher, **settings).fit(X, y)
    careful = LinearizedKDStudentCV(teacher, **settings, one_standard_error=True).fit(X, y)
    difference, error = (best.cv_results_[f"{kind}_test_score"] for kind in ("diff", "stderr_diff"))
    within = difference >= -error
    assert careful.best_params_["soft_ratio"] == max(np.array(soft_ratios)[within])
    assert careful.best_params_["soft_ratio"] >= best.best_params_["soft_ratio"]


def test_the_best_learns_what_a_student_with_these_folds_does(data):
    X, y, _ = data
    teacher = LogisticRegression(C=0.01)
    search = LinearizedKDStudentCV(teacher, **GRID, cv=3).fit(X, y)
    student = LinearizedKDStudent(teacher, cv=3).fit(X, y)
    np.testing.assert_allclose(
        search.best_estimator_.teacher_logits_, student.teacher_logits_, **CLOSE
    )
    given = LinearizedKDStudentCV(**GRID, cv=3).fit(X, y, teacher_logits=student.teacher_logits_)
    assert given.teacher_ is None
    # Logits that were cross-fitted once have seen the labels of every fold: better scores.
    of_given, of_nested = (fit.cv_results_["mean_test_score"] for fit in (given, search))
    assert of_given.mean() > of_nested.mean()


def test_results_are_a_table(data):
    X, y, teacher = data
    search = LinearizedKDStudentCV(
        teacher, **GRID, cv=RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=0)
    ).fit(X, y)
    table = pd.DataFrame(search.cv_results_)
    assert len(table) == 8
    assert {"param_ridge", "param_soft_ratio", "split3_test_score"} <= set(table.columns)


def test_inside_a_pipeline_and_a_search(data):
    X, y, _ = data
    pipeline = make_pipeline(
        StandardScaler(), LinearizedKDStudentCV(LogisticRegression(), **GRID, cv=3)
    )
    outer = GridSearchCV(pipeline, {"linearizedkdstudentcv__ridges": [[0.0], [1.0]]}, cv=2)
    outer.fit(X, y)
    assert outer.best_score_ > 0.7


BAD = {
    "soft_ratios": {"soft_ratios": [0.0, 0.5]},
    "temperatures": {"temperatures": []},
    "ridges": {"ridges": [-1.0]},
    r"soft_ratios=\[0.5, 0.5\]": {"soft_ratios": [0.5, 0.5]},
    r"kernel=\[\]": {"kernel": []},
    "refit='risk'": {"refit": "risk", "scoring": ["accuracy", "neg_log_loss"]},
    "refit=True": {"scoring": ["accuracy", "neg_log_loss"]},
    "fold 0 without": {"cv": [(np.arange(5), np.arange(0))]},
}


@pytest.mark.parametrize("message", BAD)
def test_errors_leave_the_search_as_it_was(data, message):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, soft_ratios=[0.5], temperatures=[2.0]).fit(X, y)
    before = search.decision_function(X)
    broken = clone(search).set_params(**BAD[message])
    with pytest.raises(ValueError, match=message):
        broken.fit(X, y)
    assert not hasattr(broken, "classes_")
    search.set_params(**BAD[message])
    with pytest.raises(ValueError, match=message):
        search.fit(X, y)
    np.testing.assert_array_equal(search.set_params(refit=True).decision_function(X), before)


def test_without_refit_there_is_no_student(data):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, **GRID, refit=False).fit(X, y)
    assert search.best_score_ > 0.5
    with pytest.raises(AttributeError, match="refit=True"):
        search.predict(X)


def test_nothing_stays_of_an_earlier_best(data):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, **GRID).fit(X, y)
    search.set_params(refit=False, scoring=["accuracy", "neg_log_loss"]).fit(X, y)
    assert not [name for name in vars(search) if name.startswith("best_")]


def test_a_score_that_is_not_a_number(data):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, **GRID, scoring=lambda *_: np.nan)
    with pytest.raises(ValueError, match="'score' is NaN for 8 of 8 candidates"):
        search.fit(X, y)


def test_memory_is_planned(data):
    X, y, teacher = data
    with pytest.raises(MemoryBudgetError, match="LinearizedKDStudentCV"):
        LinearizedKDStudentCV(teacher, memory_limit=1e5).fit(X, y)


def test_stages_reach_the_callbacks(data):
    X, y, teacher = data
    recorder = Recorder(max_propagation_depth=0)
    search = LinearizedKDStudentCV(teacher, ridges=[0.0, 0.1], cv=3).set_callbacks(recorder)
    search.fit(X, y)
    tasks = ["fit", "logits-of-teacher", *["score-fold"] * (2 * 3), "refit"]
    assert recorder.begun() == [("LinearizedKDStudentCV", task) for task in tasks]


@pytest.mark.parametrize("cv", [None, 3])
@pytest.mark.parametrize("kernels", [None, [NTK(depth=1), NTK(depth=2)], [NTK(depth=2), NTK(1)]])
def test_the_refit_takes_over_what_the_search_has(cv, kernels, monkeypatch):
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X)[:150], y[:150]
    n_grams, gram = [], InfiniteKernel.gram

    def counting(self, rows, **options):
        n_grams.append(len(rows))
        return gram(self, rows, **options)

    search = LinearizedKDStudentCV(
        FrozenEstimator(LogisticRegression().fit(X, y)), cv=cv, kernel=kernels, ridges=(0.1,)
    )
    with monkeypatch.context() as patch:
        patch.setattr(InfiniteKernel, "gram", counting)
        search.fit(X, y)
    assert len(n_grams) == (1 if kernels is None else 2)  # the factors of both are kept
    student = clone(search.best_estimator_).fit(X, y)
    np.testing.assert_array_equal(search.best_estimator_.dual_coef_, student.dual_coef_)
    assert search.best_estimator_.tangent_frame().kernel == student.tangent_frame().kernel


def test_leave_one_out_by_a_score_that_needs_every_class():
    # The groups behind the standard error share out the rows of the rarest class.
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X)[:60], y[:60]
    y[np.flatnonzero(y == 1)[4:]] = 0
    z_t = X[:, 0]
    recorded = []

    def record(student, X, y):
        recorded.append(student.predict_proba(X)[np.arange(len(y)), y])
        return -log_loss(y, student.predict_proba(X))

    single = {"soft_ratios": [0.7], "temperatures": [2.0], "refit": False}
    search = LinearizedKDStudentCV(**single, scoring=record).fit(X, y, teacher_logits=z_t)
    assert search.n_splits_ == 4
    given = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(given, np.log(recorded[0]).mean(), rtol=1e-12)
    by_name = LinearizedKDStudentCV(**single, scoring="neg_log_loss").fit(X, y, teacher_logits=z_t)
    np.testing.assert_allclose(by_name.cv_results_["mean_test_score"], given, rtol=1e-14)


def test_a_score_that_a_fold_does_not_define_is_named():
    X, y = np.arange(8.0)[:, None], np.repeat([0, 1], 4)
    search = LinearizedKDStudentCV(scoring="neg_log_loss", cv=KFold(2))
    with pytest.raises(ValueError, match=r"scoring='neg_log_loss' .* 4 held-out .* \[0\].* fewer"):
        search.fit(X, y, teacher_logits=y - 0.5)


@pytest.mark.parametrize(
    "scoring",
    [
        lambda student, X, y: 0.5,
        make_scorer(lambda y, predicted: 0.5),
        {"risk": neg_transfer_risk_scorer, "mine": lambda student, X, y: 0.5},
    ],
)
def test_weights_are_not_dropped_by_a_score_that_takes_none(data, scoring):
    X, y, teacher = data
    search = LinearizedKDStudentCV(teacher, scoring=scoring, refit=False, cv=3)
    search.fit(X, y)
    with pytest.raises(ValueError, match=r"takes no sample_weight, .*make_scorer"):
        search.fit(X, y, sample_weight=np.ones(len(y)))


def test_a_weighted_score_of_ones_own(data):
    X, y, teacher = data
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y))

    def mine(student, X, y, sample_weight=None):
        return student.score(X, y, sample_weight)

    settings = {"teacher": teacher, "cv": 3, **GRID}
    search = LinearizedKDStudentCV(**settings, scoring=mine).fit(X, y, sample_weight=weights)
    reference = LinearizedKDStudentCV(**settings).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], reference.cv_results_["mean_test_score"]
    )


def test_one_distinct_row_cannot_be_left_out():
    with pytest.raises(ValueError, match=r"cv=None .* only one of positive weight"):
        LinearizedKDStudentCV().fit(np.ones((4, 2)), [0, 1, 0, 1], teacher_logits=np.ones(4))


def test_folds_that_test_a_row_twice_are_refused():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X)[:60], y[:60]
    folds = [(np.arange(40), np.r_[np.arange(40, 60), 45])]
    with pytest.raises(ValueError, match=r"tests a row twice in fold 0"):
        LinearizedKDStudentCV(cv=folds).fit(X, y, teacher_logits=X[:, 0])
