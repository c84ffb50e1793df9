"""The chosen student of a search, fitted on all rows."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from sklearn_kd._progress import FitTask
from sklearn_kd.search._problem import Problem
from sklearn_kd.search._protocol import CandidateSearch
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.teachers._several import is_list, members_of


def fit_best(
    search: Any, students: CandidateSearch, problem: Problem, index: int, progress: FitTask
) -> dict[str, Any]:
    """Return the attributes of the best student, fitted on all rows."""
    candidate = problem.setting.grid.candidates[index]
    posed = students.posed(problem, candidate)
    with progress.step("refit"):
        solution = students.solve(problem, posed, candidate, progress)
    # The fitted teachers, as they are from now on.
    teacher = problem.taught.teacher
    frozen = [None if one is None else FrozenEstimator(one) for one in members_of(teacher)]
    params = {"kernel": search.kernel, **problem.setting.grid.params_of(candidate)}
    student = LinearizedKDStudent(
        frozen if is_list(teacher) else frozen[0],
        init=search.init,
        temperature_scaling=search.temperature_scaling,
        teacher_method=search.teacher_method,
        probability_floor=search.probability_floor,
        solver=clone(search.solver, safe=False),
        device=search.device,
        dtype=search.dtype,
        memory_limit=search.memory_limit,
        **params,
    )
    student._adopt(posed, solution)
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(search, name):
            setattr(student, name, getattr(search, name))
    of_the_best = {
        name: getattr(student, name) for name in ("kernel_", "X_fit_", "dual_coef_", "n_iter_")
    }
    return {"best_estimator_": student, **of_the_best}
