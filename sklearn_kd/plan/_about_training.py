"""Findings about training: when to stop, and what in this problem misleads the surrogate."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.plan._finding import Finding, contrast, percent
from sklearn_kd.plan._searches import Given, Searched
from sklearn_kd.plan._teachers import Teachers
from sklearn_kd.search._student_cv import LinearizedKDStudentCV
from sklearn_kd.students._matched_time import speed

N_TIMES = 8
FIRST_TIME = 1 / 300  # of the time of a network's training
# Of students that converge, in units of the time in which the gradient moves a logit by one.
TIMES = np.geomspace(0.3, 1e4, N_TIMES)
FEW_ROWS = 200
MANY_WRONG = 0.03


def search_for_time(
    searched: Searched, teachers: Teachers, given: Given, options: dict[str, Any]
) -> LinearizedKDStudentCV:
    """Return a search over the stopping times of the chosen recipe, by five folds."""
    best = searched.search.best_params_
    recipe = {name: best[name] for name in ("soft_ratio", "temperature")}
    recipe["temperature_scaling"] = searched.search.temperature_scaling
    kernel = searched.search.kernel
    last = best.get("stopping_time")
    if last is None:
        diagonal = as_kernel_function(kernel).diag(given.rows.X)
        times = [*(TIMES / speed(recipe, float(diagonal.mean()))).tolist(), None]
    else:
        times = np.geomspace(FIRST_TIME * last, last, N_TIMES).tolist()
    return LinearizedKDStudentCV(
        teachers.teacher,
        **searched.chosen(options),
        stopping_times=times,
        refit=False,
        cv=None if given.X_val is not None else given.splits,
    ).fit(given.X, given.y, X_val=given.X_val, y_val=given.y_val)


def about_stopping(search: LinearizedKDStudentCV) -> Finding:
    """Return whether to stop early: only where the whole training is worse at 90 %."""
    times, results = search.stopping_times, search.cv_results_
    time_of = [params["stopping_time"] for params in results["params"]]
    is_last = np.array([time == times[-1] for time in time_of])
    loss, chosen = contrast(search, is_last), search.best_index_
    until = "convergence" if times[-1] is None else "the end"
    values: dict[str, Any] = {
        "times": time_of,
        "accuracy": results["mean_test_score"],
        "training loss": results["mean_train_loss"],
    }
    best = f" (the best one by {loss})" if loss.difference > 0 else ""
    if not loss.is_worse:
        return Finding("stopping", "to the end", False, [
            f"Train to {until}: no earlier end is better at 90 %{best}."
        ], values)  # fmt: skip
    train_loss = results["mean_train_loss"][chosen]
    share = "" if times[-1] is None else f", {percent(time_of[chosen] / times[-1])} of the training"
    sentence = (
        f"Stop early, at a training loss (Eq. 2) of {train_loss:.3g}{share}: training to {until} "
        f"loses {loss}."
    )
    values["stop at"] = train_loss
    return Finding("stopping", "early", True, [sentence], values)


def about_trust(
    searched: Searched,
    given: Given,
    teacher_right: np.ndarray,
    n_doubtful: int,
    recipe: Finding,
    teachers: Teachers,
) -> Finding:
    """Return which surrogate answered, and what is known to mislead it here."""
    network = searched.student.network
    if network is None:
        sentences = [
            f"The answers are those of {searched.student.kernel!r} in closed form: of a network "
            "of infinite width, trained to convergence. For your own network pass the module."
        ]
    else:
        ends = "converged" if searched.last_time is None else "stopped where the network stops"
        sentences = [
            f"The answers are those of tangent kernels after short pilots of the network, {ends}. "
            "Over twelve problems with networks really trained such answers ranked the recipes "
            "with a Spearman correlation of 0.74, and their choice lost 0.8 points (2.1 at worst)."
        ]
    cautions = []
    if n_doubtful > MANY_WRONG * len(given.labelled) and network is None:
        cautions.append(
            "labels look wrong, and with wrong labels infinite width is no guide to real networks "
            "(up to 11 points lost in our experiments)"
        )
    n_scored = int(np.isfinite(searched.is_right).sum())
    if n_scored < FEW_ROWS:
        error = searched.accuracy[1]
        cautions.append(f"only {n_scored} rows are scored, so accuracies have ± {100 * error:.1f}")
    if recipe.claim == "inconclusive":
        cautions.append("more than half of the recipes are as good, and any of these will do")
    if (
        teachers.are_fitted
        and given.X_val is None
        and np.nanmin(np.nanmean(teacher_right, 1)) > 0.995
    ):
        cautions.append(
            "the teacher is right on almost every row, as one that has seen these labels would be; "
            "then the scores at large ρ are too good"
        )
    if cautions:
        sentences.append(f"Mind that {'; '.join(cautions)}.")
    claim = "with care" if cautions else "yes"
    return Finding("trust", claim, not cautions, sentences, {"cautions": cautions})
