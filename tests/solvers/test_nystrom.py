"""solver="nystrom" of the student: sources of rows, copies, teachers, what it refuses."""

import functools
import pickle

import joblib
import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import sklearn_kd.solvers._choice
import sklearn_kd.solvers._pass
from sklearn_kd import LinearizedKDStudent
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.linalg._landmarks import RowSums
from sklearn_kd.metrics import neg_data_inefficiency_scorer
from sklearn_kd.solvers import Nystrom
from sklearn_kd.solvers._checkpoint import Checkpoint

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(300, 4)), RNG.normal(size=(50, 4))
Z_T = 3 * np.sin(X).sum(axis=1) + RNG.normal(size=300)
Y = np.where(Z_T + RNG.logistic(size=300) > 0, "yes", "no")


def folder(path, X, suffix=".npy"):
    for i, part in enumerate(np.split(X, [64, 65, 200])):
        name = path / f"{i}{suffix}"
        np.save(name, part) if suffix == ".npy" else np.savez(name, X=part)
    return path


def memory_map(path, X):
    np.save(path / "rows.npy", X)
    return np.load(path / "rows.npy", mmap_mode="r")


def dask_array(path, X):
    return pytest.importorskip("dask.array").from_array(X, chunks=(70, 3))


SOURCES = {
    "memmap": memory_map,
    "npy": folder,
    "npz": lambda path, X: str(folder(path, X, ".npz")),
    "dask": dask_array,
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    def make(X, name="rows"):
        (tmp_path / name).mkdir()
        return SOURCES[request.param](tmp_path / name, X)

    return make


def student(n_landmarks=40, random_state=0, n_jobs=None, checkpoint=None, **options):
    solver = Nystrom(n_landmarks, random_state=random_state, n_jobs=n_jobs, checkpoint=checkpoint)
    return LinearizedKDStudent(solver=solver, **options)


def three_classes():
    z_t = np.stack([Z_T, X[:, 0], X[:, 1] * X[:, 2]], axis=1)
    return z_t.argmax(axis=1), z_t


@pytest.mark.parametrize("n_classes", [2, 3])
def test_all_rows_as_landmarks_is_the_exact_student(n_classes):
    y, z_t = (Y, Z_T) if n_classes == 2 else three_classes()
    exact = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    fitted = student(n_landmarks=300).fit(X, y, teacher_logits=z_t)
    names = exact.fit_report_.solver, fitted.fit_report_.solver
    assert names == ("cholesky", "nystrom")
    assert exact.n_iter_ == fitted.n_iter_ == 1
    expected = exact.decision_function(X_NEW)
    np.testing.assert_allclose(fitted.decision_function(X_NEW), expected, rtol=0, atol=1e-8)
    assert fitted.weight_change_norm_ == pytest.approx(exact.weight_change_norm_)
    assert fitted.fit_report_.captured_trace == pytest.approx(1)
    np.testing.assert_array_equal(fitted.effective_logits_, exact.effective_logits_)


def test_streams_give_the_student_of_the_array(source):
    expected = student().fit(X, Y, teacher_logits=Z_T)
    fitted = student().fit(source(X), Y, teacher_logits=Z_T)
    assert fitted.n_features_in_ == 4
    assert isinstance(fitted.X_fit_, np.ndarray)
    np.testing.assert_array_equal(fitted.X_fit_, expected.X_fit_)
    np.testing.assert_allclose(fitted.dual_coef_, expected.dual_coef_, rtol=1e-8)
    logits = expected.decision_function(X_NEW)
    found = pickle.loads(pickle.dumps(fitted)).decision_function(source(X_NEW, "new"))
    np.testing.assert_allclose(found, logits, rtol=1e-8)
    assert fitted.score(source(X, "again"), Y) == expected.score(X, Y)


@pytest.mark.parametrize("weighted", [False, True])
def test_copies_in_streams_are_merged_as_they_are_in_arrays(source, weighted):
    copies, order = np.arange(600) % 250, np.random.default_rng(1).permutation(600)
    rows = X[copies][order]
    y, z_t = RNG.permutation(np.tile(Y, 2)), RNG.permutation(np.tile(Z_T, 2))
    weights = RNG.integers(0, 3, 600).astype(float) if weighted else None
    expected = student(n_landmarks=300, ridge=0.1).fit(
        rows, y, teacher_logits=z_t, sample_weight=weights
    )
    exact = LinearizedKDStudent(ridge=0.1).fit(rows, y, teacher_logits=z_t, sample_weight=weights)
    fitted = student(n_landmarks=300, ridge=0.1).fit(
        source(rows), y, teacher_logits=z_t, sample_weight=weights
    )
    n_distinct = exact.fit_report_.n_distinct_rows
    assert fitted.fit_report_.n_distinct_rows == n_distinct <= 250
    np.testing.assert_array_equal(fitted.effective_logits_, exact.effective_logits_)
    for other in (exact, expected):
        logits = other.decision_function(X_NEW)
        np.testing.assert_allclose(fitted.decision_function(X_NEW), logits, rtol=0, atol=1e-8)


def test_a_frozen_teacher_answers_block_by_block(source):
    teacher = FrozenEstimator(LogisticRegression().fit(X[:100], Y[:100]))
    expected = student(teacher=teacher).fit(X, Y)
    fitted = student(teacher=teacher).fit(source(X), Y)
    np.testing.assert_allclose(fitted.teacher_logits_, expected.teacher_logits_)
    new = source(X_NEW, "new")
    found = fitted.teacher_decision_function(new)
    np.testing.assert_allclose(found, teacher.decision_function(X_NEW))


def test_an_unfitted_teacher_needs_rows_in_memory(tmp_path):
    mapped = student(teacher=LogisticRegression()).fit(memory_map(tmp_path, X), Y)
    expected = student(teacher=LogisticRegression()).fit(X, Y)
    np.testing.assert_allclose(mapped.decision_function(X_NEW), expected.decision_function(X_NEW))
    for teacher in (None, LogisticRegression()):
        with pytest.raises(ValueError, match=r"cannot be cross-fitted.*FrozenEstimator"):
            student(teacher=teacher).fit(tmp_path, Y)


def test_rows_and_labels_that_do_not_match(source):
    rows = source(X)
    with pytest.raises(ValueError, match="X has 300 rows, but y has 299 labels"):
        student().fit(rows, Y[1:], teacher_logits=Z_T)
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(299,\)"):
        student().fit(rows, Y, teacher_logits=Z_T[1:])
    with pytest.raises(ValueError, match="sample_weight"):
        student().fit(rows, Y, teacher_logits=Z_T, sample_weight=np.ones(299))
    with pytest.raises(ValueError, match="only one class"):
        student().fit(rows, np.zeros(300), teacher_logits=Z_T)
    with pytest.raises(ValueError, match="y is None"):
        student().fit(rows, None, teacher_logits=Z_T)
    fitted = student().fit(rows, Y, teacher_logits=Z_T)
    with pytest.raises(ValueError, match="3 features, but LinearizedKDStudent is expecting 4"):
        fitted.predict(source(X_NEW[:, :3], "new"))


def test_rows_that_are_not_finite_are_named(source):
    values = X.copy()
    values[[70, 210], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"rows \[(70|70, 210)\]; remove or impute"):
        student().fit(source(values), Y, teacher_logits=Z_T)
    with pytest.raises(ValueError, match=r"rows \[(70|70, 210)\]"):
        student().fit(X, Y, teacher_logits=Z_T).predict(source(values, "new"))


def test_a_folder_needs_a_solver_that_reads_it(tmp_path):
    folder(tmp_path, X)
    with pytest.raises(ValueError, match=r"is a path.*'auto' cannot read.*solver='nystrom' for"):
        LinearizedKDStudent().fit(tmp_path, Y, teacher_logits=Z_T)


@pytest.mark.parametrize("what", ["tangent_frame", "prefix_path"])
def test_what_needs_all_rows_says_so(what):
    fitted = student().fit(X, Y, teacher_logits=Z_T)
    with pytest.raises(AttributeError, match=f"{what} needs .* solver='nystrom' does not have"):
        getattr(fitted, what)()
    with pytest.raises(AttributeError, match="data inefficiency needs the tangent frame"):
        neg_data_inefficiency_scorer(fitted, X_NEW, Y[:50])


def test_the_plan_is_checked_before_the_teacher_is_asked():
    class Unasked(LogisticRegression):
        def fit(self, X, y):
            raise AssertionError

    with pytest.raises(MemoryBudgetError, match=r"solver='nystrom' needs .*smaller n_landmarks"):
        student(teacher=Unasked(), memory_limit=1e6).fit(X, Y)


def test_single_precision():
    fitted = student(dtype="float32").fit(X, Y, teacher_logits=Z_T)
    assert fitted.dual_coef_.dtype == np.float32
    expected = student().fit(X, Y, teacher_logits=Z_T).decision_function(X_NEW)
    np.testing.assert_allclose(fitted.decision_function(X_NEW), expected, atol=0.05)


def test_the_same_random_state_gives_the_same_student():
    first, second = (student().fit(X, Y, teacher_logits=Z_T) for _ in range(2))
    np.testing.assert_array_equal(first.dual_coef_, second.dual_coef_)
    other = student(random_state=1).fit(X, Y, teacher_logits=Z_T)
    assert not np.array_equal(first.X_fit_, other.X_fit_)


def test_init_network_moves_from_the_outputs(source):
    from sklearn_kd.kernels import EmpiricalNTK

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1)
    ).double()
    options = {"kernel": EmpiricalNTK(module), "init": "network", "ridge": 0.1}
    expected = student(**options).fit(X, Y, teacher_logits=Z_T)
    fitted = student(**options).fit(source(X), Y, teacher_logits=Z_T)
    np.testing.assert_allclose(fitted.initial_logits_, expected.initial_logits_)
    found = fitted.decision_function(source(X_NEW, "new"))
    np.testing.assert_allclose(found, expected.decision_function(X_NEW), rtol=1e-6)


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path, monkeypatch, source):
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 32)
    at_every_block = functools.partial(Checkpoint, seconds=0)
    monkeypatch.setattr(sklearn_kd.solvers._nystrom, "Checkpoint", at_every_block)
    rows = source(X)
    expected = student(ridge=0.1).fit(rows, Y, teacher_logits=Z_T)
    fit = student(ridge=0.1, checkpoint=tmp_path / "pass.npz")
    add = RowSums.add
    seen = []

    def interrupted(self, basis, X, *arguments):
        seen.append(len(X))
        if len(seen) == 6:
            raise KeyboardInterrupt
        add(self, basis, X, *arguments)

    monkeypatch.setattr(RowSums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(rows, Y, teacher_logits=Z_T)
    assert not hasattr(fit, "dual_coef_")
    other = clone(fit).set_params(solver__n_landmarks=41).fit(rows, Y, teacher_logits=Z_T)
    assert other.fit_report_.resumed_at_row == 0  # has a file of its own, and leaves this one
    assert len(list(tmp_path.glob("pass-*.npz"))) == 1
    fit.fit(rows, Y, teacher_logits=Z_T)
    assert fit.fit_report_.resumed_at_row == sum(seen[:5]) > 0
    np.testing.assert_allclose(fit.dual_coef_, expected.dual_coef_, rtol=1e-12, atol=1e-12)
    assert not list(tmp_path.glob("pass*"))


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "pass.npz"):
        with pytest.raises(ValueError, match=r"checkpoint=.* cannot be written"):
            student(checkpoint=path).fit(X, Y, teacher_logits=Z_T)


