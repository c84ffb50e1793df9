"""Angles against explicit feature vectors."""

import mpmath
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import accumulative_angle_distribution, feature_angles, weight_change_angles


def random_frame(rng, n_rows=10, n_weights=30):
    features = oracles.RandomFeatures(3, n_weights, rng)
    X = rng.normal(size=(n_rows, 3))
    return features, X, TangentFrame(as_kernel_function(features), torch.as_tensor(X))


@pytest.mark.parametrize("n_classes", [None, 3])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_weight_change_angles_are_those_of_minimum_norm_solutions(seed, with_initial, n_classes):
    rng = np.random.default_rng(seed)
    features, X, frame = random_frame(rng)
    z_eff = rng.normal(size=10 if n_classes is None else (10, n_classes))
    z_0 = 0.7 * rng.normal(size=z_eff.shape) if with_initial else np.zeros_like(z_eff)
    if n_classes is not None:
        z_eff -= z_eff.mean(axis=1, keepdims=True)
        z_0 -= z_0.mean(axis=1, keepdims=True)
    phi = features.map(X)
    oracle = oracles.minimum_norm_weights(phi, z_eff - z_0)
    zero = oracles.minimum_norm_weights(phi, -z_0)
    got = weight_change_angles(frame, z_eff, z_0 if with_initial else None)
    assert got.sizes.tolist() == list(range(1, 11))
    assert got.oracle_norm == pytest.approx(np.linalg.norm(oracle), rel=1e-8)
    assert got.centred_oracle_norm == pytest.approx(np.linalg.norm(oracle - zero), rel=1e-8)
    for size, to_oracle, centred in zip(got.sizes, got.to_oracle, got.centred, strict=True):
        student = oracles.minimum_norm_weights(phi[:size], (z_eff - z_0)[:size])
        assert to_oracle == pytest.approx(oracles.angle(student, oracle), abs=1e-8)
        assert centred == pytest.approx(oracles.angle(oracle - zero, student - zero), abs=1e-8)
    some = weight_change_angles(frame, z_eff, z_0, sizes=[2, 7])
    assert some.sizes.tolist() == [2, 7]
    np.testing.assert_array_equal(some.centred, got.centred[[1, 6]])


@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("log_size", [-3, -6, -9])
def test_small_angles_keep_their_digits(log_size, with_initial):
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.normal(size=(8, 2)))
    frame = TangentFrame(NTK(depth=2).to_torch(), X)
    z_0 = 0.5 * rng.normal(size=8) if with_initial else np.zeros(8)
    # The last row asks for almost what the seven before it already say about it.
    z_eff = z_0 + rng.normal(size=8)
    seen = frame.prefix_predictions(X, torch.as_tensor(z_eff - z_0), [7])[0]
    z_eff[7] = z_0[7] + seen[7] + 10.0**log_size
    got = weight_change_angles(frame, z_eff, z_0, sizes=[7])
    with mpmath.workdps(50):
        K = mpmath.matrix(frame.kernel.gram(X).tolist())
        z, start = mpmath.matrix(z_eff.tolist()), mpmath.matrix(z_0.tolist())
        student = mpmath.zeros(8, 1)
        student[:7, 0] = mpmath.lu_solve(K[:7, :7], (z - start)[:7, 0])
        oracle, zero = mpmath.lu_solve(K, z - start), mpmath.lu_solve(K, -start)

        def angle(a, b):
            a, b = (v / mpmath.sqrt((v.T * K * v)[0]) for v in (a, b))
            return mpmath.acos((a.T * K * b)[0])

        to_oracle, centred = angle(student, oracle), angle(oracle - zero, student - zero)
    assert to_oracle < 10.0 ** (log_size + 1)
    assert abs(got.to_oracle[0] - float(to_oracle)) < 1e-13
    assert abs(got.centred[0] - float(centred)) < 1e-13


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n_rows=st.integers(1, 12))
def test_angles_shrink_as_rows_come_in(seed, n_rows):
    rng = np.random.default_rng(seed)
    _, _, frame = random_frame(rng, n_rows)
    got = weight_change_angles(frame, rng.normal(size=n_rows))
    assert (np.diff(got.to_oracle) <= 0).all()
    assert got.to_oracle[-1] == got.centred[-1] == 0
    np.testing.assert_allclose(got.centred, got.to_oracle, atol=1e-14)
    assert got.oracle_norm == got.centred_oracle_norm


def test_an_obtuse_angle_is_not_folded():
    # The network starts far from the teacher, on the other side; one row changes little.
    _, _, frame = random_frame(np.random.default_rng(0))
    z_eff = np.linspace(1, 2, 10)
    got = weight_change_angles(frame, z_eff, -20 * z_eff, sizes=[1])
    assert got.centred[0] > np.pi / 2


def test_tensors_in_tensors_out_and_the_frame_sets_the_dtype():
    X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    frame = TangentFrame(NTK().to_torch(), X)  # float32
    z = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = weight_change_angles(frame, z)
    assert isinstance(got.centred, torch.Tensor)
    assert got.sizes.dtype == torch.int64
    exact = weight_change_angles(TangentFrame(NTK().to_torch(), X.double()), z.numpy())
    np.testing.assert_allclose(got.centred.numpy(), exact.centred, atol=1e-4)


