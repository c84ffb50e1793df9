"""Findings about the recipe: ρ, T, and whether hard labels help."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_kd.distillation import Recipe
from sklearn_kd.metrics import hard_label_effect
from sklearn_kd.plan._finding import Finding, column, contrast, percent
from sklearn_kd.plan._searches import Given, Searched

# What people train with who do not search: weight of the soft term × T², temperature.
HABITS = ((0.9, 4.0), (0.5, 4.0))


def recipe_of(searched: Searched) -> Recipe:
    """Return the chosen recipe."""
    best = searched.search.best_params_
    scaling = searched.search.temperature_scaling
    return Recipe(best["soft_ratio"], best["temperature"], temperature_scaling=scaling)


def about_recipe(searched: Searched) -> Finding:
    """Return which ρ and T to train with, what is as good, and what habits would lose."""
    search, recipe = searched.search, recipe_of(searched)
    results = search.cv_results_
    rho, temperature = column(search, "soft_ratio"), column(search, "temperature")
    accuracy, error = searched.accuracy
    sentences = [
        f"Train with {_named(recipe)}: accuracy {percent(accuracy, error)} on held-out rows."
    ]
    losses: dict[str, Any] = {}
    in_set, n_cells = results["in_best_set"], len(results["params"])
    n_best = int(in_set.sum())
    is_sure = 2 * n_best <= n_cells or n_cells == 1
    if n_cells == 1:
        sentences.append("It is the only recipe that was asked for.")
    elif n_best == 1:
        sentences.append(f"It is the best of {n_cells} at 90 %.")
    else:
        spread = f"ρ from {rho[in_set].min():g} to {rho[in_set].max():g}"
        spread += f", T from {temperature[in_set].min():g} to {temperature[in_set].max():g}"
        start = "" if is_sure else "Inconclusive: "
        sentences.append(f"{start}{n_best} of {n_cells} cells are as good at 90 % ({spread}).")
    soft_only = rho == 1
    others = [("ρ = 1", soft_only)] if recipe.soft_ratio < 1 else []
    scaling = recipe.temperature_scaling
    for habit_rho, habit_T in HABITS:
        is_habit = (rho == habit_rho) & (temperature == habit_T)
        if scaling == "squared" and (habit_rho, habit_T) != (recipe.soft_ratio, recipe.temperature):
            others.append((f"The habit ρ = {habit_rho:g}, T = {habit_T:g}", is_habit))
    for name, cells in others:
        if not cells.any():
            continue
        loss = contrast(search, cells)
        losses[name] = loss
        told = "would lose" if loss.is_worse else "cannot be told from it:"
        sentences.append(f"{name} {told} {loss}.")
    sentences += _edges(search, rho, temperature)
    claim = "sure" if is_sure else "inconclusive"
    values = {"recipe": recipe, "accuracy": accuracy, "stderr": error, "n_as_good": n_best}
    return Finding("recipe", claim, is_sure, sentences, {**values, "losses": losses})


def _edges(search: Any, rho: np.ndarray, temperature: np.ndarray) -> list[str]:
    """Return what to add to the grid where the chosen cell lies on its edge."""
    best, found = search.best_params_, []
    if best["soft_ratio"] == rho.min() < rho.max():
        found.append(f"ρ = {rho.min():g} is the smallest of the grid: add smaller soft_ratios.")
    if best["soft_ratio"] < 1 and best["temperature"] == temperature.max() > temperature.min():
        found.append(
            f"T = {temperature.max():g} is the largest of the grid: add larger temperatures."
        )
    return found


def _named(recipe: Recipe) -> str:
    scaling = " (soft term × T²)" if recipe.temperature_scaling == "squared" else ""
    return f"ρ = {recipe.soft_ratio:g}, T = {recipe.temperature:g}{scaling}"


def about_hard_labels(searched: Searched, given: Given) -> Finding:
    """Return whether hard labels help beside this teacher: from the error, not from Eq. 12.

    "help": the best cell at ρ = 1 is worse than the best of all, at 90 % for all cells together.
    "hurt": so is every cell with ρ < 1. "hurt below": so are those up to some ρ.
    """
    search = searched.search
    rho = column(search, "soft_ratio")
    if rho.min() == rho.max() or rho.max() < 1:
        reason = "they are, where soft_ratios hold 1 and less."
        return Finding(
            "hard labels", "not asked", False, [f"Hard labels were not compared; {reason}"]
        )
    soft_only, mixed = contrast(search, rho == 1), contrast(search, rho < 1)
    worst = _worse_up_to(search, rho)
    values: dict[str, Any] = {
        "soft only": soft_only,
        "with hard labels": mixed,
        "worse_up_to": worst,
    }
    if soft_only.is_worse:
        claim, is_sure = "help", True
        first = f"Hard labels help: without them (ρ = 1) the student loses {soft_only}."
    elif mixed.is_worse:
        claim, is_sure = "hurt", True
        first = f"Hard labels hurt: the best recipe with them loses {mixed} against ρ = 1."
    elif worst is not None and worst >= rho[rho < 1].max() / 2:
        claim, is_sure = "hurt below", True
        loss = contrast(search, rho <= worst)
        first = f"Many hard labels hurt: every recipe with ρ ≤ {worst:g} loses, {loss} or more."
    else:
        claim, is_sure = "do not matter", False
        other = soft_only if soft_only.difference > 0 else mixed
        which = "help" if other is soft_only else "hurt"
        first = f"Whether hard labels help cannot be told: if anything they {which}, by {other}."
    equation_12, said = _equation_12(searched, given)
    values["equation 12"] = equation_12
    return Finding("hard labels", claim, is_sure, [first, said], values)


def _worse_up_to(search: Any, rho: np.ndarray) -> float | None:
    """Return the largest ρ up to which all cells are out of the best set; None if there is none."""
    in_set = search.cv_results_["in_best_set"]
    values = np.unique(rho[rho < rho[in_set].min()])
    return float(values.max()) if len(values) else None


def _equation_12(searched: Searched, given: Given) -> tuple[dict[str, Any] | None, str]:
    """Return the paper's derivative at ρ = 1, where it is defined, and what to think of it."""
    student = searched.search.best_estimator_
    report = student.fit_report_
    if searched.stops or report.n_unlabelled_rows or report.n_merged_rows:
        return (
            None,
            "Eq. 12 of the paper is for students that converge, on distinct labelled rows.",
        )
    effect = hard_label_effect(
        student.tangent_frame(),
        student.teacher_logits_,
        given.rows.labels,
        temperature=student.fit_report_.temperature,
        initial_logits=student.initial_logits_,
        random_state=0,
    )
    low, high = (float(v) for v in effect["interval"])
    sign = "for" if low > 0 else "against" if high < 0 else "neither for nor against"
    said = (
        f"Eq. 12 of the paper, which speaks of an angle and not of the error, is {sign} them "
        f"({float(effect['value']):+.2g}, 95 % interval {low:+.2g} to {high:+.2g})."
    )
    return {"value": float(effect["value"]), "interval": (low, high)}, said
