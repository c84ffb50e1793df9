"""NTKTeacher: its two losses, trained and converged, its inputs and errors."""

import pickle

import numpy as np
import oracles
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.exceptions import MemoryBudgetError, NotPSDError
from sklearn_kd.kernels import NTK


def data_set(n_classes, n=150):
    X, y = load_breast_cancer(return_X_y=True) if n_classes == 2 else load_digits(return_X_y=True)
    keep = np.flatnonzero(y < n_classes)[:n]
    return StandardScaler().fit_transform(X[keep]), y[keep]


@pytest.fixture(params=[2, 3], ids=["binary", "3 classes"])
def data(request):
    return data_set(request.param)


def squared_error_targets(y):
    """Return ±1 for two classes, one-hot minus 1/K for more."""
    n_classes = y.max() + 1
    return 2.0 * y - 1 if n_classes == 2 else np.eye(n_classes)[y] - 1 / n_classes


def test_squared_error_flow_is_the_closed_form(data):
    X, y = data
    times = [0.1, 1.0, 10.0, 1e3, 1e5]
    teacher = NTKTeacher(loss="squared_error", stopping_time=times).fit(X, y)
    values, vectors = np.linalg.eigh(NTK()(X))
    target = vectors.T @ squared_error_targets(y)
    for time, logits in zip(times, teacher.staged_decision_function(X), strict=True):
        decay = -np.expm1(-time * values / len(X)).reshape(-1, *[1] * (target.ndim - 1))
        np.testing.assert_allclose(logits, vectors @ (decay * target), atol=1e-4)


def test_squared_error_converged_is_kernel_ridge(data):
    X, y = data
    weights = np.random.default_rng(0).uniform(0.5, 2, size=len(X))
    teacher = NTKTeacher(loss="squared_error", ridge=0.3).fit(X, y, sample_weight=weights)
    ridge = KernelRidge(kernel="precomputed", alpha=0.3)
    ridge.fit(NTK()(X), squared_error_targets(y), sample_weight=weights)
    np.testing.assert_allclose(teacher.dual_coef_, ridge.dual_coef_, rtol=1e-9, atol=1e-12)


def test_log_loss_converged_is_stationary_and_minimal(data):
    X, y = data
    X, y = X[:40], y[:40]
    weights = np.random.default_rng(0).uniform(0.5, 2, size=40)
    teacher = NTKTeacher(ridge=0.3).fit(X, y, sample_weight=weights)
    gram, n_classes = NTK()(X), y.max() + 1

    def objective(flat):
        a = flat.reshape(40, -1)
        f = gram @ a
        z = np.hstack([np.zeros_like(f), f]) if n_classes == 2 else f
        losses = logsumexp(z, axis=1) - z[np.arange(40), y]
        residual = np.exp(log_softmax(z, axis=1)) - np.eye(n_classes)[y]
        if n_classes == 2:
            residual = residual[:, 1:]
        value = weights @ losses + 0.15 * np.sum(a * f)
        return value, (gram @ (weights[:, None] * residual + 0.3 * a)).ravel()

    start = np.zeros(teacher.dual_coef_.size)
    best = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    value, gradient = objective(teacher.dual_coef_.ravel())
    assert value <= best.fun + 1e-9
    assert np.abs(gradient).max() < 1e-6 * np.abs(objective(start)[1]).max()
    assert teacher.fit_report_.converged


def test_stages_are_separate_trainings(data):
    X, y = data
    staged = NTKTeacher(stopping_time=[1.0, 30.0, 1000.0]).fit(X, y)
    assert staged.staged_dual_coef_.shape[0] == 3
    for time, logits in zip([1.0, 30.0, 1000.0], staged.staged_decision_function(X), strict=True):
        alone = NTKTeacher(stopping_time=time).fit(X, y)
        np.testing.assert_allclose(logits, alone.decision_function(X), atol=1e-3)
    np.testing.assert_allclose(logits, staged.decision_function(X), rtol=1e-9, atol=1e-12)


