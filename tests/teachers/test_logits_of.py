"""How a teacher's answers are read: its class is what predict says, its softmax predict_proba."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.teachers._logits_of import Reading, logits_of

X, Y3 = load_iris(return_X_y=True)
ORDER = np.random.default_rng(1).permutation(150)
X, Y3 = scale(X)[ORDER], Y3[ORDER]
Y2 = (Y3 == 1).astype(int)
HALF = slice(0, 75)
REST = slice(75, 150)


def read(teacher, X, **reading):
    return logits_of(teacher, X, teacher.classes_, Reading(n_rows=len(X), **reading))


# Scores are taken where they are log-odds


@pytest.mark.parametrize("y", [Y2, Y3], ids=["two", "three"])
@pytest.mark.parametrize(
    "teacher",
    [
        LogisticRegression(),
        GradientBoostingClassifier(n_estimators=5, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
        GridSearchCV(LogisticRegression(), {"C": [1.0, 10.0]}),
        NTKTeacher(stopping_time=10.0),
    ],
    ids=lambda teacher: type(teacher).__name__,
)
def test_scores_that_are_log_odds_are_the_logits(teacher, y):
    teacher.fit(X[HALF], y[HALF])
    found = read(teacher, X[REST])
    scores = teacher.decision_function(X[REST])
    assert found.method == "decision_function"
    expected = scores if scores.ndim == 1 else scores - scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.values, expected, rtol=1e-12, atol=1e-12)


def test_log_odds_keep_the_digits_that_a_far_row_s_probabilities_have_lost():
    teacher = LogisticRegression().fit(X[HALF], Y3[HALF])
    rows = np.tile(X, (2, 1))
    rows[7] *= 1000
    assert teacher.predict_proba(rows).min() == 0
    found = read(teacher, rows)
    assert found.method == "decision_function"
    assert found.n_clipped == 0


@pytest.mark.parametrize("y", [Y2, Y3], ids=["two", "three"])
def test_log_odds_that_are_saturated_have_a_floor(y):
    teacher = LinearDiscriminantAnalysis()
    rows = np.tile(X, (1, 2)) + 0.01 * np.random.default_rng(0).normal(size=(150, 8))
    rows[:, 0] = 40 * y + rows[:, 0]
    with pytest.warns(SaturatedTeacherWarning, match=r"than 0\.0067 were lifted"):
        student = LinearizedKDStudent(teacher, cv=3).fit(rows, y)
    assert student.fit_report_.teacher_method == "predict_proba"
    z = student.teacher_logits_
    assert np.abs(z if z.ndim == 1 else np.ptp(z, axis=1)).max() <= np.log(100) + 1e-9
    student.set_params(teacher_method="decision_function").fit(rows, y)
    assert np.abs(student.teacher_logits_).max() > 100


OTHER_SCORES = {
    "exponential boosting": (GradientBoostingClassifier(loss="exponential", random_state=0), Y2),
    "AdaBoost": (AdaBoostClassifier(DecisionTreeClassifier(max_depth=2), random_state=0), Y3),
    "one-vs-rest": (OneVsRestClassifier(LogisticRegression()), Y3),
    "SGD": (SGDClassifier(loss="log_loss", random_state=0), Y3),
    "modified Huber": (SGDClassifier(loss="modified_huber", random_state=0), Y2),
    "bagging": (BaggingClassifier(LogisticRegression(), random_state=0), Y3),
}


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize("case", OTHER_SCORES)
def test_the_student_says_what_predict_proba_says_where_scores_do_not(case):
    teacher, y = OTHER_SCORES[case]
    teacher.fit(X[HALF], y[HALF])
    scores, p = teacher.decision_function(X[REST]), teacher.predict_proba(X[REST])
    own = np.stack([expit(-scores), expit(scores)], axis=1) if scores.ndim == 1 else softmax(scores)
    assert np.abs(own - p).max() > 0.01
    student = LinearizedKDStudent(FrozenEstimator(teacher), soft_ratio=1.0, temperature=1.0)
    student.fit(X[REST], y[REST])
    assert student.fit_report_.teacher_method == "predict_proba"
    assert student.fit_report_.probability_floor == 1 / 75
    kept = p.min(axis=1) > 0
    assert kept.any()
    said = student.predict_proba(X[REST])
    np.testing.assert_allclose(said[kept], p[kept], atol=1e-6)
    np.testing.assert_allclose(said, p, atol=1 / 75)


MARGINS = {
    "SVC": SVC(),
    "LinearSVC": LinearSVC(),
    "ridge": RidgeClassifier(),
    "perceptron": Perceptron(),
    "hinge": SGDClassifier(random_state=0),
    "pipeline": make_pipeline(StandardScaler(), LinearSVC()),
    "search": GridSearchCV(LinearSVC(), {"C": [1.0]}),
    "one-vs-rest": OneVsRestClassifier(LinearSVC()),
    "stacked": StackingClassifier([("l", LogisticRegression())], LinearSVC()),
    "votes": SVC(decision_function_shape="ovo"),
}


@pytest.mark.parametrize("y", [Y2, Y3], ids=["two", "three"])
@pytest.mark.parametrize("case", MARGINS)
def test_margins_are_refused_by_name(case, y):
    teacher = clone(MARGINS[case])
    name = type(teacher).__name__
    message = rf"teacher={name} .* CalibratedClassifierCV\(teacher\), or .*decision_function_shape"
    for entrance in (LinearizedKDStudent(teacher), LinearizedKDStudentCV(teacher, cv=3)):
        with pytest.raises(ValueError, match=message):
            entrance.fit(X, y)
    with pytest.raises(ValueError, match=message):
        LinearizedKDStudent(FrozenEstimator(teacher.fit(X, y))).fit(X, y)


@pytest.mark.parametrize("case", ["SVC", "LinearSVC", "ridge"])
def test_the_remedies_of_the_refusal_work(case):
    calibrated = LinearizedKDStudent(CalibratedClassifierCV(MARGINS[case]), cv=3).fit(X, Y3)
    assert calibrated.fit_report_.teacher_method == "predict_proba"
    teacher = clone(MARGINS[case]).fit(X[HALF], Y3[HALF])
    word = LinearizedKDStudent(FrozenEstimator(teacher), teacher_method="decision_function")
    word.fit(X[REST], Y3[REST])
    scores = teacher.decision_function(X[REST])
    np.testing.assert_allclose(
        word.teacher_logits_, scores - scores.mean(axis=1, keepdims=True), atol=1e-12
    )
    assert word.fit_report_.probability_floor is None
    for student in (calibrated, word):
        assert student.score(X, Y3) > 0.85


def test_votes_of_pairs_are_no_scores_of_classes_on_any_word():
    student = LinearizedKDStudent(
        SVC(decision_function_shape="ovo"), teacher_method="decision_function"
    )
    with pytest.raises(ValueError, match=r"teacher=SVC: on \d+ of 150 rows .*='ovo'"):
        student.fit(X, Y3)
    y4 = Y3 + (X[:, 0] > 0.5)
    with pytest.raises(ValueError, match=r"6 columns, one for each pair of the 4 classes"):
        student.fit(X, y4)
    student.fit(X, Y2)  # one pair
    assert student.score(X, Y2) > 0.9


@pytest.mark.parametrize(
    ("teacher", "method", "other"),
    [(GaussianNB(), "decision_function", "predict_proba"), (LinearSVC(), "predict_proba", "dec")],
)
def test_a_method_that_is_not_there_is_named(teacher, method, other):
    with pytest.raises(ValueError, match=rf"teacher_method='{method}', but .* has only {other}"):
        LinearizedKDStudent(teacher, teacher_method=method).fit(X, Y3)


def test_probabilities_are_taken_where_asked_for():
    teacher = LogisticRegression().fit(X[HALF], Y3[HALF])
    student = LinearizedKDStudent(FrozenEstimator(teacher), teacher_method="predict_proba")
    student.fit(X[REST], Y3[REST])
    assert student.fit_report_.teacher_method == "predict_proba"
    scores = teacher.decision_function(X[REST])
    np.testing.assert_allclose(
        student.teacher_logits_, scores - scores.mean(axis=1, keepdims=True), atol=1e-9
    )


# Teachers of any make


class Stub(ClassifierMixin, BaseEstimator):
    """Knows the iris by its petal's length; answers as it is told."""

    def __init__(self, answer, classes=(0, 1)):
        self.answer = answer
        self.classes = classes

    def fit(self, X, y):
        self.classes_ = np.array(self.classes)
        return self

    def log_odds(self, X):
        return 3 * (X[:, 2] - 0.1)

    def predict(self, X):
        return self.classes_[(self.log_odds(X) > 0).astype(int)]

    def predict_proba(self, X):
        p = expit(self.log_odds(X))
        return self.answer(np.stack([1 - p, p], axis=1), self)


