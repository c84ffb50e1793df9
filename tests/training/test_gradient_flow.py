"""Gradient flow against closed forms and a general-purpose stiff integrator."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_kd.exceptions import IllConditionedWarning, NotPSDError
from sklearn_kd.training._gradient_flow import gradient_flow, squared_error_targets

TIMES = 10.0 ** np.arange(6)
EVEN_LONGER = [1e-3, 1.0, 1e3, 1e5, 1e7]


def real_problem(n_rows, n_classes):
    """The kernel of all rows, of which the first n_rows train; labels and weights of those."""
    load = load_breast_cancer if n_classes == 2 else load_digits
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X[: n_rows + 40])
    labels = y[:n_rows].astype(float) if n_classes == 2 else np.eye(10)[y[:n_rows]]
    return oracles.relu_ntk(X), labels, np.full(n_rows, 1 / n_rows)


def flow(K, labels, weights, times, **options):
    tensors = [torch.as_tensor(array) for array in (K, labels, weights)]
    coefs, info = gradient_flow(*tensors, stopping_times=times, **options)
    return coefs.numpy(), info


def logits(K, stages):
    return np.stack([K @ coefs for coefs in stages])


@pytest.mark.parametrize(("n_rows", "n_classes"), [(500, 2), (60, 10)])
def test_log_loss_agrees_with_a_reference_integrator(n_rows, n_classes):
    K, labels, weights = real_problem(n_rows, n_classes)
    train = K[:n_rows, :n_rows]
    coefs, info = flow(train, labels, weights, TIMES)
    expected = oracles.gradient_flow_log_loss(train, labels, weights, TIMES)
    # On all rows: 40 of them are new.
    np.testing.assert_allclose(
        logits(K[:, :n_rows], coefs), logits(K[:, :n_rows], expected), atol=1e-4
    )
    assert info.n_products < 1200
    assert info.n_rejected < info.n_steps / 5


@pytest.mark.parametrize("n_classes", [2, 10])
def test_squared_error_agrees_with_the_closed_form(n_classes):
    K, labels, _ = real_problem(120, n_classes)
    K = K[:120, :120]
    weights = np.random.default_rng(0).uniform(0.2, 2, size=120)
    weights /= weights.sum()
    coefs, _ = flow(K, labels, weights, EVEN_LONGER, loss="squared_error")
    targets = 2 * labels - 1 if n_classes == 2 else labels - 1 / n_classes
    expected = oracles.gradient_flow_squared_error(K, targets, weights, EVEN_LONGER)
    np.testing.assert_allclose(logits(K, coefs), expected, atol=1e-4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 8),
    n_classes=st.integers(2, 4),
    log_scale=st.floats(-3, 3),
    rank=st.integers(1, 8),
    log_sharpness=st.floats(-1, 2),
)
def test_any_kernel_and_soft_labels(seed, n_rows, n_classes, log_scale, rank, log_sharpness):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_rows, rank))
    K = 10**log_scale * features @ features.T
    weights = rng.uniform(0.1, 1, size=n_rows)
    weights /= weights.sum()
    scores = 10**log_sharpness * rng.normal(size=(n_rows, n_classes))
    labels = np.exp(scores - scores.max(axis=1, keepdims=True))
    labels /= labels.sum(axis=1, keepdims=True)
    if n_classes == 2:
        labels = labels[:, 1]
    times = [0.1, 10.0, 1e3]
    tolerance = {"atol": 1e-3, "rtol": 1e-3}
    coefs, _ = flow(K, labels, weights, times)
    expected = logits(K, oracles.gradient_flow_log_loss(K, labels, weights, times))
    np.testing.assert_allclose(logits(K, coefs), expected, **tolerance)
    coefs, _ = flow(K, labels, weights, times, loss="squared_error")
    targets = 2 * labels - 1 if n_classes == 2 else labels - 1 / n_classes
    expected = oracles.gradient_flow_squared_error(K, targets, weights, times)
    np.testing.assert_allclose(logits(K, coefs), expected, **tolerance)


def test_tolerance_controls_the_error():
    K, labels, weights = real_problem(100, 2)
    K = K[:100, :100]
    expected = logits(K, oracles.gradient_flow_log_loss(K, labels, weights, TIMES))
    errors = [
        np.abs(logits(K, flow(K, labels, weights, TIMES, tol=tol)[0]) - expected).max()
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[0] > 10 * errors[1]
    assert errors[1] > 10 * errors[2]
    assert errors[2] < 1e-6


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_no_time_no_training(loss, n_classes):
    K, labels, weights = real_problem(30, n_classes)
    coefs, info = flow(K[:30, :30], labels, weights, [0.0, 1.0], loss=loss)
    assert coefs.shape == (2, *labels.shape)
    assert not coefs[0].any()
    assert coefs[1].any()
    assert info.n_steps >= 1


@pytest.mark.parametrize("n_classes", [2, 10])
def test_training_loss_falls_and_very_long_times_are_cheap(n_classes):
    K, labels, weights = real_problem(200, n_classes)
    K = K[:200, :200]
    coefs, info = flow(K, labels, weights, np.geomspace(1e-2, 1e7, 28))
    losses = [oracles.log_loss(K @ a, labels, weights) for a in coefs]
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 1e-4  # the rows are separable: the loss goes to 0 as 1 / t
    assert info.n_products < 4000


def test_stopping_times_share_one_run():
    K, labels, weights = real_problem(80, 2)
    K = K[:80, :80]
    stages, _ = flow(K, labels, weights, TIMES, tol=1e-5)
    for time, stage in zip(TIMES, stages, strict=True):
        alone, _ = flow(K, labels, weights, [time], tol=1e-5)
        np.testing.assert_allclose(K @ alone[0], K @ stage, atol=1e-5)


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_a_weight_of_two_is_a_repeated_row(loss):
    K, labels, _ = real_problem(20, 2)
    rows = np.r_[np.arange(20), 3, 7, 7]
    counts = np.bincount(rows)
    repeated, _ = flow(
        K[np.ix_(rows, rows)], labels[rows], np.full(23, 1 / 23), TIMES, loss=loss, tol=1e-6
    )
    weighted, _ = flow(K[:20, :20], labels, counts / 23, TIMES, loss=loss, tol=1e-6)
    expected = logits(K[:, :20], weighted)
    np.testing.assert_allclose(logits(K[:, rows], repeated), expected, atol=1e-5)


def test_two_outputs_against_one_logit():
    K, labels, weights = real_problem(50, 2)
    K = K[:50, :50]
    labels = 0.1 + 0.8 * labels
    both = np.stack([1 - labels, labels], axis=1)

    def difference(stages):
        return logits(K, stages[..., 1] - stages[..., 0])

    one, _ = flow(K, labels, weights, TIMES, loss="squared_error", tol=1e-6)
    two, _ = flow(K, both, weights, TIMES, loss="squared_error", tol=1e-6)
    np.testing.assert_allclose(difference(two), logits(K, one), atol=1e-5)
    # The log loss moves the difference of two outputs twice as fast.
    one, _ = flow(K, labels, weights, 2 * TIMES, tol=1e-6)
    two, _ = flow(K, both, weights, TIMES, tol=1e-6)
    np.testing.assert_allclose(difference(two), logits(K, one), atol=1e-5)


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_classes_sum_to_zero(loss):
    K, labels, weights = real_problem(60, 10)
    coefs, _ = flow(K[:60, :60], labels, weights, [1e5], loss=loss)
    assert np.abs(coefs.sum(axis=2)).max() < 1e-12 * np.abs(coefs).max()


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_float32(loss, n_classes):
    K, labels, weights = real_problem(200, n_classes)
    K = K[:200, :200]
    double, _ = flow(K, labels, weights, TIMES, loss=loss)
    single = [array.astype(np.float32) for array in (K, labels, weights)]
    coefs, _ = flow(*single, TIMES, loss=loss)
    assert coefs.dtype == np.float32
    np.testing.assert_allclose(logits(K, coefs), logits(K, double), atol=5e-3)


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_a_zero_kernel_and_a_loss_at_its_minimum_stay_put(loss):
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    half = torch.full((3,), 0.5, dtype=torch.float64)
    coefs, _ = gradient_flow(torch.eye(3).double(), half, weights, stopping_times=[1e5], loss=loss)
    assert not coefs.any()
    coefs, _ = gradient_flow(
        torch.zeros(3, 3).double(), half + 0.5, weights, stopping_times=[10.0], loss=loss
    )
    force = 0.5 if loss == "log_loss" else 1.0
    torch.testing.assert_close(coefs[0], torch.full_like(half, 10 * force / 3))


@pytest.mark.parametrize("times", [[1.0, 1.0], [2.0, 1.0], [-1.0], [np.inf], [np.nan]])
def test_stopping_times_are_checked(times):
    with pytest.raises(ValueError, match="stopping_times="):
        flow(np.eye(2), np.ones(2), np.full(2, 0.5), times)


def test_tol_is_checked():
    single = [np.eye(2, dtype=np.float32), np.ones(2, np.float32), np.full(2, 0.5, np.float32)]
    with pytest.raises(ValueError, match=r"tol=1e-06 is too small for torch\.float32"):
        flow(*single, [1.0], tol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_kernel_matrix_that_is_not_finite(bad):
    K = np.eye(3)
    K[1, 1] = bad
    with pytest.raises(ValueError, match="kernel_matrix has non-finite entries"):
        flow(K, np.ones(3), np.full(3, 1 / 3), [1.0])


def test_an_indefinite_kernel_matrix():
    K = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(NotPSDError, match="kernel_matrix is not positive semi-definite"):
        flow(K, np.array([1.0, 0.2]), np.full(2, 0.5), [1.0])


def test_squared_error_targets():
    two = squared_error_targets(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert two.tolist() == [[0.5, -0.5], [-0.25, 0.25]]
    one = squared_error_targets(torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(two[:, 1] - two[:, 0], one)


def small_task(dtype=torch.float64):
    K = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 1.0], [0.5, 1.0, 2.0]], dtype=dtype)
    labels = torch.tensor([0.0, 1.0, 0.0], dtype=dtype)
    return K, labels, torch.full_like(labels, 1 / 3)


def test_too_many_products_are_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr("sklearn_kd.training._integration.MAX_PRODUCTS", 50)
    with pytest.raises(FloatingPointError, match=r"50 products .* stopping_time=.* scale the inp"):
        gradient_flow(*small_task(), stopping_times=[1e5])
    gradient_flow(*small_task(), stopping_times=np.geomspace(0.1, 1e5, 40))  # 50 for each


@pytest.mark.parametrize("exponent", [-280, -150, -30, 30, 150, 280])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_scaling_the_kernel_is_scaling_time(exponent, loss):
    K, labels, weights = small_task()
    scale = 10.0**exponent
    expected, info = gradient_flow(K, labels, weights, stopping_times=[7.0, 1e4], loss=loss)
    actual, scaled_info = gradient_flow(
        scale * K, labels, weights, stopping_times=[7.0 / scale, 1e4 / scale], loss=loss
    )
    torch.testing.assert_close(scale * actual, expected, rtol=1e-10, atol=1e-12)
    assert info.n_steps == scaled_info.n_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_beyond_the_range_of_the_dtype_are_refused_at_once(dtype):
    K, labels, weights = small_task(dtype)
    with pytest.raises(ValueError, match=r"stopping_time=1e\+150 is beyond .* of at most \d"):
        gradient_flow(K, labels, weights, stopping_times=[1.0, 1e150])
    # The squared error has long converged by then.
    targets = squared_error_targets(labels)
    coefs, _ = gradient_flow(K, labels, weights, stopping_times=[1e150], loss="squared_error")
    torch.testing.assert_close(K @ coefs[0], targets)
    coefs, _ = gradient_flow(
        K * 1e30, labels, weights, stopping_times=[1e300], loss="squared_error"
    )
    torch.testing.assert_close(K * 1e30 @ coefs[0], targets)


@pytest.mark.parametrize(("dtype", "time"), [(torch.float64, 1e100), (torch.float32, 1e12)])
def test_logits_grow_as_the_logarithm_of_time_to_the_longest_one(dtype, time):
    # One row: σ(−f) and its derivative give  f + e^f − 1 = K ω t, whatever the time.
    K, one = torch.full((1, 1), 2.0, dtype=dtype), torch.ones(1, dtype=dtype)
    coefs, info = gradient_flow(K, one, one, stopping_times=[time])
    assert (K @ coefs[0]).item() == pytest.approx(math.log(2 * time), rel=1e-4)
    assert info.n_products < 10_000


@pytest.mark.parametrize("n_classes", [2, 3])
def test_rows_not_told_apart_end_in_a_warning_or_an_error(n_classes):
    # Coefficients grow in proportion to time, and with them the rounding of K a. The curvature is
    # that of rounding alone, of either sign; the kernel is no less positive semi-definite for it.
    rng = np.random.default_rng(0)
    K = torch.full((20, 20), 13.0).double()
    K += 1e-15 * torch.as_tensor(np.cov(rng.normal(size=(20, 20))))
    y = rng.integers(0, n_classes, 20)
    labels = torch.as_tensor(y.astype(float) if n_classes == 2 else np.eye(n_classes)[y])
    weights = torch.full((20,), 0.05).double()
    coefs, _ = gradient_flow(K, labels, weights, stopping_times=[1e6])
    shares = labels.mean(dim=0).expand(labels.shape)
    expected = torch.logit(shares) if n_classes == 2 else shares.log()
    expected = expected if n_classes == 2 else expected - expected.mean(dim=1, keepdim=True)
    torch.testing.assert_close(K @ coefs[0], expected, rtol=0, atol=1e-3)
    with pytest.warns(IllConditionedWarning, match="Rounding moves the logits by about 0"):
        gradient_flow(K, labels, weights, stopping_times=[1e14])
    with pytest.raises(FloatingPointError, match=r"rounding in products .* stopping_time=1e\+25"):
        gradient_flow(K, labels, weights, stopping_times=[1e25])


def test_single_precision_says_when_it_does_not_suffice():
    rng = np.random.default_rng(0)
    X, y = 1e-6 * rng.normal(size=(20, 3)), rng.integers(0, 2, 20).astype(float)
    K, weights = oracles.relu_ntk(X), np.full(20, 1 / 20)
    single = [array.astype(np.float32) for array in (K, y, weights)]
    with pytest.warns(IllConditionedWarning, match=r"Rounding moves the logits by about 0\.0[23]"):
        coefs, _ = flow(*single, [1e6])
    double, _ = flow(K, y, weights, [1e6])
    error = np.abs(single[0] @ coefs[0] - K @ double[0]).max()
    assert 5e-3 < error < 0.1
