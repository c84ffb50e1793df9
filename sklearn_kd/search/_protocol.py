"""What every search does: score the candidates, and fit one of them on all rows."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sklearn_kd._progress import FitTask
from sklearn_kd.search._grid import Candidate
from sklearn_kd.search._kept_factors import KeptFactors
from sklearn_kd.search._problem import Problem, Setting
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.solvers._system import Solution
from sklearn_kd.students._posed import PosedStudent
from sklearn_kd.teachers._cross_fitting import Splits


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