def test_gauge_of_the_classes_does_not_matter():
    rng = np.random.default_rng(0)
    _, _, frame = random_frame(rng)
    z = rng.normal(size=(10, 3))
    z -= z.mean(axis=1, keepdims=True)
    shifted = weight_change_angles(frame, z + rng.normal(size=(10, 1)))
    np.testing.assert_allclose(shifted.centred, weight_change_angles(frame, z).centred, atol=1e-12)


def test_weight_change_angles_name_what_is_wrong():
    rng = np.random.default_rng(0)
    _, _, frame = random_frame(rng)
    z = rng.normal(size=10)
    with pytest.raises(ValueError, match=r"effective_logits must have shape \(10,\), or \(10, K\)"):
        weight_change_angles(frame, z[:9])
    with pytest.raises(ValueError, match=r"got \(10, 1\)"):
        weight_change_angles(frame, z[:, None])
    with pytest.raises(ValueError, match="initial_logits must be finite; got nan at index 3"):
        weight_change_angles(frame, z, np.where(np.arange(10) == 3, np.nan, z))
    with pytest.raises(ValueError, match="give the same rows and classes"):
        weight_change_angles(frame, z, np.zeros((10, 3)))
    with pytest.raises(ValueError, match=r"sizes must be integers in 1…10.*got 11.0 at index 1"):
        weight_change_angles(frame, z, sizes=[1, 11])
    with pytest.raises(ValueError, match="sizes must be one-dimensional"):
        weight_change_angles(frame, z, sizes=[[1, 2]])
    with pytest.raises(ValueError, match="equal initial_logits: the oracle has a weight change of"):
        weight_change_angles(frame, z, z)
    with pytest.raises(ValueError, match="effective_logits are all 0: the centred oracle"):
        weight_change_angles(frame, np.zeros(10), z)
    with pytest.raises(ValueError, match="sizes holds 2, but there the student has a weight"):
        weight_change_angles(frame, np.where(np.arange(10) < 2, 0, z), sizes=[2, 5])
    # z₀ = −Δz where the student has no rows yet that would tell it so
    z_0 = np.where(np.arange(10) < 2, -1.0, 0.0)
    with pytest.raises(ValueError, match="sizes holds 2, but there the centred student"):
        weight_change_angles(
            TangentFrame(as_kernel_function(lambda X, Y: X @ Y.T), torch.eye(10).double()),
            np.where(np.arange(10) < 2, 0.0, z),
            z_0,
            sizes=[2],
        )


@pytest.mark.parametrize("seed", range(5))
def test_feature_angles_are_those_of_explicit_vectors(seed):
    rng = np.random.default_rng(seed)
    features, X, frame = random_frame(rng)
    z_0 = rng.normal(size=10)
    z_eff = rng.normal(size=10)
    norm = weight_change_angles(frame, z_eff, z_0).centred_oracle_norm
    phi = features.map(X)
    weights = oracles.minimum_norm_weights(phi, z_eff)  # Δ_w* − Δ_wz, by linearity
    expected = [min(oracles.angle(f, weights), oracles.angle(f, -weights)) for f in phi]
    got = feature_angles(z_eff, (phi**2).sum(axis=1), norm)
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_a_row_along_the_weights_is_at_angle_zero_despite_rounding():
    rng = np.random.default_rng(0)
    norms, oracle_norm = rng.uniform(0.1, 10, size=1000), 3.7
    z = oracle_norm * np.sqrt(norms) * rng.choice([-1, 1], size=1000)
    assert feature_angles(z, norms, oracle_norm).max() < 1e-7
    assert feature_angles(z.astype(np.float32), norms, oracle_norm).max() < 1e-3


def test_feature_angles_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"oracle_norm=2.*got -3.0 at index 1;.*larger pool"):
        feature_angles([0.5, -3.0, 4.0], [1.0, 1.0, 1.0], 2.0)
    with pytest.raises(ValueError, match=r"defined for two classes.*power_function_bound"):
        feature_angles(np.ones((4, 3)), np.ones(4), 2.0)
    with pytest.raises(ValueError, match="squared_feature_norms has shape"):
        feature_angles(np.ones(4), np.ones(3), 2.0)
    with pytest.raises(ValueError, match="squared_feature_norms must be positive"):
        feature_angles(np.ones(2), [1.0, 0.0], 2.0)
    with pytest.raises(ValueError, match="oracle_norm must be one positive, finite number; got 0"):
        feature_angles(np.ones(2), np.ones(2), 0)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    angles=st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.1, 1.5, 1.57]), min_size=1, max_size=8),
    betas=st.lists(st.sampled_from([-0.1, 0.0, 0.3, 0.5, 1.5, 2.0]), min_size=1, max_size=4),
)
def test_distribution_counts_angles_above(angles, betas):
    expected = [sum(a > b for a in angles) / len(angles) for b in betas]
    np.testing.assert_allclose(accumulative_angle_distribution(angles, betas), expected, rtol=1e-15)
    single = accumulative_angle_distribution(angles, betas[0])
    assert single.shape == ()
    assert single == pytest.approx(expected[0])
    table = accumulative_angle_distribution(torch.tensor(angles), np.array([betas]).T)
    assert table.shape == (len(betas), 1)


def test_distribution_of_nothing_is_refused():
    with pytest.raises(ValueError, match="angles must hold one angle a row"):
        accumulative_angle_distribution([], 1.0)
    with pytest.raises(ValueError, match="angles must be finite; got nan at index 1"):
        accumulative_angle_distribution([1.0, np.nan], 1.0)
