"""Findings about rows: what more of them would bring, and which labels to check."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sklearn_kd._array import to_tensor
from sklearn_kd._logits import class_probabilities
from sklearn_kd.metrics import learning_curve_forecast
from sklearn_kd.plan._curves import Curves
from sklearn_kd.plan._finding import Finding, listed, percent
from sklearn_kd.plan._searches import Given, Searched

CONFIDENCE = 0.8  # of the intervals of a forecast
NEAR_FLOOR = 0.005
MOST_TIMES = 64  # as many rows, for how many it takes to come near the teacher
N_TO_CHECK = 10


class Forecast(NamedTuple):
    """A learning curve by ρ, and its continuation."""

    curves: Curves
    factors: tuple[float, ...]  # 1, and how many times as many rows
    targets: list[int]  # so many rows
    by_ratio: dict[float, Any]  # {ρ: `learning_curve_forecast` at the targets}
    soft_ratio: float  # the chosen one
    n_rows: int  # at hand
    floor: float | None  # the teacher's own error


def forecast(
    curves: Curves, given: Given, soft_ratio: float, factors: tuple[float, ...], floor: float | None
) -> Forecast:
    """Return what the curves say about ``factors`` times as many rows, by ρ."""
    n_rows = len(given.labelled) if curves.grows == "labelled" else _n_unlabelled(given)
    targets = [round(factor * n_rows) for factor in (1, *factors)]
    by_ratio = {rho: _continued(curves, rho, targets, floor) for rho in curves.soft_ratios}
    return Forecast(curves, (1, *factors), targets, by_ratio, soft_ratio, n_rows, floor)


def _continued(curves: Curves, soft_ratio: float, targets: Any, floor: float | None) -> Any:
    """Return the forecast of one ρ; only that of soft labels alone ends at the teacher's error."""
    return learning_curve_forecast(
        curves.sizes,
        curves.errors[curves.soft_ratios.index(soft_ratio)],
        targets,
        floor=floor if soft_ratio == 1 else None,
        n_test=curves.n_test,
        confidence=CONFIDENCE,
    )


def _n_unlabelled(given: Given) -> int:
    return int((given.rows.labels < 0).sum())


def about_rows(forecasts: list[Forecast], given: Given, *, is_network: bool) -> Finding:
    """Return the expected error with more rows, with 80 % intervals."""
    if not forecasts:
        sentence = (
            f"{len(given.labelled)} labelled rows are too few for a learning curve, and so for a "
            "forecast."
        )
        return Finding("rows", "unknown", False, [sentence])
    sentences = []
    for one in forecasts:
        now = percent(one.by_ratio[one.soft_ratio].error[0])
        told = "; ".join(_told(one, one.soft_ratio, " times: "))
        sentences.append(
            f"Expected error with more {one.curves.grows} rows than the {one.n_rows} at hand "
            f"(now {now}), 80 % intervals: {told}."
        )
    if is_network:
        sentences.append(
            "These are errors of the surrogate, whose kernel stays that of pilots on the rows at "
            "hand: in three experiments networks that were really trained on 4 times as many rows "
            "had 0.4 to 1.1 times the error that was forecast."
        )
    first = forecasts[0]
    moves, claim = _where_it_moves(first)
    sentences.append(moves)
    if first.floor is not None and 1.0 in first.by_ratio:
        sentences.append(_until_floor(first))
    if len(forecasts) == 1 and _n_unlabelled(given) == 0 and 1.0 in first.by_ratio:
        sentences.append(_without_labels(first))
    return Finding("rows", claim, claim != "unknown", sentences, {"forecasts": forecasts})


def _told(one: Forecast, soft_ratio: float, times: str) -> list[str]:
    """Return the forecast with more rows in words, for each factor."""
    found = one.by_ratio[soft_ratio]
    return [
        f"{factor:g}{times}{percent(found.error[i])} "
        f"({100 * found.low[i]:.1f} to {100 * found.high[i]:.1f})"
        for i, factor in enumerate(one.factors)
        if i > 0
    ]


