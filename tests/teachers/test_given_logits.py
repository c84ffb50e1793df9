"""Logits given in place of a teacher: what is taken, by which order, and what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.distillation import diagnose_teacher
from sklearn_kd.exceptions import SaturatedTeacherWarning

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
NAMES = np.array(["low", "middle", "top"])
Y3 = NAMES[np.digitize(X[:, 0], [-0.5, 0.5])]
Y2 = (X[:, 0] > 0).astype(int)
TEACHER3, TEACHER2 = LogisticRegression().fit(X, Y3), LogisticRegression().fit(X, Y2)
Z3, Z2 = TEACHER3.decision_function(X), TEACHER2.decision_function(X)
SMALL = {"soft_ratios": [1.0], "temperatures": [1.0], "cv": 3}
ENTRANCES = [LinearizedKDStudent(soft_ratio=1.0), LinearizedKDStudentCV(**SMALL)]

REFUSED = {
    "probabilities": (Y3, TEACHER3.predict_proba(X), ValueError, r"np\.log\(np\.maximum\(p"),
    "probabilities of two": (Y2, TEACHER2.predict_proba(X), ValueError, r"np\.log\(np\.maximum"),
    "those of the second": (Y2, TEACHER2.predict_proba(X)[:, 1], ValueError, "logit"),
    "as a column": (Y2, TEACHER2.predict_proba(X)[:, 1:], ValueError, "logit"),
    "labels": (Y2, TEACHER2.predict(X), ValueError, "holds labels.*pass them as y"),
    "labels 1 and 2": (Y2 + 1, Y2 + 1, ValueError, r"holds the labels \[1, 2\]"),
    "labels -1 and 1": (2 * Y2 - 1, 2 * Y2 - 1, ValueError, r"holds the labels \[-1, 1\]"),
    "labels of three": (Y3, np.searchsorted(NAMES, Y3), ValueError, r"need \(60, 3\)"),
    "words": (Y3, Y3, ValueError, "teacher_logits holds <U6 values"),
    "one-hot": (Y3, np.eye(3)[np.searchsorted(NAMES, Y3)], ValueError, "holds probabilities"),
    "a path": (Y2, "z.npy", TypeError, r"pass np\.load\('z\.npy'\)"),
    "a teacher": (Y2, TEACHER2, TypeError, "FrozenEstimator"),
    "a module": (Y2, torch.nn.Linear(3, 1), TypeError, "TorchTeacher"),
    "other columns": (Y3, pd.DataFrame(Z3, columns=["a", "b", "c"]), ValueError, "not the classes"),
    "log of zero": (Y2, np.r_[Z2[:-1], -np.inf], ValueError, r"np\.maximum\(p, 1 / n\)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("estimator", ENTRANCES, ids=lambda e: type(e).__name__)
def test_what_is_no_logit_is_refused(estimator, case):
    y, given, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        estimator.fit(X, y, teacher_logits=given)
    assert not hasattr(estimator, "classes_")


def test_probabilities_of_new_rows_are_refused_too():
    student = LinearizedKDStudent().fit(X, Y3, teacher_logits=Z3)
    with pytest.raises(ValueError, match="teacher_logits holds probabilities"):
        student.teacher_decision_function(X, TEACHER3.predict_proba(X))


def test_no_advice_of_an_error_is_refused_or_useless():
    """Each formula that a message names gives the logits back."""
    p3, p2 = TEACHER3.predict_proba(X), TEACHER2.predict_proba(X)
    student = LinearizedKDStudent()
    of_three = student.fit(X, Y3, teacher_logits=np.log(np.maximum(p3, 1e-12))).teacher_logits_
    np.testing.assert_allclose(of_three, Z3 - Z3.mean(axis=1, keepdims=True), atol=1e-9)
    of_two = student.fit(X, Y2, teacher_logits=np.log(np.maximum(p2, 1e-12))).teacher_logits_
    np.testing.assert_allclose(of_two, Z2, atol=1e-9)
    weak = RNG.uniform(size=60)
    both = np.column_stack([-weak / 2, weak / 2])
    np.testing.assert_allclose(student.fit(X, Y2, teacher_logits=both).teacher_logits_, weak)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_columns_are_taken_by_name(order):
    frame = pd.DataFrame(Z3, columns=NAMES).iloc[:, order]
    by_name = LinearizedKDStudent().fit(X, Y3, teacher_logits=frame)
    by_position = LinearizedKDStudent().fit(X, Y3, teacher_logits=Z3)
    np.testing.assert_array_equal(by_name.dual_coef_, by_position.dual_coef_)
    np.testing.assert_array_equal(
        by_name.teacher_decision_function(X, frame), by_position.teacher_logits_
    )


@pytest.mark.parametrize("size", [36.0, 700.0])
def test_logits_surer_than_any_teacher_are_warned_of(size):
    with pytest.warns(SaturatedTeacherWarning, match=r"1 of 60 rows.*np\.log\(np\.maximum\(p"):
        LinearizedKDStudent().fit(X, Y2, teacher_logits=np.r_[size, Z2[1:]])
    one_sure = Z3.copy()
    one_sure[5] = [size, 0.0, 1.0]
    with pytest.warns(SaturatedTeacherWarning, match=r"in 1 of 60 rows"):
        LinearizedKDStudent().fit(X, Y3, teacher_logits=one_sure)


def test_ordinary_logits_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearizedKDStudent().fit(X, Y2, teacher_logits=np.r_[35.0, Z2[1:]])
        many, y = RNG.normal(size=(150, 3)), np.arange(150) % 2
        LinearizedKDStudent().fit(many, y, teacher_logits=np.r_[50.0, many[1:, 0]])  # an outlier


def test_a_diagnosis_needs_logits_too():
    for given in (TEACHER3.predict_proba(X), TEACHER2.predict_proba(X)[:, 1], Y2.astype(float)):
        with pytest.raises(ValueError, match=r"teacher_logits holds (probabilities|labels)"):
            diagnose_teacher(given, Y2, soft_ratios=0.5, temperatures=1.0)


# Classes


def test_classes_are_named_where_rows_lack_some():
    two = Y3 != "top"
    student = LinearizedKDStudent(soft_ratio=1.0)
    with pytest.raises(ValueError, match=r"shape \(\d+, 3\)"):
        student.fit(X[two], Y3[two], teacher_logits=Z3[two])
    student.fit(X[two], Y3[two], teacher_logits=Z3[two], classes=NAMES)
    np.testing.assert_array_equal(student.classes_, NAMES)
    centred = Z3[two] - Z3[two].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(student.decision_function(X[two]), centred, atol=1e-8)
    search = LinearizedKDStudentCV(**SMALL)
    search.fit(X[two], Y3[two], teacher_logits=Z3[two], classes=list(NAMES))
    np.testing.assert_array_equal(search.best_estimator_.classes_, NAMES)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["low", "middle"], r"y holds the class 'top', which is not among"),
        (["top", "middle", "low"], "sorted order"),
        (["low", "low", "middle", "top"], "each once"),
        (["top"], "two or more labels"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        LinearizedKDStudent().fit(X, Y3, teacher_logits=Z3, classes=classes)


def test_a_teacher_cannot_be_fitted_to_classes_without_rows():
    with pytest.raises(ValueError, match="without class 'zenith'"):
        LinearizedKDStudent(LogisticRegression()).fit(X, Y3, classes=[*NAMES, "zenith"])
