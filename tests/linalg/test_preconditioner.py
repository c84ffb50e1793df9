import numpy as np
import pytest
import torch

from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._operator import DenseOperator
from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky
from sklearn_kd.linalg._preconditioner import (
    IdentityPreconditioner,
    LowRankPreconditioner,
    default_rank,
)

N_ROWS = 120


def gram(n_rows=N_ROWS):
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(n_rows, 4)))
    return InfiniteKernel().gram(X)


def partial(A, rank, dtype=torch.float64):
    return randomly_pivoted_cholesky(
        DenseOperator(A.to(dtype)), rank, generator=torch.Generator().manual_seed(0)
    )


def inverse(preconditioner, n_rows=N_ROWS):
    """Return M⁻¹ = C⁻ᵀ C⁻¹."""
    unit = torch.eye(n_rows, dtype=torch.float64)
    return preconditioner.solve_transposed(preconditioner.solve(unit))


@pytest.mark.parametrize("ridge", [None, 0.3, "rows"])
@pytest.mark.parametrize("rank", [1, 20, N_ROWS])
def test_inverse_is_that_of_the_matrix_as_it_is_written(rank, ridge):
    A = gram()
    F = partial(A, rank).factor.clone()
    rho = torch.zeros(N_ROWS).double()
    if ridge is not None:
        rho = torch.linspace(0, 2, N_ROWS).double() if ridge == "rows" else rho + ridge
    M = LowRankPreconditioner(partial(A, rank), None if ridge is None else rho)
    left = (A - F @ F.T).trace() / max(N_ROWS - rank, 1)
    assert M.shift == pytest.approx(left.item(), rel=1e-6, abs=1e-12 * A.trace().item())
    D = rho + M.shift
    # rounding is that of D^(−1/2) F Fᵀ D^(−1/2) beside I
    largest = torch.linalg.matrix_norm(F / D.sqrt()[:, None], 2).square().item()
    torch.testing.assert_close(
        inverse(M) @ (F @ F.T + D.diag()),
        torch.eye(N_ROWS).double(),
        rtol=0,
        atol=1e-15 * largest + 1e-12,
    )


def test_solves_with_the_two_halves_are_transposes():
    M = LowRankPreconditioner(partial(gram(), 30))
    unit = torch.eye(N_ROWS, dtype=torch.float64)
    torch.testing.assert_close(M.solve(unit).T, M.solve_transposed(unit), rtol=0, atol=1e-13)


def test_single_precision_factor():
    A = gram()
    double = inverse(LowRankPreconditioner(partial(A, 30)))
    single = LowRankPreconditioner(partial(A, 30, torch.float32))
    assert single.dtype == torch.float32
    assert single.solve(torch.ones(N_ROWS, 1).double()).dtype == torch.float64
    torch.testing.assert_close(inverse(single), double, rtol=1e-3, atol=1e-3)


def test_zero_matrix_is_no_obstacle():
    A = torch.zeros(5, 5).double()
    M = LowRankPreconditioner(partial(A, 3), torch.zeros(5).double())
    assert torch.equal(inverse(M, 5), torch.eye(5).double())


def test_shift_keeps_the_sum_within_the_digits():
    # a matrix of rank 2: nothing is left of it but rounding
    A = 1e6 * torch.ones(50, 50).double()
    M = LowRankPreconditioner(partial(A, 10))
    assert M.shift >= 1e-13 * 50e6
    eigenvalues = torch.linalg.eigvalsh(inverse(M, 50))
    assert (eigenvalues > 0).all()


def test_identity():
    V = torch.ones(4, 2).double()
    M = IdentityPreconditioner()
    assert torch.equal(M.solve(V), V)
    assert M.solve_transposed(V) is not V


def test_default_rank_grows_with_the_root_of_the_rows():
    assert [default_rank(n) for n in (50, 10**4, 10**6)] == [50, 600, 5100]
    assert [default_rank(n, is_stored=False) for n in (50, 10**4, 10**6)] == [50, 1600, 15100]
