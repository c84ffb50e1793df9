"""A student's problem: checked rows, the logits to reach, and the equations that follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.utils import Bunch
from torch import Tensor

from sklearn_kd._kernel_machine import kernel_to_use, warn_if_unscaled
from sklearn_kd._logits import n_logits
from sklearn_kd._progress import FitTask
from sklearn_kd.distillation._effective_logits_of_rows import (
    MergedLabels,
    effective_logits_if_any,
    merged_labels,
)
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.rows._checking import check_rows, check_streamed_rows, check_trust
from sklearn_kd.rows._labels import ClassHints
from sklearn_kd.rows._streams import RowStream, is_streamed
from sklearn_kd.rows._training_rows import (
    DistinctRows,
    TrainingRows,
    distinct_of_stream,
    distinct_rows,
    rows_report,
)
from sklearn_kd.rows._views import rows_of_student, rows_of_teacher
from sklearn_kd.solvers._choice import choose_solver, named_solver, warn_if_long_fit
from sklearn_kd.solvers._cholesky import Cholesky
from sklearn_kd.solvers._system import Size, Solution, Solver, System
from sklearn_kd.students._initial_network import initial_logits, start_of
from sklearn_kd.students._stopped import N_STEPS, require_memory, warn_if_long_flow
from sklearn_kd.teachers._logits_of import Reading
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._several import normalised_weights, require_teachers
from sklearn_kd.teachers._teaching import Taught, class_hints, n_teaching_steps, teach
from sklearn_kd.training._stopping_time import stopping_times


class Rows(NamedTuple):
    """The rows of a fit, those that are distinct, and where the features of these are."""

    checked: TrainingRows
    distinct: DistinctRows
    X: Tensor | RowStream  # (n, d) of the distinct rows


@dataclass(frozen=True)
class PosedStudent:
    """What a solver and `LinearizedKDStudent._adopt` are given.

    Symbols (paper -> code -> shape), with n distinct rows, K classes (no K axis for two) and M
    teachers: z_t is ``taught.logits.values`` (M, n_samples, K), z_eff ``effective_logits`` and z₀
    ``initial_logits``, (n,) or (n, K).
    """

    rows: Rows
    solver: Solver
    kernel: Any  # as the student keeps it
    function: KernelFunction  # the same on tensors
    init: str
    ridge: float
    recipe: dict[str, Any]  # soft_ratio, temperature, temperature_scaling, teacher_weights
    taught: Taught
    effective_logits: Tensor | None  # None if there are none: hard labels alone
    initial_logits: Tensor
    stopping_times: list[float] | None = None
    labels: MergedLabels | None = None  # of a student that stops

    @property
    def system(self) -> System:
        """(Θ_n + λ W⁻¹) a = Δz with Δz = z_eff − z₀ (Eq. 4)."""
        assert self.effective_logits is not None, "only a student that stops has none"
        targets = self.effective_logits - self.initial_logits
        weights = self.rows.distinct.weights
        return System(self.function, self.rows.X, weights, targets, self.ridge)


def read_rows(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    teacher_trust: Any,
    solver: Solver,
    hints: ClassHints,
) -> Rows:
    """Return the rows of a fit, checked, with exact copies found.

    Raises
    ------
    ValueError
        If they are not what ``estimator`` can be fitted to, or not in memory where ``solver``
        needs them there.
    """
    X = rows_of_student(X)
    if solver.takes_streams and is_streamed(X):
        checked = check_streamed_rows(estimator, X, y, sample_weight, hints)
        checked = checked._replace(trust=check_trust(teacher_trust, len(checked.labels)))
        return Rows(checked, *distinct_of_stream(checked))
    if isinstance(X, str | Path):
        name = estimator.solver if isinstance(estimator.solver, str) else solver.name
        raise ValueError(
            f"X={str(X)!r} is a path, which solver={name!r} cannot read; pass the rows, as "
            "numpy.load or pandas.read_csv return them, or use solver='nystrom' for a folder of "
            ".npy files."
        )
    checked = check_rows(estimator, X, y, sample_weight, hints)
    checked = checked._replace(trust=check_trust(teacher_trust, len(checked.labels)))
    warn_if_unscaled(estimator, checked.X)
    distinct = distinct_rows(checked)
    return Rows(checked, distinct, distinct.X)


def pose(
    student: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    teacher_logits: Any,
    teacher_trust: Any,
    classes: Any,
    progress: FitTask,
) -> PosedStudent:
    """Return the problem of a `LinearizedKDStudent`, once it is known to fit the memory.

    Raises
    ------
    MemoryBudgetError
        Before anything slow or large, if the solver's plan exceeds ``memory_limit``.
    ValueError
        If the rows, the labels, the teacher or the initial network are not as they must be.
    """
    hints = class_hints(student.teacher, student.cv, teacher_logits, classes)
    require_teachers(student.teacher_weights, teacher_logits)
    solver = named_solver(student.solver)
    rows = read_rows(student, X, y, sample_weight, teacher_trust, solver, hints)
    taught_by = student.teacher if teacher_logits is None else None
    teacher_weights = normalised_weights(student.teacher_weights, taught_by)
    n_classes, weights = len(rows.checked.classes), rows.distinct.weights
    n_rows, n_features = rows.X.shape
    size = Size(n_rows, n_features, n_logits(n_classes), weights.dtype, weights.device)
    what = f"LinearizedKDStudent.fit on n={n_rows} distinct rows"
    times = stopping_times(student.stopping_time)
    _check_that_it_ends(student, solver, times)
    if times is None:
        solver = choose_solver(student.solver, size, student.memory_limit, what=what)
    else:
        require_memory(size, student.memory_limit)

    # 1. The logits z₀ of the network before training.
    kernel = kernel_to_use(student.kernel)
    function = as_kernel_function(kernel)
    if times is not None:
        warn_if_long_flow(size, times, function, rows.distinct.X, what=what)
    else:
        warn_if_long_fit(solver, size, student.memory_limit, function, rows.X, what=what)
    n_teaching = n_teaching_steps(student.teacher, teacher_logits, cv=student.cv, n_rows=n_rows)
    progress.begin(n_teaching + (solver.n_steps if times is None else N_STEPS))
    z_0 = initial_logits(student.init, kernel, function, rows.X, n_classes, weights)

    # 2. The teacher's logits z_t on the training rows.
    taught = teach(
        student.teacher,
        rows_of_teacher(X),
        rows.checked,
        teacher_logits,
        cv=student.cv,
        reading=Reading(student.teacher_method, student.probability_floor),
        default=lambda: default_teacher(student, kernel),
        progress=progress,
    )

    # 3. The logits at which the distillation loss is stationary, z_eff (Eq. 3).
    recipe = {
        "soft_ratio": student.soft_ratio,
        "temperature": student.temperature,
        "temperature_scaling": student.temperature_scaling,
        "teacher_weights": teacher_weights,
    }
    labels = merged_labels(taught.logits.values, rows.distinct, recipe)
    z_eff = effective_logits_if_any(labels, recipe)
    return PosedStudent(
        rows=rows,
        solver=solver,
        kernel=kernel,
        function=function,
        init=start_of(student.init, function),
        ridge=student.ridge,
        recipe=recipe,
        taught=taught,
        effective_logits=z_eff,
        initial_logits=z_0,
        stopping_times=times,
        labels=labels,
    )


def _check_that_it_ends(student: Any, solver: Solver, times: list[float] | None) -> None:
    """Raise `ValueError` where training neither converges nor stops, or cannot."""
    if times is None and student.soft_ratio == 0:
        raise ValueError(
            "soft_ratio=0 leaves hard labels alone, which are learnt without end: Eq. 3 has no "
            "finite root. Use soft_ratio > 0, or a stopping_time."
        )
    if times is not None and not isinstance(solver, Cholesky):
        raise ValueError(
            f"stopping_time={student.stopping_time!r} needs the kernel matrix in memory, which "
            f"solver={solver.name!r} does without; use solver='auto'."
        )


def default_teacher(student: Any, kernel: Any) -> NTKTeacher:
    """Return the teacher of a student that names none: a wide network with the same kernel."""
    return NTKTeacher(
        kernel_to_use(kernel),
        device=student.device,
        dtype=student.dtype,
        memory_limit=student.memory_limit,
    )


def report_of(posed: PosedStudent, solution: Solution) -> Bunch:
    """Return what a student says of its fit."""
    return Bunch(
        **rows_report(posed.rows.checked, posed.rows.distinct),
        **report_of_teaching(posed.taught),
        **posed.recipe,
        init=posed.init,
        ridge=posed.ridge,
        noise=posed.function.noise(solution.X_fit),
        jitter=solution.jitter,
        rcond=solution.rcond,
        solver=posed.solver.name if solution.stages is None else "gradient flow",
        stopping_time=posed.stopping_times,
        **solution.report,
    )


def report_of_teaching(taught: Taught) -> dict[str, Any]:
    """Return where the teachers' logits came from; of several teachers in lists."""
    z_t, readings = taught.logits, taught.readings
    methods = [None if z_t.method is None else reading.method for reading in readings]
    floors = [
        reading.floor if method == "predict_proba" else None
        for reading, method in zip(readings, methods, strict=True)
    ]
    is_one = len(readings) == 1
    return {
        "teacher_method": methods[0] if is_one else methods,
        "probability_floor": floors[0] if is_one else floors,
        "n_clipped_teacher_rows": z_t.n_clipped,
        "cross_fitted_teacher": z_t.cross_fitted,
    }
