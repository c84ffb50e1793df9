"""The outcome of a search in a sentence: the choice, what is as good, and what is worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sklearn_kd.search._grid import Grid

_SYMBOLS = {"soft_ratios": "ρ", "temperatures": "T", "ridges": "ridge", "stopping_times": "t"}

# From a value on an edge to one beyond, as a factor.
_STEPS = {"ridges": 10, "stopping_times": 10}


def verdict(
    grid: Grid, results: dict[str, Any], score: str, chosen: int, best: int, *, is_accuracy: bool
) -> str:
    """Return what a search has found, and how sure it is.

    Parameters
    ----------
    grid : Grid
    results : dict
        ``cv_results_``.
    score : str
        The score that decides.
    chosen, best : int
        The chosen cell, and the one of the best score that is preferred.
    is_accuracy : bool
        Whether differences are told in percentage points.
    """
    in_set, n_cells = results[f"in_best_set_{score}"], len(grid.candidates)
    parts = [_named(grid, chosen)]
    if chosen != best:
        parts[0] += f" (within one standard error of {_named(grid, best)})"
    n_best = int(in_set.sum())
    if n_cells == 1:
        parts.append("the only cell")
    elif 2 * n_best > n_cells:
        parts.append(f"inconclusive: {n_best} of {n_cells} cells are as good")
    elif n_best > 1:
        parts.append(f"{n_best} of {n_cells} cells are as good")
    else:
        parts.append(f"the best of {n_cells} cells")
    if (other := _contrast(grid, results[f"mean_test_{score}"], best)) is not None:
        index, name = other
        difference = -results[f"diff_test_{score}"][index]
        error = results[f"stderr_diff_test_{score}"][index]
        amount = _amount(difference, error, is_accuracy)
        if in_set[index]:
            parts.append(f"{name} cannot be told from it, {amount} below")
        else:
            parts.append(f"{name} is worse by {amount}")
    parts += _edges(grid, chosen)
    return "; ".join(parts)


def _named(grid: Grid, cell: int) -> str:
    """Return what tells a cell from the others: ρ and T, and what else is searched."""
    candidate, params = grid.candidates[cell], grid.params[cell]
    named = [f"ρ = {params['soft_ratio']:g}"]
    if _temperature_matters(grid, cell):
        named.append(f"T = {params['temperature']:g}")
    if grid.names_weights:
        named.append("weights = " + ":".join(f"{v:.2g}" for v in params["teacher_weights"]))
    if len(grid.ridges) > 1:
        named.append(f"ridge = {params['ridge']:g}")
    if len(grid.times) > 1:
        time = params["stopping_time"]
        named.append("converged" if time is None else f"t = {time:g}")
    if len(grid.kernels) > 1:
        named.append(f"kernel = {grid.kernels[candidate.kernel]}")
    return ", ".join(named)


def _temperature_matters(grid: Grid, cell: int) -> bool:
    """Whether T does: at ρ = 1 the student reaches the logits of a single teacher at any T.

    On the way there T sets the pace. At ρ = 0 there are no soft labels.
    """
    candidate = grid.candidates[cell]
    recipe, stops = grid.recipes[candidate.recipe], grid.times[candidate.time] is not None
    if stops or recipe["teacher_weights"] is not None:
        return recipe["soft_ratio"] > 0
    return recipe["soft_ratio"] < 1


def _contrast(grid: Grid, mean: np.ndarray, best: int) -> tuple[int, str] | None:
    """Return the best cell at the largest ρ, or at the smallest if the best is there; its name."""
    ratios = np.array([params["soft_ratio"] for params in grid.params])
    if len(np.unique(ratios)) == 1:
        return None
    other = ratios.max() if ratios[best] < ratios.max() else ratios.min()
    cells = np.flatnonzero(ratios == other)
    return int(cells[np.nanargmax(mean[cells])]), f"ρ = {other:g}"


def _amount(difference: float, error: float, is_accuracy: bool) -> str:
    if is_accuracy:
        return f"{100 * difference:.1f} ± {100 * error:.1f} points"
    # A single split has no error.
    return f"{difference:.2g}" + (f" ± {error:.1g}" if np.isfinite(error) else "")


def _edges(grid: Grid, cell: int) -> list[str]:
    """Return, for each searched axis on whose edge a cell lies, what to add.

    ρ = 0, ρ = 1, ridge = 0 and the converged student are the ends of what there is, and T does not
    matter at ρ = 1.
    """
    params = grid.params[cell]
    axes = {"soft_ratios": [recipe["soft_ratio"] for recipe in grid.recipes]}
    if _temperature_matters(grid, cell):
        axes["temperatures"] = [recipe["temperature"] for recipe in grid.recipes]
    axes["ridges"] = grid.ridges
    if len(grid.times) > 1:
        axes["stopping_times"] = [math.inf if time is None else time for time in grid.times]
    found = []
    for name, values in axes.items():
        given = params[name.removesuffix("s")]
        value = math.inf if given is None else given
        least, largest = min(values), max(values)
        if least == largest or value == math.inf:
            continue
        symbol = _SYMBOLS[name]
        place = f"on the edge of the grid: {symbol} = {value:g} is the"
        if value == least > 0:
            found.append(f"{place} smallest, add smaller {name} such as {_smaller(name, value):g}")
        if value == largest and (name, value) != ("soft_ratios", 1.0):
            found.append(f"{place} largest, add larger {name} such as {_larger(name, value):g}")
    return found


def _smaller(name: str, value: float) -> float:
    return value / _STEPS.get(name, 2)


def _larger(name: str, value: float) -> float:
    if name == "soft_ratios":
        return (1 + value) / 2
    return value * _STEPS.get(name, 2)
