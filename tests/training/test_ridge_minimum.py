"""The minimum of the ridge-penalized log loss against mpmath and scikit-learn."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_kd.training import _ridge_minimum
from sklearn_kd.training._ridge_minimum import ridge_minimum


def minimum(K, labels, weights, **options):
    coefs, info = ridge_minimum(*map(torch.as_tensor, (K, labels, weights)), **options)
    return coefs.numpy(), info


def real_problem(n_rows, n_classes):
    load = load_breast_cancer if n_classes == 2 else load_digits
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X[:n_rows])
    labels = y[:n_rows].astype(float) if n_classes == 2 else np.eye(10)[y[:n_rows]]
    return X, y[:n_rows], labels


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 5),
    n_classes=st.integers(2, 3),
    rank=st.integers(1, 5),
    log_ridge=st.floats(-6, 2),
    is_hard=st.booleans(),
)
def test_agrees_with_40_digits(seed, n_rows, n_classes, rank, log_ridge, is_hard):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_rows, rank))
    K = features @ features.T
    weights = rng.uniform(0.1, 3, size=n_rows)
    labels = rng.dirichlet(np.ones(n_classes), size=n_rows)
    if is_hard:
        labels = np.eye(n_classes)[labels.argmax(axis=1)]
    if n_classes == 2:
        labels = labels[:, 1]
    coefs, info = minimum(K, labels, weights, ridge=10**log_ridge)
    assert info.converged
    start = coefs  # the oracle polishes by plain Newton, which may diverge from afar
    expected = oracles.ridge_minimum_log_loss(K, labels, weights, 10**log_ridge, start)
    np.testing.assert_allclose(coefs, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("ridge", [1e-2, 1.0, 100.0])
def test_is_logistic_regression(n_classes, ridge):
    X, y, labels = real_problem(150, n_classes)
    weights = np.random.default_rng(0).uniform(0.5, 2, size=150)
    coefs, info = minimum(X @ X.T, labels, weights, ridge=ridge)
    assert info.converged
    model = LogisticRegression(
        C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=10_000, solver="newton-cg"
    ).fit(X, y, sample_weight=weights)
    expected = model.decision_function(X)  # C classes: in sum-zero gauge at its minimum
    np.testing.assert_allclose(X @ (X.T @ coefs), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("ridge", [1e-8, 1e-6, 1e-3, 1.0, 1e3])
def test_stationary_for_any_ridge(n_classes, ridge):
    X, _, labels = real_problem(120, n_classes)
    K = oracles.relu_ntk(X)
    coefs, info = minimum(K, labels, np.ones(120), ridge=ridge)
    assert info.converged
    f = K @ coefs
    others = -np.expm1(-np.logaddexp(0, -f)) if n_classes == 2 else None
    if n_classes == 2:
        force = np.where(labels == 1, others, -1 / (1 + np.exp(-f)))
    else:
        force = labels - np.exp(f - np.logaddexp.reduce(f, axis=1, keepdims=True))
        assert np.abs(coefs.sum(axis=1)).max() < 1e-9 * np.abs(coefs).max()
    assert np.linalg.norm(force - ridge * coefs) < 1e-6 * np.linalg.norm(ridge * coefs)


def test_a_weight_of_two_is_a_repeated_row():
    X, _, labels = real_problem(30, 2)
    K = oracles.relu_ntk(X)
    rows = np.r_[np.arange(30), 3, 7, 7]
    repeated, first = minimum(K[np.ix_(rows, rows)], labels[rows], np.ones(33), ridge=0.1)
    weighted, second = minimum(K, labels, np.bincount(rows).astype(float), ridge=0.1)
    assert first.converged
    assert second.converged
    np.testing.assert_allclose(K[:, rows] @ repeated, K @ weighted, atol=1e-6)


def test_two_outputs_carry_half_the_ridge():
    # ‖w_1‖² + ‖w_0‖² = ‖w_1 - w_0‖² / 2 at w_1 = -w_0
    X, _, labels = real_problem(40, 2)
    K = oracles.relu_ntk(X)
    one, _ = minimum(K, labels, np.ones(40), ridge=0.1)
    two, _ = minimum(K, np.stack([1 - labels, labels], axis=1), np.ones(40), ridge=0.2)
    np.testing.assert_allclose(K @ (two[:, 1] - two[:, 0]), K @ one, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 10])
def test_float32(n_classes):
    X, _, labels = real_problem(120, n_classes)
    K = oracles.relu_ntk(X)
    double, _ = minimum(K, labels, np.ones(120), ridge=1e-2)
    single = [array.astype(np.float32) for array in (K, labels, np.ones(120))]
    coefs, info = minimum(*single, ridge=1e-2)
    assert coefs.dtype == np.float32
    assert info.converged
    np.testing.assert_allclose(K @ coefs, K @ double, atol=5e-3 * np.abs(K @ double).max())


def test_labels_of_one_half_need_no_training():
    coefs, info = minimum(np.eye(3), np.full(3, 0.5), np.ones(3), ridge=1.0)
    assert not coefs.any()
    assert info.converged
    assert info.n_products == 0


def test_no_convergence_is_reported(monkeypatch):
    monkeypatch.setattr(_ridge_minimum, "MAX_NEWTON_STEPS", 2)
    X, _, labels = real_problem(60, 2)
    _, info = minimum(oracles.relu_ntk(X), labels, np.ones(60), ridge=1e-6)
    assert not info.converged
    assert info.residual > 1e-8
    assert info.n_iter == 2


@pytest.mark.parametrize("ridge", [0.0, -1.0, np.nan])
def test_ridge_is_checked(ridge):
    with pytest.raises(ValueError, match=r"ridge=.* must be positive"):
        minimum(np.eye(2), np.ones(2), np.ones(2), ridge=ridge)


def test_a_kernel_matrix_that_is_not_finite():
    K = np.eye(3)
    K[1, 1] = np.nan
    with pytest.raises(ValueError, match="kernel_matrix has non-finite entries"):
        minimum(K, np.ones(3), np.ones(3), ridge=1.0)
