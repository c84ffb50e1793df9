"""Block PCG against Cholesky, on what breaks textbook block conjugate gradients."""

import math

import numpy as np
import pytest
import torch

from sklearn_kd.distillation import effective_logits
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._block_cg import block_pcg, orthonormal_basis
from sklearn_kd.linalg._operator import DenseOperator, RidgeOperator, TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky
from sklearn_kd.linalg._preconditioner import LowRankPreconditioner

N_ROWS = 400


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def kernel(depth=3):
    return InfiniteKernel(depth=depth)


def precondition(operator, rank=60, row_ridges=None):
    if rank == 0:
        return None
    draws = torch.Generator().manual_seed(0)
    return LowRankPreconditioner(
        randomly_pivoted_cholesky(operator, rank, generator=draws), row_ridges
    )


def grid(n_rows=N_ROWS):
    """Return z_eff of 32 (ρ, T) cells."""
    z_t = 3 * normal(n_rows).numpy()
    y = (z_t + normal(n_rows, seed=1).numpy() > 0).astype(int)
    cells = [
        effective_logits(z_t, y, soft_ratio=rho, temperature=T)
        for rho in np.linspace(0.3, 1, 8)
        for T in (1, 2, 4, 8)
    ]
    return torch.as_tensor(np.stack(cells, axis=1))


