"""Kernels of smooth activations for rows that are nearly parallel or opposite, against mpmath."""

import itertools

import mpmath
import numpy as np
import pytest
import torch

from sklearn_kd.kernels.infinite import _covariance
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel

SIZES = [1.0, 1e2, 1e4, 3e5]
NOISES = [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.03, 0.3]


def averages(activation, q11, q12, q22):
    """E[g g] and E[g′g′] in mpmath's current precision, from the closed forms."""
    scale = 2 if activation == "erf" else 1
    a, b, c = 1 + scale * q11, 1 + scale * q22, scale * q12
    root = mpmath.sqrt(a * b - c**2)
    angle = mpmath.atan2(c, root)
    if activation == "erf":
        return 2 / mpmath.pi * angle, 4 / mpmath.pi / root
    both, density = mpmath.mpf(1) / 4 + angle / (2 * mpmath.pi), 1 / (2 * mpmath.pi * root)
    values = q12 * both + density * (q11 * q22 - q12**2 + q12**2 * (1 / a + 1 / b))
    return values, both + q12 * density * (1 / a + 1 / b + 1 / root**2)


def exact(x, y, *, depth, activation, weight_std, bias_std, kind="ntk"):
    """The kernel of one pair of rows in mpmath's current precision, layer by layer."""
    x, y = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in y]
    w, b = mpmath.mpf(weight_std) ** 2, mpmath.mpf(bias_std) ** 2
    q11, q12, q22 = (
        w * mpmath.fsum(p * q for p, q in zip(left, right, strict=True)) / len(x) + b
        for left, right in ((x, x), (x, y), (y, y))
    )
    ntk = q12
    for _ in range(depth):
        values, slopes = averages(activation, q11, q12, q22)
        q11, q22 = (w * averages(activation, q, q, q)[0] + b for q in (q11, q22))
        q12 = w * values + b
        ntk = q12 + w * ntk * slopes
    return ntk if kind == "ntk" else q12


def pairs_of_rows(size, seed=0):
    """Yield rows and multiples of them, of either sign, with some noise."""
    rng = np.random.default_rng(seed)
    for noise, factor in itertools.product(NOISES, [1.0, -1.0, 2.3, -2.3]):
        x = size * rng.normal(size=3)
        yield x, factor * x + noise * size * rng.normal(size=3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("weight_std", "bias_std"), [(1.0, 1.0), (1.0, 0.0), (30.0, 2.0)])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("activation", ["erf", "gelu"])
def test_entries_are_accurate_at_any_angle_and_size(activation, depth, weight_std, bias_std, size):
    settings = {
        "depth": depth,
        "activation": activation,
        "weight_std": weight_std,
        "bias_std": bias_std,
    }
    kernel = InfiniteKernel(**settings)
    if activation == "erf" and (weight_std * size) ** 2 > 1e10:
        size = 1e5 / weight_std
    with mpmath.workdps(100):
        for x, y in pairs_of_rows(size):
            K = kernel.gram(torch.as_tensor(np.stack([x, y])))
            xx, xy, yy = (exact(*rows, **settings) for rows in ((x, x), (x, y), (y, y)))
            assert abs(K[0, 0].item() / xx - 1) < 2e-15
            assert abs(K[1, 1].item() / yy - 1) < 2e-15
            # an erf of such rows is a step, and a rounding of the angle moves it by √q₁₁
            tolerance = 5e-12 if activation == "erf" else 1e-13
            assert abs(K[0, 1].item() - xy) < tolerance * mpmath.sqrt(xx * yy)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("activation", ["erf", "gelu"])
def test_gradients_are_accurate_too(activation, kind):
    parameters = {"weight_std": 1.3, "bias_std": 0.8}
    settings = {"depth": 2, "activation": activation, "kind": kind}
    kernel = InfiniteKernel(**settings, **parameters)
    with mpmath.workdps(100):
        for x, y in pairs_of_rows(1e5):
            found = kernel.gradient(torch.as_tensor(np.stack([x, y])))
            for column, name in enumerate(parameters):

                def of_log(log, x=x, y=y, name=name):
                    value = {name: parameters[name] * mpmath.exp(log)}
                    return exact(x, y, **settings, **parameters | value)

                expected = mpmath.diff(of_log, 0)
                largest = found.abs().max().item()
                assert abs(found[0, 1, column].item() - expected) < 1e-10 * largest


@pytest.mark.parametrize("activation", ["erf", "gelu"])
def test_pairs_in_parts_and_in_any_call_are_the_same(activation, monkeypatch):
    X = torch.as_tensor(1e5 * np.random.default_rng(0).normal(size=(30, 1)))
    kernel = InfiniteKernel(2, activation)
    expected = kernel.gram(X)
    assert torch.equal(expected, expected.T)
    torch.testing.assert_close(kernel.block(X, X), expected, rtol=1e-14, atol=0)
    monkeypatch.setattr(_covariance, "_PAIR_ELEMENTS", 7)
    torch.testing.assert_close(kernel.gram(X), expected, rtol=1e-15, atol=0)


def test_rows_of_ordinary_size_need_no_pairs(monkeypatch):
    def unexpected(*args):
        raise AssertionError

    monkeypatch.setattr(_covariance, "first_pairs", unexpected)
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(50, 4)))
    X[1] = X[0]
    InfiniteKernel(3, "erf").gram(X)
    InfiniteKernel(3, "gelu").gradient(X)
