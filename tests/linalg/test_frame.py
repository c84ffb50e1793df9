"""Every identity of the tangent frame against brute-force refits."""

import numpy as np
import pytest
import torch

from sklearn_kd.exceptions import IllConditionedWarning, MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics._inefficiency import held_out_data_inefficiency

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def laplacian(X, Y):
    """Return exp(−‖x − y‖): positive definite and well-conditioned, unlike smooth kernels."""
    return np.exp(-np.linalg.norm(X[:, None] - Y[None], axis=2))


KERNELS = {"ntk": NTK(), "laplacian": laplacian}


def refit(kernel, X, targets, X_new, row_ridges=0.0):
    """Solve the normal equations afresh, on whatever rows are given."""
    gram = kernel.block(X, X) + torch.as_tensor(np.diag(np.broadcast_to(row_ridges, len(X))))
    return kernel.block(X_new, X) @ torch.linalg.solve(gram, targets)


@pytest.fixture(params=KERNELS)
def kernel(request):
    return as_kernel_function(KERNELS[request.param])


@pytest.fixture(params=[(), (3,)], ids=["binary", "3 classes"])
def problem(request):
    rng = np.random.default_rng(0)
    X, X_new = torch.as_tensor(rng.normal(size=(40, 3))), torch.as_tensor(rng.normal(size=(7, 3)))
    return X, torch.as_tensor(rng.normal(size=(40, *request.param))), X_new


@pytest.fixture(params=[0.0, 0.3], ids=["ridge=0", "ridge=0.3"])
def ridge(request):
    return request.param


def weights_of(ridge):
    """Return unequal row weights where they matter."""
    if ridge == 0:
        return None
    return torch.as_tensor(np.random.default_rng(1).uniform(0.5, 3, size=40))


@pytest.fixture
def frame(kernel, problem, ridge):
    return TangentFrame(kernel, problem[0], ridge=ridge, weights=weights_of(ridge))


@pytest.fixture
def row_ridges(ridge):
    weights = weights_of(ridge)
    return np.zeros(40) if weights is None else ridge / weights.numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, **TOLERANCE)


def test_factor_reproduces_the_kernel_matrix(kernel, problem, frame, row_ridges):
    gram = kernel.block(problem[0], problem[0]) + torch.as_tensor(np.diag(row_ridges))
    close(frame.lower @ frame.lower.T, gram)
    assert frame.jitter == 0


def test_solve(kernel, problem, frame, row_ridges):
    X, targets, X_new = problem
    close(
        kernel.block(X_new, X) @ frame.solve(targets), refit(kernel, X, targets, X_new, row_ridges)
    )


def test_prefix_norms(kernel, problem, frame, row_ridges):
    X, targets, _ = problem
    gram = kernel.block(X, X) + torch.as_tensor(np.diag(row_ridges))
    for m in (1, 2, 17, 40):
        prefix = targets[:m].reshape(m, -1)
        squared = (prefix * torch.linalg.solve(gram[:m, :m], prefix)).sum()
        close(frame.prefix_norms(targets)[m - 1], squared.sqrt())


def test_weight_change_norm_is_the_norm_in_feature_space(kernel, problem, frame, row_ridges):
    X, targets, _ = problem
    a = frame.solve(targets)
    columns = a.reshape(40, -1)
    squared = (columns * (kernel.block(X, X) @ columns)).sum()
    close(frame.weight_change_norm(targets, a), squared.sqrt())


def test_prefix_predictions(kernel, problem, frame, row_ridges):
    X, targets, X_new = problem
    every = frame.prefix_predictions(X_new, targets)
    assert every.shape == (40, 7, *targets.shape[1:])
    for m in (1, 5, 40):
        close(every[m - 1], refit(kernel, X[:m], targets[:m], X_new, row_ridges[:m]))
    some = frame.prefix_predictions(X_new, targets, sizes=[3, 9, 40])
    close(some, every[[2, 8, 39]])


def test_one_step_errors(kernel, problem, frame, row_ridges):
    X, targets, _ = problem
    errors = frame.one_step_errors(targets)
    close(errors[0], targets[0])
    for m in (1, 13, 39):
        expected = targets[m] - refit(kernel, X[:m], targets[:m], X[m : m + 1], row_ridges[:m])[0]
        close(errors[m], expected)


def test_features_span_new_rows(kernel, problem, frame):
    X, _, X_new = problem
    u, v = frame.features(X_new)
    close(u @ frame.lower.T, kernel.block(X_new, X))
    close(u.square().sum(dim=1) + v, kernel.diag(X_new))


def test_training_rows_add_no_direction(kernel, problem):
    X = problem[0]
    _, v = TangentFrame(kernel, X).features(X[:5])
    assert (v == 0).all()