def hard_among_easy(A):
    """Return 99 columns of ten leading eigenvectors and one of the last and the middle one."""
    V = torch.linalg.eigh(A).eigenvectors
    easy = V[:, -10:] @ normal(10, 99)
    return torch.cat([easy, V[:, :1] + V[:, len(A) // 2, None]], dim=1)[:, torch.arange(100) - 50]


CASES = {
    "one hard column among 99 easy ones": (kernel(), hard_among_easy),
    "grid": (kernel(), lambda A: grid()),
    "zero and duplicate columns": (
        kernel(),
        lambda A: torch.cat([0 * grid(), grid(), -grid(), 0 * grid()], dim=1),
    ),
    "columns scaled by 1e±8": (
        kernel(),
        lambda A: torch.cat([1e8 * grid(), 1e-8 * grid(), 1e-8 * normal(N_ROWS, 1)], dim=1),
    ),
    "columns that differ by 1e-9": (
        kernel(),
        lambda A: normal(N_ROWS, 1) + 1e-9 * normal(N_ROWS, 20, seed=1),
    ),
    "k(x, x) is not 1 at depth 8": (kernel(depth=8), lambda A: grid()),
    "more columns than rows": (kernel(), lambda A: normal(N_ROWS, N_ROWS + 7)),
    "no noise, few features": (kernel(depth=1), lambda A: normal(N_ROWS, 3)),
}


@pytest.mark.parametrize("tol", [1e-6, 1e-10])
@pytest.mark.parametrize("rank", [0, 60])
@pytest.mark.parametrize("name", CASES)
def test_every_column_equals_cholesky(name, rank, tol):
    k, make = CASES[name]
    A = k.gram(normal(N_ROWS, 5))
    T = make(A)
    operator = DenseOperator(A)
    result = block_pcg(operator, T, precondition(operator, rank), tol=tol)
    assert result.stopped == "converged"
    assert (result.residuals <= tol).all()

    norms = T.norm(dim=0)
    residual = torch.where(norms > 0, (T - A @ result.solution).norm(dim=0) / norms, 0.0)
    torch.testing.assert_close(result.residuals, residual, rtol=1e-3, atol=1e-11)

    # At ridge = 0 a residual is an error of the logits on the training rows; and everywhere
    # x − A⁻¹t is at most ‖r‖ / λ_min.
    exact = torch.cholesky_solve(T, torch.linalg.cholesky(A))
    smallest = torch.linalg.eigvalsh(A)[0]
    error = (result.solution - exact).norm(dim=0)
    assert (error <= tol * norms / smallest + 1e-12 * exact.norm(dim=0)).all()
    assert torch.equal(result.solution[:, norms == 0], 0 * T[:, norms == 0])


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 10.0])
def test_ridge_with_weights(ridge):
    A = kernel().gram(normal(N_ROWS, 5))
    row_ridges = ridge / torch.linspace(0.1, 10, N_ROWS).double()
    operator = RidgeOperator(DenseOperator(A), row_ridges)
    M = precondition(operator.operator, row_ridges=row_ridges)
    result = block_pcg(operator, grid(), M, tol=1e-10)
    exact = torch.linalg.solve(A + row_ridges.diag(), grid())
    torch.testing.assert_close(result.solution, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_features", [2, 5, 20])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_iterations_fall_with_the_rank(n_features, ridge):
    A = kernel().gram(normal(N_ROWS, n_features))
    row_ridges = torch.full((N_ROWS,), ridge).double()
    operator = RidgeOperator(DenseOperator(A), row_ridges)
    n_iter = [
        block_pcg(
            operator, grid(), precondition(operator.operator, rank, row_ridges), tol=1e-8
        ).n_iter
        for rank in (0, 25, 50, 100, 200, 400)
    ]
    assert (np.diff(n_iter) <= 0).all(), n_iter
    assert n_iter[-1] <= 2 < 10 < n_iter[0]


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize(("n_features", "rank"), [(5, 0), (5, 60), (20, 20), (2, 100)])
def test_energy_error_is_estimated_and_bounds_every_prediction(n_features, rank, tol):
    X, X_new = normal(N_ROWS, n_features), 2 * normal(1000, n_features, seed=1)
    A = kernel().gram(X)
    operator = DenseOperator(A)
    result = block_pcg(operator, grid(), precondition(operator, rank), tol=tol)
    error = result.solution - torch.cholesky_solve(grid(), torch.linalg.cholesky(A))
    energy = (error * (A @ error)).sum(dim=0).sqrt()
    ratio = result.energy_errors / energy
    assert ratio.min() > 0.9
    # The estimate takes the smallest mean eigenvalue of Ã that any step has seen. Without a
    # preconditioner the last step may leave an error among much larger ones.
    assert ratio.max() < (10 if rank else 20)
    errors = (kernel().block(X_new, X) @ error).abs()
    bound = result.energy_errors * kernel().diag(X_new).sqrt()[:, None]
    assert (errors <= bound).all()


def test_what_compression_left_out_is_part_of_what_is_reported():
    # a tolerance at which much is left out: the residual is that of the columns as they were
    A = kernel().gram(normal(N_ROWS, 5))
    T = grid()
    result = block_pcg(DenseOperator(A), T, precondition(DenseOperator(A)), tol=0.05)
    assert result.n_solved < 10
    residual = (T - A @ result.solution).norm(dim=0) / T.norm(dim=0)
    torch.testing.assert_close(result.residuals, residual)
    assert residual.max() <= 0.05


class TestPrecision:
    def test_single_precision_products_reach_double_precision_residuals(self):
        X = normal(N_ROWS, 5)
        A = kernel().gram(X)
        single = TiledOperator(kernel(), X.float())
        M = precondition(single)
        result = block_pcg(single, grid(), M, tol=1e-11, exact=DenseOperator(A))
        assert result.stopped == "converged"
        residual = (grid() - A @ result.solution).norm(dim=0) / grid().norm(dim=0)
        assert residual.max() <= 1e-11
        assert result.n_iter < result.n_products <= result.n_iter + 6

    def test_limit_of_precision_is_found_and_said(self):
        # cond 4e8: rounding alone moves the residual of A⁻¹t by about ε cond
        A = kernel(depth=1).gram(torch.linspace(-1, 1, N_ROWS).double()[:, None])
        T = torch.linalg.eigh(A).eigenvectors[:, :1] + torch.ones(N_ROWS, 1).double()
        operator = DenseOperator(A)
        result = block_pcg(operator, T, precondition(operator, 200), tol=1e-14)
        assert result.stopped == "precision"
        assert 1e-14 < result.residuals.item() < 1e-6
        assert result.n_iter < 200

    def test_no_more_iterations(self):
        A = kernel().gram(normal(N_ROWS, 5))
        result = block_pcg(DenseOperator(A), grid(), tol=1e-10, max_iter=3)
        assert (result.stopped, result.n_iter) == ("max_iter", 3)
        residual = (grid() - A @ result.solution).norm(dim=0) / grid().norm(dim=0)
        torch.testing.assert_close(result.residuals, residual)
        assert result.residuals.max() > 1e-10

    def test_stagnation(self):
        # columns of eigenvectors from the whole spectrum of a matrix of condition 1e14
        V, _ = torch.linalg.qr(normal(N_ROWS, N_ROWS))
        A = V @ torch.logspace(-14, 0, N_ROWS).double().diag() @ V.T
        result = block_pcg(DenseOperator((A + A.T) / 2), V.sum(1, keepdim=True), max_iter=5000)
        assert result.stopped in {"stagnation", "precision"}
        assert result.n_iter < 5000
        assert result.residuals.item() > 1e-6


def test_nothing_to_solve():
    A = DenseOperator(kernel().gram(normal(30, 5)))
    result = block_pcg(A, torch.zeros(30, 4).double(), precondition(A, 5))
    assert (result.n_iter, result.n_products, result.stopped) == (0, 0, "converged")
    assert torch.equal(result.solution, torch.zeros(30, 4).double())
    assert torch.equal(result.energy_errors, torch.zeros(4).double())


def test_one_row():
    A = DenseOperator(torch.full((1, 1), 2.0).double())
    result = block_pcg(A, torch.full((1, 3), 4.0).double())
    torch.testing.assert_close(result.solution, torch.full((1, 3), 2.0).double())


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale_of_the_kernel_does_not_matter(scale):
    A = kernel().gram(normal(100, 5))
    one, other = (
        block_pcg(DenseOperator(s * A), grid(100), precondition(DenseOperator(s * A), 20), tol=1e-8)
        for s in (1.0, scale)
    )
    assert one.n_iter == other.n_iter
    torch.testing.assert_close(other.solution * scale, one.solution, rtol=1e-6, atol=1e-8)


def test_progress_is_told():
    A = kernel().gram(normal(N_ROWS, 5))
    seen = []
    result = block_pcg(
        DenseOperator(A), grid(), tol=1e-4, on_iteration=lambda *told: seen.append(told)
    )
    assert [n for n, _ in seen] == list(range(1, result.n_iter + 1))
    assert seen[-1][1] <= 1e-4


def test_indefinite_matrix_is_an_error():
    A = torch.diag(torch.linspace(-1, 2, 50).double())
    with pytest.raises(NotPSDError, match="50 rows is not positive definite"):
        block_pcg(DenseOperator(A), normal(50, 2))


def test_infinite_entries_are_an_error():
    A = torch.eye(5).double()
    A[0, 0] = math.inf
    with pytest.raises(ValueError, match="not finite"):
        block_pcg(DenseOperator(A), torch.ones(5, 1).double())


def singular(name):
    """Return a singular kernel matrix, and targets that are not in its range."""
    X = normal(60, 3)
    if name == "a row of zeros":
        X[7] = 0
    elif name == "rows of one direction":
        X = X[:, :1].clone()
    elif name == "zero":
        X *= 0
    return DenseOperator(InfiniteKernel(bias_std=0.0).gram(X)), normal(60, 4, seed=1)


@pytest.mark.parametrize("rank", [0, 20])
@pytest.mark.parametrize("name", ["a row of zeros", "rows of one direction", "zero"])
def test_the_best_iterate_is_returned_where_later_ones_diverge(name, rank):
    operator, T = singular(name)
    result = block_pcg(operator, T, precondition(operator, rank), tol=1e-8)
    assert result.stopped in {"precision", "stagnation"}
    A, X = operator.matrix, result.solution
    residuals = (T - A @ X).norm(dim=0) / T.norm(dim=0)
    torch.testing.assert_close(result.residuals, residuals)
    assert residuals.square().mean() <= 1 + 1e-12  # no worse than the solution 0
    assert X.abs().max() < 1e4
    if name == "a row of zeros":  # the others are solved for
        others = torch.arange(60) != 7
        assert ((T - A @ X)[others].norm(dim=0) < 1e-7 * T.norm(dim=0)).all()
        assert (X[7] == 0).all()


def test_a_solution_out_of_range_is_an_error():
    A = TiledOperator(InfiniteKernel(bias_std=0.0), (1e-20 * normal(50, 3)).float())
    with pytest.raises(ValueError, match=r"leaves the range of torch\.float32.*Scale the inputs"):
        block_pcg(A, normal(50, 2), tol=1e-8)


def test_basis_drops_dependent_and_zero_columns_whatever_their_scale():
    V = normal(50, 3)
    columns = torch.cat([V, 1e-20 * V[:, :1], V @ normal(3, 4), 0 * V], dim=1)
    Q = orthonormal_basis(columns)
    assert Q.shape == (50, 3)
    torch.testing.assert_close(Q.T @ Q, torch.eye(3).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(Q @ (Q.T @ V), V, rtol=0, atol=1e-13)
