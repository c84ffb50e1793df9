"""What a plan has found: a claim, how sure it is, and the sentences that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

CONFIDENCE = 0.9  # that of the best set of a search


@dataclass(frozen=True)
class Finding:
    """An answer of a plan.

    Parameters
    ----------
    topic : str
        The question, such as "hard labels".
    claim : str
        The answer in a word or two, to compute with.
    is_sure : bool
        Whether the rows tell, at 90 %; else the claim is the best guess.
    sentences : list of str
        The answer, with its uncertainty and its reason.
    values : dict
        The numbers behind it.
    """

    topic: str
    claim: str
    is_sure: bool
    sentences: list[str]
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(self.sentences)


class Contrast(NamedTuple):
    """How much worse some cells of a search are than its best one."""

    difference: float  # of their best cell, at least 0
    stderr: float
    is_worse: bool  # none of them is in the best set

    def __str__(self) -> str:
        return points(self.difference, self.stderr)


def contrast(search: Any, cells: np.ndarray) -> Contrast:
    """Return how much worse the cells of a mask (n_cells,) are than the best of all."""
    results = search.cv_results_
    inside = np.flatnonzero(cells)
    best = inside[np.argmax(results["mean_test_score"][inside])]
    return Contrast(
        float(max(0.0, -results["diff_test_score"][best])),
        float(results["stderr_diff_test_score"][best]),
        not results["in_best_set"][inside].any(),
    )


def limit_of(n_differences: int) -> float:
    """Return how many standard errors the largest of some differences may be by chance.

    Two-sided, at 90 % (Bonferroni).
    """
    return float(norm.ppf(1 - (1 - CONFIDENCE) / (2 * max(1, n_differences))))


def column(search: Any, name: str) -> np.ndarray:
    """Return a parameter of every cell."""
    return np.array([params[name] for params in search.cv_results_["params"]], dtype=float)


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the mean difference of two scores by row, and its standard error; NaN is left out."""
    difference = first - second
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2:
        return float("nan"), float("nan")
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def percent(share: float, stderr: float | None = None) -> str:
    """Return a share as "95.2 ± 0.6 %"."""
    spread = "" if stderr is None or not np.isfinite(stderr) else f" ± {100 * stderr:.1f}"
    return f"{100 * share:.1f}{spread} %"


def points(difference: float, stderr: float) -> str:
    """Return a difference of two shares as "0.8 ± 0.3 points"."""
    spread = f" ± {100 * stderr:.1f}" if np.isfinite(stderr) else ""
    return f"{round(100 * difference, 1) + 0.0:.1f}{spread} points".replace("-", "−")


def listed(names: list[str]) -> str:
    """Return names as "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
