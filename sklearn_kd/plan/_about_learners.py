"""Findings about who teaches and who learns."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_kd.plan._finding import (
    Finding,
    limit_of,
    listed,
    paired,
    percent,
    points,
)
from sklearn_kd.plan._searches import Searched, losses_of
from sklearn_kd.plan._teachers import Teachers


def about_teacher(searched: Searched, teachers: Teachers) -> Finding:
    """Return which teacher to take, and whether it is the most accurate one."""
    right = searched.teachers_right
    accuracies = {
        name: float(np.nanmean(of_one)) for name, of_one in zip(teachers.names, right, strict=True)
    }
    gain, error = paired(searched.is_right, right[0])
    if teachers.weights is None:
        first = f"The teacher is right on {percent(accuracies[teachers.names[0]])} of these rows"
        # The student is the best of all cells on the same rows: it is ahead of itself.
        n_cells = len(searched.search.cv_results_["params"])
        if abs(gain) > limit_of(n_cells) * error:
            claim, is_sure = ("better student" if gain > 0 else "better teacher"), True
            than = "above" if gain > 0 else "below"
            sentence = f"{first}; the student is {than} it, by {points(abs(gain), error)}."
        else:
            claim, is_sure = "alike", False
            sentence = f"{first}; the student cannot be told from it: {points(gain, error)}."
        values = {"accuracies": accuracies, "gain": gain, "stderr": error}
        return Finding("teacher", claim, is_sure, [sentence], values)
    losses, chosen = losses_of(searched.teacher_search, teachers), searched.teacher
    as_good = [name for name, loss in losses.items() if not loss.is_worse and name != chosen]
    worse = [name for name, loss in losses.items() if loss.is_worse]
    is_sure = not as_good
    sentences = [f"Learn from {chosen!r}."]
    if as_good:
        names = listed([repr(name) for name in as_good])
        sentences.append(f"{names} cannot be told from it at 90 %: the most accurate one is taken.")
    if worse:
        told = [f"{name!r} ({losses[name]})" for name in worse]
        sentences.append(f"Worse: {listed(told)}.")
    sentences.append(_most_accurate(accuracies, right, teachers, chosen, losses))
    numbers = {"accuracies": accuracies, "losses": losses, "as_good": as_good}
    return Finding("teacher", chosen, is_sure, sentences, numbers)


def _most_accurate(
    accuracies: dict[str, float],
    right: np.ndarray,
    teachers: Teachers,
    chosen: str,
    losses: dict[str, Any],
) -> str:
    best = max(accuracies, key=lambda name: accuracies[name])
    said = f"The most accurate teacher is {best!r}, right on {percent(accuracies[best])}"
    if chosen not in accuracies or chosen == best:
        return said + "."
    names = list(accuracies)
    ahead, error = paired(right[names.index(best)], right[names.index(chosen)])
    if losses[best].is_worse and ahead > limit_of(1) * error:
        return (
            said + f": the better teacher is not the better choice here, it loses {losses[best]}."
        )
    return said + f", {points(ahead, error)} above the chosen one."


def about_student(searched: list[Searched], chosen: int) -> Finding:
    """Return which of several students to train; rows are paired."""
    best = searched[chosen]
    if len(searched) == 1:
        kind = "network" if best.student.network is not None else "kernel"
        return Finding("student", best.student.name, True, [f"There is one student, a {kind}."])
    as_good, parts = [], []
    for index, other in enumerate(searched):
        accuracy, error = other.accuracy
        told = f"{other.student.name!r} {percent(accuracy, error)}"
        if index != chosen:
            loss, of_loss = paired(best.is_right, other.is_right)
            told += f" (less by {points(loss, of_loss)})"
            if not loss > limit_of(len(searched) - 1) * of_loss:
                as_good.append(other.student.name)
        parts.append(told)
    sentences = [f"Train {best.student.name!r}. Held-out accuracies, each by its own best recipe: "]
    sentences[0] += f"{listed(parts)}."
    if as_good:
        sentences.append(
            f"{listed([repr(n) for n in as_good])} cannot be told from it at 90 %: take the "
            "smallest."
        )
    return Finding("student", best.student.name, not as_good, sentences, {"as_good": as_good})
