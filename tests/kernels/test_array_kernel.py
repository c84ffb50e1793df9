"""Kernels as functions on tensors."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.metrics.pairwise import polynomial_kernel

from sklearn_kd.kernels import NTK, _array_kernel
from sklearn_kd.kernels._array_kernel import ArrayKernel, as_kernel_function
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel


def rows(n, d=3, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, d)))


def test_what_becomes_a_kernel_function():
    assert as_kernel_function(NTK()) == InfiniteKernel() == NTK().to_torch()
    assert as_kernel_function(NTK(depth=5)) == InfiniteKernel(depth=5)
    assert isinstance(as_kernel_function(RBF() * NTK()), ArrayKernel)
    assert isinstance(as_kernel_function(polynomial_kernel), ArrayKernel)


@pytest.mark.parametrize("kernel", ["rbf", 3.0, NTK, RBF, None])
def test_what_does_not(kernel):
    with pytest.raises(TypeError, match=r"kernel=.*sklearn_kd\.kernels\.NTK\(\).*callable"):
        as_kernel_function(kernel)


@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("function", [RBF(0.7), polynomial_kernel, RBF() + WhiteKernel(0.0)])
def test_array_kernel(function, n, monkeypatch):
    monkeypatch.setattr(_array_kernel, "_ROW_BLOCK", 5)
    X, Y = rows(n), rows(4, seed=1)
    kernel = ArrayKernel(function)
    expected = function(X.numpy(), X.numpy())
    np.testing.assert_allclose(kernel.block(X, Y), function(X.numpy(), Y.numpy()))
    np.testing.assert_allclose(kernel.gram(X), expected)
    np.testing.assert_allclose(kernel.diag(X), np.diag(expected))
    storage = torch.full((n, n), np.nan, dtype=torch.float64)
    upper = kernel.gram(X, out=storage, symmetrize=False)
    assert upper.data_ptr() == storage.data_ptr()
    np.testing.assert_allclose(upper.triu(), np.triu(expected))
    assert torch.isnan(upper.tril(-1)).sum() == n * (n - 1) // 2


def test_array_kernel_never_sees_the_whole_matrix_for_the_diagonal():
    shapes = []

    def kernel(X, Y):
        shapes.append((len(X), len(Y)))
        return X @ Y.T

    X = rows(6)
    np.testing.assert_allclose(ArrayKernel(kernel).diag(X), X.square().sum(dim=1))
    assert set(shapes) == {(1, 1)}


def test_array_kernel_keeps_dtype():
    assert ArrayKernel(RBF()).gram(rows(3).float()).dtype == torch.float32


def test_array_kernel_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"shape \(3, 3\) for 3 and 2 rows"):
        ArrayKernel(lambda X, Y: X @ X.T).block(rows(3), rows(2))


def test_what_a_kernel_offers_unless_it_says_otherwise():
    X, Y, V = rows(7), rows(4, seed=1), rows(4, 2, seed=2)
    kernel = ArrayKernel(RBF(0.7))
    assert not kernel.has_own_product
    assert kernel.outputs(X) is None
    np.testing.assert_allclose(kernel.matmat(X, Y, V), RBF(0.7)(X.numpy(), Y.numpy()) @ V.numpy())
