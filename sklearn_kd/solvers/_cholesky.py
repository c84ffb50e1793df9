"""The exact student by one Cholesky factor: the tangent frame of all rows."""

from __future__ import annotations

from numbers import Real
from typing import ClassVar

from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import Interval, StrOptions
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._forecast import Work, factor_work, product_work
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.solvers._frame_cache import frames
from sklearn_kd.solvers._system import Size, Solution, Solver, System


class Cholesky(Solver):
    """Factor the kernel matrix of all rows, Θ_n + λ W⁻¹ = L Lᵀ: exact to rounding.

    Parameters
    ----------
    cache_size : "auto" or float, default="auto"
        Bytes of memory for results that later fits reuse, if they have the same rows, ``NTK``
        kernel, ridge, dtype and device. In a search these are the factors, and the kernel entries
        between training and test rows. They are kept in the process from the second request on,
        and the least recently used are dropped first. Results are the same bit for bit. "auto" is
        a fifth of the free memory; 0 keeps none. A :class:`~sklearn_kd.LinearizedKDStudentCV` keeps
        its factors itself, from its first fit on and up to as many bytes, for its next fit.

    Notes
    -----
    It takes the memory of one n × n matrix and the time of n³ / 3 multiplications.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.solvers import Cholesky
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> student = LinearizedKDStudent(LogisticRegression(), solver=Cholesky(cache_size=0))
    >>> student.fit(scale(X), y).fit_report_.solver
    'cholesky'
    """

    name: ClassVar[str] = "cholesky"
    kind: ClassVar[str] = "exact to rounding"
    n_steps: ClassVar[int] = 2
    remedy: ClassVar[str] = (
        "Use fewer rows, dtype='float32' (half the bytes), solver='pcg' (exact to tol, without the "
        "matrix), solver='nystrom' (an approximation), or raise memory_limit."
    )

    _parameter_constraints: ClassVar[dict] = {
        "cache_size": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, cache_size: float | str = "auto") -> None:
        self.cache_size = cache_size

    def planned_bytes(self, size: Size, memory_limit: float | str) -> int:
        """Return the peak bytes of the frame and a solve with it."""
        return frame_bytes(*size)

    def work(self, size: Size, memory_limit: float | str) -> list[Work]:
        """Return the kernel matrix, the factor and the solves."""
        n = size.n_rows
        solves = product_work(n, size.n_targets)
        return [Work(size.dtype, n**2 / 2, factor_work(n) + solves)]

    def solve(self, system: System, memory_limit: float | str, progress: FitTask) -> Solution:
        """Return the exact student: a = L⁻ᵀ L⁻¹ Δz (Eq. 4)."""
        assert isinstance(system.X, Tensor)
        with progress.step("kernel-and-factor"):
            frame = self.frame(system.kernel, system.X, system.weights, system.ridge, memory_limit)
        with progress.step("solve"):
            return solution_of(frame, system.targets)

    def frame(
        self,
        kernel: KernelFunction,
        X: Tensor,
        weights: Tensor,
        ridge: float,
        memory_limit: float | str,
    ) -> TangentFrame:
        """Return the tangent frame of the rows, from an earlier fit if that is kept."""
        return frames.frame(
            kernel,
            X,
            ridge=ridge,
            weights=weights,
            memory_limit=memory_limit,
            cache_size=self.cache_size,
        )


def solution_of(frame: TangentFrame, targets: Tensor) -> Solution:
    """Return the exact student of a frame."""
    dual_coef = frame.solve(targets)
    return Solution(
        dual_coef,
        frame.X,
        frame.weight_change_norm(targets, dual_coef),
        frame.jitter,
        frame.rcond,
        frame=frame,
    )
