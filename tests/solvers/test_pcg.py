"""solver="pcg" and "refinement": equal to the factored student, planned, reported, honest."""

import pickle
import re
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_kd import LinearizedKDStudent
from sklearn_kd._memory import CPU
from sklearn_kd.exceptions import MemoryBudgetError, NotPSDError, SinglePrecisionWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg._sharded import largest_share
from sklearn_kd.solvers import PCG, Cholesky, Refinement, _pcg
from sklearn_kd.solvers._choice import choose_solver
from sklearn_kd.solvers._pcg import PCGPlan, pcg_bytes, plan_pcg
from sklearn_kd.solvers._system import Size

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(300, 4)), RNG.normal(size=(50, 4))
Z_T = 3 * np.sin(X).sum(axis=1) + RNG.normal(size=300)
Y = np.where(Z_T + RNG.logistic(size=300) > 0, "yes", "no")
Z_3 = np.stack([Z_T, -Z_T, RNG.normal(size=300)], axis=1)
Y_3 = Z_3.argmax(axis=1)


def student(tol=1e-10, max_iter=500, **options):
    return LinearizedKDStudent(
        **{"solver": PCG(tol=tol, max_iter=max_iter, random_state=0)} | options
    )


def keeping(share, n_features=4, rank=187):
    """Return a memory limit that leaves room for so much of Θ in float32, of 300 rows."""
    entries = largest_share(300, torch.device("cpu"), 1)
    return pcg_bytes(300, n_features, 1, rank, CPU) + int(4 * share * entries) + 1000


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize(("y", "z_t"), [(Y, Z_T), (Y_3, Z_3)], ids=["two classes", "three"])
@pytest.mark.parametrize("share", [None, 0.6, 0.0])
def test_equals_the_factored_student(ridge, y, z_t, share, monkeypatch):
    if share is not None:
        kept = int(share * 300**2 / 2 * 4)
        plan = PCGPlan(torch.float32, kept, rank=187, planned_bytes=kept)
        monkeypatch.setattr(_pcg, "plan_pcg", lambda *_: plan)
    rows = np.concatenate([X, X[:20]])  # copies are merged, and then count twice in the ridge
    y, z_t = np.concatenate([y, y[:20]]), np.concatenate([z_t, z_t[:20] + 1])
    weight = np.linspace(0, 3, 320)
    exact = LinearizedKDStudent(solver="cholesky", ridge=ridge)
    exact.fit(rows, y, teacher_logits=z_t, sample_weight=weight)
    iterated = student(ridge=ridge).fit(rows, y, teacher_logits=z_t, sample_weight=weight)
    assert iterated.solver_.get_params() == iterated.solver.get_params()
    np.testing.assert_allclose(
        iterated.decision_function(X_NEW), exact.decision_function(X_NEW), rtol=0, atol=1e-7
    )
    assert iterated.dual_coef_.shape == exact.dual_coef_.shape
    np.testing.assert_array_equal(iterated.X_fit_, exact.X_fit_)
    assert iterated.weight_change_norm_ == pytest.approx(exact.weight_change_norm_, rel=1e-8)
    report = iterated.fit_report_
    assert (report.stopped, report.solver) == ("converged", "pcg")
    expected = {
        None: "the kernel matrix in float64",
        0.6: "[45].% of the kernel matrix in float32",
        0.0: "the rows in float32",
    }
    assert re.fullmatch(expected[share], report.products)
    assert report.residual <= 1e-10
    assert 0 < iterated.n_iter_ < report.n_products


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_bound_on_every_prediction(tol):
    exact = LinearizedKDStudent(solver="cholesky").fit(X, Y, teacher_logits=Z_T)
    iterated = student(tol=tol).fit(X, Y, teacher_logits=Z_T)
    rows = 3 * X_NEW
    errors = np.abs(iterated.decision_function(rows) - exact.decision_function(rows))
    bound = iterated.fit_report_.energy_error * np.sqrt(NTK().diag(rows))
    assert (errors <= bound).all()
    assert bound.min() < 1e4 * tol * np.abs(Z_T).max()
    on_training_rows = np.abs(iterated.decision_function(X) - exact.decision_function(X))
    assert on_training_rows.max() <= iterated.fit_report_.prediction_error


