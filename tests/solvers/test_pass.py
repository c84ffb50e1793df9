"""The pass over a stream: sources, grids, choice of landmarks, memory, gaps."""

import numpy as np
import pytest
import torch
from restricted_students import KERNEL, SOURCES, problem, student

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import effective_logits
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.rows._streams import as_row_stream
from sklearn_kd.solvers._pass import (
    LandmarkChoice,
    PassOptions,
    leave_one_out_blocks,
    nystrom_pass,
    solve_pass,
)
from sklearn_kd.solvers._rows_and_targets import StreamedRows

METHODS = ["rpcholesky", "uniform"]


def logits(fitted, X):
    cross = torch.as_tensor(KERNEL(X, fitted.landmarks.numpy()))
    return torch.tensordot(cross, fitted.coefficients, 1)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_student(tmp_path, small_blocks, source):
    X, targets = problem()
    expected = student(X, targets)
    found = student(SOURCES[source](tmp_path, X), targets)
    torch.testing.assert_close(found.landmarks, expected.landmarks, rtol=0, atol=0)
    new = problem(seed=1)[0]
    np.testing.assert_allclose(logits(found, new), logits(expected, new), rtol=0, atol=1e-10)


def test_all_rows_as_landmarks_give_the_student_of_a_whole_grid(small_blocks):
    rng = np.random.default_rng(0)
    X, y, z_t = rng.normal(size=(200, 10)), rng.integers(0, 2, 200), 3 * rng.normal(size=200)
    X_new = rng.normal(size=(40, 10))
    grid = [(rho, T) for rho in (0.3, 0.9, 1.0) for T in (1.0, 5.0)]
    targets = [effective_logits(z_t, y, soft_ratio=rho, temperature=T) for rho, T in grid]
    fitted = student(X, torch.as_tensor(np.stack(targets, axis=1)), n_landmarks=500)
    assert fitted.report.n_landmarks == 200
    assert fitted.report.captured_trace == pytest.approx(1)
    assert fitted.report.held_out_gap is None
    for column, (rho, T) in enumerate(grid):
        exact = LinearizedKDStudent(kernel=KERNEL, soft_ratio=rho, temperature=T)
        exact.fit(X, y, teacher_logits=z_t)
        found = logits(fitted, X_new)[:, column]
        np.testing.assert_allclose(found, exact.decision_function(X_new), rtol=0, atol=1e-8)


@pytest.mark.parametrize("landmarks", METHODS)
def test_error_falls_with_the_number_of_landmarks(landmarks):
    X, targets = problem(n=400, d=4)
    X_new = problem(n=100, d=4, seed=1)[0]
    frame = TangentFrame(KERNEL.to_torch(), torch.as_tensor(X))
    exact = torch.tensordot(torch.as_tensor(KERNEL(X_new, X)), frame.solve(targets), 1)
    errors, traces = [], []
    for n_landmarks in (10, 30, 100, 250, 400):
        fits = [
            student(X, targets, n_landmarks=n_landmarks, landmarks=landmarks, seed=seed)
            for seed in range(5)
        ]
        gaps = [(logits(fit, X_new) - exact).square().mean().sqrt() for fit in fits]
        errors.append(np.median(gaps))
        traces.append(np.median([fit.report.captured_trace for fit in fits]))
    assert (np.diff(errors) < 0).all()
    assert (np.diff(traces) > 0).all()
    assert errors[-1] < 1e-8


def test_rpcholesky_explains_more_than_uniform_landmarks():
    X = np.vstack([problem(n=290)[0] * 0.01, problem(n=10, seed=1)[0] * 5])
    targets = problem()[1]
    shares = [
        np.median(
            [student(X, targets, n_landmarks=15, landmarks=c, seed=s).report.captured_trace
             for s in range(5)]
        )
        for c in METHODS
    ]  # fmt: skip
    assert shares[0] > shares[1]


@pytest.mark.parametrize("landmarks", METHODS)
def test_copies_are_never_two_landmarks(landmarks):
    X, targets = problem()
    X[40:] = X[np.arange(260) % 40]
    fitted = student(X, targets, n_landmarks=30, landmarks=landmarks)
    assert len(np.unique(fitted.landmarks.numpy(), axis=0)) == 30
    assert fitted.report.n_landmarks == 30
    assert student(X, targets, n_landmarks=60, landmarks=landmarks).report.n_landmarks == 40


def test_rows_of_weight_zero_do_not_count():
    X, targets = problem()
    weights = torch.ones(300).double()
    weights[::2] = 0
    X[::2] += 100
    fitted = student(X, targets, n_landmarks=500, weights=weights)
    np.testing.assert_array_equal(fitted.landmarks, X[1::2])
    exact = student(X[1::2], targets[1::2], n_landmarks=500)
    np.testing.assert_allclose(fitted.coefficients, exact.coefficients, rtol=1e-10)


def test_the_same_random_state_gives_the_same_student():
    X, targets = problem()
    a, b, c = (student(X, targets, seed=seed) for seed in (3, 3, 4))
    assert (a.coefficients == b.coefficients).all()
    assert not (a.landmarks == c.landmarks).all()


def test_gaps_are_root_mean_squares_over_rows():
    X, targets = problem()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows])
    fitted = student(X, targets)
    residual = targets - logits(fitted, X)
    expected = residual.square().mean(dim=0).sqrt()
    np.testing.assert_allclose(fitted.report.fit_gap, expected, rtol=1e-9)
    loo = torch.cat([values for _, values in leave_one_out_blocks(fitted.solution, rows)])
    assert loo.shape == targets.shape
    expected = (targets - loo).square().mean(dim=0).sqrt()
    np.testing.assert_allclose(fitted.report.held_out_gap, expected, rtol=1e-9)
    assert (fitted.report.held_out_gap > fitted.report.fit_gap).all()


def test_leave_one_out_over_blocks_equals_refits(small_blocks):
    X, targets = problem(n=100)
    weights = torch.linspace(0.5, 2, 100).double()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows], weights)
    done = nystrom_pass(KERNEL.to_torch(), rows, LandmarkChoice(20, random_state=0))
    solution = solve_pass(done, ridge=0.1).solution
    loo = torch.cat([values for _, values in leave_one_out_blocks(solution, rows)])
    Z = done.basis.landmarks.numpy()
    features, penalty = KERNEL(X, Z), 0.1 * KERNEL(Z)
    for i in (0, 33, 99):
        kept = np.arange(100) != i
        A = features[kept].T * weights[kept].numpy()
        right = A @ targets[kept].reshape(99, -1).numpy()
        b = np.linalg.solve(A @ features[kept] + penalty, right)
        np.testing.assert_allclose(loo[i].ravel(), features[i] @ b, rtol=1e-7, atol=1e-9)


def test_one_pass_serves_every_ridge():
    X, targets = problem()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows])
    done = nystrom_pass(KERNEL.to_torch(), rows, LandmarkChoice(60, random_state=0))
    for ridge in (0.0, 1.0, 0.01):
        expected = student(X, targets, ridge=ridge).coefficients
        torch.testing.assert_close(solve_pass(done, ridge).coefficients, expected)


def test_the_memory_plan_comes_before_anything_is_read():
    class Unread:
        n_rows, n_features = 10**7, 50

    rows = StreamedRows(Unread(), lambda rows: torch.zeros(1, 32))
    with pytest.raises(MemoryBudgetError, match=r"n_landmarks=20000 landmarks.*smaller n_land"):
        nystrom_pass(
            KERNEL.to_torch(),
            rows,
            LandmarkChoice(20_000, random_state=0),
            options=PassOptions(memory_limit=2**30),
        )
