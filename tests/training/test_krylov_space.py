"""phi functions against many digits, and their Krylov space against dense matrices."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct
from sklearn_kd.training._krylov_space import KrylovSpace, phi


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


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_space_agrees_with_the_exponential_of_the_dense_jacobian(n_classes, loss):
    rng = np.random.default_rng(0)
    n, step = 6, 0.7
    shape = (n,) if n_classes == 2 else (n, n_classes)
    features = rng.normal(size=(n, 8))
    K = torch.as_tensor(features @ features.T)
    logits, vector = (torch.as_tensor(rng.normal(size=shape)) for _ in range(2))
    weights = torch.as_tensor(rng.uniform(0.1, 1, n))
    root = CurvatureRoot(logits, weights, loss)
    space = KrylovSpace(KernelProduct(K), root, vector)
    assert space.resolve(0, step, 1e-14)
    unit = torch.eye(vector.numel()).double()
    jacobian = torch.stack([-root.curvature(K @ e.view(shape)).flatten() for e in unit], dim=1)
    expected = torch.as_tensor(expm(step * jacobian.numpy())) @ vector.flatten()
    a, image = space.phi(0, step)
    np.testing.assert_allclose(a.flatten(), expected, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(image, K @ expected.view(shape), rtol=1e-10, atol=1e-11)
