"""The input and output of a solver: (Θ_n + λ W⁻¹) a = Δz (Eq. 4).

Symbols (paper -> code -> shape), with n distinct rows and K columns:

====  ===========  ==================================
Θ_n   ``kernel``   (n, n), evaluated on ``X``
W     ``weights``  (n,) total weight of a row's copies
λ     ``ridge``    scalar
Δz    ``targets``  (n,) or (n, K), z_eff − z₀
a     dual_coef    (n,) or (n, K)
====  ===========  ==================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklearn_kd._progress import FitTask
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._forecast import Work
from sklearn_kd.rows._streams import RowStream

# Largest number of progress reports to callbacks from one pass or iteration.
N_REPORTS = 100


class Size(NamedTuple):
    """Shape of a system: rows n, features d, columns K, and where and how it is computed."""

    n_rows: int
    n_features: int
    n_targets: int
    dtype: torch.dtype
    device: torch.device


class System(NamedTuple):
    """(Θ_n + λ W⁻¹) a = Δz on distinct rows."""

    kernel: KernelFunction
    X: Tensor | RowStream  # (n, d); a stream only for solvers that take one
    weights: Tensor  # (n,) in the working dtype on the working device
    targets: Tensor  # (n,) or (n, K), Δz
    ridge: float

    @property
    def size(self) -> Size:
        """Return the shape of the system."""
        (n_rows, n_features), n_targets = self.X.shape, self.targets[0].numel()
        return Size(n_rows, n_features, n_targets, self.weights.dtype, self.weights.device)


@dataclass(frozen=True)
class Solution:
    """The student that a solver found: f(x) = z₀(x) + Θ(x, X_fit) dual_coef.

    ``frame`` is the tangent frame, if the solver has built it. ``stages`` are the coefficients at
    each stopping time, if training stops. ``report`` holds the solver's entries of ``fit_report_``.
    """

    dual_coef: Tensor  # (m,) or (m, K)
    X_fit: Tensor  # (m, d)
    weight_change_norm: float
    jitter: float
    rcond: float
    n_iter: int = 1
    frame: TangentFrame | None = None
    stages: Tensor | None = None  # (S, m) or (S, m, K)
    report: dict[str, Any] = field(default_factory=dict)


def require_finite(solution: Solution) -> Solution:
    """Return the solution; raise `ValueError` where it holds NaN or infinity."""
    if solution.dual_coef.isfinite().all():
        return solution
    raise ValueError(
        "The student's coefficients are not finite: entries of the kernel matrix, or their "
        "products with the targets, leave the range of the dtype. Scale the features, such as by "
        "StandardScaler, or use dtype='float64'."
    )


class Solver(BaseEstimator, ABC):
    """Base of the solvers, each with its options, its plan of bytes, its remedy and its solve.

    Solving does not change a solver, so one may serve many students.
    """

    name: ClassVar[str]  # as in ``solver="name"``
    kind: ClassVar[str]  # what it finds with its defaults, in a few words
    remedy: ClassVar[str]  # what to do if its plan does not fit the memory
    n_steps: ClassVar[int]  # that a solve announces to callbacks
    takes_streams: ClassVar[bool] = False  # whether rows may be read block by block
    keeps_all_rows: ClassVar[bool] = True  # whether the expansion is over all training rows

    def check_options(self) -> None:
        """Raise `InvalidParameterError` unless the options are valid."""
        self._validate_params()

    @abstractmethod
    def planned_bytes(self, size: Size, memory_limit: float | str) -> int:
        """Return the peak bytes of a solve, from shapes alone.

        ``memory_limit`` matters to solvers that keep as much in memory as fits.
        """

    @abstractmethod
    def work(self, size: Size, memory_limit: float | str) -> list[Work]:
        """Return what a solve consists of, from shapes alone.

        Iterations are counted as for problems of ordinary condition.
        """

    @abstractmethod
    def solve(self, system: System, memory_limit: float | str, progress: FitTask) -> Solution:
        """Return the student."""
