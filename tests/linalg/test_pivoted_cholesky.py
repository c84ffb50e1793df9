import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._operator import DenseOperator, TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def relu_gram(n_rows, n_features=5):
    return InfiniteKernel().gram(normal(n_rows, n_features))


@pytest.mark.parametrize("block_size", [1, 7, 128])
def test_residual_is_what_the_factor_leaves(block_size):
    A = relu_gram(200)
    result = randomly_pivoted_cholesky(
        DenseOperator(A), 50, generator=generator(), block_size=block_size
    )
    F, pivots, residual = result
    left = A - F @ F.T
    assert F.shape == (200, 50)
    assert len(pivots.unique()) == 50
    assert residual.min() >= 0
    torch.testing.assert_close(left.diagonal(), residual, rtol=0, atol=1e-12)
    assert result.trace == pytest.approx(left.trace().item(), rel=1e-10)
    # exact in the columns of the pivots, and never larger than A
    torch.testing.assert_close(left[:, pivots], torch.zeros(200, 50).double(), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(left).min() > -1e-12


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    true_rank=st.integers(1, 20),
    block_size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_exact_for_low_rank_matrices(true_rank, block_size, seed, dtype):
    Y = normal(60, true_rank, seed=seed)
    A = (Y @ Y.T).to(dtype)
    result = randomly_pivoted_cholesky(
        DenseOperator(A), 60, generator=generator(seed), block_size=block_size
    )
    rounding = 60 * 1000 * torch.finfo(dtype).eps * A.diagonal().max()
    assert result.factor.shape[1] >= true_rank
    # The rounding errors of a row are divided by the pivots before it. After a small pivot, in
    # under 1 % of such matrices, a column that holds nothing but these may follow.
    assert result.factor[:, true_rank:].square().sum() <= rounding
    assert result.factor.shape[1] <= true_rank + 2
    assert result.trace <= rounding
    torch.testing.assert_close(
        result.factor @ result.factor.T,
        A,
        rtol=0,
        atol=1e4 * torch.finfo(dtype).eps * A.diagonal().max().item(),
    )


def test_draws_do_not_depend_on_the_default_dtype():
    operator = DenseOperator(relu_gram(100))
    expected = randomly_pivoted_cholesky(operator, 30, generator=generator()).pivots
    torch.set_default_dtype(torch.float64)
    try:
        found = randomly_pivoted_cholesky(operator, 30, generator=generator()).pivots
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_whole_matrix_at_full_rank():
    A = relu_gram(150)
    result = randomly_pivoted_cholesky(DenseOperator(A), 1000, generator=generator())
    assert sorted(result.pivots.tolist()) == list(range(150))
    assert result.trace == 0
    torch.testing.assert_close(result.factor @ result.factor.T, A, rtol=0, atol=1e-12)


def test_copies_of_a_row_are_chosen_once():
    A = relu_gram(40)[:, torch.arange(40).repeat(5)][torch.arange(40).repeat(5)]
    result = randomly_pivoted_cholesky(DenseOperator(A), 200, generator=generator())
    assert sorted((result.pivots % 40).tolist()) == list(range(40))


def test_distribution_is_that_of_pivots_drawn_one_by_one():
    # The exact probabilities of ordered pairs of pivots, by enumeration.
    Y = normal(4, 3, seed=2) * torch.tensor([[3.0], [1.0], [1.0], [2.0]])
    A = Y @ Y.T
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        left = (A - torch.outer(A[:, i], A[i]) / A[i, i]).diagonal().clamp_min(0)
        expected[i] = A[i, i] / A.trace() * left / left.sum()
    counts = torch.zeros(4, 4, dtype=torch.float64)
    draws = generator()
    n_draws = 4000
    for _ in range(n_draws):
        pivots = randomly_pivoted_cholesky(DenseOperator(A), 2, generator=draws, block_size=5)
        counts[tuple(pivots.pivots)] += 1
    standard_error = (expected * (1 - expected) / n_draws).sqrt()
    assert ((counts / n_draws - expected).abs() <= 4 * standard_error + 1e-12).all()


def test_blocks_are_as_good_as_single_pivots():
    # Clusters of near-copies: a block of independent draws would waste most of its pivots.
    centres = 3 * normal(20, 3)
    X = centres[torch.arange(400) % 20] + 1e-3 * normal(400, 3, seed=1)
    operator = DenseOperator(InfiniteKernel().gram(X))
    traces = {
        size: np.median(
            [
                randomly_pivoted_cholesky(
                    operator, 20, generator=generator(seed), block_size=size
                ).trace
                for seed in range(20)
            ]
        )
        for size in (1, 128)
    }
    assert traces[128] <= 1.5 * traces[1]


def test_reproducible_whatever_the_operator():
    X = normal(100, 5)
    kernel = InfiniteKernel()
    dense = randomly_pivoted_cholesky(DenseOperator(kernel.gram(X)), 30, generator=generator(3))
    tiled = randomly_pivoted_cholesky(TiledOperator(kernel, X), 30, generator=generator(3))
    assert torch.equal(dense.pivots, tiled.pivots)
    torch.testing.assert_close(dense.factor, tiled.factor, rtol=0, atol=1e-12)


def test_zero_matrix_has_rank_zero():
    result = randomly_pivoted_cholesky(
        DenseOperator(torch.zeros(5, 5)), 3, generator=generator(), block_size=2
    )
    assert result.factor.shape == (5, 0)
    assert result.trace == 0


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scale_of_the_kernel_does_not_matter(scale):
    A = relu_gram(60)
    one = randomly_pivoted_cholesky(DenseOperator(A), 20, generator=generator())
    other = randomly_pivoted_cholesky(DenseOperator(scale * A), 20, generator=generator())
    assert torch.equal(one.pivots, other.pivots)
    torch.testing.assert_close(other.factor / scale**0.5, one.factor, rtol=0, atol=1e-12)


def test_indefinite_matrix_is_an_error():
    matrix = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 2.0], [3.0, 2.0, 1.0]]).double()

    class Contradiction(DenseOperator):
        def columns(self, indices):
            return -super().columns(indices)

    with pytest.raises(NotPSDError, match="not positive semi-definite"):
        randomly_pivoted_cholesky(Contradiction(matrix), 3, generator=generator())
