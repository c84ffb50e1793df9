"""How sure the differences between the cells of a search are: paired, and simultaneous over cells.

Cells share the rows that they are scored on, so a difference of two scores has far less noise than
either score. Symbols, with n units (distinct rows, or folds) and C cells:

=======  =============  =======================================================================
e_ij     ``parts``      (n, C) what unit i adds to the mean score of cell j, less its expectation
D_kj                    difference of the mean scores of the cells k and j
s_kj                    its paired standard error, √(n/(n − 1) Σ_i (e_ik − e_ij)²)
=======  =============  =======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

# The set holds the best cell with this probability.
CONFIDENCE = 0.9

# Draws of the largest difference; from a generator of its own, with this seed.
_N_DRAWS = 2000
_SEED = 0

# Differences below this share of the scores, or of their errors, are rounding.
_ROUNDING = 1e-10


class Uncertainty(NamedTuple):
    """The differences of all cells to the best one."""

    difference: np.ndarray  # (C,) mean score less the best mean score
    stderr: np.ndarray  # (C,) its paired standard error; NaN from a single unit
    in_best_set: np.ndarray  # (C,) bool


class ScoredSplit(NamedTuple):
    """The scores by row of all cells on the rows of a split."""

    scores: np.ndarray  # (m, C)
    weights: np.ndarray  # (m,) the weight of each row in the mean score
    units: np.ndarray  # (m,) the distinct row of each row


def parts_by_row(splits: Sequence[ScoredSplit], mean: np.ndarray) -> np.ndarray:
    """Return what each distinct row adds to the mean scores, less its expectation, (n, C).

    e_i = Σ_k u_ik (s_ik − mean), over the splits k that score row i or a copy of it, u_ik the
    weight of the row in the mean: Σ_ik u_ik = 1. Copies are one unit, and so are the scores of a
    row in several splits: they depend on each other.
    """
    units = np.concatenate([split.units for split in splits])
    values = [weights[:, None] * (scores - mean) for scores, weights, _ in splits]
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    return np.add.reduceat(np.concatenate(values)[order], starts)


def parts_by_fold(scores: np.ndarray, overlap: float) -> np.ndarray:
    """Return what each fold adds to the mean scores, less its expectation, (K, C).

    e_k = (s_k − mean) / K. Splits that share test rows depend on each other: they count as
    1 + K n_test / n_train times fewer (Nadeau and Bengio, 2003).

    Parameters
    ----------
    scores : ndarray of shape (K, C)
    overlap : float
        n_test / n_train where splits share test rows, else 0.
    """
    n_folds = len(scores)
    return (scores - scores.mean(axis=0)) * (np.sqrt(1 + n_folds * overlap) / n_folds)


def uncertainty(mean: np.ndarray, parts: np.ndarray, best: int, *, many_units: bool) -> Uncertainty:
    """Return each cell's difference to the best one, its error, and the set of the best.

    A cell is in the set unless another one is better by more than chance allows,
    max_k D_kj / s_kj > c_j, with c_j the 90 % quantile of the same maximum where no cell differs
    from cell j. The truly best cell is then in the set in 90 % of all samples, however many cells
    there are: multiple comparisons with the best (Hsu, 1984; Lei, 2020, for cross-validation).

    Parameters
    ----------
    mean : ndarray of shape (C,)
    parts : ndarray of shape (n, C)
        From `parts_by_row` or `parts_by_fold`.
    best : int
        The cell of the largest mean that is preferred.
    many_units : bool
        Whether c_j is found from draws of normal scores with the covariance of the cells, over the
        root of a χ² of n − 1 degrees of freedom. Else, for few folds, whose covariance cannot be
        estimated, from Student's t at n − 1 degrees of freedom by Bonferroni's inequality.
    """
    n_units, n_cells = parts.shape
    difference = mean - mean[best]
    if n_units < 2:
        stderr = np.full(n_cells, np.nan)
        return Uncertainty(difference, stderr, np.isfinite(mean))
    # R of parts = Q R keeps all inner products of the columns, in C × C numbers.
    root = np.linalg.qr(parts, mode="r") * np.sqrt(n_units / (n_units - 1))
    stderr = np.linalg.norm(parts - parts[:, [best]], axis=0) * np.sqrt(n_units / (n_units - 1))
    draws = _draws(root, n_units) if many_units else None
    in_set = [_is_in_set(mean, root, cell, n_units - 1, draws) for cell in range(n_cells)]
    return Uncertainty(difference, stderr, np.array(in_set))


def _draws(root: np.ndarray, n_units: int) -> np.ndarray:
    """Return draws of the noise of the mean scores, (n_draws, C), each over its own error."""
    rng = np.random.default_rng(_SEED)
    noise = rng.standard_normal((_N_DRAWS, len(root))) @ root
    return noise / np.sqrt(rng.chisquare(n_units - 1, (_N_DRAWS, 1)) / (n_units - 1))


def _is_in_set(
    mean: np.ndarray, root: np.ndarray, cell: int, freedom: int, draws: np.ndarray | None
) -> bool:
    """Whether no other cell is better than this one by more than chance allows."""
    better = mean - mean[cell]
    error = np.linalg.norm(root - root[:, [cell]], axis=0)
    better[np.abs(better) <= _ROUNDING * np.abs(mean).max()] = 0
    noisy = error > _ROUNDING * np.linalg.norm(root, axis=0).max()
    if (better[~noisy] > 0).any():  # by the same amount on every unit
        return False
    if not noisy.any():
        return True
    largest = (better[noisy] / error[noisy]).max()
    if draws is None:
        limit = student_t.ppf(1 - (1 - CONFIDENCE) / noisy.sum(), freedom)
    else:
        ratios = (draws[:, noisy] - draws[:, [cell]]) / error[noisy]
        limit = np.quantile(ratios.max(axis=1), CONFIDENCE)
    return bool(largest <= limit)
