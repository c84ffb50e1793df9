"""rows_to_check: the rows on which cells of the best set disagree, by what their labels settle."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold, ShuffleSplit

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.search._rows_to_check import values_of_labels
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 3))
Z = np.stack([2 * X[:, 0] + X[:, 1], X[:, 1] ** 2, -X[:, 2]], axis=1)
LABELS = {
    "two": (X[:, 0] + RNG.logistic(size=70) > 0).astype(int),
    "three": (Z + RNG.gumbel(size=Z.shape)).argmax(axis=1),
}
GRID = {"soft_ratios": [0.2, 0.8, 1.0], "temperatures": [1.0, 4.0]}
KERNEL = NTK(depth=2)


def value_by_hand(predicted, p, weight):
    """Return the variance of all differences of two cells over the true label."""
    p, value = p.mean(axis=0), 0.0
    for a, b in itertools.combinations(range(len(predicted)), 2):
        gains = [float(predicted[a] == c) - float(predicted[b] == c) for c in range(len(p))]
        value += np.average((gains - np.average(gains, weights=p)) ** 2, weights=p)
    return weight**2 * value


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_rows_in_order_of_their_value(y, is_weighted):
    z_t = Z if y.max() > 1 else Z[:, 0]
    weight = RNG.integers(0, 3, size=70).astype(float) if is_weighted else np.ones(70)
    cv = list(KFold(4, shuffle=True, random_state=0).split(X))
    search = LinearizedKDStudentCV(
        **GRID, ridges=[0.01, 1.0], kernel=KERNEL, cv=cv, scoring="neg_log_loss"
    ).fit(X, y, sample_weight=weight, teacher_logits=z_t)
    cells = [
        search.cv_results_["params"][j] for j in np.flatnonzero(search.cv_results_["in_best_set"])
    ]
    assert 1 < len(cells) < 12
    values = np.zeros(70)
    for train, test in cv:
        students = [
            LinearizedKDStudent(kernel=KERNEL, **params).fit(
                X[train], y[train], sample_weight=weight[train], teacher_logits=z_t[train]
            )
            for params in cells
        ]
        p = np.stack([student.predict_proba(X[test]) for student in students])
        for k, i in enumerate(test):
            share = weight[i] / weight[test].sum() / 4
            values[i] = value_by_hand(p[:, k].argmax(axis=1), p[:, k], share)
    found = search.rows_to_check(70)
    assert set(found) == set(np.flatnonzero(values > 1e-12))
    ordered = values[found]
    assert (ordered[1:] <= ordered[:-1] * (1 + 1e-5)).all()
    assert found.tolist()[:5] == search.rows_to_check(5).tolist()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_formula(n_classes):
    rng = np.random.default_rng(1)
    shape = (5, 20) if n_classes == 2 else (5, 20, n_classes)
    logits = rng.normal(size=shape)
    weights = rng.random(20)
    if n_classes == 2:
        p = np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=2)
    else:
        p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    expected = [value_by_hand(p[:, i].argmax(axis=1), p[:, i], weights[i]) for i in range(20)]
    found = values_of_labels([torch.from_numpy(z) for z in logits], torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("solver", [PCG(tol=1e-10, random_state=0), Nystrom(70)])
def test_the_same_rows_by_every_solver(solver):
    cv = None if isinstance(solver, Nystrom) else 4
    search = LinearizedKDStudentCV(**GRID, ridges=[0.1], kernel=KERNEL, cv=cv)
    exact = search.fit(X, LABELS["two"], teacher_logits=Z[:, 0]).rows_to_check(70)
    search.set_params(solver=solver).fit(X, LABELS["two"], teacher_logits=Z[:, 0])
    assert len(exact) > 5
    assert search.rows_to_check(70).tolist() == exact.tolist()


def test_rows_of_several_splits():
    cv = ShuffleSplit(5, test_size=0.3, random_state=0)
    search = LinearizedKDStudentCV(**GRID, ridges=[0.1], kernel=KERNEL, cv=cv)
    found = search.fit(X, LABELS["two"], teacher_logits=Z[:, 0]).rows_to_check(1000)
    assert len(np.unique(found)) == len(found) > 5
    assert np.isin(found, np.concatenate([test for _, test in cv.split(X)])).all()


def test_a_set_of_one_cell_needs_no_labels():
    search = LinearizedKDStudentCV(soft_ratios=[0.5], temperatures=[1.0])
    search.fit(X, LABELS["two"], teacher_logits=Z[:, 0])
    assert search.rows_to_check(3).tolist() == []


def test_what_it_refuses():
    search = LinearizedKDStudentCV(**GRID, refit=False, scoring=["accuracy", "neg_log_loss"])
    with pytest.raises(Exception, match="not fitted"):
        search.rows_to_check(3)
    search.fit(X, LABELS["two"], teacher_logits=Z[:, 0])
    with pytest.raises(AttributeError, match=r"refit= one of .*accuracy.*neg_log_loss"):
        search.rows_to_check(3)
    search.set_params(scoring="accuracy").fit(X, LABELS["two"], teacher_logits=Z[:, 0])
    with pytest.raises(ValueError, match="n == 0, must be >= 1"):
        search.rows_to_check(0)
    with pytest.raises(TypeError, match="n must be an instance of int"):
        search.rows_to_check(2.5)
