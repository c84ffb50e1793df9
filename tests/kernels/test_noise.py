"""The noise of a kernel: how k(X) differs from K(X, X)."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    Kernel,
    Matern,
    WhiteKernel,
)

from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.kernels._array_kernel import ArrayKernel
from sklearn_kd.kernels._noise import noise_of

X = np.random.default_rng(0).normal(size=(12, 3))


class Nugget(Kernel):
    """A linear kernel with a noise of its own, of no class that scikit-learn knows."""

    def __init__(self, level=0.3):
        self.level = level

    def __call__(self, X, Y=None, eval_gradient=False):
        return X @ X.T + self.level * np.eye(len(X)) if Y is None else X @ Y.T

    def diag(self, X):
        return (X**2).sum(axis=1) + self.level

    def is_stationary(self):
        return False


def rounded(X, Y=None):
    """A kernel without noise, whose two ways to a value differ by rounding."""
    return X @ X.T if Y is None else np.einsum("id,jd->ij", X, Y) * (1 + 1e-15)


@pytest.mark.parametrize(
    "kernel",
    [
        RBF(),
        RBF() + WhiteKernel(0.5),
        WhiteKernel(0.5) + WhiteKernel(0.25),
        2.0 * Matern() * (RBF(2.0) + WhiteKernel(0.1)),
        (RBF(0.5) + WhiteKernel(1e-10)) ** 2,
        (ConstantKernel(3.0) * WhiteKernel(0.5)) ** 1.5 + DotProduct(),
        RBF() * WhiteKernel(2.0),
        NTK() + WhiteKernel(0.1),
        NTK() * RBF() + DotProduct() ** 2,
        EmpiricalNTK(torch.nn.Linear(3, 1)) + WhiteKernel(0.1),
        Nugget(),
        Nugget() + RBF(),
        RBF() * ConstantKernel(2.0) + 3.0 * Nugget(),
    ],
    ids=repr,
)
def test_noise_is_what_the_kernel_matrix_of_the_same_rows_adds(kernel):
    equal = kernel(X, X)
    expected = np.diag(kernel(X) - equal).mean()
    assert noise_of(kernel, X) == pytest.approx(expected, rel=1e-5, abs=1e-14)
    function, rows = ArrayKernel(kernel), torch.from_numpy(X)
    np.testing.assert_allclose(function.gram(rows), equal)
    np.testing.assert_allclose(function.diag(rows), np.diag(equal), atol=1e-14)


def test_a_tiny_noise_keeps_its_digits():
    assert noise_of(RBF() + WhiteKernel(1e-12), X) == 1e-12


@pytest.mark.parametrize("kernel", [rounded, lambda X, Y: RBF()(X) if X is Y else RBF()(X, Y), max])
def test_functions_of_two_arguments_and_rounding_have_no_noise(kernel):
    assert noise_of(kernel, X) == 0


@pytest.mark.parametrize(
    "kernel", [DotProduct() * WhiteKernel(), (NTK() + WhiteKernel()) ** 2, RBF() * Nugget() ** 2]
)
def test_noise_that_differs_from_row_to_row_is_refused(kernel):
    with pytest.raises(ValueError, match=r"kernel=.*differs from row to row.*set ridge"):
        noise_of(kernel, X)


def test_a_kernel_that_is_no_function_of_two_rows_is_refused():
    def centred(X, Y=None):
        return (X - X.mean(axis=0)) @ X.T if Y is None else X @ Y.T

    with pytest.raises(ValueError, match=r"other values for kernel\(X\).*lambda X, Y"):
        noise_of(centred, X)
