"""The in-place factorization, its jitter policy, and its condition estimate."""

import signal

import numpy as np
import pytest
import torch

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.linalg import _cholesky
from sklearn_kd.linalg._cholesky import (
    factor_in_place,
    overwrite_by_factor,
    reciprocal_condition,
    smallest_eigenvalue,
)


def spectrum_matrix(eigenvalues, dtype=torch.float64):
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))
    return torch.as_tensor((basis * eigenvalues) @ basis.T, dtype=dtype)


def assembling(matrix):
    """Return an `assemble` that fills the upper triangle of one storage, and its call count."""
    storage, calls = torch.full_like(matrix, torch.nan), []

    def assemble():
        calls.append(1)
        storage.copy_(torch.where(torch.ones_like(matrix).triu() > 0, matrix, torch.nan))
        return storage

    return assemble, storage, calls


def test_factor_overwrites_the_storage_and_reads_only_the_upper_triangle():
    matrix = spectrum_matrix(np.linspace(1, 9, 20))
    assemble, storage, calls = assembling(matrix)
    lower, jitter = factor_in_place(assemble)
    assert lower.data_ptr() == storage.data_ptr()
    assert len(calls) == 1
    assert jitter == 0
    torch.testing.assert_close(lower @ lower.T, matrix)
    assert (lower.triu(1) == 0).all()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that a matrix of tens of rows has several of, ragged ones too."""
    for name, value in (
        ("_ROWS_PER_CALL", 8),
        ("_BLOCK_COLUMNS", 7),
        ("_CORNER_COLUMNS", 3),
        ("_PANEL_ROWS", 5),
    ):
        monkeypatch.setattr(_cholesky, name, value)


def with_lower_triangle(matrix):
    """Return the matrix column-major, with NaN above the diagonal."""
    above = torch.ones_like(matrix).triu(1) > 0
    return matrix.masked_fill(above, torch.nan).T.contiguous().T


@pytest.mark.parametrize("n", [8, 9, 14, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_give_the_factor_of_a_single_call(small_blocks, n, dtype):
    matrix = spectrum_matrix(np.geomspace(1, 100, n), dtype)
    A = with_lower_triangle(matrix)
    assert overwrite_by_factor(A) == 0
    expected = torch.linalg.cholesky(matrix)
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(A, expected, rtol=tolerance, atol=tolerance * 10)
    assert (A.triu(1) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factor_of_many_rows_is_that_of_a_single_call(dtype):
    X = torch.randn(2600, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    matrix = X @ X.T + 10 * torch.eye(2600, dtype=dtype)
    A = with_lower_triangle(matrix)
    address = A.data_ptr()
    assert overwrite_by_factor(A) == 0
    assert A.data_ptr() == address
    expected = torch.linalg.cholesky(matrix)
    assert (A - expected).norm() <= 50 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("pivot", [0, 6, 7, 12, 39])
@pytest.mark.parametrize("bad", [-1.0, torch.nan])
def test_blocks_name_the_minor_that_is_not_definite(small_blocks, pivot, bad):
    matrix = spectrum_matrix(np.geomspace(1, 100, 40))
    matrix[pivot, pivot] = bad
    assert overwrite_by_factor(with_lower_triangle(matrix)) == pivot + 1
    assert torch.linalg.cholesky_ex(matrix).info == pivot + 1


def test_ctrl_c_is_answered_before_the_next_block(small_blocks, ctrl_c, monkeypatch):
    blocks, cholesky_ex = [], torch.linalg.cholesky_ex

    def interrupted(block):
        blocks.append(len(block))
        if len(blocks) == 2:
            signal.raise_signal(signal.SIGINT)
        return cholesky_ex(block)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", interrupted)
    with pytest.raises(KeyboardInterrupt):
        factor_in_place(assembling(spectrum_matrix(np.linspace(1, 9, 40)))[0])
    assert blocks == [7, 7]


@pytest.mark.parametrize(
    ("dtype", "lowest", "expected"),
    [
        (torch.float64, -1e-15, 1e3 * 2.0**-52),  # 10 ε would leave a single digit
        (torch.float64, -1e-14, 1e3 * 2.0**-52),
        (torch.float64, -1e-12, 1e5 * 2.0**-52),
        (torch.float64, -8e-9, 1e-8),
        (torch.float32, -1e-7, 1e-4),
        (torch.float32, -1e-5, 1e-4),
    ],
)
def test_jitter_grows_by_hundreds_of_the_mean_diagonal_from_clean_data(dtype, lowest, expected):
    # Diagonal, so that the pivots are the eigenvalues; the mean of the diagonal is about 1.
    matrix = torch.diag(torch.tensor([1.0] * 49 + [lowest], dtype=dtype))
    mean = matrix.diagonal().mean().item()
    assemble, _, calls = assembling(matrix)
    lower, jitter = factor_in_place(assemble)
    assert jitter == pytest.approx(expected * mean, rel=1e-6, abs=0)
    assert len(calls) > 1
    torch.testing.assert_close(lower @ lower.T, matrix + jitter * torch.eye(50, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_jitter_leaves_digits_to_what_is_solved(dtype):
    # Of rank 20: the smallest jitter to succeed would leave rcond far below ε, and answers that
    # depend on the order of the rows.
    rng = np.random.default_rng(0)
    features, new = rng.normal(size=(60, 20)), rng.normal(size=(5, 20))
    z = features @ rng.normal(size=20) + 0.1 * rng.normal(size=60)

    def predictions(order):
        rows = torch.as_tensor(features[order], dtype=dtype)
        lower, jitter = factor_in_place(assembling(rows @ rows.T)[0])
        assert jitter > 0
        targets = torch.as_tensor(z[order], dtype=dtype)
        a = torch.cholesky_solve(targets[:, None], lower)[:, 0]
        return torch.as_tensor(new, dtype=dtype) @ (rows.T @ a), reciprocal_condition(lower)

    first, rcond = predictions(np.arange(60))
    second, _ = predictions(rng.permutation(60))
    if dtype == torch.float64:
        assert rcond >= 100 * torch.finfo(dtype).eps
        torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(first, second, rtol=0.3, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_indefinite_matrix_raises_with_its_smallest_eigenvalue(dtype):
    matrix = spectrum_matrix([-0.25, *np.linspace(1, 9, 19)], dtype)
    with pytest.raises(NotPSDError, match=r"smallest eigenvalue is about -0\.25") as caught:
        factor_in_place(assembling(matrix)[0])
    assert isinstance(caught.value, np.linalg.LinAlgError)


def test_non_finite_matrix_raises():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1] = torch.inf
    with pytest.raises(NotPSDError, match="NaN or infinite"):
        factor_in_place(assembling(matrix)[0])


def test_infinite_diagonal_raises():
    # LAPACK takes the square root of an infinite pivot and reports success.
    matrix = torch.diag(torch.tensor([1.0, torch.inf, 2.0], dtype=torch.float64))
    with pytest.raises(NotPSDError, match="NaN or infinite"):
        factor_in_place(assembling(matrix)[0])


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8, 1e12])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_condition_estimate_is_within_a_factor_of_the_truth(n, condition):
    matrix = spectrum_matrix(np.geomspace(1, condition, n))
    exact = 1 / np.linalg.cond(matrix.numpy(), 1)
    estimate = reciprocal_condition(torch.linalg.cholesky(matrix))
    # Both norms are estimated from below, so the condition number is.
    assert exact * (1 - 1e-3) <= estimate <= 3 * exact


def test_smallest_eigenvalue_of_a_large_matrix():
    eigenvalues = np.r_[-0.5, np.linspace(0.1, 10, 1199)]
    estimate = smallest_eigenvalue(spectrum_matrix(eigenvalues))
    assert -0.5 - 1e-9 <= estimate < -0.4


def test_condition_of_a_matrix_that_underflows_is_the_worst():
    assert reciprocal_condition(torch.tensor([[1e-162]], dtype=torch.float64)) == 0
