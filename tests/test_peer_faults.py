"""Faults known of other kernel solvers and KD libraries, one test each: ours behaves otherwise."""

import subprocess
import sys
import textwrap

import numpy as np
import oracles
import pytest
import scipy.special
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process.kernels import DotProduct

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.exceptions import IllConditionedWarning, MemoryBudgetError, NotPSDError
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._cholesky import smallest_eigenvalue
from sklearn_kd.training._ridge_minimum import ridge_minimum


def task(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, (X[:, 0] > 0).astype(int), 3 * X[:, 0] + rng.normal(size=n)


def stationarity(teacher, y):
    """Relative residual of w (y − σ(f)) = ridge a, computed afresh."""
    f = teacher.kernel_(teacher.X_fit_) @ teacher.dual_coef_
    force = y - scipy.special.expit(f)
    return np.linalg.norm(force - teacher.ridge * teacher.dual_coef_) / np.linalg.norm(force)


def test_one_hard_column_among_easy_ones_is_not_averaged_away():
    # A peer stops its conjugate gradients once the *mean* residual over right-hand sides is
    # small, so one unconverged column hides behind many converged ones. Here each is exact.
    X, *_ = task(60)
    frame = TangentFrame(as_kernel_function(NTK(depth=5)), torch.as_tensor(X))
    gram = NTK(depth=5)(X)
    hard = np.linalg.eigh(gram)[1][:, :1]  # along the smallest eigenvalue
    targets = np.hstack([hard, np.zeros((60, 500))])
    coefficients = frame.solve(torch.as_tensor(targets)).numpy()
    np.testing.assert_allclose(gram @ coefficients[:, 0], hard[:, 0], atol=1e-10)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_stopping_rules_are_relative_to_the_problem(size):
    # Peers stop on absolute tolerances: scaled inputs then end at once, or never.
    X, y, _ = task()
    kernel = NTK(bias_std=0.0)  # homogeneous: kernel values grow as size²
    teacher = NTKTeacher(kernel, ridge=size**2).fit(size * X, y)
    assert teacher.fit_report_.converged
    assert stationarity(teacher, y) < 1e-7
    reference = NTKTeacher(kernel, ridge=1.0).fit(X, y)
    np.testing.assert_allclose(
        teacher.decision_function(size * X), reference.decision_function(X), rtol=1e-6, atol=1e-7
    )


def test_convergence_is_judged_by_a_residual_computed_afresh(monkeypatch):
    # Peers trust the residual that the recurrence carries along, or say nothing.
    module = sys.modules[ridge_minimum.__module__]
    monkeypatch.setattr(module, "MAX_NEWTON_STEPS", 1)
    X, y, _ = task()
    with pytest.warns(ConvergenceWarning, match=r"relative residual of .* increase ridge"):
        teacher = NTKTeacher(ridge=1e-3).fit(X, y)
    assert not teacher.fit_report_.converged


def test_no_ridge_is_added_silently():
    # Peers catch any exception of the factorization and add a fixed ridge, whatever went wrong.
    X, y, z_t = task()
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    assert student.jitter_ == 0
    student.set_params(kernel=DotProduct(1.0) ** 3)  # of rank 20: a jitter, said aloud
    with pytest.warns(IllConditionedWarning, match="jitter"):
        student.fit(X, y, teacher_logits=z_t)
    largest = 1e-8 * np.diag(student.kernel_(student.X_fit_)).mean()
    assert 0 < student.jitter_ <= largest
    assert student.fit_report_.jitter == student.jitter_


def test_other_errors_are_not_taken_for_an_ill_conditioned_matrix():
    # The same fault: an error of the user's kernel must reach the user, not become a ridge.
    def broken(A, B):
        raise KeyError("column 7")

    X, y, z_t = task()
    with pytest.raises(KeyError, match="column 7"):
        LinearizedKDStudent(kernel=broken).fit(X, y, teacher_logits=z_t)


def test_singular_systems_are_not_handed_to_least_squares():
    # Peers fall back to a least-squares solver: the minimum-norm solution of another problem
    # (scikit-learn's ridge solver does so too, with a warning). Here a matrix of rank 3 is solved
    # with a jitter that is reported, large enough to leave digits, or refused.
    X, y, z_t = task()
    student = LinearizedKDStudent(kernel=lambda A, B: A @ B.T, soft_ratio=1.0)
    with pytest.warns(IllConditionedWarning, match="numerically singular"):
        student.fit(X, y, teacher_logits=z_t)
    assert student.jitter_ > 0
    assert student.rcond_ > 100 * np.finfo(float).eps
    minimum_norm = np.linalg.lstsq(X @ X.T, z_t, rcond=None)[0]
    assert np.linalg.norm(student.dual_coef_) > 1e6 * np.linalg.norm(minimum_norm)
    with pytest.raises(NotPSDError, match="smallest eigenvalue"):
        student.set_params(kernel=lambda A, B: A @ B.T - 1e-3).fit(X, y, teacher_logits=z_t)


@pytest.mark.parametrize(
    "model", [LinearizedKDStudent(), NTKTeacher(loss="squared_error", ridge=0)]
)
def test_an_indefinite_kernel_is_an_error_not_nan(model):
    # A peer takes the square root of negative eigenvalues and returns NaN.
    X, y, z_t = task()
    model.set_params(kernel=lambda A, B: np.tanh(A @ B.T - 1))
    given = {"teacher_logits": z_t} if isinstance(model, LinearizedKDStudent) else {}
    with pytest.raises(NotPSDError, match="not positive definite"):
        model.fit(X, y, **given)


def test_an_indefinite_kernel_stops_the_gradient_flow_too():
    X, y, _ = task()
    with pytest.raises(NotPSDError, match="not positive semi-definite"):
        NTKTeacher(lambda A, B: -NTK()(A, B), stopping_time=10.0).fit(X, y)


def test_single_precision_inputs_are_computed_in_double():
    # Peers on tensors compute in float32 by default, and in that of the input without a word.
    X, y, z_t = task()
    X = X.astype(np.float32)
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t.astype(np.float32))
    assert student.dual_coef_.dtype == np.float64
    z = student.effective_logits_
    gram = oracles.relu_ntk(X.astype(float))
    np.testing.assert_allclose(gram @ student.dual_coef_, z, rtol=0, atol=1e-10)
    assert (
        LinearizedKDStudent(dtype="float32").fit(X, y, teacher_logits=z_t).fit_report_.dtype
        == "float32"
    )


