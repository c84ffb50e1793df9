"""Infinite-width kernels: values, accuracy, invariances."""

import json
from pathlib import Path

import mpmath
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sklearn_kd.kernels.infinite import _angular
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel

REFERENCE = json.loads((Path(__file__).parent / "ntk_values.json").read_text())["cases"]
ACTIVATIONS = ["relu", "leaky_relu", "erf", "gelu"]


def tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def relative_error(actual, expected):
    expected = tensor(expected)
    return float(((tensor(actual) - expected).abs() / expected.abs()).max())


def rows(n, d, seed=0, scale=1.0):
    return tensor(scale * np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("case", REFERENCE, ids=lambda c: f"{c['activation']}-{c['depth']}")
def test_reference_values(case, kind):
    names = ("depth", "activation", "weight_std", "bias_std")
    kernel = InfiniteKernel(**{name: case[name] for name in names}, kind=kind)
    X, Y = tensor(case["X"]), tensor(case["Y"])
    assert relative_error(kernel.block(X, Y), case[kind]) < 1e-13
    if kind == "ntk":
        assert relative_error(kernel.diag(X), case["ntk_diag"]) < 1e-14


@pytest.mark.parametrize("bias_std", [0.0, 0.4])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_agrees_with_quadrature_layer_by_layer(activation, kind, depth, bias_std):
    settings = {
        "depth": depth,
        "activation": activation,
        "weight_std": 1.3,
        "bias_std": bias_std,
        "kind": kind,
    }
    X, Y = rows(2, 4), rows(3, 4, seed=1)
    X[1] = -2 * Y[1]  # opposite directions
    kernel = InfiniteKernel(**settings)
    actual = kernel.block(X, Y)
    expected = [[float(oracles.infinite_kernel(x, y, **settings)) for y in Y] for x in X]
    accuracy = 1e-12 if activation != "erf" else 1e-10  # of the quadrature
    np.testing.assert_allclose(actual, expected, rtol=accuracy, atol=1e-12)
    np.testing.assert_allclose(actual[0], expected[0], rtol=accuracy)
    diagonal = [float(oracles.infinite_kernel(x, x, **settings)) for x in X]
    assert relative_error(kernel.diag(X), diagonal) < accuracy


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_relu_diagonal_without_biases(depth):
    X = rows(20, 6)
    kernel = InfiniteKernel(depth, weight_std=np.sqrt(2), bias_std=0.0)
    expected = (depth + 1) * 2 * X.square().sum(dim=1) / 6
    assert relative_error(kernel.diag(X), expected) < 1e-13
    assert relative_error(kernel.gram(X).diagonal(), expected) < 1e-13
    assert relative_error(kernel.block(X, X).diagonal(), expected) < 1e-13


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("bias_std", [0.0, 1.0])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_close_rows_keep_their_distance(activation, bias_std, distance):
    # Θ(x, x) + Θ(y, y) − 2 Θ(x, y) is of the order of |x − y|: in float64, rounding Θ alone
    # leaves it ε/|x − y| of relative accuracy. The angle itself is as accurate as the input.
    settings = {"depth": 10, "activation": activation, "weight_std": 1.4, "bias_std": bias_std}
    rng = np.random.default_rng(3)
    x = rng.normal(size=5)
    x /= np.linalg.norm(x)
    step = rng.normal(size=5)
    y = x + distance * step / np.linalg.norm(step)
    kernel = InfiniteKernel(**settings)
    X = tensor([x, y, rng.normal(size=5)])
    theta = kernel.gram(X)
    with mpmath.workdps(60):
        pairs = [(x, x), (x, y), (y, y)]
        xx, xy, yy = (oracles.infinite_kernel(u, v, **settings) for u, v in pairs)
        gap = xx + yy - 2 * xy
        actual = mpmath.mpf(float(theta[0, 0])) + float(theta[1, 1]) - 2 * float(theta[0, 1])
        assert relative_error(theta[0, 1], float(xy)) < 4e-15
        assert float(abs(actual / gap - 1)) < 1e-13 + 20 * np.finfo(float).eps / distance
    assert relative_error(kernel.block(X[:1], X[1:2]), theta[:1, 1:2]) < 4e-15


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.03])
@pytest.mark.parametrize("bias_std", [0.0, 1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_opposite_rows_are_known_to_rounding(activation, depth, bias_std, noise):
    settings = {"depth": depth, "activation": activation, "weight_std": 1.2, "bias_std": bias_std}
    kernel = InfiniteKernel(**settings)
    for factor in (1.0, 2.3):
        x = rows(1, 4, seed=int(10 * factor))
        X = torch.cat([x, -factor * x + noise * rows(1, 4, seed=5)])
        K = kernel.gram(X)[0, 1].item()
        with mpmath.workdps(60):
            xx, xy, yy = (
                oracles.infinite_kernel(X[i], X[j], **settings) for i, j in [(0, 0), (0, 1), (1, 1)]
            )
            assert abs(K - xy) < 1e-14 * mpmath.sqrt(xx * yy)


def test_opposite_rows_without_bias_share_no_direction_after_one_layer():
    X = rows(200, 7)
    K = InfiniteKernel(depth=1, bias_std=0.0).block(X, -X).diagonal()
    assert (K.abs() < 1e-14 * InfiniteKernel(depth=1, bias_std=0.0).diag(X)).all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_angle_recursion_of_close_rows_is_accurate_to_rounding(activation):
    # Pairs of rows, as p = sin²(θ/2) of the last layer: 1 − Σ(x, y)/√(Σ(x, x)Σ(y, y)) = 2p.
    settings = {"depth": 10, "activation": activation, "weight_std": 1.4, "bias_std": 0.7}
    x = rows(1, 5)
    y = x * (1 + 1e-6 * rows(1, 5, seed=8))
    recursion = InfiniteKernel(**settings)._recursion
    left, right = recursion.rows(x), recursion.rows(y)
    p, _ = recursion._pair_layers(x=left.inputs, y=right.inputs, a=left.stds, b=right.stds)
    with mpmath.workdps(60):
        pairs = [(x[0], x[0]), (x[0], y[0]), (y[0], y[0])]
        xx, xy, yy = (oracles.infinite_kernel(u, v, **settings, kind="nngp") for u, v in pairs)
        expected = (1 - xy / mpmath.sqrt(xx * yy)) / 2
        assert float(abs(mpmath.mpf(float(p)) / expected - 1)) < 1e-14


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_repeated_rows_and_zero_rows(activation):
    X = rows(6, 3)
    X[4] = X[1]
    X[5] = 0
    for bias_std in (0.0, 0.5):
        kernel = InfiniteKernel(4, activation, bias_std=bias_std)
        gram, block = kernel.gram(X), kernel.block(X, X)
        assert torch.isfinite(gram).all()
        torch.testing.assert_close(gram, block, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(gram[1, 4], gram[1, 1], rtol=2e-15, atol=0)
        assert torch.all(gram[5] == 0) or bias_std > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_scales_give_finite_values(activation, dtype):
    exponents = [-150, -20, 0, 20, 150] if dtype == torch.float64 else [-18, 0, 18]
    if activation == "erf":  # a step function beyond; see the next test
        exponents = [e for e in exponents if e <= 0]
    X = torch.cat([rows(3, 4) * 10.0**e for e in exponents]).to(dtype)
    for bias_std in (0.0, 1.0):
        kernel = InfiniteKernel(3, activation, bias_std=bias_std)
        assert torch.isfinite(kernel.gram(X)).all()
        assert torch.isfinite(kernel.diag(X)).all()


@pytest.mark.parametrize(("dtype", "depth"), [(torch.float64, 150), (torch.float32, 10)])
def test_angles_that_underflow_on_the_way_down_are_zero(dtype, depth):
    X = torch.full((2, 3), 1e-40, dtype=dtype)
    kernel = InfiniteKernel(depth, weight_std=0.1)
    block = kernel.block(X, torch.zeros(1, 3, dtype=dtype))
    torch.testing.assert_close(block[:, 0], kernel.diag(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_to_which_the_erf_is_a_step_are_refused(dtype):
    # There 1 − cos²ω ~ 1/q₁₁ is rounding alone, and K(x, x) would be wrong by any factor.
    X = rows(3, 2).to(dtype)
    X[1] *= 1e7
    kernel = InfiniteKernel(activation="erf")
    for evaluate in (kernel.gram, kernel.diag, lambda rows: kernel.block(X[:1], rows)):
        with pytest.raises(ValueError, match=r"rows \[1\].*not resolved .* activation='relu'"):
            evaluate(X)


@pytest.mark.parametrize("activation", ["erf", "gelu"])
def test_smooth_kernels_in_float32_lose_no_more_than_its_rounding(activation):
    # Pixels from 0 to 255: variances of 2e4, which the recursion in float32 would not resolve.
    X = (100 * rows(6, 4)).abs().float()
    X = torch.cat([X, X * (1 + 1e-4 * rows(6, 4)).float()])
    kernel = InfiniteKernel(3, activation)
    exact = kernel.gram(X.double())
    for single in (kernel.gram(X), kernel.block(X, X)):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=1e-7, atol=0)
    assert kernel.diag(X).dtype == torch.float32
    assert torch.equal(kernel.diag(X), kernel.gram(X).diagonal())
    assert kernel.gradient(X).dtype == torch.float32


@pytest.mark.parametrize(("activation", "size"), [("erf", 1.0), ("erf", 1e3), ("gelu", 1e8)])
def test_nearly_parallel_rows_are_known_to_the_documented_error(activation, size):
    X = size * rows(8, 4)
    X[4:] = X[:4] * (1 + 1e-9 * rows(4, 4))
    settings = {"depth": 3, "activation": activation, "weight_std": 1.0, "bias_std": 1.0}
    kernel = InfiniteKernel(**settings)
    gram, epsilon = kernel.gram(X), np.finfo(float).eps
    variance = float((X.square().mean(dim=1) + 1).max())
    tolerance = 10 * epsilon * variance if activation == "erf" else 2 * np.sqrt(epsilon)
    # Rows this close have K(x, x′) = √(K(x, x) K(x′, x′)) to far below these errors.
    pairs = gram[:4, 4:].diagonal()
    bound = torch.sqrt(gram.diagonal()[:4] * gram.diagonal()[4:])
    assert (pairs <= bound * (1 + tolerance)).all()
    assert (pairs >= bound * (1 - tolerance)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_rows_out_of_range_are_refused(value):
    X = rows(3, 2)
    X[1, 0] = value
    for kernel in (InfiniteKernel(), InfiniteKernel(activation="erf")):
        with pytest.raises(ValueError, match=r"rows \[1\].*finite"):
            kernel.gram(X)


def test_offsets_do_not_cost_accuracy():
    # Rows far from the origin, all of them close in angle.
    settings = {"depth": 3, "activation": "relu", "weight_std": 1.0, "bias_std": 1.0}
    X = 1000 + rows(4, 3)
    actual = InfiniteKernel(**settings).gram(X)
    with mpmath.workdps(40):
        for i, j in [(0, 1), (2, 3)]:
            xx, xy, yy = (
                oracles.infinite_kernel(X[k], X[m], **settings) for k, m in [(i, i), (i, j), (j, j)]
            )
            assert relative_error(actual[i, j], float(xy)) < 1e-14
            gap = actual[i, i] + actual[j, j] - 2 * actual[i, j]
            assert relative_error(gap, float(xx + yy - 2 * xy)) < 1e-11


@pytest.mark.parametrize(("depth", "tolerance"), [(3, 2e-6), (10, 4e-6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_accuracy(activation, depth, tolerance):
    X = rows(60, 20)
    X[1] = X[0] + 1e-3 * X[2]
    kernel = InfiniteKernel(depth, activation)
    single = kernel.gram(X.float())
    assert single.dtype == torch.float32
    assert relative_error(single, kernel.gram(X)) < tolerance


finite = st.floats(-10, 10, allow_subnormal=False)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)


@given(X=hnp.arrays(np.float64, shapes, elements=finite), activation=st.sampled_from(ACTIVATIONS))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_gram_is_symmetric_positive_and_agrees_with_block_and_diag(X, activation):
    X = tensor(X)
    kernel = InfiniteKernel(2, activation, bias_std=0.3)
    gram = kernel.gram(X)
    assert torch.equal(gram, gram.T)
    assert torch.equal(gram.diagonal(), kernel.diag(X))
    largest = float(gram.diagonal().max())
    torch.testing.assert_close(kernel.block(X, X), gram, rtol=0, atol=1e-13 * largest)
    least = float(torch.linalg.eigvalsh(gram)[0])
    assert least > -1e-14 * len(X) * largest


@given(
    X=hnp.arrays(np.float64, shapes, elements=finite),
    scale=st.floats(1e-3, 1e3),
    activation=st.sampled_from(["relu", "leaky_relu"]),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_piecewise_linear_kernels_without_biases_are_homogeneous(X, scale, activation):
    X = tensor(X)
    kernel = InfiniteKernel(3, activation, bias_std=0.0)
    gram = kernel.gram(X)
    largest = float(gram.diagonal().max())
    torch.testing.assert_close(
        kernel.gram(scale * X) / scale**2, gram, rtol=0, atol=1e-13 * largest + 1e-315
    )


@given(X=hnp.arrays(np.float64, (5, 3), elements=finite), seed=st.integers(0, 100))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_kernels_are_invariant_under_rotations(X, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    kernel = InfiniteKernel(3)
    largest = float(kernel.diag(tensor(X)).max())
    # a rounding error of x of size ε|x| turns the angle of two equal rows by as much
    torch.testing.assert_close(
        kernel.gram(tensor(X @ rotation)), kernel.gram(tensor(X)), rtol=0, atol=1e-13 * largest
    )


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("bias_std", [0.6, 0.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_agrees_with_differences(activation, bias_std, kind):
    X = rows(12, 4)
    X[3], X[4], X[5] = X[2], 2 * X[2], 0
    step = 1e-4

    def gram(weight_std, bias_std):
        return InfiniteKernel(3, activation, weight_std, bias_std, kind).gram(X)

    gradient = InfiniteKernel(3, activation, 1.2, bias_std, kind).gradient(X)
    up, down = np.exp(step), np.exp(-step)
    by_weight = (gram(1.2 * up, bias_std) - gram(1.2 * down, bias_std)) / (2 * step)
    by_bias = (gram(1.2, bias_std * up) - gram(1.2, bias_std * down)) / (2 * step)
    largest = float(by_weight.max())
    expected = torch.stack([by_weight, by_bias], dim=2)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=2e-7 * largest)


def test_gradient_is_finite_at_repeated_and_opposite_rows():
    X = rows(4, 3)
    X[1], X[2] = X[0], -X[0]
    for activation in ACTIVATIONS:
        for bias_std in (0.0, 1.0):
            kernel = InfiniteKernel(2, activation, bias_std=bias_std)
            assert torch.isfinite(kernel.gradient(X)).all()


def test_close_pairs_are_split_into_chunks(monkeypatch):
    X = 1 + 1e-9 * rows(30, 4)
    X = torch.cat([X, -X])
    expected = InfiniteKernel().gram(X)
    monkeypatch.setattr(_angular, "_PAIR_ELEMENTS", 40)
    assert torch.equal(InfiniteKernel().gram(X), expected)
