"""The choice of a solver: planned from shapes alone, and never an approximation by itself."""

import time

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement
from sklearn_kd.solvers._choice import BY_NAME, choose_solver
from sklearn_kd.solvers._system import Size

X, Y = make_classification(n_samples=60, random_state=0)
Z_T = X[:, 0]


def size(n_rows):
    return Size(n_rows, 50, 1, torch.float64, torch.device("cpu"))


def test_a_million_rows_are_refused_within_milliseconds():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with pytest.raises(MemoryBudgetError, match=r"fit with solver='cholesky' needs 7.2.. TiB"):
            choose_solver("cholesky", size(10**6), 16 * 2**30, what="fit")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


def test_auto_never_approximates():
    limit = 16 * 2**30
    assert choose_solver("auto", size(10_000), limit, what="fit").name == "cholesky"
    with pytest.raises(MemoryBudgetError, match=r"solver='nystrom' \(an approximation\)"):
        choose_solver("auto", size(10**6), limit, what="fit")
    assert choose_solver("nystrom", size(10**6), limit, what="fit").name == "nystrom"


def test_only_a_pass_over_the_rows_takes_streams():
    assert [name for name, solver in BY_NAME.items() if solver.takes_streams] == ["nystrom"]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_is_short_for_an_object_with_defaults(name):
    solver = BY_NAME[name]()
    options = [{"random_state": 0}] if "random_state" in solver.get_params() else [{}]
    solver.set_params(**options[0])
    by_object = LinearizedKDStudent(solver=solver).fit(X, Y, teacher_logits=Z_T)
    by_name = LinearizedKDStudent(solver=name).fit(X, Y, teacher_logits=Z_T)
    assert by_name.fit_report_.solver == by_object.fit_report_.solver == name
    assert type(by_name.solver_) is type(by_object.solver_) is BY_NAME[name]
    np.testing.assert_allclose(by_name.predict_proba(X), by_object.predict_proba(X), atol=1e-4)


def test_options_are_cloned_listed_and_searched():
    student = LinearizedKDStudent(solver=PCG(tol=1e-3, random_state=0))
    assert student.get_params()["solver__tol"] == 1e-3
    copy = clone(student)
    assert copy.solver is not student.solver
    assert copy.solver.get_params() == student.solver.get_params()
    grid = {"solver__tol": [1e-2, 1e-10], "solver__max_iter": [500]}
    found = GridSearchCV(student, grid, cv=2, error_score="raise")
    found.fit(X, Y, teacher_logits=Z_T)
    assert found.best_estimator_.solver.max_iter == 500
    assert student.solver.tol == 1e-3


@pytest.mark.parametrize("estimator", [LinearizedKDStudent, LinearizedKDStudentCV])
def test_an_unknown_option_is_a_clear_error(estimator):
    with pytest.raises(ValueError, match=r"Invalid parameter 'n_landmarks' for estimator PCG"):
        estimator(solver=PCG()).set_params(solver__n_landmarks=5)
    with pytest.raises(ValueError, match=r"solver__tol .* solver='pcg' .* solver=PCG\(\)"):
        estimator(solver="pcg").set_params(solver__tol=0.1)
    changed = estimator(solver="pcg").set_params(solver=PCG(), solver__tol=0.1)
    assert changed.solver.tol == 0.1
    with pytest.raises(TypeError, match="n_landmarks"):
        PCG(n_landmarks=5)


BAD_OPTIONS = {
    "tol": PCG(tol=0.0),
    "max_iter": Refinement(max_iter=0),
    "cache_size": Cholesky(cache_size=-1.0),
    "n_landmarks": Nystrom(n_landmarks=0),
    "landmarks": Nystrom(landmarks="best"),
    "checkpoint": Nystrom(checkpoint=3),
}


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        *((LinearizedKDStudent, name) for name in BAD_OPTIONS),
        # There is no search by refinement.
        *((LinearizedKDStudentCV, name) for name in BAD_OPTIONS if name != "max_iter"),
    ],
)
def test_options_are_checked_before_anything_is_done(estimator, name):
    with pytest.raises(
        ValueError, match=f"'{name}' parameter of {type(BAD_OPTIONS[name]).__name__}"
    ):
        estimator(solver=BAD_OPTIONS[name]).fit(X, Y, teacher_logits=Z_T)


def test_what_a_fit_used_does_not_change_with_its_parameters():
    student = LinearizedKDStudent(solver=PCG(tol=1e-3)).fit(X, Y, teacher_logits=Z_T)
    student.set_params(solver__tol=1e-9)
    assert student.solver_.tol == 1e-3
