"""What a search knows before its scores: candidates, rows, students, the teacher's logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd.rows._views import rows_of_teacher
from sklearn_kd.search._by_factor import SearchByFactor
from sklearn_kd.search._by_flow import SearchByFlow
from sklearn_kd.search._by_iteration import SearchByIteration
from sklearn_kd.search._by_pass import SearchByPass, rows_of_landmarks
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._problem import Setting
from sklearn_kd.search._protocol import CandidateSearch
from sklearn_kd.solvers import PCG, Cholesky, Nystrom
from sklearn_kd.solvers._system import Solver
from sklearn_kd.students._posed import Rows, default_teacher
from sklearn_kd.teachers._cross_fitting import INNER_FOLDS
from sklearn_kd.teachers._logits_of import Reading
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._several import require_teachers
from sklearn_kd.teachers._teaching import Taught, n_teaching_steps, teach, teach_folds

# Leave-one-out in closed form is for converged students, and logits that do not depend on labels.
_FOLDS_WITHOUT_CLOSED_FORM = 5


def grid_of(search: Any, teacher_logits: Any) -> Grid:
    """Return the candidates of a search."""
    require_teachers(search.teacher_weights, teacher_logits)
    return Grid.of(
        soft_ratios=search.soft_ratios,
        temperatures=search.temperatures,
        ridges=search.ridges,
        kernel=search.kernel,
        temperature_scaling=search.temperature_scaling,
        stopping_times=search.stopping_times,
        teacher_weights=search.teacher_weights,
        teacher=search.teacher if teacher_logits is None else None,
    )


def planned_search(
    search: Any, grid: Grid, solver: Solver, sees_labels: bool, rows: Rows, n_validation: int
) -> CandidateSearch:
    """Return the students of all candidates, once they are known to fit the memory.

    Warns with `LongFitWarning` if their scores will take minutes.

    Raises
    ------
    MemoryBudgetError
        If they do not fit.
    ValueError
        If students are to stop, and the solver has no kernel matrix.
    """
    stops = bool(grid.stopped_at)
    if stops and not isinstance(solver, Cholesky):
        raise ValueError(
            f"stopping_times={search.stopping_times!r} need the kernel matrix in memory, which "
            f"solver={solver.name!r} does without; use solver='auto'."
        )
    if isinstance(solver, Nystrom):
        rows = rows_of_landmarks(search, rows, solver)
        if isinstance(rows.X, Tensor):
            solver = Cholesky()  # every row is a landmark: the exact students
    cv = search.cv
    if cv is None and not n_validation and (sees_labels or stops):
        cv = _FOLDS_WITHOUT_CLOSED_FORM
    setting = Setting(
        grid,
        rows,
        solver,
        cv,
        search.init,
        bool(search.refit),
        search.memory_limit,
        sees_labels,
        n_scores=len(search.scoring) if isinstance(search.scoring, list | tuple | dict) else 1,
        kept=vars(search).get("_kept_factors"),
        n_validation=n_validation,
    )
    students: CandidateSearch
    if isinstance(solver, PCG):
        students = SearchByIteration(setting)
    elif isinstance(solver, Nystrom):
        students = SearchByPass(setting)
    elif stops:
        students = SearchByFlow(setting)
    else:
        students = SearchByFactor(setting)
    students.warn_if_long()
    return students


def taught_by(
    search: Any,
    students: CandidateSearch,
    X: Any,
    teacher_logits: Any,
    progress: FitTask,
) -> Taught:
    """Begin the search, and return the fitted teacher and its logits.

    The logits are by fold where the teacher is fitted to these labels.
    """
    rows, kernel = students.setting.rows.checked, students.setting.grid.used_kernels[0]
    X, cv, splits = rows_of_teacher(X), search.teacher_cv, students.splits

    def default() -> NTKTeacher:
        return default_teacher(search, kernel)

    sees_labels = students.setting.sees_labels
    n_teaching = n_teaching_steps(
        search.teacher,
        teacher_logits,
        cv=cv,
        n_rows=len(rows.labels),
        splits=splits if sees_labels else None,
    )
    progress.begin(n_teaching + students.n_steps)
    reading = Reading(search.teacher_method, search.probability_floor)
    common: dict[str, Any] = {"reading": reading, "default": default, "progress": progress}
    if sees_labels:
        n_jobs = search.n_jobs
        return teach_folds(search.teacher, X, rows, splits=splits, cv=cv, n_jobs=n_jobs, **common)
    cv = INNER_FOLDS if cv is None else cv  # unfitted, and scored on validation rows
    return teach(search.teacher, X, rows, teacher_logits, cv=cv, **common)
