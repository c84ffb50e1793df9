"""Frames kept for later fits on the same rows: the same results, fewer factors, bounded memory."""

import gc
import weakref

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.preprocessing import scale

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.solvers import Cholesky
from sklearn_kd.solvers._frame_cache import AUTO_SHARE, frames, size_of

GRID = {"soft_ratio": [0.3, 0.9], "temperature": [1.0, 2.0, 4.0]}


@pytest.fixture(autouse=True)
def _empty_cache():
    frames.clear()
    yield
    frames.clear()


@pytest.fixture(scope="module")
def data():
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)
    teacher = FrozenEstimator(LogisticRegression(C=0.01).fit(X[:100], y[:100]))
    return X[100:220], y[100:220], teacher


@pytest.fixture
def n_built(monkeypatch):
    """Return a list that grows by one with every frame built in this process."""
    built, build = [], TangentFrame.__init__

    def counting(self, *args, **keywords):
        built.append(None)
        build(self, *args, **keywords)

    monkeypatch.setattr(TangentFrame, "__init__", counting)
    return built


def test_a_search_builds_two_frames_a_fold(data, n_built):
    X, y, teacher = data
    GridSearchCV(LinearizedKDStudent(teacher), GRID, cv=3).fit(X, y)
    # Six candidates share each fold; the refit has rows of its own.
    assert len(n_built) == 2 * 3 + 1
    assert frames.n_frames == 3
    n_built.clear()
    off = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=0))
    GridSearchCV(off, GRID, cv=3).fit(X, y)
    assert len(n_built) == 6 * 3 + 1
    assert frames.n_frames == 3


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.parametrize(
    ("search", "grid"),
    [(GridSearchCV, GRID), (RandomizedSearchCV, GRID)],
)
def test_results_are_the_same_bit_for_bit(data, search, grid, backend, n_jobs):
    X, y, teacher = data
    settings = {"scoring": "neg_log_loss", "cv": 3, "n_jobs": n_jobs}
    if search is RandomizedSearchCV:
        settings |= {"n_iter": 5, "random_state": 0}
    off = search(LinearizedKDStudent(teacher, solver=Cholesky(cache_size=0)), grid, **settings).fit(
        X, y
    )
    with joblib.parallel_config(backend=backend):
        on = search(LinearizedKDStudent(teacher), grid, **settings).fit(X, y)
    for key, values in off.cv_results_.items():
        if "test" in key:
            np.testing.assert_array_equal(on.cv_results_[key], values, err_msg=key)


def test_one_fit_leaves_nothing_behind(data):
    X, y, teacher = data
    LinearizedKDStudent(teacher).fit(X, y)
    assert frames.n_frames == 0


def test_other_rows_kernels_ridges_and_dtypes_have_other_frames(data, n_built):
    X, y, teacher = data
    changed = X.copy()
    changed[5, 3] += 1e-9
    variants = [
        ({}, X, None),
        ({"ridge": 0.1}, X, None),
        ({"kernel": NTK(depth=2)}, X, None),
        ({"dtype": "float32"}, X, None),
        ({}, changed, None),
        ({}, X[::-1], None),
        ({"ridge": 0.1}, X, np.linspace(1, 2, len(X))),
    ]
    for _ in range(2):
        for params, rows, weights in variants:
            labels = y[::-1] if rows is not X and rows is not changed else y
            LinearizedKDStudent(teacher, **params).fit(rows, labels, sample_weight=weights)
    assert len(n_built) == 2 * len(variants)
    n_built.clear()
    for params, rows, weights in variants:
        labels = y[::-1] if rows is not X and rows is not changed else y
        kept = LinearizedKDStudent(teacher, **params).fit(rows, labels, sample_weight=weights)
        new = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=0), **params)
        new.fit(rows, labels, sample_weight=weights)
        np.testing.assert_array_equal(kept.dual_coef_, new.dual_coef_)
    assert len(n_built) == len(variants)


def test_a_checksum_is_not_trusted(data, monkeypatch):
    X, y, teacher = data
    monkeypatch.setattr("sklearn_kd.solvers._frame_cache._checksum", lambda values: 0)
    for _ in range(2):
        LinearizedKDStudent(teacher).fit(X, y)
    other = LinearizedKDStudent(teacher).fit(X + 1, y)
    expected = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=0)).fit(X + 1, y)
    np.testing.assert_array_equal(other.dual_coef_, expected.dual_coef_)