def _where_it_moves(one: Forecast) -> tuple[str, str]:
    """Return where the best ρ is with the most rows; sure where the intervals do not meet."""
    last = len(one.factors) - 1
    best = min(one.by_ratio, key=lambda rho: one.by_ratio[rho].error[last])
    mine, other = one.by_ratio[one.soft_ratio], one.by_ratio[best]
    times = f"{one.factors[last]:g} times as many rows"
    if other.high[last] < mine.low[last]:
        told = f"ρ = {best:g} is then better: {percent(other.error[last])}."
        return f"With {times} the best ρ moves: {told}", f"ρ = {best:g}"
    return f"Nothing says that ρ = {one.soft_ratio:g} would not do with {times}.", "stays"


def _until_floor(one: Forecast) -> str:
    """Return with how many rows a student of soft labels alone comes near its teacher."""
    floor = one.floor
    assert floor is not None
    n_rows = np.unique((one.n_rows * np.geomspace(1, MOST_TIMES, 25)).round().astype(int))
    found = _continued(one.curves, 1.0, n_rows, floor)
    start = f"With soft labels alone (ρ = 1) the error ends at the teacher's, {percent(floor)}"
    near = np.flatnonzero(found.error <= floor + NEAR_FLOOR)
    if not len(near):
        return f"{start}; it is still above by half a point with {MOST_TIMES} times as many rows."
    if near[0] == 0:
        return f"{start}, and is within half a point of it."
    times = n_rows[near[0]] / one.n_rows
    return f"{start}, and is within half a point of it with about {times:.2g} times as many rows."


def _without_labels(one: Forecast) -> str:
    """Return what rows without labels would bring: at ρ = 1 they are as good as any."""
    told = ", ".join(_told(one, 1.0, " times "))
    return f"With rows that have no labels, learnt with ρ = 1 as all others: {told}."


def about_labels(searched: Searched, given: Given) -> Finding:
    """Return the labels that decide between the recipes, and those that look wrong."""
    if given.X_val is not None:
        sentence = "Scores are those of X_val: no label of X decides between the recipes."
        return Finding("labels worth checking", "none", True, [sentence], {"rows": np.array([])})
    rows = searched.search.rows_to_check(N_TO_CHECK)
    doubtful = doubtful_rows(searched, given)
    sentences = []
    if len(rows):
        names = listed([str(row) for row in rows])
        sentences.append(
            f"Recipes that are as good differ most on rows {names}: check these labels first."
        )
    else:
        sentences.append("No label decides: the recipes that are as good agree on every row.")
    if len(doubtful):
        some = listed([str(row) for row in doubtful[:N_TO_CHECK]])
        share = percent(len(doubtful) / len(given.labelled))
        sentences.append(
            f"Both the teacher and a student that has not seen them contradict {len(doubtful)} "
            f"labels ({share}), those of rows {some}{'' if len(doubtful) <= N_TO_CHECK else ', …'}."
        )
    return Finding(
        "labels worth checking",
        "some" if len(rows) else "none",
        True,
        sentences,
        {"rows": rows, "doubtful": doubtful},
    )


def doubtful_rows(searched: Searched, given: Given) -> np.ndarray:
    """Return the rows whose label both teacher and held-out student give less than 5 %.

    The least probable first.
    """
    labels = given.rows.labels
    search, rows = searched.search, np.arange(len(labels))
    p = np.maximum(
        *(
            class_probabilities(to_tensor(logits)).numpy()[rows, np.maximum(labels, 0)]
            for logits in (
                search.held_out_decision_function_,
                search.best_estimator_.teacher_logits_,
            )
        )
    )
    p[labels < 0] = np.nan
    order = np.argsort(p, kind="stable")
    return order[p[order] < 0.05]
