"""What every search does: score the candidates, and fit one of them on all rows."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from sklearn_kd._progress import FitTask
from sklearn_kd.linalg._forecast import Work, warn_if_long
from sklearn_kd.search._grid import Candidate
from sklearn_kd.search._kept_factors import KeptFactors
from sklearn_kd.search._problem import Problem, Setting
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.solvers._choice import speed_of
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._posed import PosedStudent
from sklearn_kd.teachers._cross_fitting import Splits

# Of students that stop, means over the folds: Eq. 2, and the share of labels that are learnt.
TRAINING = ("mean_train_loss", "mean_train_accuracy")


class CandidateSearch(ABC):
    """The students of all candidates, trained on parts of the rows.

    The constructor plans: it raises before the teacher is asked, and before anything large.

    Attributes
    ----------
    setting : Setting
    splits : list of (train, test)
        The folds as row numbers; empty for leave-one-out.
    kept : KeptFactors or None
        What is kept for a next fit.
    """

    kept: KeptFactors | None = None

    def __init__(self, setting: Setting, splits: Splits) -> None:
        self.setting = setting
        self.splits = splits

    def warn_if_long(self) -> None:
        """Warn with `LongFitWarning` if the search will take minutes, without its teachers."""
        size, grid = self.setting.size, self.setting.grid
        n_ridges, n_kernels, n_times = len(grid.ridges), len(grid.kernels), len(grid.stopped_at)
        warn_if_long(
            f"LinearizedKDStudentCV.fit on n={size.n_rows} distinct rows with "
            f"solver={self.setting.solver.name!r} (ridges: {n_ridges}, kernels: {n_kernels}, "
            f"{f'stopping times: {n_times}, ' if n_times else ''}"
            f"folds: {len(self.splits) or 'each row'})",
            self.work(),
            self.faster,
            lambda: speed_of(grid.functions, self.setting.rows.X, size),
        )

    @abstractmethod
    def work(self) -> list[Work]:
        """Return what the search consists of, without its teachers."""

    @abstractmethod
    def faster(self) -> dict[str, list[Work]]:
        """Return what would do instead, in words, and what that consists of."""

    @property
    def training(self) -> dict[str, np.ndarray]:
        """Columns of ``cv_results_`` about the rows trained on; none without ``stopping_times``.

        NaN for converged students.
        """
        grid = self.setting.grid
        if not grid.names_time:
            return {}
        n_candidates = len(grid.candidates)
        return {name: np.full(n_candidates, np.nan) for name in TRAINING}

    @property
    def n_steps(self) -> int:
        """Number of steps that scores and the last fit announce."""
        grid, n_folds = self.setting.grid, max(1, len(self.splits))
        n_scores = len(grid.kernels) * len(grid.ridges) * len(grid.times) * n_folds
        return n_scores + self.setting.refit

    @abstractmethod
    def score(self, problem: Problem, scores: FoldScores, progress: FitTask) -> None:
        """Add the scores of every candidate, by students that have not seen the rows scored."""

    @abstractmethod
    def posed(self, problem: Problem, candidate: Candidate) -> PosedStudent:
        """Return the problem of one candidate on all rows."""

    @abstractmethod
    def solve(
        self, problem: Problem, posed: PosedStudent, candidate: Candidate, progress: FitTask
    ) -> Solution:
        """Return the student of one candidate on all rows, from what scoring has left."""
