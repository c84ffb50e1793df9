"""Rows, weights and classes that reach the teacher, and what is said where it misleads."""

import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    PredefinedSplit,
    StratifiedKFold,
    learning_curve,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(80, 4)), RNG.normal(size=(300, 4))
Y, Y_NEW = (X[:, 0] > 0).astype(int), (X_NEW[:, 0] > 0).astype(int)
WRONG = np.arange(80) % 2 == 1
LABELS, WEIGHTS = np.where(WRONG, 1 - Y, Y), np.where(WRONG, 0.0, 1.0)
VARIED = RNG.uniform(0.5, 2, size=80)
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0]}

TEACHERS = {
    "logistic": LogisticRegression(),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "neighbours": KNeighborsClassifier(15),
    "search": GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2),
    "voting": VotingClassifier([("l", LogisticRegression()), ("n", GaussianNB())], voting="soft"),
    "stacking": StackingClassifier([("l", LogisticRegression())], cv=2),
}

# Rows of weight 0


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("cv", [3, KFold(4), "folds"], ids=["3", "KFold", "folds"])
def test_a_row_of_weight_0_is_not_there(name, cv):
    folds = PredefinedSplit(np.arange(80) // 2 % 3) if cv == "folds" else cv
    among = PredefinedSplit(np.arange(80)[~WRONG] // 2 % 3) if cv == "folds" else cv
    teacher = TEACHERS[name]
    student = LinearizedKDStudent(teacher, cv=folds, ridge=1.0).fit(X, LABELS, WEIGHTS)
    removed = LinearizedKDStudent(teacher, cv=among, ridge=1.0).fit(X[~WRONG], LABELS[~WRONG])
    np.testing.assert_allclose(
        student.decision_function(X_NEW), removed.decision_function(X_NEW), **CLOSE
    )
    np.testing.assert_allclose(student.teacher_logits_[~WRONG], removed.teacher_logits_, **CLOSE)
    others = removed.teacher_decision_function(X[WRONG])
    np.testing.assert_allclose(student.teacher_logits_[WRONG], others, **CLOSE)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize("teacher_cv", [None, 3], ids=["pairs", "inner"])
@pytest.mark.parametrize("solver", ["auto", "pcg"])
def test_a_row_of_weight_0_is_not_there_in_a_search(teacher_cv, solver):
    how = {"teacher_cv": teacher_cv, "cv": 4, "ridges": [1.0], "solver": solver, **GRID}
    teacher = KNeighborsClassifier(5)
    search = LinearizedKDStudentCV(teacher, **how).fit(X, LABELS, WEIGHTS)
    removed = LinearizedKDStudentCV(teacher, **how).fit(X[~WRONG], LABELS[~WRONG])
    for name in ("mean_test_score", "split0_test_score", "split3_test_score"):
        np.testing.assert_allclose(search.cv_results_[name], removed.cv_results_[name], **CLOSE)
    np.testing.assert_allclose(
        search.decision_function(X_NEW), removed.decision_function(X_NEW), rtol=1e-5, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
def test_listed_folds_are_of_all_rows():
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, LABELS))
    number = np.cumsum(~WRONG) - 1
    among = [(number[train[~WRONG[train]]], number[test[~WRONG[test]]]) for train, test in folds]
    for estimator, key in (
        (LinearizedKDStudent(GaussianNB(), ridge=1.0), "cv"),
        (LinearizedKDStudentCV(GaussianNB(), **GRID, ridges=[1.0]), "cv"),
        (LinearizedKDStudentCV(GaussianNB(), **GRID, ridges=[1.0], cv=folds), "teacher_cv"),
    ):
        with_zeros = clone(estimator).set_params(**{key: folds}).fit(X, LABELS, WEIGHTS)
        removed = clone(estimator).set_params(**{key: among})
        if key == "teacher_cv":
            removed.set_params(cv=among)
        removed.fit(X[~WRONG], LABELS[~WRONG])
        np.testing.assert_allclose(
            with_zeros.decision_function(X_NEW), removed.decision_function(X_NEW), **CLOSE
        )


# Other weights


def fitted_weights(teacher, **metadata):
    return LinearizedKDStudent(teacher, ridge=1.0, soft_ratio=1.0).fit(X, Y, VARIED, **metadata)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize("name", ["pipeline", "neighbours", "search", "voting", "stacking"])
def test_weights_that_do_not_reach_the_teacher_are_said_once(name):
    teacher = TEACHERS[name]
    message = rf"sample_weight does not reach teacher={type(teacher).__name__}"
    for estimator in (
        LinearizedKDStudent(teacher, cv=3),
        LinearizedKDStudentCV(teacher, cv=3, **GRID),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            estimator.fit(X, Y, VARIED)
        assert sum("sample_weight" in str(w.message) for w in caught) == 1
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="sample_weight")
            estimator.fit(X, Y, np.where(np.arange(80) < 10, 0.0, 2.0))  # equal ones, and none


def weighted(estimator):
    return estimator.set_fit_request(sample_weight=True)


ROUTED = {
    "pipeline": lambda: make_pipeline(weighted(StandardScaler()), weighted(LogisticRegression())),
    "search": lambda: GridSearchCV(
        weighted(LogisticRegression()).set_score_request(sample_weight=True), {"C": [1.0]}, cv=2
    ),
    "voting": lambda: VotingClassifier([("l", weighted(LogisticRegression()))], voting="soft"),
    "bagging": lambda: BaggingClassifier(weighted(LogisticRegression()), 2, random_state=0),
    "itself": lambda: weighted(LogisticRegression()),
}


@pytest.mark.parametrize("name", ROUTED)
def test_requested_weights_reach_the_teacher(name):
    with sklearn.config_context(enable_metadata_routing=True):
        teacher = ROUTED[name]()
        student = fitted_weights(teacher)
        by_hand = clone(teacher).fit(X, Y, sample_weight=VARIED)
        plain = clone(teacher).fit(X, Y)
    expected = by_hand.predict_proba(X_NEW)
    assert np.abs(plain.predict_proba(X_NEW) - expected).max() > 1e-4
    np.testing.assert_allclose(student.teacher_.predict_proba(X_NEW), expected, **CLOSE)


def test_weights_that_are_declined_stay_away_without_a_word():
    with sklearn.config_context(enable_metadata_routing=True):
        teacher = LogisticRegression().set_fit_request(sample_weight=False)
        student = fitted_weights(teacher)
    np.testing.assert_array_equal(student.teacher_.coef_, LogisticRegression().fit(X, Y).coef_)


def test_weights_that_nothing_requests_are_said_to_stay_away():
    with (
        sklearn.config_context(enable_metadata_routing=True),
        pytest.warns(UserWarning, match=r"does not reach teacher=Pipeline.*set_fit_request"),
    ):
        fitted_weights(make_pipeline(LogisticRegression()))


# Classes that the rows lack


@pytest.fixture(scope="module")
def rare():
    y = Y.copy()
    y[np.argsort(X[:, 1])[:2]] = 2
    return FrozenEstimator(LogisticRegression().fit(X, y)), y


def test_a_student_has_the_classes_of_its_fitted_teacher(rare):
    teacher, y = rare
    two = y < 2
    student = LinearizedKDStudent(teacher, soft_ratio=1.0).fit(X[two], y[two])
    np.testing.assert_array_equal(student.classes_, [0, 1, 2])
    z = teacher.decision_function(X[two])
    np.testing.assert_allclose(
        student.decision_function(X[two]), z - z.mean(axis=1, keepdims=True), atol=1e-8
    )
    assert student.predict_proba(X_NEW).shape == (300, 3)
    search = LinearizedKDStudentCV(teacher, **GRID).fit(X[two], y[two])
    np.testing.assert_array_equal(search.classes_, [0, 1, 2])
    one = LinearizedKDStudent(teacher).fit(X[y == 0], y[y == 0])
    np.testing.assert_array_equal(one.classes_, [0, 1, 2])


@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
def test_curves_and_searches_with_a_rare_class_are_finite(rare):
    teacher, y = rare
    student = LinearizedKDStudent(teacher)
    curve = learning_curve(student, X, y, train_sizes=[0.2, 1.0], cv=3)
    assert np.isfinite(curve[1]).all()
    assert np.isfinite(curve[2]).all()
    search = GridSearchCV(student, {"soft_ratio": [0.5]}, cv=3).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    own = LinearizedKDStudentCV(teacher, cv=3, soft_ratios=[0.5], temperatures=[2.0]).fit(X, y)
    np.testing.assert_allclose(
        own.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_given_logits_of_a_rare_class_in_a_search(rare):
    teacher, y = rare
    z = teacher.decision_function(X)
    with sklearn.config_context(enable_metadata_routing=True):
        student = LinearizedKDStudent().set_fit_request(teacher_logits=True, classes=True)
        search = GridSearchCV(student, {"soft_ratio": [0.5, 1.0]}, cv=KFold(3))
        search.fit(X, y, teacher_logits=z, classes=[0, 1, 2])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_class_that_the_teacher_does_not_know_is_named(rare):
    teacher, y = rare
    y = y.copy()
    y[7] = 5
    for estimator in (LinearizedKDStudent(teacher), LinearizedKDStudentCV(teacher)):
        with pytest.raises(ValueError, match=r"y holds the class 5, .*\[0, 1, 2\]"):
            estimator.fit(X, y)
    with pytest.raises(ValueError, match=r"classes=\[0, 1\], but .* teacher knows \[0, 1, 2\]"):
        LinearizedKDStudent(teacher).fit(X, Y, classes=[0, 1])
    LinearizedKDStudent(teacher).fit(X, Y, classes=[0, 1, 2])


# Teachers that mislead


def test_a_fitted_teacher_that_is_fitted_anew_is_warned_of():
    teacher = GradientBoostingClassifier(n_estimators=3, random_state=0).fit(X_NEW, Y_NEW)
    trees = teacher.estimators_
    for entrance in (
        LinearizedKDStudent(teacher, cv=2),
        LinearizedKDStudentCV(teacher, cv=2, teacher_cv=2, **GRID),
    ):
        message = r"teacher=GradientBoostingClassifier is fitted.* 80 rows.*FrozenEstimator"
        with pytest.warns(UserWarning, match=message) as caught:
            entrance.fit(X, Y)
        assert len(caught) == 1
    assert teacher.estimators_ is trees
    pipeline = make_pipeline(StandardScaler(), GaussianNB()).fit(X, Y)
    with pytest.warns(UserWarning, match=r"teacher=Pipeline is fitted"):
        LinearizedKDStudent(pipeline).fit(X, Y)


def test_no_warning_where_nothing_is_lost():
    teacher = LogisticRegression().fit(X_NEW, Y_NEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Clones inside of a search are unfitted.
        GridSearchCV(LinearizedKDStudent(teacher), {"soft_ratio": [0.5]}, cv=2, refit=False).fit(
            X, Y
        )
        LinearizedKDStudent(FrozenEstimator(teacher)).fit(X, Y)
        LinearizedKDStudent(teacher, cv="prefit").fit(X, Y)
        frozen = make_pipeline(FrozenEstimator(StandardScaler().fit(X)), FrozenEstimator(teacher))
        LinearizedKDStudent(frozen).fit(X, Y)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize(
    "teacher",
    [
        DecisionTreeClassifier(random_state=0),
        KNeighborsClassifier(1),
        ExtraTreesClassifier(10, random_state=0),
    ],
    ids=lambda teacher: type(teacher).__name__,
)
def test_a_teacher_that_knows_its_rows_by_heart_is_warned_of(teacher):
    data, y = load_breast_cancer(return_X_y=True)
    data = scale(data)
    teacher = FrozenEstimator(teacher.fit(data[:150], y[:150]))
    with pytest.warns(UserWarning, match=r"certain of the label of each of 150 rows.*mislead"):
        LinearizedKDStudent(teacher).fit(data[:150], y[:150])
    with pytest.warns(UserWarning, match="mislead"):
        LinearizedKDStudentCV(teacher, **GRID).fit(data[:150], y[:150])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mislead")
        LinearizedKDStudent(teacher).fit(data[150:300], y[150:300])
        LinearizedKDStudent(teacher).fit(data[:150], np.roll(y[:150], 1))


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize(
    "teacher",
    [LogisticRegression(), GaussianNB(), GradientBoostingClassifier(random_state=0)],
    ids=lambda teacher: type(teacher).__name__,
)
def test_a_good_teacher_of_an_easy_task_is_not(teacher):
    easy = X_NEW + 10 * Y_NEW[:, None]
    teacher.fit(easy[:100], Y_NEW[:100])
    assert teacher.score(easy[100:], Y_NEW[100:]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mislead")
        LinearizedKDStudent(FrozenEstimator(teacher)).fit(easy[100:160], Y_NEW[100:160])
