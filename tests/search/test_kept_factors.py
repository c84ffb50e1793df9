"""A second fit with corrected labels: no new factor, the same results, and bounded memory."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

import sklearn_kd.linalg._frame
import sklearn_kd.search._by_factor
from sklearn_kd import LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import Cholesky

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Z = 2 * X[:, 0] + X[:, 1]
Y = (Z + RNG.logistic(size=60) > 0).astype(int)
CORRECTED = np.where(np.arange(60) % 9 == 0, 1 - Y, Y)
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [2.0]}
TWICE = np.r_[np.arange(60), np.arange(10)]


@pytest.fixture
def n_factors(monkeypatch):
    """Return a list that grows with each factorization of a kernel matrix."""
    sizes, factor = [], sklearn_kd.linalg._frame.factor_in_place

    def counting(assemble):
        found = factor(assemble)
        sizes.append(len(found.lower))
        return found

    monkeypatch.setattr(sklearn_kd.linalg._frame, "factor_in_place", counting)
    return sizes


@pytest.mark.parametrize(
    ("options", "n_first"),
    [
        ({}, 1),
        ({"cv": 5}, 1),
        ({"ridges": [0.1, 0.2, 1.0]}, 3),
        ({"kernel": [NTK(depth=1), NTK(depth=2)], "ridges": [0.0, 0.1], "cv": 6}, 4),
        ({"cv": KFold(3)}, 4),
        ({"refit": False}, 1),
        ({"teacher": LogisticRegression()}, 1),
    ],
    ids=["loo", "folds", "ridges", "kernels", "own factors", "no refit", "unfitted"],
)
def test_corrected_labels_need_no_new_factor(options, n_first, n_factors):
    search = LinearizedKDStudentCV(**GRID | options)
    logits = {} if "teacher" in options else {"teacher_logits": Z}
    search.fit(X, Y, **logits)
    assert len(n_factors) == n_first
    search.fit(X.copy(), CORRECTED, **logits)
    assert len(n_factors) == n_first
    fresh = clone(search).fit(X, CORRECTED, **logits)
    for name in [name for name in fresh.cv_results_ if "test" in name]:
        np.testing.assert_array_equal(search.cv_results_[name], fresh.cv_results_[name])
    if search.refit:
        np.testing.assert_array_equal(
            search.best_estimator_.dual_coef_, fresh.best_estimator_.dual_coef_
        )


def test_weights_and_copies(n_factors):
    # Copies make factors of folds; their weights within the folds count.
    weight = np.linspace(1, 2, 70)
    search = LinearizedKDStudentCV(**GRID, cv=KFold(4), ridges=[0.1])
    first = search.fit(X[TWICE], Y[TWICE], weight, teacher_logits=Z[TWICE])
    assert len(n_factors) == 5
    first.fit(X[TWICE], CORRECTED[TWICE], weight, teacher_logits=Z[TWICE])
    assert len(n_factors) == 5
    # The same total weights of the distinct rows, others of the copies.
    swapped = weight.copy()
    swapped[0], swapped[60] = weight[60], weight[0]
    swapped_fit = search.fit(X[TWICE], CORRECTED[TWICE], swapped, teacher_logits=Z[TWICE])
    assert len(n_factors) > 5
    fresh = clone(search).fit(X[TWICE], CORRECTED[TWICE], swapped, teacher_logits=Z[TWICE])
    np.testing.assert_array_equal(
        swapped_fit.cv_results_["mean_test_score"], fresh.cv_results_["mean_test_score"]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda search, fit: fit(search, X + 1e-9),
        lambda search, fit: fit(search, X[:59]),
        lambda search, fit: fit(search, X, sample_weight=np.linspace(1, 2, 60)),
        lambda search, fit: fit(search.set_params(ridges=[0.3]), X),
        lambda search, fit: fit(search.set_params(kernel=NTK(depth=1)), X),
        lambda search, fit: fit(search.set_params(dtype="float32"), X),
    ],
    ids=["rows", "fewer", "weights", "ridge", "kernel", "dtype"],
)
def test_other_problems_have_other_factors(change, n_factors):
    def fit(search, rows, **options):
        return search.fit(rows, Y[: len(rows)], teacher_logits=Z[: len(rows)], **options)

    search = fit(LinearizedKDStudentCV(**GRID, ridges=[0.1]), X)
    change(search, fit)
    assert len(n_factors) == 2


def test_other_kernels_are_not_compared_by_value(n_factors):
    search = LinearizedKDStudentCV(**GRID, kernel=RBF(2.0), ridges=[0.1])
    for n_fits in (1, 2):
        search.fit(X, Y, teacher_logits=Z)
        assert len(n_factors) == n_fits


def test_cache_size_bounds_what_is_kept(n_factors):
    one = 8 * (60**2 + 60 * 4)
    for size, n_second in [(0, 3), (one, 2), (3 * one, 0)]:
        solver = Cholesky(cache_size=size)
        search = LinearizedKDStudentCV(**GRID, ridges=[0.1, 0.2, 1.0], solver=solver, refit=False)
        search.fit(X, Y, teacher_logits=Z)
        assert search._kept_factors.n_bytes <= size
        n_factors.clear()
        search.fit(X, CORRECTED, teacher_logits=Z)
        assert len(n_factors) == n_second


def test_the_factor_of_the_best_student_is_free(n_factors):
    search = LinearizedKDStudentCV(**GRID, solver=Cholesky(cache_size=0))
    for _ in range(2):
        search.fit(X, Y, teacher_logits=Z)
    assert len(n_factors) == 1
    frame = weakref.ref(search.best_estimator_._frame)
    del search.best_estimator_
    gc.collect()
    assert frame() is None


def test_what_memory_limit_leaves(n_factors, monkeypatch):
    planned = []

    def recording(n_bytes, *arguments, **options):
        planned.append(n_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(sklearn_kd.search._by_factor, "require", recording)
        LinearizedKDStudentCV(**GRID, ridges=[0.1, 0.2]).fit(X, Y, teacher_logits=Z)
    n_factors.clear()
    one = 8 * (60**2 + 60 * 4)
    for beside, n_second in [(0, 1), (2 * one, 0)]:
        limit = planned[0] + beside
        search = LinearizedKDStudentCV(**GRID, ridges=[0.1, 0.2], memory_limit=limit)
        search.fit(X, Y, teacher_logits=Z)
        kept = search._kept_factors.n_bytes
        assert kept <= beside
        n_factors.clear()
        search.fit(X, CORRECTED, teacher_logits=Z)
        assert len(n_factors) == n_second


def test_kept_factors_stay_out_of_copies_and_pickles():
    search = LinearizedKDStudentCV(**GRID, ridges=[0.1, 0.2]).fit(X, Y, teacher_logits=Z)
    for other in (pickle.loads(pickle.dumps(search)), copy.deepcopy(search), clone(search)):
        assert not hasattr(other, "_kept_factors")
        other.fit(X, CORRECTED, teacher_logits=Z)


def test_factors_of_folds_serve_the_same_folds_only(n_factors):
    search = LinearizedKDStudentCV(**GRID, cv=StratifiedKFold(3)).fit(X, Y, teacher_logits=Z)
    n_factors.clear()
    search.fit(X, CORRECTED, teacher_logits=Z)
    assert 60 not in n_factors  # that of all rows is kept, and the kernel matrix
