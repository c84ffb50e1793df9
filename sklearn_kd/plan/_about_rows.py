"""Findings about rows: what more of them would bring, and which labels to check."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch

from sklearn_kd.metrics import learning_curve_forecast
from sklearn_kd.plan._curves import Curves
from sklearn_kd.plan._finding import Finding, listed, percent
from sklearn_kd.plan._searches import Given, Searched

CONFIDENCE = 0.8  # of the intervals of a forecast
NEAR_FLOOR = 0.005
MOST_TIMES = 64  # as many rows, for how many it takes to come near the teacher
N_TO_CHECK = 10


class Forecast(Bunch):
    """A learning curve by ρ, and its continuation.

    ``curves``, ``factors``, ``by_ratio`` {ρ: forecast at the factors}, ``soft_ratio`` (the chosen
    one), ``n_rows``.
    """


def forecast(
    curves: Curves, given: Given, soft_ratio: float, factors: tuple[float, ...], floor: float | None
) -> Forecast:
    """Return what the curves say about ``factors`` times as many rows, by ρ."""
    n_rows = len(given.labelled) if curves.grows == "labelled" else _n_unlabelled(given)
    targets = [round(factor * n_rows) for factor in (1, *factors)]
    by_ratio = {
        rho: learning_curve_forecast(
            curves.sizes,
            curves.errors[index],
            targets,
            floor=floor if rho == 1 else None,
            n_test=curves.n_test,
            confidence=CONFIDENCE,
        )
        for index, rho in enumerate(curves.soft_ratios)
    }
    return Forecast(
        curves=curves,
        factors=(1, *factors),
        targets=targets,
        by_ratio=by_ratio,
        soft_ratio=soft_ratio,
        n_rows=n_rows,
        floor=floor,
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
        found = one.by_ratio[one.soft_ratio]
        told = [
            f"{factor:g} times: {percent(found.error[i])} ({_interval(found, i)})"
            for i, factor in enumerate(one.factors)
            if i > 0
        ]
        sentences.append(
            f"Expected error with more {one.curves.grows} rows than the {one.n_rows} at hand "
            f"(now {percent(found.error[0])}), 80 % intervals: {'; '.join(told)}."
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


def _interval(found: Any, i: int) -> str:
    return f"{100 * found.low[i]:.1f} to {100 * found.high[i]:.1f}"


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
    curves, floor = one.curves, one.floor
    assert floor is not None
    index = curves.soft_ratios.index(1.0)
    n_rows = np.unique((one.n_rows * np.geomspace(1, MOST_TIMES, 25)).round().astype(int))
    found = learning_curve_forecast(
        curves.sizes,
        curves.errors[index],
        n_rows,
        floor=floor,
        n_test=curves.n_test,
        confidence=CONFIDENCE,
    )
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
    found = one.by_ratio[1.0]
    told = [
        f"{factor:g} times {percent(found.error[i])} ({_interval(found, i)})"
        for i, factor in enumerate(one.factors)
        if i > 0
    ]
    return f"With rows that have no labels, learnt with ρ = 1 as all others: {', '.join(told)}."


def about_labels(searched: Searched, given: Given, teacher_right: np.ndarray) -> Finding:
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
    student = searched.search.held_out_decision_function_
    teacher = np.asarray(searched.search.best_estimator_.teacher_logits_)
    p = np.maximum(_probability(student, labels), _probability(teacher, labels))
    p[labels < 0] = np.nan
    order = np.argsort(p, kind="stable")
    return order[p[order] < 0.05]


def _probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probability of each row's label."""
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return p[np.arange(len(p)), np.maximum(labels, 0)]
