"""What scoring leaves of every row: its scores, where a score is a mean over rows, and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, zero_one_loss
from torch import Tensor

from sklearn_kd._logits import class_indices, class_probabilities
from sklearn_kd._sklearn import PassthroughScorer
from sklearn_kd.metrics import neg_transfer_risk_scorer
from sklearn_kd.search._held_out_student import HeldOutStudent
from sklearn_kd.search._rows_to_check import values_of_labels
from sklearn_kd.search._scored_rows import ScoredRows
from sklearn_kd.search._uncertainty import ScoredSplit

# The mean over the rows is the score, to rounding; else the score is no such mean.
_AGREEMENT = 1e-9


def _is_right(student: HeldOutStudent, labels: Tensor) -> Tensor:
    return class_indices(student.logits) == labels


def _is_wrong(student: HeldOutStudent, labels: Tensor) -> Tensor:
    return class_indices(student.logits) != labels


def _log_loss(student: HeldOutStudent, labels: Tensor) -> Tensor:
    p = class_probabilities(student.logits)
    chosen = p[torch.arange(len(labels), device=p.device), labels]
    epsilon = torch.finfo(chosen.dtype).eps
    return -chosen.clamp(epsilon, 1 - epsilon).log()


def _brier_score(student: HeldOutStudent, labels: Tensor) -> Tensor:
    p = class_probabilities(student.logits)
    errors = p - torch.nn.functional.one_hot(labels, p.shape[1])
    # Two classes: that of one of them.
    return errors.square().sum(dim=1) / (2 if p.shape[1] == 2 else 1)


def _disagrees(student: HeldOutStudent, labels: Tensor) -> Tensor:
    assert student.teacher_logits is not None, "the score has asked for them"
    return class_indices(student.logits) != class_indices(student.teacher_logits)


# The scores that are a mean over the rows, and what each row adds.
_BY_ROW: dict[Any, Callable[[HeldOutStudent, Tensor], Tensor]] = {
    accuracy_score: _is_right,
    zero_one_loss: _is_wrong,
    log_loss: _log_loss,
    brier_score_loss: _brier_score,
    neg_transfer_risk_scorer._score_func: _disagrees,
}


class RowScore(NamedTuple):
    """A score that is a mean over the rows."""

    value: Callable[[HeldOutStudent, Tensor], Tensor]
    sign: int  # -1: greater is worse

    def of(self, students: list[HeldOutStudent], labels: np.ndarray) -> np.ndarray:
        """Return the scores of each row by each student, (m, C)."""
        indices = torch.from_numpy(labels)
        columns = [self.value(student, indices).double() for student in students]
        return self.sign * torch.stack(columns, dim=1).numpy()


def row_scores_of(scorer: Any) -> dict[str, RowScore]:
    """Return those of a scorer's scores, by name, that are known to be means over the rows."""
    several = getattr(scorer, "_scorers", {"score": scorer})
    found = {}
    for name, single in several.items():
        if isinstance(single, PassthroughScorer):
            found[name] = RowScore(_is_right, 1)
        elif (metric := getattr(single, "_score_func", None)) in _BY_ROW:
            found[name] = RowScore(_BY_ROW[metric], single._sign)
    return found


def is_accuracy(scorer: Any, name: str) -> bool:
    """Whether a score is the share of rows that are classified correctly."""
    score = row_scores_of(scorer).get(name)
    return score is not None and score.value is _is_right


class RowRecord:
    """The scores by row, and the logits, of all cells on all held-out rows."""

    def __init__(self, scorer: Any) -> None:
        self._row_scores = row_scores_of(scorer)
        self._splits: list[ScoredRows] = []  # those of the first kernel and ridge: all have these
        self._is_first = True
        # {name: scores (m, n_recipes)} for each split of each kernel and ridge, and logits.
        self._scores: list[list[dict[str, np.ndarray]]] = [[]]
        self._logits: list[list[np.ndarray]] = [[]]

    def add(
        self, students: list[HeldOutStudent], rows: ScoredRows, scores: dict[str, np.ndarray]
    ) -> None:
        """Keep what the students of every recipe make of the rows of a split."""
        if self._is_first:
            self._splits.append(rows)
        by_row = {name: score.of(students, rows.labels) for name, score in self._row_scores.items()}
        for name, values in by_row.items():
            if not np.allclose(rows.shares @ values, scores[name], _AGREEMENT, _AGREEMENT):
                del self._row_scores[name]  # such as a sum over the rows
        self._scores[-1].append(by_row)
        logits = torch.stack([student.logits for student in students], dim=1)
        self._logits[-1].append(logits.float().numpy())

    def close_cell(self) -> None:
        """End the splits of one kernel and ridge."""
        self._is_first = False
        self._scores.append([])
        self._logits.append([])

    def splits(self, name: str) -> list[ScoredSplit] | None:
        """Return a score by row on every split, for all cells; None if it is no mean over rows."""
        if name not in self._row_scores:
            return None
        return [
            ScoredSplit(
                np.concatenate([cell[k][name] for cell in self._scores[:-1]], axis=1),
                rows.shares / len(self._splits),
                rows.units,
            )
            for k, rows in enumerate(self._splits)
        ]

    def values_of_labels(self, cells: np.ndarray, n_rows: int) -> np.ndarray:
        """Return what a true label of each of ``n_rows`` rows is worth to tell ``cells`` apart.

        Summed over the splits that score the row.
        """
        values = np.zeros(n_rows)
        for k, rows in enumerate(self._splits):
            of_split = np.concatenate([cell[k] for cell in self._logits[:-1]], axis=1)
            values[rows.numbers] += values_of_labels(
                [torch.from_numpy(of_split[:, cell]) for cell in cells],
                torch.from_numpy(rows.shares / len(self._splits)),
            ).numpy()
        return values

    def held_out_logits(self, cell: int, n_rows: int) -> np.ndarray:
        """Return the logits of a cell on each of ``n_rows`` rows, by students without the row.

        The mean over the splits that score the row; NaN where none does. (n_rows,) or (n_rows, K).
        """
        of_splits = [
            np.concatenate([logits[k] for logits in self._logits[:-1]], axis=1)[:, cell]
            for k in range(len(self._splits))
        ]
        total = np.zeros((n_rows, *of_splits[0].shape[1:]))
        count = np.zeros(n_rows)
        for rows, logits in zip(self._splits, of_splits, strict=True):
            total[rows.numbers] += logits
            count[rows.numbers] += 1
        count[count == 0] = np.nan
        return total / (count if total.ndim == 1 else count[:, None])

    @property
    def has_repeats(self) -> bool:
        """Whether a row is in several splits."""
        numbers = np.concatenate([rows.numbers for rows in self._splits])
        return len(np.unique(numbers)) < len(numbers)
