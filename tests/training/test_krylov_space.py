"""phi functions against many digits, and their Krylov space against dense matrices."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from sklearn_kd.training._function_space import CrossEntropy, KernelProduct, SquaredError, Term
from sklearn_kd.training._krylov_space import KrylovSpaces, Room, phi, phi_difference


@settings(deadline=None, derandomize=True, max_examples=100)
@given(log_x=st.floats(-12, 12), order=st.integers(0, 5))
def test_phi(log_x, order):
    x = 10**log_x
    with mpmath.workdps(100):
        z = -mpmath.mpf(x)
        expected = mpmath.exp(z)
        for k in range(order):
            expected = (expected - 1 / mpmath.factorial(k)) / z
    assert phi(order, np.array([x]))[0] == pytest.approx(float(expected), rel=1e-12, abs=1e-290)


@pytest.mark.parametrize("order", range(6))
def test_phi_at_zero(order):
    assert phi(order, np.zeros(1))[0] == pytest.approx(1 / math.factorial(order), rel=1e-15)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(log_x=st.floats(-12, 4), log_y=st.floats(-12, 4), order=st.integers(0, 4))
def test_phi_difference(log_x, log_y, order):
    x, y = 10**log_x, 10**log_y
    with mpmath.workdps(100):

        def exact(z):
            value = mpmath.exp(z)
            for k in range(order):
                value = (value - 1 / mpmath.factorial(k)) / z
            return value

        u, gap = -mpmath.mpf(x), mpmath.mpf(y)
        expected = (exact(u - gap) - exact(u)) / -gap
    actual = phi_difference(order, np.array([x]), np.array([y]))[0]
    assert actual == pytest.approx(float(expected), rel=1e-11, abs=1e-290)


def test_phi_difference_at_zero():
    x = np.array([0.0, 0.3, 2.0])
    # Without decay it is the next function; at equal points the derivative, e^-x for order 0.
    np.testing.assert_array_equal(phi_difference(2, 0 * x, x), phi(3, x))
    np.testing.assert_allclose(phi_difference(0, x, 0 * x), np.exp(-x), rtol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.8])
@pytest.mark.parametrize("n_columns", [1, 3])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error", "distillation"])
def test_spaces_agree_with_the_exponentials_of_the_dense_jacobians(n_columns, loss, decay):
    rng = np.random.default_rng(0)
    n, n_runs, steps = 6, 2, np.array([0.7, 3.0])
    shape = (n_runs, n_columns, n)
    features = rng.normal(size=(n, 8))
    K = torch.as_tensor(features @ features.T)
    logits, vectors, shares = (torch.as_tensor(rng.normal(size=shape)) for _ in range(3))
    weights = torch.as_tensor(rng.uniform(0.1, 1, (n_runs, n)))
    if loss == "squared_error":
        own = SquaredError(shares)
    else:
        soft, hard = shares.softmax(dim=1), (2 * shares).softmax(dim=1)
        c, big_t = torch.tensor([0.3, 0.6])[:, None, None], torch.tensor([2.0, 0.5])[:, None, None]
        own = CrossEntropy([Term.of_labels(hard)])
        if loss == "distillation":
            own.terms.append(Term(soft, 1 - soft, c.double(), big_t.double()))
    root = own.curvature_root(logits, weights)
    decays = np.array([decay, 2 * decay])
    spaces = KrylovSpaces(KernelProduct(K), root, vectors, decays)
    assert spaces.resolve(0, steps, 1e-14).all()
    for order in (0, 1, 3):
        (states,) = spaces.phi([(order, steps)])
        for run in range(n_runs):
            one, unit = root.of([run]), torch.eye(vectors[0].numel()).double()
            columns = [-one.curvature((e.view(1, *shape[1:])) @ K).flatten() for e in unit]
            jacobian = torch.stack(columns, dim=1).numpy() - decays[run] * np.eye(len(unit))
            dense = phi_of_a_matrix(order, steps[run] * jacobian)
            expected = torch.as_tensor(dense) @ vectors[run].flatten()
            a, image = states[:, run]
            np.testing.assert_allclose(a.flatten(), expected, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(image, expected.view(shape[1:]) @ K, rtol=1e-9, atol=1e-10)


def phi_of_a_matrix(order, z):
    """Return phi_order(z) by its integral representation in an augmented exponential."""
    n = len(z)
    blocks = np.zeros(((order + 1) * n,) * 2)
    blocks[:n, :n] = z
    for k in range(order):
        blocks[k * n : (k + 1) * n, (k + 1) * n : (k + 2) * n] = np.eye(n)
    return expm(blocks)[:n, order * n :]


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_bases_are_orthonormal_and_rooms_are_used_again(rate):
    """Also where eigenvalues converge, at which the bare recurrence loses orthogonality."""
    rng = np.random.default_rng(0)
    n, n_runs = 60, 3
    vectors, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = torch.as_tensor(vectors * rate ** np.arange(n) @ vectors.T)
    q = torch.as_tensor(rng.uniform(size=(n_runs, 2, n)))
    loss = CrossEntropy([Term.of_labels(q / q.sum(dim=1, keepdim=True))])
    weights = torch.full((n_runs, n), 1 / n, dtype=torch.float64)
    root = loss.curvature_root(torch.zeros_like(q), weights)
    starts = torch.as_tensor(rng.normal(size=(2, n_runs, 2, n)))
    room = Room()
    for start in starts:
        accuracy = np.array([1e-2, 1e-8, 1e-13])  # spaces of three sizes
        steps = np.full(n_runs, 100.0)
        spaces = [KrylovSpaces(KernelProduct(matrix), root, start, room=room)]
        spaces.append(KrylovSpaces(KernelProduct(matrix), root, start))
        spaces[0].basis[:], spaces[0].images[:] = np.nan, np.nan
        for space in spaces:
            assert space.resolve(1, steps, accuracy).all()
        assert len(set(spaces[0].size)) == 3
        for left, right in zip(*(space.phi([(1, steps)]) for space in spaces), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)
        for run in range(n_runs):
            basis = spaces[0].basis[run, : spaces[0].size[run]]
            gram = (basis @ basis.mT).numpy()
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)