YS = (X[:, 2] > 0.1).astype(int)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, _: p[:, 1], r"shape \(75,\).*column for each of 2 classes.*column_stack"),
        (lambda p, _: p[:, 1:], r"shape \(75, 1\).*column for each of 2 classes"),
        (lambda p, _: p[:-1], r"shape \(74, 2\)"),
        (lambda p, _: np.log(p), "probabilities that sum to 1, but row 0"),
        (lambda p, _: 2 * p, "probabilities that sum to 1, but row 0"),
        (lambda p, _: np.where(p > 0.9, np.nan, p), "probabilities that sum to 1"),
        (lambda p, _: p[:, ::-1], r"predict chooses another class .* order of\s+classes_"),
        (lambda p, _: pd.DataFrame(p, columns=["a", "b"]), "not the classes"),
    ],
)
def test_answers_that_cannot_be_read_are_named(answer, message):
    student = LinearizedKDStudent(FrozenEstimator(Stub(answer).fit(X, YS)))
    with pytest.raises(ValueError, match=message):
        student.fit(X[HALF], YS[HALF])


@pytest.mark.parametrize(
    "answer",
    [
        lambda p, _: p.astype(np.float32),
        lambda p, _: p.tolist(),
        lambda p, _: pd.DataFrame(p),
        lambda p, stub: pd.DataFrame(p[:, ::-1], columns=stub.classes_[::-1]),
        lambda p, stub: pd.DataFrame(p[:, ::-1], columns=[str(c) for c in stub.classes_[::-1]]),
    ],
)
@pytest.mark.parametrize("classes", [(0, 1), (1, 0)])
def test_classes_are_taken_by_name_and_in_the_order_of_the_teacher(answer, classes):
    teacher = Stub(answer, classes).fit(X, YS)
    y = teacher.predict(X)
    found = logits_of(teacher, X, np.array([0, 1]), Reading(n_rows=150, is_frozen=True))
    sign = 1 if classes == (0, 1) else -1
    np.testing.assert_allclose(found.values, sign * teacher.log_odds(X), rtol=1e-3)
    student = LinearizedKDStudent(FrozenEstimator(teacher)).fit(X, y)
    assert student.score(X, y) > 0.9


