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

from typing import Any, Self

from sklearn.base import BaseEstimator

from sklearn_kd._memory import budget_bytes, format_bytes, require
from sklearn_kd._sklearn import StrOptions
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SinglePrecisionWarning
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


class TakesSolver(BaseEstimator):
    """Base of the estimators with a parameter ``solver``: a name, or an object with options."""

    solver: str | Solver

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
            If a parameter does not exist, or is an option of a solver that is given by name.
        """
        solver = params.get("solver", self.solver)
        options = [key for key in params if key.startswith("solver__")]
        if options and isinstance(solver, str):
            known = BY_NAME.get(solver, Cholesky).__name__
            raise ValueError(
                f"{options[0]} cannot be set while solver={solver!r} is a name; set solver to an "
                f"object first, such as solver={known}() of sklearn_kd.solvers."
            )
        return super().set_params(**params)
