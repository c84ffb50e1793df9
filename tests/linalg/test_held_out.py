"""Rows left out of a factored problem, against a factor of the others."""

import numpy as np
import pytest
import torch

from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._held_out import (
    StudentInFrame,
    block_held_out,
    blocks_pay,
    fold_frame,
    fold_held_out,
    resolves_blocks,
)

N = 60


@pytest.fixture(params=[(4,), (4, 3)], ids=["binary", "3 classes"])
def problem(request):
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.normal(size=(N, 4)))
    return X, torch.as_tensor(rng.normal(size=(N, *request.param)))


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("held_out", ["first", "last", "all over", "single", "all but one"])
def test_blocks_equal_factors(problem, ridge, held_out):
    X, targets = problem
    shuffled = torch.as_tensor(np.random.default_rng(1).permutation(N))
    rows = {
        "first": torch.arange(12),
        "last": torch.arange(50, N),
        "all over": shuffled[:20],
        "single": torch.tensor([37]),
        "all but one": shuffled[: N - 1],
    }[held_out]
    kernel = NTK().to_torch()
    frame = TangentFrame(kernel, X, ridge=ridge)
    found = block_held_out(StudentInFrame.of(frame, targets), rows)
    train = torch.as_tensor(np.setdiff1d(np.arange(N), rows))
    weights = torch.ones(len(train), dtype=torch.float64)
    of_train = fold_frame(kernel.gram(X), train, ridge=ridge, weights=weights, memory_limit="auto")
    expected = fold_held_out(of_train, rows, targets[train])
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found.logits, expected.logits, **close)
    torch.testing.assert_close(found.new_directions(), expected.new_directions(), **close)
    torch.testing.assert_close(found.squared_norms, expected.squared_norms, **close)
    assert found.n_rows == expected.n_rows == len(train)


@pytest.mark.parametrize("rows", [[0], [59], [3, 5, 40], list(range(60))])
def test_columns_of_the_inverse(problem, rows):
    X, _ = problem
    kernel = NTK().to_torch()
    expected = torch.linalg.inv(torch.linalg.cholesky(kernel.gram(X)))[:, rows].T
    columns = TangentFrame(kernel, X).inverse_columns(torch.tensor(rows))
    torch.testing.assert_close(columns, expected, rtol=1e-9, atol=1e-9)


def test_a_factor_for_each_of_a_few_folds_is_cheaper():
    assert not blocks_pay(1000, [500, 500], frame_is_needed=True)
    assert not blocks_pay(1000, [334, 333, 333], frame_is_needed=True)
    assert blocks_pay(1000, 5 * [200], frame_is_needed=True)
    assert blocks_pay(1000, 10 * [100], frame_is_needed=False)
    assert not blocks_pay(1000, [200], frame_is_needed=False)


def test_all_rows_may_have_too_few_digits():
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(20, 3)))
    kernel = NTK().to_torch()
    assert resolves_blocks(TangentFrame(kernel, X))
    X[7] = X[3] * (1 + 1e-8)
    assert resolves_blocks(TangentFrame(kernel, X))
    X[7] = X[3] * (1 + 1e-13)
    assert not resolves_blocks(TangentFrame(kernel, X))
    with pytest.warns(IllConditionedWarning, match="jitter"):
        frame = TangentFrame(as_kernel_function(lambda A, B: A @ B.T), X)
    assert not resolves_blocks(frame)
