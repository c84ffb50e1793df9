"""The choice of a search: the score that decides, the chosen cell, and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sklearn_kd._array import like
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._row_record import is_accuracy
from sklearn_kd.search._rows_to_check import LabelValues
from sklearn_kd.search._scores import FoldScores, best_of
from sklearn_kd.search._verdict import verdict


def select(search: Any, grid: Grid, scores: FoldScores, results: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of the chosen candidate; none where no score decides.

    The column ``in_best_set`` of ``results`` becomes that of the score that decides.

    Raises
    ------
    ValueError
        If ``refit`` names no score, or the score that decides is NaN somewhere.
    """
    names = [k.removeprefix("mean_test_") for k in results if k.startswith("mean_test_")]
    if names == ["score"]:
        deciding = "score"
    elif isinstance(search.refit, str) and search.refit in names:
        deciding = search.refit
    elif search.refit is False:
        return {}
    else:
        raise ValueError(
            f"refit={search.refit!r} must be one of the scores {names}, which decides, or False."
        )
    mean = results[f"mean_test_{deciding}"]
    if np.isnan(mean).any():
        raise ValueError(
            f"scoring={search.scoring!r}: {deciding!r} is NaN for {np.isnan(mean).sum()} of "
            f"{len(mean)} candidates. Use a score that every fold defines, or larger folds."
        )
    results["in_best_set"] = results[f"in_best_set_{deciding}"]
    preference = grid.preference()
    chosen = best = best_of(mean, np.arange(len(mean)), preference)
    if search.one_standard_error:
        # A single split has no error: then only equals of the best are within it.
        error = np.nan_to_num(results[f"stderr_diff_test_{deciding}"])
        within = np.flatnonzero(results[f"diff_test_{deciding}"] >= -error)
        chosen = min(within.tolist(), key=preference.__getitem__)
    points = is_accuracy(scores.scorer, deciding)
    in_set = np.flatnonzero(results["in_best_set"])
    return {
        "best_index_": chosen,
        "best_params_": results["params"][chosen],
        "best_score_": float(mean[chosen]),
        "held_out_decision_function_": like(
            torch.from_numpy(scores.held_out_logits(chosen)), scores.rows_given
        ),
        "_values_of_labels": LabelValues(scores.values_of_labels(in_set)),
        "verdict_": verdict(grid, results, deciding, chosen, best, is_accuracy=points),
    }