def test_memory_is_bounded_and_the_oldest_goes_first(data, n_built):
    X, y, teacher = data
    frame = LinearizedKDStudent(teacher).fit(X[:100], y[:100]).tangent_frame()
    size = 2.5 * size_of(frame)
    student = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=size))
    for start in (0, 5, 10):
        for _ in range(2):
            student.fit(X[start : start + 100], y[start : start + 100])
    assert frames.n_frames == 2
    n_built.clear()
    student.fit(X[10:110], y[10:110])
    student.fit(X[5:105], y[5:105])
    assert not n_built
    student.fit(X[:100], y[:100])
    assert len(n_built) == 1
    tiny = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=1.0))
    frames.clear()
    for _ in range(3):
        tiny.fit(X, y)
    assert frames.n_frames == 0


def test_auto_is_a_share_of_what_is_free(data, monkeypatch):
    X, y, teacher = data
    frame = LinearizedKDStudent(teacher).fit(X, y).tangent_frame()
    free = int(size_of(frame) / AUTO_SHARE * 1.5)
    monkeypatch.setattr("sklearn_kd.solvers._frame_cache.available_bytes", lambda device: free)
    for rows in (X, X + 1):
        for _ in range(2):
            LinearizedKDStudent(teacher).fit(rows, y)
    assert frames.n_frames == 1


def test_a_kept_frame_warns_again():
    X = np.linspace(1, 1 + 1e-13, 6)[:, None]
    y = np.array([0, 1, 0, 1, 1, 0])
    for _ in range(4):
        with pytest.warns(IllConditionedWarning):
            LinearizedKDStudent(dtype="float64").fit(X, y, teacher_logits=np.arange(6.0))
    assert frames.n_frames == 1


def test_clearing_frees_the_frames(data):
    X, y, teacher = data
    for _ in range(2):
        frame = weakref.ref(LinearizedKDStudent(teacher).fit(X, y).tangent_frame())
    gc.collect()
    assert frame() is not None
    frames.clear()
    gc.collect()
    assert frame() is None


@pytest.fixture
def n_blocks(monkeypatch):
    """Return a list that grows by one with every kernel block computed in this process."""
    computed, block = [], InfiniteKernel.block

    def counting(self, X, Y):
        computed.append(None)
        return block(self, X, Y)

    monkeypatch.setattr(InfiniteKernel, "block", counting)
    return computed


def test_a_search_computes_the_kernel_of_test_rows_three_times_a_fold(data, n_blocks):
    X, y, teacher = data
    search = GridSearchCV(LinearizedKDStudent(teacher), GRID, cv=3, refit=False).fit(X, y)
    # Of six candidates the first has no kept frame, the second asks for the first time, the third
    # has its entries kept.
    assert len(n_blocks) == 3 * 3
    off = LinearizedKDStudent(teacher, solver=Cholesky(cache_size=0))
    expected = GridSearchCV(off, GRID, cv=3, refit=False).fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )


def _kept_student(data):
    X, y, teacher = data
    for _ in range(2):
        student = LinearizedKDStudent(teacher).fit(X, y)
    return student


def test_changed_rows_are_not_mistaken_for_kept_ones(data, n_blocks, monkeypatch):
    monkeypatch.setattr("sklearn_kd.solvers._frame_cache._checksum", lambda values: 0)
    student = _kept_student(data)
    rows = data[0][:20].copy()
    for _ in range(2):
        before = student.decision_function(rows)
    n_blocks.clear()
    np.testing.assert_array_equal(student.decision_function(rows), before)
    assert not n_blocks
    rows += 1
    expected = LinearizedKDStudent(data[2], solver=Cholesky(cache_size=0)).fit(data[0], data[1])
    np.testing.assert_array_equal(student.decision_function(rows), expected.decision_function(rows))


def test_predictions_beyond_the_bound_are_not_kept(data, n_blocks):
    student = _kept_student(data)
    student.solver_.cache_size = 8.0 * 500 * len(data[0])
    rows = np.random.default_rng(0).standard_normal((500, data[0].shape[1]))
    for _ in range(3):
        student.decision_function(rows)
    assert len(n_blocks) == 3


def test_a_student_without_a_kept_frame_keeps_no_predictions(data, n_blocks):
    X, y, teacher = data
    student = LinearizedKDStudent(teacher).fit(X, y)
    for _ in range(4):
        student.decision_function(X[:20])
    assert len(n_blocks) == 4
