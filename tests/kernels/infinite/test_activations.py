"""Gaussian averages of activations, against quadrature."""

import mpmath
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.kernels.infinite._activations import ACTIVATIONS, erf_dual, gelu_dual

COVARIANCES = [
    (1.0, 0.3, 1.5),
    (0.2, -0.25, 0.9),
    (2.0, 1.9, 2.0),
    (0.7, 0.7, 0.7),
    (1e-3, 5e-4, 1e-3),
    (1.2, 0.0, 0.4),
]
DUALS = {"erf": erf_dual, "gelu": gelu_dual}


@pytest.mark.parametrize("activation", DUALS)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_smooth_averages_agree_with_quadrature(activation, covariance):
    actual = DUALS[activation](*(torch.tensor(q, dtype=torch.float64) for q in covariance))
    expected = oracles.smooth_averages(*covariance, activation)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("theta", [0.0, 1e-3, 0.7, 1.9, np.pi])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gain_and_kink_are_those_of_the_activation(activation, theta):
    # E[g g] = c (1 − λ (1 − κ₁) − (1 − λ)(1 − cos θ)), E[g′g′] = c (1 − λ θ/π)
    linear = ACTIVATIONS[activation]
    kappa = (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / np.pi
    loss = linear.kink * (1 - kappa) + (1 - linear.kink) * (1 - np.cos(theta))
    values, slopes = oracles.piecewise_linear_averages_by_quadrature(theta, linear.slope)
    assert float(values) == pytest.approx(linear.gain * (1 - loss), rel=1e-12, abs=1e-14)
    assert float(slopes) == pytest.approx(
        linear.gain * (1 - linear.kink * theta / np.pi), rel=1e-12, abs=1e-14
    )
    # and the closed form that other tests take as their oracle
    closed = oracles.piecewise_linear_averages(1, mpmath.cos(theta), 1, linear.slope)
    assert float(closed[0]) == pytest.approx(float(values), rel=1e-12, abs=1e-14)
    assert float(closed[1]) == pytest.approx(float(slopes), rel=1e-8, abs=1e-8)


def test_leaky_slope_is_that_of_torch():
    linear = ACTIVATIONS["leaky_relu"]
    assert torch.nn.LeakyReLU().negative_slope == linear.slope


@pytest.mark.parametrize("activation", DUALS)
@given(q11=st.floats(1e-6, 1e6), q22=st.floats(1e-6, 1e6), cosine=st.floats(-1, 1))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_slopes_are_the_derivative_of_the_values(activation, q11, q22, cosine):
    # Price's theorem: ∂E[g g]/∂q₁₂ = E[g′g′]
    q = [
        torch.tensor(v, dtype=torch.float64) for v in (q11, cosine * 0.99 * (q11 * q22) ** 0.5, q22)
    ]
    q[1].requires_grad_()
    values, slopes = DUALS[activation](*q)
    (derivative,) = torch.autograd.grad(values, q[1])
    assert float(derivative) == pytest.approx(float(slopes.detach()), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("activation", DUALS)
@pytest.mark.parametrize("size", [1e-300, 1e-20, 1e20, 1e300])
def test_extreme_variances_give_finite_averages(activation, size):
    q = torch.tensor(size, dtype=torch.float64)
    for covariance in (q, -q, 0 * q, q * (1 - 1e-16)):
        values, slopes = DUALS[activation](q, covariance, q)
        assert torch.isfinite(values)
        assert torch.isfinite(slopes)


def test_gelu_tends_to_the_relu_for_large_variances():
    q = torch.tensor(1e12, dtype=torch.float64)
    values, slopes = gelu_dual(q, 0.3 * q, q)
    expected = oracles.piecewise_linear_averages(1, mpmath.mpf(0.3), 1, 0)
    assert float(values / q) == pytest.approx(float(expected[0]), rel=1e-9)
    assert float(slopes) == pytest.approx(float(expected[1]), rel=1e-5)