def test_training_longer_fits_better(data):
    X, y = data
    teacher = NTKTeacher(stopping_time=[1.0, 10.0, 100.0, 1e4]).fit(X, y)
    losses = []
    for z in teacher.staged_decision_function(X):
        columns = np.stack([0 * z, z], axis=1) if z.ndim == 1 else z
        losses.append(-log_softmax(columns, axis=1)[np.arange(len(y)), y].mean())
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize(
    "settings", [{}, {"stopping_time": 50.0}, {"loss": "squared_error"}], ids=str
)
def test_repeating_rows_equals_weighting_them(data, settings):
    X, y = data
    X, y = X[:60], y[:60]
    counts = np.random.default_rng(0).integers(0, 3, size=60)
    weighted = NTKTeacher(**settings).fit(X, y, sample_weight=counts)
    repeated = NTKTeacher(**settings).fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(
        repeated.decision_function(X), weighted.decision_function(X), rtol=1e-7, atol=1e-7
    )
    # A row with both labels has the mean label.
    conflicted = NTKTeacher(**settings).fit(np.vstack([X, X[:1]]), np.r_[y, (y[0] + 1) % 2])
    assert conflicted.fit_report_.n_merged_rows == 1
    assert np.isfinite(conflicted.decision_function(X)).all()


def test_logits_of_many_classes_sum_to_zero():
    X, y = data_set(3)
    for settings in ({}, {"stopping_time": 100.0}, {"loss": "squared_error"}):
        logits = NTKTeacher(**settings).fit(X, y).decision_function(X)
        np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-9)


def test_pickle_round_trip(data):
    X, y = data
    teacher = NTKTeacher(stopping_time=10.0).fit(X, y)
    loaded = pickle.loads(pickle.dumps(teacher))
    np.testing.assert_array_equal(loaded.predict_proba(X), teacher.predict_proba(X))
    assert len(pickle.dumps(teacher)) < 3 * X.nbytes


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"stopping_time": 0.0}, ValueError, "stopping_time"),
        ({"stopping_time": [3.0, 2.0]}, ValueError, "increasing sequence"),
        ({"stopping_time": [1.0, np.inf]}, ValueError, "positive finite"),
        ({"stopping_time": []}, ValueError, "stopping_time"),
        ({"ridge": 0.0}, ValueError, "ridge=0 .* no finite minimum"),
        ({"loss": "hinge"}, ValueError, "loss"),
        ({"memory_limit": 1e4}, MemoryBudgetError, "n=150 distinct rows"),
        (
            {"kernel": lambda A, B: NTK()(A, B) - 9, "loss": "squared_error", "ridge": 0.0},
            NotPSDError,
            "smallest eigenvalue",
        ),
    ],
)
def test_bad_input(settings, error, message):
    X, y = data_set(2)
    teacher = NTKTeacher(**settings)
    with pytest.raises(error, match=message):
        teacher.fit(X, y)
    assert vars(teacher) == vars(NTKTeacher(**settings)) | {"kernel": teacher.kernel}


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_kernel_of_rank_two_is_trained_through(scale):
    # One feature, no biases: the ReLU kernel is homogeneous, so all rows span two directions.
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(60, 1)) * scale, rng.integers(0, 2, size=60)
    teacher = NTKTeacher(NTK(depth=10, bias_std=0.0), stopping_time=[1.0, 1e3, 1e5]).fit(X, y)
    assert np.isfinite(teacher.decision_function(X)).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weight_change_norm(n_classes):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.integers(0, n_classes, size=40)
    teacher = NTKTeacher(stopping_time=[10.0, 100.0]).fit(X, y)
    a = teacher.dual_coef_
    squared = np.sum(a * (oracles.relu_ntk(X) @ a))
    assert teacher.weight_change_norm_ == pytest.approx(np.sqrt(squared), rel=1e-9)
    # A pure-soft student of this teacher never moves further than the teacher did.
    student = LinearizedKDStudent(FrozenEstimator(teacher), soft_ratio=1.0)
    student.fit(rng.normal(size=(30, 3)), y[:30])
    assert student.weight_change_norm_ < teacher.weight_change_norm_
