"""A list of teachers is the one teacher that has the weighted mean of their soft labels."""

import mpmath
import numpy as np
import pytest
import torch
from recorder import Recorder
from scipy.special import softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.inspection import EffectiveLogitsDisplay
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

N, N_DISTINCT = 50, 40
WEIGHTS = [0.5, 2.0, 1.5]


def problem(n_classes, seed=0):
    """Return rows, the last ten copies of others with labels of their own, and labels."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N_DISTINCT, 3))
    y = (2 * X[:, :n_classes] + rng.gumbel(size=(N_DISTINCT, n_classes))).argmax(axis=1)
    return np.vstack([X, X[:10]]), np.r_[y, rng.integers(n_classes, size=10)]


def fitted_teachers(n_classes):
    X, y = problem(n_classes, seed=1)
    models = LogisticRegression(), LogisticRegression(C=0.01), GaussianNB()
    return [model.fit(X, y) for model in models]


def mean_logits(teachers, weights, X, T):
    """Return T log p̄ with p̄ the weighted mean of softmax(z/T), of each row; two classes: (n,)."""
    weights = np.asarray(weights) / np.sum(weights)
    mean = 0.0
    for teacher, weight in zip(teachers, weights, strict=True):
        z = np.log(teacher.predict_proba(X))
        if hasattr(teacher, "decision_function"):
            z = teacher.decision_function(X)
            z = np.stack([0 * z, z], axis=1) if z.ndim == 1 else z
        mean = mean + weight * softmax(z / T, axis=1)
    z = T * np.log(mean)
    return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z - z.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_list_is_the_teacher_of_the_mean_soft_labels(weights, n_classes, T, scaling):
    X, y = problem(n_classes)
    teachers = fitted_teachers(n_classes)
    z_t = mean_logits(teachers, weights or [1, 1, 1], X, T)
    student = LinearizedKDStudent(soft_ratio=0.6, temperature=T, temperature_scaling=scaling)
    expected = clone(student).fit(X, y, teacher_logits=z_t)
    frozen = [FrozenEstimator(teacher) for teacher in teachers]
    found = student.set_params(teacher=frozen, teacher_weights=weights).fit(X, y)
    assert found.fit_report_.n_merged_rows == 10
    for name in ("teacher_logits_", "effective_logits_", "dual_coef_"):
        values = getattr(expected, name)
        np.testing.assert_allclose(
            getattr(found, name), values, rtol=0, atol=1e-10 * np.abs(values).max()
        )
    new = np.random.default_rng(5).normal(size=(20, 3))
    z_new = mean_logits(teachers, weights or [1, 1, 1], new, T)
    np.testing.assert_allclose(found.teacher_decision_function(new), z_new, atol=1e-10)
    labels = np.arange(20) % n_classes
    for scorer in (neg_transfer_risk_scorer, neg_data_inefficiency_scorer):
        assert np.isclose(
            scorer(found, new, labels), scorer(expected, new, labels, teacher_logits=z_new)
        )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_rows_without_labels_and_trust_by_row(n_classes):
    X, y = problem(n_classes)
    rng = np.random.default_rng(8)
    y[rng.random(N) < 0.4] = -1
    rows = {"sample_weight": rng.uniform(0.2, 3, N), "teacher_trust": rng.uniform(0.1, 1, N)}
    teachers = fitted_teachers(n_classes)
    frozen = [FrozenEstimator(teacher) for teacher in teachers]
    found = LinearizedKDStudent(frozen, teacher_weights=WEIGHTS, soft_ratio=0.5).fit(X, y, **rows)
    z_t = mean_logits(teachers, WEIGHTS, X, 2.0)
    expected = LinearizedKDStudent(soft_ratio=0.5).fit(X, y, teacher_logits=z_t, **rows)
    np.testing.assert_allclose(found.effective_logits_, expected.effective_logits_, atol=1e-10)
    assert found.fit_report_.n_unlabelled_rows == (y == -1).sum()


@pytest.mark.parametrize("solver", [PCG(tol=1e-13, random_state=0), Nystrom(N, random_state=0)])
def test_solvers_learn_the_same_mixture(solver):
    X, y = problem(3)
    teachers = [FrozenEstimator(teacher) for teacher in fitted_teachers(3)]
    student = LinearizedKDStudent(teachers, teacher_weights=WEIGHTS, ridge=0.1)
    exact, other = student.fit(X, y), clone(student).set_params(solver=solver).fit(X, y)
    np.testing.assert_allclose(other.decision_function(X), exact.decision_function(X), atol=1e-7)


def test_each_unfitted_teacher_is_cross_fitted_and_frozen_ones_are_not():
    X, y = problem(2)
    frozen = fitted_teachers(2)[1]
    folds = list(StratifiedKFold(4).split(X, y))
    cv = {"cv": folds, "temperature": 2.0}
    student = LinearizedKDStudent(
        [LogisticRegression(), FrozenEstimator(frozen), GaussianNB()], **cv
    ).fit(X, y)
    alone = [
        LinearizedKDStudent(teacher, **cv).fit(X, y).teacher_logits_
        for teacher in (LogisticRegression(), FrozenEstimator(frozen), GaussianNB())
    ]
    p = np.mean([1 / (1 + np.exp(-z / 2)) for z in alone], axis=0)
    np.testing.assert_allclose(student.teacher_logits_, 2 * np.log(p / (1 - p)), atol=1e-10)
    assert student.teacher_[1].estimator is frozen
    assert [len(teacher.classes_) for teacher in student.teacher_] == [2, 2, 2]
    assert student.fit_report_.cross_fitted_teacher
    assert student.fit_report_.teacher_weights == (1 / 3, 1 / 3, 1 / 3)


def test_prefit_teachers():
    X, y = problem(3)
    teachers = fitted_teachers(3)
    student = LinearizedKDStudent(teachers, cv="prefit").fit(X, y)
    same = LinearizedKDStudent([FrozenEstimator(t) for t in teachers]).fit(X, y)
    np.testing.assert_array_equal(student.teacher_logits_, same.teacher_logits_)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_teacher_that_has_all_the_weight_is_alone_bit_for_bit(n_classes):
    X, y = problem(n_classes)
    teachers = [FrozenEstimator(teacher) for teacher in fitted_teachers(n_classes)]
    student = LinearizedKDStudent(teachers, teacher_weights=[0, 7, 0]).fit(X, y)
    alone = LinearizedKDStudent(teachers[1]).fit(X, y)
    np.testing.assert_array_equal(student.dual_coef_, alone.dual_coef_)


@pytest.mark.parametrize("T", [1e-2, 1.0, 1e6])
def test_mixed_logits_are_stable(T):
    z = np.array([[700.0, -40.0, 1e-3, 30.0], [-700.0, -41.0, 2e-3, -900.0]])
    recipe = {"teacher_weights": (0.25, 0.75), "temperature": T}
    found = mixed_logits(torch.from_numpy(z), recipe).tolist()
    with mpmath.workdps(400):
        for row, (a, b) in zip(found, z.T, strict=True):
            p, q = (
                1 / (1 + mpmath.exp(-sign * mpmath.mpf(a) / T)) / 4
                + 3 / (1 + mpmath.exp(-sign * mpmath.mpf(b) / T)) / 4
                for sign in (1, -1)
            )
            exact = T * mpmath.log(p / q)
            assert abs(row - exact) <= 1e-12 * max(abs(exact), 1e-3)


def test_prefix_path_mixes_anew_at_each_temperature_and_weight():
    X, y = problem(3)
    new, labels = problem(3, seed=7)
    teachers = [FrozenEstimator(teacher) for teacher in fitted_teachers(3)]
    student = LinearizedKDStudent(teachers).fit(X, y)
    grid = {"temperature": [1.0, 8.0], "teacher_weights": [WEIGHTS, [1, 0, 0]]}
    path = student.prefix_path(new, y=labels, sizes=[N_DISTINCT], param_grid=grid)
    for index, params in enumerate(path.params):
        other = clone(student).set_params(
            temperature=params["temperature"], teacher_weights=params["teacher_weights"]
        )
        other.fit(X, y)
        found = path.weight_change_norm[index, 0, 0], path.transfer_risk[index, 0, 0]
        expected = other.weight_change_norm_, -neg_transfer_risk_scorer(other, new, labels)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_grid_search_and_pipelines():
    X, y = problem(2)
    teachers = [LogisticRegression(), KNeighborsClassifier(15)]
    student = LinearizedKDStudent(teachers, cv=3)
    grid = {"teacher_weights": [None, [1, 0], [0.2, 0.8]], "temperature": [1.0, 3.0]}
    search = GridSearchCV(student, grid, cv=3, scoring="neg_log_loss").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores.tolist())) == 6
    lists = {"teacher": [[LogisticRegression()], teachers], "temperature": [1.0]}
    other = GridSearchCV(student, lists, cv=3, scoring="neg_log_loss").fit(X, y)
    np.testing.assert_allclose(other.cv_results_["mean_test_score"], scores[[2, 0]], rtol=1e-12)
    piped = make_pipeline(StandardScaler(), clone(student)).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    expected = clone(student).fit(scaled, y).decision_function(scaled)
    np.testing.assert_allclose(piped.decision_function(X), expected, atol=1e-10)


def test_parameters_are_those_of_any_estimator():
    student = LinearizedKDStudent([LogisticRegression(C=3), GaussianNB()], teacher_weights=[1, 2])
    copy = clone(student)
    assert copy.teacher[0] is not student.teacher[0]
    assert copy.teacher[0].C == 3
    assert copy.get_params()["teacher_weights"] == [1, 2]
    frozen = FrozenEstimator(fitted_teachers(2)[0])
    assert clone(LinearizedKDStudent([frozen])).teacher[0] is frozen
    with pytest.raises(ValueError, match=r"teacher__C cannot be set while teacher is a list"):
        student.set_params(teacher__C=1.0)
    assert "LogisticRegression" in repr(student)


def test_unfitted_ones_are_left_as_they_are():
    X, y = problem(2)
    teachers = [LogisticRegression(), GaussianNB()]
    LinearizedKDStudent(teachers).fit(X, y)
    assert not any(hasattr(teacher, "classes_") for teacher in teachers)


def test_callbacks_see_the_fits_of_all():
    X, y = problem(2)
    recorder = Recorder()
    student = LinearizedKDStudent([GaussianNB(), GaussianNB(var_smoothing=0.1)], cv=3)
    student.set_callbacks(recorder).fit(X, y)
    tasks = [task for _, task in recorder.begun()]
    assert tasks.count("fit-teacher") == 2 * (3 + 1)


def test_displays_show_the_mixture():
    X, y = problem(2)
    teachers = [FrozenEstimator(teacher) for teacher in fitted_teachers(2)]
    student = LinearizedKDStudent(teachers).fit(X, y)
    display = EffectiveLogitsDisplay.from_estimator(student)
    first = student.teacher_logits_[10:N_DISTINCT]  # rows without copies
    np.testing.assert_array_equal(display.row_teacher_logits[10:], first)


FITTED = fitted_teachers(2)
BAD = {
    "empty list": ({"teacher": []}, ValueError, r"teacher=\[\] holds no teacher"),
    "no classifier": ({"teacher": [FITTED[0], "forest"]}, TypeError, r"teacher\[1\]='forest'"),
    "None": ({"teacher": [None]}, TypeError, r"teacher\[0\]=None is no teacher"),
    "weights of one": (
        {"teacher": FITTED[0], "teacher_weights": [1.0]},
        ValueError,
        "teacher=LogisticRegression is one; give a list",
    ),
    "another number": (
        {"teacher": FITTED, "teacher_weights": [1, 2]},
        ValueError,
        r"teacher_weights=\[1, 2\] must be 3 numbers",
    ),
    "negative": ({"teacher": FITTED, "teacher_weights": [1, 2, -1]}, ValueError, "at least 0"),
    "all 0": ({"teacher": FITTED, "teacher_weights": [0, 0, 0]}, ValueError, "not all 0"),
    "strings": (
        {"teacher": FITTED, "teacher_weights": ["a", "b", "c"]},
        ValueError,
        "teacher_weights holds <U1 values",
    ),
    "a dict": ({"teacher": {"a": FITTED[0]}}, ValueError, "a list of several, or None. Got"),
    "NaN": ({"teacher": FITTED, "teacher_weights": [1, np.nan, 0]}, ValueError, "must be 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    params, error, message = BAD[case]
    student = LinearizedKDStudent(**params)
    with pytest.raises(error, match=message):
        student.fit(*problem(2))
    assert not hasattr(student, "classes_")


def test_given_logits_replace_them_all():
    X, y = problem(2)
    frozen = [FrozenEstimator(teacher) for teacher in FITTED]
    student = LinearizedKDStudent(frozen).fit(X, y, teacher_logits=X[:, 0])
    np.testing.assert_array_equal(student.teacher_logits_, X[:, 0])
    with pytest.raises(ValueError, match="teacher is an unfitted GaussianNB"):
        LinearizedKDStudent([frozen[0], GaussianNB()]).fit(X, y, teacher_logits=X[:, 0])
    with pytest.raises(ValueError, match="teacher_logits replace the teachers"):
        LinearizedKDStudent(frozen, teacher_weights=[1, 0, 0]).fit(X, y, teacher_logits=X[:, 0])
