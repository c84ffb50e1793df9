"""Blocked evaluation."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sklearn_kd.kernels import _tiles
from sklearn_kd.kernels.infinite._angular import AngularRecursion
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel


def rows(n, d=3, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(_tiles, "tile_size", lambda device: 8)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 27])
def test_ragged_tiles_agree_with_one_tile(n, activation, monkeypatch):
    kernel = InfiniteKernel(2, activation)
    X, Y = rows(n), rows(11, seed=1)
    gram, block = kernel.gram(X), kernel.block(X, Y)
    gradient = kernel.gradient(X)
    monkeypatch.setattr(_tiles, "tile_size", lambda device: 8)
    torch.testing.assert_close(kernel.gram(X), gram, rtol=1e-13, atol=0)
    torch.testing.assert_close(kernel.block(X, Y), block, rtol=1e-13, atol=0)
    torch.testing.assert_close(kernel.gradient(X), gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_upper_triangle_leaves_the_lower_one_alone(activation):
    X = rows(21)
    kernel = InfiniteKernel(2, activation)
    full = kernel.gram(X)
    storage = torch.full((21, 21), 7.0, dtype=torch.float64)
    result = kernel.gram(X, out=storage, symmetrize=False)
    assert result.data_ptr() == storage.data_ptr()
    assert torch.equal(result.triu(), full.triu())
    assert torch.all(result[torch.ones(21, 21, dtype=torch.bool).tril(-1)] == 7.0)


def test_lower_triangle_may_hold_anything():
    X = rows(9)
    storage = torch.full((9, 9), float("nan"), dtype=torch.float64)
    kernel = InfiniteKernel(2)
    result = kernel.gram(X, out=storage, symmetrize=False)
    assert torch.equal(result.triu(), kernel.gram(X).triu())
    assert torch.isnan(result.tril(-1)[1, 0])


@pytest.mark.usefixtures("small_tiles")
def test_gram_fills_a_part_of_a_larger_array():
    X = rows(13)
    storage = torch.zeros(20, 20, dtype=torch.float64)
    InfiniteKernel(2).gram(X, out=storage[2:15, 3:16])
    assert torch.equal(storage[2:15, 3:16], InfiniteKernel(2).gram(X))
    assert storage[:2].abs().max() == 0


@pytest.mark.parametrize("budget", [64, 8 * 64 * 5, 2**26])
@pytest.mark.parametrize("n_columns", [1, 3])
def test_streamed_product(monkeypatch, budget, n_columns):
    monkeypatch.setattr("sklearn_kd._memory.WORKSPACE_BYTES", budget)
    X, Y, V = rows(23), rows(31, seed=1), rows(31, n_columns, seed=2)
    kernel = InfiniteKernel(2)
    torch.testing.assert_close(kernel.matmat(X, Y, V), kernel.block(X, Y) @ V)


@pytest.mark.usefixtures("small_tiles")
def test_number_of_threads_changes_neither_results_nor_itself():
    X, Y = rows(50), rows(30, seed=1)
    kernel = InfiniteKernel(3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((kernel.gram(X), kernel.block(X, Y), kernel.gradient(X)))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:  # and a thread to come sees the same number
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def test_an_error_in_one_tile_is_raised(monkeypatch):
    monkeypatch.setattr(_tiles, "tile_size", lambda device: 8)

    def tile(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(AngularRecursion, "tile", tile)
    before = torch.get_num_threads()
    with pytest.raises(MemoryError, match="no room"):
        InfiniteKernel(1).gram(rows(50))
    assert torch.get_num_threads() == before


def test_empty_blocks():
    kernel = InfiniteKernel(2)
    assert kernel.block(rows(0), rows(3)).shape == (0, 3)
    assert kernel.gram(rows(0)).shape == (0, 0)
    assert kernel.diag(rows(0)).shape == (0,)
    assert kernel.matmat(rows(0), rows(3), rows(3, 2)).shape == (0, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "erf", "gelu"])
def test_cuda_agrees_with_the_cpu(activation):
    X, Y = rows(300, 7), rows(200, 7, seed=1)
    X[1] = X[0] + 1e-7
    kernel = InfiniteKernel(3, activation)
    torch.testing.assert_close(kernel.gram(X.cuda()).cpu(), kernel.gram(X), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        kernel.block(X.cuda(), Y.cuda()).cpu(), kernel.block(X, Y), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        kernel.gradient(X.cuda()).cpu(), kernel.gradient(X), rtol=1e-9, atol=1e-10
    )