def test_the_diagonal_of_a_kernel_is_not_taken_for_one():
    # Peers assume k(x, x) = 1, as of RBF kernels, in their remainders v(x) = k(x, x) − ‖u‖².
    X, y, z_t = task()
    kernel = NTK(bias_std=2.0)
    student = LinearizedKDStudent(kernel=kernel).fit(X[:-1], y[:-1], teacher_logits=z_t[:-1])
    _, v = student.tangent_frame().features(torch.as_tensor(X[-1:]))
    gram = kernel(X)
    assert gram[-1, -1] > 5
    exact = 1 / np.linalg.inv(gram)[-1, -1]  # the Schur complement of the other rows
    assert v.item() == pytest.approx(exact, rel=1e-8)


def test_no_eigensolver_sees_a_large_matrix(monkeypatch):
    # LAPACK's symmetric eigensolvers with 32-bit integers overflow their workspace from
    # n = 32 767 on. Nothing here calls one beyond 1000 rows, the diagnosis of an error included.
    def small_only(solver):
        def checked(matrix, *arguments, **options):
            assert len(matrix) <= 1000, "a full eigen-decomposition of a large matrix"
            return solver(matrix, *arguments, **options)

        return checked

    for name in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, small_only(getattr(torch.linalg, name)))
    X, y, z_t = task(1100)
    LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    matrix = torch.eye(1100, dtype=torch.float64)
    matrix[3, 3] = -2
    assert smallest_eigenvalue(matrix) == pytest.approx(-2, rel=1e-2)


@pytest.mark.parametrize(
    "model", [LinearizedKDStudent(), NTKTeacher(), NTKTeacher(stopping_time=1)]
)
def test_terabytes_are_refused_before_anything_is_allocated(model):
    # Peers ask the system for n² entries and are killed.
    n = 10**6
    X, y = np.arange(float(n))[:, None], np.arange(n) % 2
    given = {"teacher_logits": y - 0.5} if isinstance(model, LinearizedKDStudent) else {}
    with pytest.raises(MemoryBudgetError, match=r"n=1000000 .* needs 7\.2\d* TiB.*Use fewer rows"):
        model.fit(X, y, **given)
    assert not hasattr(model, "dual_coef_")


def test_tf32_is_off_in_fit_and_predict_whatever_the_user_set():
    # Peers inherit torch's reduced-precision products: 1e-3 relative in a matrix to be inverted.
    # In a process of its own, as the setting is global; bf16 is what a CPU makes of it.
    script = """
        import numpy as np, torch
        from sklearn_kd import LinearizedKDStudent
        rng = np.random.default_rng(0)
        X = rng.normal(size=(200, 50)).astype(np.float32)
        arguments = {"y": (X[:, 0] > 0).astype(int), "teacher_logits": X[:, 0] * 3}

        def fitted():
            student = LinearizedKDStudent(dtype="float32", device="cpu").fit(X, **arguments)
            return student.dual_coef_, student.decision_function(X), student.tangent_frame().loo(
                torch.as_tensor(student.effective_logits_)
            ).numpy()

        expected = fitted()
        torch.set_float32_matmul_precision("medium")
        for before, after in zip(expected, fitted(), strict=True):
            np.testing.assert_array_equal(before, after)
        assert torch.get_float32_matmul_precision() == "medium"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