def test_fits_of_a_search_have_a_checkpoint_each(tmp_path, monkeypatch):
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 32)
    at_every_block = functools.partial(Checkpoint, seconds=0)
    monkeypatch.setattr(sklearn_kd.solvers._nystrom, "Checkpoint", at_every_block)
    grid = {"soft_ratio": [0.3, 0.9], "ridge": [0.1, 1.0]}
    scores = []
    for checkpoint in (None, tmp_path / "pass.npz"):
        with sklearn.config_context(enable_metadata_routing=True):
            routed = student(checkpoint=checkpoint).set_fit_request(teacher_logits=True)
            found = GridSearchCV(routed, grid, cv=2, refit=False, error_score="raise")
            with joblib.parallel_config(backend="threading", n_jobs=2):
                found.fit(X, Y, teacher_logits=Z_T)
        scores.append(found.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_sum_over_spans_of_rows(monkeypatch, backend, tmp_path):
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 32)
    monkeypatch.setattr(sklearn_kd.solvers._pass, "ROWS_PER_TASK", 1)
    folder(tmp_path, X)
    weights = np.linspace(0, 2, 300)
    expected = student(ridge=0.1).fit(X, Y, teacher_logits=Z_T, sample_weight=weights)
    for rows in (X, tmp_path):
        with joblib.parallel_config(backend=backend, n_jobs=2):
            fitted = student(ridge=0.1).fit(rows, Y, teacher_logits=Z_T, sample_weight=weights)
        np.testing.assert_allclose(fitted.dual_coef_, expected.dual_coef_, rtol=0, atol=1e-10)
        assert fitted.fit_report_.planned_bytes > expected.fit_report_.planned_bytes