def test_matrix_in_single_precision_gives_the_answer_of_double(monkeypatch):
    # where the matrix fits in float32 only
    budget = keeping(1)
    exact = LinearizedKDStudent(solver="cholesky").fit(X, Y, teacher_logits=Z_T)
    iterated = student(memory_limit=budget).fit(X, Y, teacher_logits=Z_T)
    report = iterated.fit_report_
    assert report.products == "the kernel matrix in float32"
    assert report.dtype == "float64"
    assert report.residual <= 1e-10
    np.testing.assert_allclose(
        iterated.decision_function(X_NEW), exact.decision_function(X_NEW), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("share", [1, 0.6])
def test_single_precision_where_asked(share):
    iterated = student(dtype="float32", tol=1e-6, memory_limit=keeping(share))
    iterated.fit(X, Y, teacher_logits=Z_T)
    assert iterated.dual_coef_.dtype == np.float32
    assert iterated.fit_report_.products.endswith("the kernel matrix in float32")
    assert iterated.fit_report_.residual <= 1e-6
    exact = LinearizedKDStudent(solver="cholesky").fit(X, Y, teacher_logits=Z_T)
    np.testing.assert_allclose(
        iterated.decision_function(X_NEW), exact.decision_function(X_NEW), rtol=0, atol=1e-2
    )


def test_where_single_precision_is_not_enough_the_products_become_double():
    # cond 3e9: products in float32 know nothing of the smallest eigenvalues
    kernel, rows = NTK(depth=2, activation="erf"), X[:, :3]
    budget = keeping(1, n_features=3)
    iterated = student(kernel=kernel, tol=1e-6, memory_limit=budget, max_iter=2000)
    report = iterated.fit(rows, Y, teacher_logits=Z_T).fit_report_
    assert report.products == "the kernel matrix in float32, then the rows in float64"
    assert (report.stopped, report.residual <= 1e-6) == ("converged", True)


class TestPlan:
    def test_as_much_as_fits(self):
        limits = (2e9, 6e8, 4.6e8, 4e8, 2.6e8, 1e6)
        plans = [
            plan_pcg(10**4, 20, 3, torch.float64, limit, torch.device("cpu")) for limit in limits
        ]
        assert [p.dtype for p in plans] == [torch.float64] + 5 * [torch.float32]
        entries = largest_share(10**4, torch.device("cpu"), 1)
        shares = [p.kept_bytes / p.dtype.itemsize / entries for p in plans]
        assert shares == pytest.approx([1, 1, 0.63, 0.24, 0.01, 0], abs=0.05)
        assert [p.rank for p in plans] == [600, 600, 600, 800, 100, 100]
        fits = [plan.planned_bytes <= limit for plan, limit in zip(plans, limits, strict=True)]
        assert fits == 5 * [True] + [False]

    def test_what_does_not_fit_is_an_error_at_once(self):
        with pytest.raises(MemoryBudgetError, match=r"n=300 .*'pcg' needs .* MiB .*nystrom"):
            student(memory_limit=1e6).fit(X, Y, teacher_logits=Z_T)

    def test_cholesky_names_pcg_where_a_million_rows_do_not_fit(self):
        size = Size(10**6, 10, 1, torch.float64, torch.device("cpu"))
        start = time.perf_counter()
        with pytest.raises(MemoryBudgetError, match=r"needs 7\.\d+ TiB .*solver='pcg'"):
            choose_solver("cholesky", size, "auto", what="LinearizedKDStudent.fit")
        assert time.perf_counter() - start < 0.01

    def test_auto_starts_on_nothing_that_would_take_for_ever(self):
        size = Size(10**5, 10, 1, torch.float64, torch.device("cpu"))
        assert choose_solver("pcg", size, 4e9, what="fit").name == "pcg"
        with pytest.raises(MemoryBudgetError, match=r"'cholesky' needs 74.* solver='pcg'"):
            choose_solver("auto", size, 4e9, what="fit")


class TestConvergence:
    def test_too_few_iterations(self):
        with pytest.warns(ConvergenceWarning, match=r"not tol=1e-10: max_iter=3 .* raise max_iter"):
            iterated = student(max_iter=3).fit(X, Y, teacher_logits=Z_T)
        assert iterated.fit_report_.stopped == "max_iter"
        assert iterated.n_iter_ == 3
        assert iterated.fit_report_.residual > 1e-10

    def test_limit_of_precision(self):
        line = np.linspace(-1, 1, 300)[:, None]
        with pytest.warns(ConvergenceWarning, match=r"too ill-conditioned: raise tol"):
            iterated = student(tol=1e-15, kernel=NTK(depth=1)).fit(line, Y, teacher_logits=Z_T)
        assert iterated.fit_report_.stopped == "precision"


def test_parameters_are_checked():
    for name in ("tol", "max_iter"):
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            student(**{name: 0}).fit(X, Y, teacher_logits=Z_T)


def test_reproducible_and_survives_pickling():
    first = student().fit(X, Y, teacher_logits=Z_T)
    again = clone(first).fit(X, Y, teacher_logits=Z_T)
    np.testing.assert_array_equal(first.dual_coef_, again.dual_coef_)
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(loaded.decision_function(X_NEW), first.decision_function(X_NEW))


def test_frame_is_built_when_asked_for():
    iterated = student().fit(X, Y, teacher_logits=Z_T)
    exact = LinearizedKDStudent(solver="cholesky").fit(X, Y, teacher_logits=Z_T)
    assert iterated.tangent_frame().rcond == exact.rcond_


class TestRefinement:
    @pytest.mark.parametrize("ridge", [0.0, 0.5])
    @pytest.mark.parametrize(("y", "z_t"), [(Y, Z_T), (Y_3, Z_3)], ids=["two classes", "three"])
    def test_equals_the_factored_student(self, y, z_t, ridge):
        weight = np.linspace(0.5, 3, 300)
        options = {"sample_weight": weight, "teacher_logits": z_t}
        exact = LinearizedKDStudent(solver="cholesky", ridge=ridge).fit(X, y, **options)
        refined = student(solver=Refinement(tol=1e-10), ridge=ridge).fit(X, y, **options)
        np.testing.assert_allclose(
            refined.decision_function(X_NEW), exact.decision_function(X_NEW), rtol=0, atol=1e-8
        )
        assert refined.weight_change_norm_ == pytest.approx(exact.weight_change_norm_, rel=1e-8)
        assert refined.jitter_ == refined.fit_report_.factor_jitter == 0
        assert refined.rcond_ == pytest.approx(exact.rcond_, rel=0.1)
        assert refined.n_iter_ <= 6
        assert refined.fit_report_.residual <= 1e-10

    def test_auto_says_so(self, monkeypatch):
        for solver, planned in {Cholesky: 30 * 2**20, Refinement: 20 * 2**20}.items():
            monkeypatch.setattr(solver, "planned_bytes", lambda *_, b=planned: b)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fits = student(solver="auto", memory_limit=30 * 2**20).fit(X, Y, teacher_logits=Z_T)
            assert isinstance(fits.solver_, Cholesky)
        with pytest.warns(SinglePrecisionWarning, match=r"30 MiB .* float32, .* tol=1e-06"):
            refined = student(solver="auto", memory_limit=25 * 2**20).fit(X, Y, teacher_logits=Z_T)
        assert isinstance(refined.solver_, Refinement)
        assert refined.fit_report_.solver == "refinement"

    def test_bytes_are_half_of_those_of_cholesky(self):
        size = Size(10**5, 20, 1, torch.float64, torch.device("cpu"))
        planned = [solver.planned_bytes(size, "auto") for solver in (Refinement(), Cholesky())]
        assert 0.5 < planned[0] / planned[1] < 0.51

    def test_no_convergence_is_said(self):
        kernel = NTK(depth=2, activation="erf")
        refined = student(solver=Refinement(tol=1e-10, max_iter=5), kernel=kernel)
        with pytest.warns(ConvergenceWarning, match="not tol=1e-10"):
            refined.fit(X[:, :3], Y, teacher_logits=Z_T)
        assert refined.fit_report_.factor_jitter > 0
        assert refined.jitter_ == 0
        assert np.isnan(refined.rcond_)

    def test_no_factor_is_an_error_with_a_remedy(self):
        def kernel(x, y):
            return np.exp(-((x[:, None] - y) ** 2).sum(axis=2)) - 0.5

        with pytest.raises(NotPSDError, match=r"factor in float32, .* solver='pcg' needs none"):
            student(solver="refinement", kernel=kernel).fit(X[:30], Y[:30], teacher_logits=Z_T[:30])