def test_feature_blocks_cover_all_rows(problem, frame, monkeypatch):
    monkeypatch.setattr("sklearn_kd._memory.WORKSPACE_BYTES", 3 * 2 * 40 * 8)
    X_new = problem[2]
    u, v = frame.features(X_new)
    blocks = list(frame.feature_blocks(X_new))
    assert [rows for rows, _, _ in blocks] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    close(torch.cat([block for _, block, _ in blocks]), u)
    close(torch.cat([block for _, _, block in blocks]), v)


def test_leave_one_out(kernel, problem, frame, row_ridges):
    X, targets, _ = problem
    predictions = frame.loo(targets)
    for i in (0, 11, 39):
        rest = np.arange(40) != i
        close(
            predictions[i], refit(kernel, X[rest], targets[rest], X[i : i + 1], row_ridges[rest])[0]
        )


def test_leave_one_out_in_blocks(problem, frame, monkeypatch):
    whole = frame.loo(problem[1])
    monkeypatch.setattr("sklearn_kd._memory.WORKSPACE_BYTES", 7 * 2 * 40 * 8)
    close(frame.loo(problem[1]), whole)


def test_held_out_data_inefficiency_equals_refits(kernel, problem, frame, ridge, row_ridges):
    X, targets, X_new = problem
    new_targets = torch.as_tensor(np.random.default_rng(3).normal(size=(7, *targets.shape[1:])))
    u, v = frame.features(X_new)
    q = frame.coordinates(targets)
    actual = held_out_data_inefficiency(
        q.square().sum(), new_targets - u @ q, v + ridge, frame.n_rows
    )
    norms = []
    for x, z in zip(X_new, new_targets, strict=True):
        rows, logits = torch.cat([X, x[None]]), torch.cat([targets, z[None]]).reshape(41, -1)
        gram = kernel.block(rows, rows) + torch.as_tensor(np.diag([*row_ridges, ridge]))
        norms.append((logits * torch.linalg.solve(gram, logits)).sum().sqrt())
    close(actual, 40 * (torch.stack(norms).mean() / q.square().sum().sqrt()).log())


def test_float32_stays_float32(kernel, problem):
    X, targets, _ = problem
    frame = TangentFrame(kernel, X.float())
    assert frame.lower.dtype == frame.solve(targets.float()).dtype == torch.float32
    exact = TangentFrame(kernel, X)
    close_enough = {"rtol": 1e-2, "atol": 1e-2}
    np.testing.assert_allclose(
        frame.prefix_norms(targets.float()), exact.prefix_norms(targets), **close_enough
    )


def test_memory_is_planned_before_it_is_allocated(kernel, problem, monkeypatch):
    monkeypatch.setattr(TangentFrame, "_assembler", None)  # whatever allocates would fail
    with pytest.raises(MemoryBudgetError, match=r"n=40 distinct rows.*memory_limit=1000"):
        TangentFrame(kernel, problem[0], memory_limit=1000)


def test_ill_conditioned_matrix_warns(kernel):
    X = torch.as_tensor([[0.0], [1.0], [1.0 + 1e-13]])
    with pytest.warns(IllConditionedWarning, match="numerically singular"):
        TangentFrame(as_kernel_function(lambda A, B: np.exp(-((A - B.T) ** 2))), X)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.IllConditionedWarning")
def test_kernel_values_too_small_to_divide_by_are_an_error():
    tiny = as_kernel_function(lambda A, B: 1e-310 * (A == B.T))
    X, targets = torch.arange(3.0).double()[:, None], torch.tensor([1.0, -2.0, 3.0]).double()
    with pytest.raises(ValueError, match=r"leaves the range of torch.float64.* Scale the inputs"):
        TangentFrame(tiny, X).solve(targets)


def test_ridge_shares(kernel, problem, frame, row_ridges):
    X, targets, _ = problem
    shares = frame.prefix_ridge_shares(targets)
    gram = kernel.block(X, X) + torch.as_tensor(np.diag(row_ridges))
    for m in (1, 2, 17, 40):
        a = torch.linalg.solve(gram[:m, :m], targets[:m])
        shape = (-1, *[1] * (targets.ndim - 1))
        close(
            shares[m - 1], (torch.as_tensor(row_ridges[:m]).reshape(shape) * a.square()).sum(dim=0)
        )


def test_ridge_shares_in_blocks(monkeypatch, kernel, problem):
    frame = TangentFrame(kernel, problem[0], ridge=0.3)
    whole = frame.prefix_ridge_shares(problem[1])
    monkeypatch.setattr("sklearn_kd._memory.WORKSPACE_BYTES", 4 * 40 * 8 * 7)
    close(frame.prefix_ridge_shares(problem[1]), whole)


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
def test_weight_change_norm_under_a_ridge_far_above_the_kernel(scale):
    X = scale * torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.linspace(-1, 1, 30).double()
    kernel = NTK(bias_std=0.0).to_torch()
    frame = TangentFrame(kernel, X, ridge=1e6)
    a = frame.solve(targets)
    expected = (a @ kernel.gram(X) @ a).sqrt().item()
    assert frame.weight_change_norm(targets, a) == pytest.approx(expected, rel=1e-6)
