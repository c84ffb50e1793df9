"""The choice of a fit's solver, which must fit the memory.

============  ====================================  ============================================
solver        what it finds                         what it holds
============  ====================================  ============================================
"cholesky"    a, to rounding                        the (n, n) factor
"refinement"  a, to a residual of ``tol``           the (n, n) factor in float32
"pcg"         a, to a residual of ``tol``           an (n, k) preconditioner; Θ if it fits
"nystrom"     the best f in the span of M of the n  the (M, M) sums over the rows, a block of
              features, see `linalg._landmarks`     rows
============  ====================================  ============================================

"auto" is the first exact solver that fits the memory. Approximations must be chosen by name.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from sklearn_kd._memory import budget_bytes, format_bytes, require
from sklearn_kd._sklearn import StrOptions
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SinglePrecisionWarning
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._forecast import HALF, Speed, Work, n_sampled, warn_if_long
from sklearn_kd.rows._streams import RowStream
from sklearn_kd.solvers._cholesky import Cholesky
from sklearn_kd.solvers._nystrom import Nystrom
from sklearn_kd.solvers._pcg import PCG
from sklearn_kd.solvers._refinement import Refinement
from sklearn_kd.solvers._system import Size, Solver

BY_NAME: dict[str, type[Solver]] = {
    solver.name: solver for solver in (Cholesky, Refinement, PCG, Nystrom)
}

# What estimators take as ``solver``.
CONSTRAINT = [StrOptions({"auto", *BY_NAME}), Solver]


def named_solver(solver: str | Solver) -> Solver:
    """Return the chosen solver after checking its options; "auto" begins with Cholesky."""
    if isinstance(solver, str):
        return Cholesky() if solver == "auto" else BY_NAME[solver]()
    solver.check_options()
    return solver


def choose_solver(
    solver: str | Solver, size: Size, memory_limit: float | str, *, what: str
) -> Solver:
    """Return the solver to use, after checking that it fits the memory.

    Parameters
    ----------
    solver : str or Solver
        The student's ``solver``. "auto" is the first exact solver that fits: Cholesky, then
        Refinement. PCG is not among them: it needs no matrix in memory, so it would start on
        any number of rows, however long that takes.
    size : Size
    memory_limit : "auto" or number of bytes
    what : str
        The computation, for the message.

    Raises
    ------
    MemoryBudgetError
        If it does not fit ``memory_limit``.
    """
    first = named_solver(solver)
    budget = budget_bytes(memory_limit, size.device)
    planned = first.planned_bytes(size, memory_limit)
    if solver == "auto" and planned > budget:
        second = Refinement()
        if second.planned_bytes(size, memory_limit) <= budget:
            warn(
                f"{what} needs {format_bytes(planned)} for a factor in float64, more than "
                f"memory_limit={memory_limit!r} allows. It is factored in float32, and the answer "
                f"is iterated to a relative residual of tol={second.tol:g} in float64. "
                "solver='refinement' asks for this without the warning.",
                SinglePrecisionWarning,
            )
            return second
    require(
        planned,
        memory_limit,
        size.device,
        what=f"{what} with solver={first.name!r}",
        remedy=first.remedy,
    )
    return first


def warn_if_long_fit(
    solver: Solver,
    size: Size,
    memory_limit: float | str,
    kernel: KernelFunction,
    X: Tensor | RowStream,
    *,
    what: str,
) -> None:
    """Warn with `LongFitWarning` if a solve will take minutes, and name what is faster.

    Parameters
    ----------
    solver : Solver
        The chosen one.
    size : Size
    memory_limit : "auto" or number of bytes
    kernel : KernelFunction
    X : Tensor of shape (n, d), or RowStream
        Distinct rows, of which a sample is measured.
    what : str
        The computation, for the message.
    """

    def options() -> dict[str, list[Work]]:
        budget = budget_bytes(memory_limit, size.device)
        others = [other() for other in BY_NAME.values() if other.name != solver.name]
        return {
            in_words(other): other.work(size, memory_limit)
            for other in others
            if other.planned_bytes(size, memory_limit) <= budget
        } | reduced(solver, size, memory_limit)

    warn_if_long(
        f"{what} with solver={solver.name!r}",
        solver.work(size, memory_limit),
        options,
        functools.partial(speed_of, [kernel], X, size),
    )


def reduced(solver: Solver, size: Size, memory_limit: float | str) -> dict[str, list[Work]]:
    """Return the same solver on less: half of the landmarks, or of the rows."""
    if isinstance(solver, Nystrom):
        fewer = Nystrom(max(1, solver.n_landmarks // 2))
        return {f"n_landmarks={fewer.n_landmarks}": fewer.work(size, memory_limit)}
    return {HALF: solver.work(size._replace(n_rows=size.n_rows // 2), memory_limit)}


def in_words(solver: Solver) -> str:
    """Return how a warning names another solver with its defaults."""
    return f"solver={solver.name!r} ({solver.kind})"


def speed_of(kernels: Sequence[KernelFunction], X: Tensor | RowStream, size: Size) -> Speed:
    """Return the speed of the kernels on the first rows."""
    n_sample = n_sampled(size.n_rows)
    if isinstance(X, Tensor):
        return Speed(kernels, X[:n_sample])
    rows = X.take(np.arange(n_sample), dtype=size.dtype)
    return Speed(kernels, rows.to(size.device))


class TakesSolver(BaseEstimator):
    """Base of the estimators with a parameter ``solver``: a name, or an object with options."""

    solver: str | Solver
    teacher: Any

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of a solver, kernel or teacher: ``solver__tol=1e-8``.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        self : estimator
            This estimator.

        Raises
        ------
        ValueError
            If a parameter does not exist, is an option of a solver that is given by name, or of
            one among several teachers.
        """
        of_teacher = [key for key in params if key.startswith("teacher__")]
        if of_teacher and isinstance(params.get("teacher", self.teacher), (list, tuple)):
            raise ValueError(
                f"{of_teacher[0]} cannot be set while teacher is a list; set the parameter of one "
                "of them, or teacher to another list. A grid may hold several lists."
            )
        solver = params.get("solver", self.solver)
        options = [key for key in params if key.startswith("solver__")]
        if options and isinstance(solver, str):
            known = BY_NAME.get(solver, Cholesky).__name__
            raise ValueError(
                f"{options[0]} cannot be set while solver={solver!r} is a name; set solver to an "
                f"object first, such as solver={known}() of sklearn_kd.solvers."
            )
        return super().set_params(**params)
