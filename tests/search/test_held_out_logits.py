"""`held_out_decision_function_`: the logits of the chosen cell by students without the row."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.model_selection import KFold, RepeatedKFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV

GRID = {"soft_ratios": [0.3, 0.9], "temperatures": [1.0, 3.0], "ridges": [0.01, 0.1]}


def problem(n_classes, n_rows=60):
    X, y = make_classification(
        n_rows, n_classes=n_classes, n_informative=5, flip_y=0.2, random_state=0
    )
    rng = np.random.default_rng(0)
    z_t = rng.normal(size=n_rows if n_classes == 2 else (n_rows, n_classes))
    return X, y, z_t


def refitted(search, X, y, z_t, splits, shape):
    """Return the mean over the splits of the logits by explicit fits without the test rows."""
    total, count = np.zeros(shape), np.zeros(shape[0])
    for train, test in splits:
        student = LinearizedKDStudent(**search.best_params_)
        classes = np.unique(y[y >= 0])
        student.fit(X[train], y[train], teacher_logits=z_t[train], classes=classes)
        scored = test[y[test] >= 0]
        if not len(scored):
            continue
        total[scored] += student.decision_function(X[scored])
        count[scored] += 1
    with np.errstate(invalid="ignore"):
        return total / count.reshape(-1, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "cv", [KFold(4), RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), None]
)
def test_folds_and_leave_one_out(n_classes, cv):
    X, y, z_t = problem(n_classes)
    X[7], y[7] = X[3], y[3]  # copies are left out together
    y[:5] = -1 if n_classes > 2 else y[:5]
    search = LinearizedKDStudentCV(cv=cv, **GRID).fit(X, y, teacher_logits=z_t)
    rows = np.arange(len(X))
    if cv is None:
        group = np.unique(X, axis=0, return_inverse=True)[1]
        splits = [(rows[group != g], rows[group == g]) for g in np.unique(group)]
    else:
        splits = cv.split(X)
    expected = refitted(search, X, y, z_t, splits, z_t.shape)
    found = search.held_out_decision_function_
    assert found.shape == z_t.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_validation_rows():
    X, y, z_t = problem(2, 90)
    y_val = np.where(np.arange(30) % 3, y[60:], -1)
    y_val = np.where(y_val == -1, None, y_val)
    search = LinearizedKDStudentCV(**GRID)
    search.fit(X[:60], y[:60], teacher_logits=z_t[:60], X_val=X[60:], y_val=y_val)
    expected = search.best_estimator_.decision_function(X[60:])
    expected[np.arange(30) % 3 == 0] = np.nan
    np.testing.assert_allclose(search.held_out_decision_function_, expected, rtol=1e-5, atol=1e-6)


def test_students_that_stop():
    X, y, z_t = problem(3)
    search = LinearizedKDStudentCV(
        soft_ratios=[0.5], temperatures=[2.0], stopping_times=[1.0, 30.0], cv=KFold(3)
    ).fit(X, y, teacher_logits=z_t)
    expected = refitted(search, X, y, z_t, KFold(3).split(X), z_t.shape)
    np.testing.assert_allclose(search.held_out_decision_function_, expected, rtol=1e-4, atol=1e-4)


def test_it_goes_with_the_best_cell():
    X, y, z_t = problem(2)
    search = LinearizedKDStudentCV(**GRID).fit(X, y, teacher_logits=z_t)
    right = (search.held_out_decision_function_ > 0) == y
    assert right.mean() == pytest.approx(search.best_score_)
    undecided = clone(search).set_params(scoring=["accuracy", "neg_log_loss"], refit=False)
    assert not hasattr(undecided.fit(X, y, teacher_logits=z_t), "held_out_decision_function_")
