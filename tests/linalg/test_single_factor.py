import numpy as np
import pytest
import torch

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._array_kernel import ArrayKernel
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._block_cg import block_pcg
from sklearn_kd.linalg._operator import DenseOperator, RidgeOperator, TiledOperator
from sklearn_kd.linalg._preconditioner import SingleFactor

N_ROWS = 300


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


TARGETS = torch.cat([normal(N_ROWS, 3, seed=1), 0 * normal(N_ROWS, 1)], dim=1)


@pytest.mark.parametrize("ridge", [None, 0.1])
@pytest.mark.parametrize(("n_features", "most"), [(20, 4), (5, 5), (2, 8)])
def test_answer_of_double_precision_in_a_few_iterations(n_features, most, ridge):
    kernel, X = InfiniteKernel(), normal(N_ROWS, n_features)
    operator, A = TiledOperator(kernel, X), kernel.gram(X)
    if ridge is not None:
        ridge = torch.linspace(0.5, 2, N_ROWS).double() * ridge
        operator, A = RidgeOperator(operator, ridge), A + ridge.diag()
    factor = SingleFactor(kernel, X, ridge)
    assert (factor.dtype, factor.jitter) == (torch.float32, 0)
    result = block_pcg(operator, TARGETS, factor, tol=1e-10)
    assert result.stopped == "converged"
    assert result.n_iter <= most
    exact = torch.cholesky_solve(TARGETS, torch.linalg.cholesky(A))
    tolerance = 1e-10 * TARGETS.norm() / torch.linalg.eigvalsh(A)[0]
    torch.testing.assert_close(result.solution, exact, rtol=0, atol=tolerance.item())
    # what float32 alone would have made of it
    single = factor.solve_transposed(factor.solve(TARGETS))
    assert (single - exact).norm() > 100 * (result.solution - exact).norm()


def test_condition_is_measured():
    kernel, X = InfiniteKernel(), normal(N_ROWS, 20)
    condition = torch.linalg.cond(kernel.gram(X), 1).item()
    assert SingleFactor(kernel, X).rcond == pytest.approx(1 / condition, rel=0.5)


def test_jitter_costs_iterations_and_leaves_the_answer_alone():
    # cond 2e9: no factor in float32 without a jitter, which is larger than most eigenvalues
    kernel, X = InfiniteKernel(depth=2, activation="erf"), normal(N_ROWS, 2)
    factor = SingleFactor(kernel, X)
    assert factor.jitter > 0
    T = kernel.gram(X) @ normal(N_ROWS, 2, seed=2)
    result = block_pcg(TiledOperator(kernel, X), T, factor, tol=1e-7)
    assert result.stopped == "converged"
    residual = (T - kernel.gram(X) @ result.solution).norm(dim=0) / T.norm(dim=0)
    assert residual.max() <= 1e-7


def test_plain_refinement_fails_where_this_converges():
    # cond 9e9, with targets that have a share in every direction
    kernel, X = InfiniteKernel(depth=2, activation="erf"), normal(N_ROWS, 3)
    A, factor, t = kernel.gram(X), SingleFactor(kernel, X), TARGETS[:, :1]
    assert factor.jitter > 0
    result = block_pcg(DenseOperator(A), t, factor, tol=1e-5)
    assert result.stopped == "converged"
    plain = torch.zeros_like(t)
    for _ in range(result.n_iter):
        plain += factor.solve_transposed(factor.solve(t - A @ plain))
    assert (t - A @ plain).norm() / t.norm() > 0.1


def test_indefinite_kernel_is_an_error():
    kernel = ArrayKernel(lambda x, y: -np.exp(-((x - y.T) ** 2)))
    with pytest.raises(NotPSDError):
        SingleFactor(kernel, normal(20, 1))
