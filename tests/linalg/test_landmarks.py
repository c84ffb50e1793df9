"""The restricted student against dense least squares, and how it depends on its blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import RBF

from sklearn_kd._memory import CPU
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import ArrayKernel
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._landmarks import (
    LandmarkBasis,
    RestrictedStudent,
    RowSums,
    block_rows,
    nystrom_bytes,
)

KERNEL = NTK(depth=2)


def problem(n=120, d=6, n_targets=4, seed=0):
    rng = np.random.default_rng(seed)
    X = torch.as_tensor(rng.normal(size=(n, d)))
    return X, X[:, :1].sin() + torch.as_tensor(0.3 * rng.normal(size=(n, n_targets)))


def summed(basis, X, targets, weights=None, order=None, size=50):
    sums = RowSums.zeros(len(basis.landmarks), targets.shape[1], X.device)
    for rows in torch.arange(len(X)).split(size) if order is None else order:
        sums.add(basis, X[rows], targets[rows], None if weights is None else weights[rows])
    return sums


def fitted(X, targets, landmarks, ridge=0.0, weights=None, **how):
    basis = LandmarkBasis(KERNEL.to_torch(), landmarks)
    return RestrictedStudent(basis, summed(basis, X, targets, weights, **how), ridge)


def oracle(X, targets, landmarks, ridge=0.0, weights=None):
    """Coefficients by least squares on the rows, stacked on the root of the penalty."""
    root = np.sqrt(np.ones(len(X)) if weights is None else weights.numpy())[:, None]
    A = [root * KERNEL(X, landmarks), np.sqrt(ridge) * np.linalg.cholesky(KERNEL(landmarks)).T]
    b = [root * targets.numpy(), np.zeros((len(landmarks), targets.shape[1]))]
    return np.linalg.lstsq(np.vstack(A), np.vstack(b), rcond=None)[0]


@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_least_squares(ridge, weighted):
    X, targets = problem()
    weights = torch.rand(len(X), generator=torch.Generator().manual_seed(0)).double() * 3
    weights = weights if weighted else None
    student = fitted(X, targets, X[:30], ridge, weights)
    expected = oracle(X, targets, X[:30], ridge, weights)
    np.testing.assert_allclose(student.coefficients, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_all_rows_as_landmarks_give_the_exact_student(ridge):
    X, targets = problem(n=300, d=10)
    weights = torch.linspace(0.5, 2, 300).double()
    exact = TangentFrame(KERNEL.to_torch(), X, ridge=ridge, weights=weights).solve(targets)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).split(70)
    student = fitted(X, targets, X, ridge, weights, order=order)
    np.testing.assert_allclose(student.coefficients, exact, rtol=1e-8, atol=1e-8)


def test_weights_are_copies():
    X, targets = problem()
    weights = torch.arange(len(X)).double() % 3
    repeated = torch.arange(len(X)).repeat_interleave(weights.long())
    by_weight = fitted(X, targets, X[1:20], 0.2, weights)
    by_copies = fitted(X[repeated], targets[repeated], X[1:20], 0.2)
    np.testing.assert_allclose(by_weight.coefficients, by_copies.coefficients, rtol=1e-10)


def test_copies_are_one_row_with_the_mean_target():
    X, targets = problem()
    twice = torch.cat([X, X]), torch.cat([targets, -3 * targets])
    student = fitted(*twice, X[:40])
    expected = fitted(X, -targets, X[:40])
    np.testing.assert_allclose(student.coefficients, expected.coefficients, rtol=1e-9)


def test_the_order_and_the_size_of_the_blocks_do_not_matter():
    X, targets = problem(n=400, d=3)
    new = torch.as_tensor(np.random.default_rng(9).normal(size=(50, 3)))
    cross = torch.as_tensor(KERNEL(new, X[:100]))
    blocks = torch.arange(400).split(23)
    orders = [blocks, blocks[::-1], blocks[7:] + blocks[:7], [torch.arange(400)]]
    logits = [cross @ fitted(X, targets, X[:100], order=o).coefficients for o in orders]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_leave_one_out_equals_refits(ridge):
    X, targets = problem(n=60)
    weights = torch.linspace(0, 2, 60).double()
    landmarks = X[5:25]
    loo = fitted(X, targets, landmarks, ridge, weights).leave_one_out(X, targets, weights)
    for i in [0, 10, 24, 59]:
        kept = torch.arange(60) != i
        b = oracle(X[kept], targets[kept], landmarks, ridge, weights[kept])
        np.testing.assert_allclose(loo[i], (KERNEL(X[i : i + 1], landmarks) @ b)[0], rtol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_with_all_rows_as_landmarks_is_that_of_the_exact_student(weighted):
    X, targets = problem(n=40)
    weights = torch.linspace(0.5, 2, 40).double() if weighted else None
    loo = fitted(X, targets, X, weights=weights).leave_one_out(X, targets, weights)
    exact = TangentFrame(KERNEL.to_torch(), X).loo(targets)
    np.testing.assert_allclose(loo, exact, rtol=0, atol=1e-6)


def test_a_landmark_far_from_all_rows_says_nothing_without_its_row():
    X, targets = problem(n=40)
    X[3] += 1000
    basis = LandmarkBasis(ArrayKernel(RBF(3.0)), X[:10])
    student = RestrictedStudent(basis, summed(basis, X, targets))
    loo = student.leave_one_out(X, targets)
    np.testing.assert_allclose(loo[3], 0, atol=1e-10)
    assert loo.abs().max() < 10


def test_captured_trace():
    X, targets = problem(n=80)
    gram = KERNEL(X)
    cross = gram[:, :20]
    captured = np.trace(cross @ np.linalg.solve(gram[:20, :20], cross.T))
    basis = LandmarkBasis(KERNEL.to_torch(), X[:20])
    assert summed(basis, X, targets).captured_trace == pytest.approx(captured / np.trace(gram))
    weights = torch.cat([torch.ones(40), torch.zeros(40)]).double()
    half = summed(basis, X[:40], targets[:40]).captured_trace
    assert summed(basis, X, targets, weights).captured_trace == pytest.approx(half)


def test_a_singular_student_warns():
    X, targets = problem(n=30)
    with pytest.warns(IllConditionedWarning, match="smaller n_landmarks"):
        fitted(X[:10], targets[:10], X)  # fewer rows than landmarks


def test_float32_entries():
    X, targets = problem()
    student = fitted(X.float(), targets, X[:30].float(), ridge=0.1)
    assert student.coefficients.dtype == torch.float64
    reference = KERNEL(X, X[:30]) @ oracle(X, targets, X[:30], 0.1)
    np.testing.assert_allclose(
        KERNEL(X, X[:30]) @ student.coefficients.numpy(), reference, atol=1e-4
    )


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    n=st.integers(5, 40),
    share=st.floats(0.1, 1),
    ridge=st.floats(1e-3, 1e3),
    n_targets=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_any_shape(n, share, ridge, n_targets, seed):
    X, targets = problem(n, 3, n_targets, seed)
    landmarks = X[: max(1, int(share * n))]
    student = fitted(X, targets, landmarks, ridge, size=7)
    logits = KERNEL(X, landmarks) @ student.coefficients.numpy()
    expected = KERNEL(X, landmarks) @ oracle(X, targets, landmarks, ridge)
    np.testing.assert_allclose(logits, expected, atol=1e-8)


def test_plan_grows_with_each_of_its_sizes():
    assert block_rows(10**6) == 256
    sizes = {"n_rows": 10**6, "n_features": 20, "n_landmarks": 2000, "n_targets": 32}
    base = nystrom_bytes(**sizes, n_candidates=20_000, device=CPU)
    assert base == pytest.approx(0.5 * 2**30, rel=0.4)
    for name, value in sizes.items():
        assert nystrom_bytes(**sizes | {name: 100 * value}, n_candidates=20_000, device=CPU) >= base
        assert nystrom_bytes(**sizes | {name: value // 20}, n_candidates=2_000, device=CPU) < base