@pytest.mark.parametrize(
    "teacher",
    [
        SVC(probability=True, random_state=2),
        FixedThresholdClassifier(LogisticRegression(), threshold=0.8),
    ],
)
@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
def test_a_teacher_that_predicts_other_classes_on_some_rows_is_warned_of(teacher):
    rng = np.random.default_rng(0)
    X_few = rng.normal(size=(100, 2))
    y = (X_few[:, 0] + rng.normal(size=100) > 0.5).astype(int)
    teacher.fit(X_few, y)
    p = teacher.predict_proba(X_few)
    n_rows = (p.argmax(axis=1) != teacher.predict(X_few)).sum()
    assert 0 < n_rows < 50
    with pytest.warns(UserWarning, match=rf"on {n_rows} of 100 rows predict chooses another class"):
        LinearizedKDStudent(FrozenEstimator(teacher)).fit(X_few, y)


def test_ties_are_no_disagreement():
    class Undecided(Stub):
        def predict_proba(self, X):
            return np.full((len(X), 2), 0.5)

    teacher = Undecided(None).fit(X, YS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = LinearizedKDStudent(FrozenEstimator(teacher), soft_ratio=0.5).fit(X, YS)
    np.testing.assert_array_equal(student.teacher_logits_, np.zeros(150))


# The floor of probabilities


def test_clones_are_floored_at_one_over_their_rows():
    forest = RandomForestClassifier(10, random_state=0)
    with pytest.warns(SaturatedTeacherWarning, match=r"than 0\.0067 were lifted to it") as caught:
        student = LinearizedKDStudent(forest, cv=3).fit(X, Y3)
    assert len([w for w in caught if w.category is SaturatedTeacherWarning]) == 1
    expected = np.empty((150, 3))
    for train, test in StratifiedKFold(3).split(X, Y3):
        fitted = RandomForestClassifier(10, random_state=0).fit(X[train], Y3[train])
        expected[test] = np.log(np.maximum(fitted.predict_proba(X[test]), 1 / 100))
    np.testing.assert_allclose(
        student.teacher_logits_, expected - expected.mean(axis=1, keepdims=True), atol=1e-12
    )
    assert student.fit_report_.probability_floor == 1 / 150
    new = np.log(np.maximum(student.teacher_.predict_proba(X[:5]), 1 / 150))
    np.testing.assert_allclose(
        student.teacher_decision_function(X[:5]), new - new.mean(axis=1, keepdims=True), atol=1e-12
    )


def test_zeros_of_a_frozen_teacher_are_lifted_to_one_over_the_rows_at_hand():
    forest = RandomForestClassifier(10, random_state=0).fit(X[HALF], Y3[HALF])
    with pytest.warns(SaturatedTeacherWarning, match=r"zeros were lifted to at most 0\.013"):
        student = LinearizedKDStudent(FrozenEstimator(forest), soft_ratio=1.0, temperature=1.0).fit(
            X[REST], Y3[REST]
        )
    p = forest.predict_proba(X[REST])
    lifted = np.where(p == 0, 1 / 75, p)
    np.testing.assert_allclose(
        student.predict_proba(X[REST]), lifted / lifted.sum(axis=1, keepdims=True), atol=1e-8
    )
    # Of other rows too, whatever their number.
    one = np.where(forest.predict_proba(X[:1]) == 0, 1 / 75, forest.predict_proba(X[:1]))
    np.testing.assert_allclose(
        softmax(student.teacher_decision_function(X[:1]), axis=1), one / one.sum(), atol=1e-12
    )


def test_no_zero_is_lifted_above_another_probability():
    p = np.array([[0.0, 1e-5, 1 - 1e-5], [0.0, 0.2, 0.8], [1e-30, 0.0, 1.0]])

    class Saturated(Stub):
        def predict_proba(self, X):
            return p

        def predict(self, X):
            return np.array([2, 2, 2])

    found = logits_of(
        Saturated(None, (0, 1, 2)).fit(X, Y3),
        X[:3],
        np.array([0, 1, 2]),
        Reading(n_rows=100, is_frozen=True),
    )
    z = found.values.numpy()
    lifted = np.exp(z - z.max(axis=1, keepdims=True))
    eps = np.finfo(float).eps
    expected = np.array([[1e-5, 1e-5, 1 - 1e-5], [0.01, 0.2, 0.8], [eps, eps, 1.0]])
    np.testing.assert_allclose(lifted, expected / expected.max(axis=1, keepdims=True), rtol=1e-9)
    assert found.n_zero == 3


@pytest.mark.parametrize("frozen", [True, False])
def test_a_floor_that_is_given_holds_for_all(frozen):
    teacher = GaussianNB()
    if frozen:
        teacher = FrozenEstimator(teacher.fit(X, Y3))
    with pytest.warns(SaturatedTeacherWarning, match=r"than 0\.05 were lifted"):
        student = LinearizedKDStudent(
            teacher, soft_ratio=1.0, temperature=1.0, probability_floor=0.05
        ).fit(X, Y3)
    p = student.predict_proba(X)
    assert p.min() == pytest.approx(0.05 / (1 + 2 * 0.05 - 0.1), rel=0.1)
    assert student.fit_report_.probability_floor == 0.05


@pytest.mark.parametrize("floor", [0.0, 1.0, "resolution"])
def test_floors_out_of_range_are_refused(floor):
    with pytest.raises(ValueError, match="probability_floor"):
        LinearizedKDStudent(probability_floor=floor).fit(X, Y3)


def test_a_floor_no_lower_than_equal_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"probability_floor=0\.4 .* 3 classes"):
        LinearizedKDStudent(GaussianNB(), probability_floor=0.4).fit(X, Y3)


def test_the_floor_reaches_the_search_and_its_best_student():
    search = LinearizedKDStudentCV(
        ExtraTreesClassifier(10, random_state=0), soft_ratios=[1.0], temperatures=[1.0], cv=3
    )
    with pytest.warns(SaturatedTeacherWarning) as caught:
        search.fit(X, Y3)
    assert len([w for w in caught if w.category is SaturatedTeacherWarning]) == 1
    assert search.best_estimator_.fit_report_.probability_floor == 1 / 150
    assert np.ptp(search.best_estimator_.teacher_logits_, axis=1).max() <= np.log(100) + 1e-9
