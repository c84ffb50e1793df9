"""What a fitted student says does not change until the next fit, and showing it costs nothing."""

import inspect
import pickle

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.inspection import EffectiveLogitsDisplay
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import neg_data_inefficiency_scorer
from sklearn_kd.solvers import PCG, Nystrom

X, Y = make_classification(n_samples=80, n_features=6, random_state=0)
X_NEW, Y_NEW = X[50:], Y[50:]
TEACHER = FrozenEstimator(LogisticRegression(C=0.1).fit(X, Y))
ESTIMATORS = [
    LinearizedKDStudent(TEACHER),
    LinearizedKDStudent(TEACHER, solver=PCG()),
    LinearizedKDStudent(TEACHER, solver="refinement"),
    LinearizedKDStudent(TEACHER, solver=Nystrom(20)),
    LinearizedKDStudentCV(TEACHER),
    LinearizedKDStudentCV(TEACHER, cv=3, solver=PCG()),
    NTKTeacher(),
    NTKTeacher(loss="squared_error"),
    NTKTeacher(stopping_time=3.0),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{type(e).__name__}")
@pytest.mark.parametrize("pickled", [False, True], ids=["fitted", "unpickled"])
def test_showing_a_fitted_estimator_computes_nothing(estimator, pickled, monkeypatch):
    # scikit-learn's HTML representation reads every attribute
    fitted = estimator.fit(X[:50], Y[:50])
    if pickled:
        fitted = pickle.loads(pickle.dumps(fitted))

    def refused(*arguments, **options):
        raise AssertionError("computed for show")

    monkeypatch.setattr(TangentFrame, "__init__", refused)
    monkeypatch.setattr(type(fitted), "_logits", refused)
    assert dict(inspect.getmembers(fitted))["classes_"].tolist() == [0, 1]
    assert "<" in fitted._repr_html_()


@pytest.mark.parametrize("stopping_time", [None, 5.0])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_weight_change_norm_of_a_teacher(loss, stopping_time, n_classes):
    y = Y if n_classes == 2 else np.arange(80) % 3
    teacher = NTKTeacher(loss=loss, stopping_time=stopping_time).fit(X, y)
    a = teacher.dual_coef_
    expected = np.sqrt(np.sum(a * (NTK()(teacher.X_fit_) @ a)))
    assert teacher.weight_change_norm_ == pytest.approx(expected, rel=1e-9)


CHANGES = [
    {"soft_ratio": 0.2},
    {"temperature": 7.0},
    {"temperature_scaling": "squared"},
    {"ridge": 3.0},
    {"init": "network"},
    {"kernel": RBF()},
    {"teacher": None},
    {"cv": 2},
    {"solver": Nystrom(5)},
    {"solver__cache_size": 0},
    {"dtype": "float32"},
    {"memory_limit": 1e12},
]


def everything_said(student):
    """Return all that a fitted student tells of itself and of rows."""
    path = student.prefix_path(X_NEW, y=Y_NEW, sizes=[5, 50], n_permutations=2, random_state=0)
    display = EffectiveLogitsDisplay.from_estimator(student)
    return [
        student.predict_proba(X_NEW),
        student.effective_decision_function(X_NEW, Y_NEW),
        student.teacher_decision_function(X_NEW),
        neg_data_inefficiency_scorer(student, X_NEW, Y_NEW),
        student.tangent_frame().lower.numpy(),
        *path.values(),
        *(np.asarray(line.get_xydata()) for line in display.ax_.get_lines()),
        *(np.asarray(points.get_offsets()) for points in display.ax_.collections),
    ]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("pickled", [False, True], ids=["fitted", "unpickled"])
def test_parameters_set_after_a_fit_wait_for_the_next(change, pickled):
    pytest.importorskip("matplotlib")
    from sklearn_kd.solvers import Cholesky

    student = LinearizedKDStudent(TEACHER, ridge=0.1, solver=Cholesky()).fit(X[:50], Y[:50])
    before = everything_said(student)
    student.set_params(**change)
    if pickled:
        student = pickle.loads(pickle.dumps(student))
    for now, then in zip(everything_said(student), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-12, atol=1e-12)
    report = student.fit_report_
    assert (report.soft_ratio, report.temperature, report.ridge) == (0.9, 2.0, 0.1)


def test_who_predicts_during_a_fit_gets_the_student_before():
    # The kernel's own evaluation is in the middle of a fit.
    said = []

    def kernel(A, B):
        if armed:
            said.append(student.decision_function(X_NEW))
        return np.exp(-((A[:, None] - B) ** 2).sum(axis=2) / 6)

    armed = False
    student = LinearizedKDStudent(TEACHER, kernel=NTK(depth=1)).fit(X[:50], Y[:50])
    before = student.decision_function(X_NEW)
    student.set_params(kernel=kernel, soft_ratio=0.5)
    armed = True
    student.fit(X[:40], Y[:40])
    armed = False
    assert said
    for answer in said:
        np.testing.assert_array_equal(answer, before)
    assert not np.allclose(student.decision_function(X_NEW), before)


def test_who_predicts_during_a_teachers_fit_gets_the_teacher_before():
    said = []

    def kernel(A, B):
        if armed:
            said.append(teacher.decision_function(X_NEW))
        return np.exp(-((A[:, None] - B) ** 2).sum(axis=2) / 6)

    armed = False
    teacher = NTKTeacher().fit(X[:50], Y[:50])
    before = teacher.decision_function(X_NEW)
    teacher.set_params(kernel=kernel)
    armed = True
    teacher.fit(X[:40], Y[:40])
    armed = False
    assert said
    for answer in said:
        np.testing.assert_array_equal(answer, before)
