"""The pictures of a plan: the surface of recipes, learning curves, teachers, training."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_kd.inspection._plotting import (
    BAND,
    COLOURS,
    candidate_colour,
    import_pyplot,
    short_ratio,
    soft_ratio_color,
)
from sklearn_kd.inspection._selection_display import SelectionDisplay

OF_STUDENT, OF_TEACHER = COLOURS[0], "0.4"


def draw_surface(plan: Any, ax: Any) -> None:
    """Draw held-out accuracy over ρ and T, with the cells that are as good as the best."""
    display = SelectionDisplay.from_estimator(plan.search_, ax=ax)
    display.image_.colorbar.set_label("accuracy")
    ax.set_title("Held-out accuracy (★ best; framed: as good at 90 %)", fontsize="medium")


def draw_curves(plan: Any, ax: Any) -> None:
    """Draw the error against the number of rows, and its forecast, at the chosen ρ and at ρ = 1."""
    one = plan.forecasts_[0]
    ratios = dict.fromkeys([one.soft_ratio, *(r for r in one.by_ratio if r == 1)])
    for rho in ratios:
        colour = soft_ratio_color(rho)
        errors = 100 * one.curves.errors[one.curves.soft_ratios.index(rho)]
        spread = errors.std(axis=0, ddof=1) / np.sqrt(len(errors))
        ax.errorbar(
            one.curves.sizes, errors.mean(axis=0), spread, fmt="o", ms=4, color=colour, capsize=2
        )
        found = one.by_ratio[rho]
        ax.plot(one.targets, 100 * found.error, color=colour, label=f"ρ = {short_ratio(rho)}")
        ax.fill_between(one.targets, 100 * found.low, 100 * found.high, color=colour, **BAND)
    if one.floor is not None:
        ax.axhline(100 * one.floor, color="0.4", lw=1, ls="--", label="the teacher itself")
    ax.axvline(one.n_rows, color="0.7", lw=1, ls=":")
    ax.set(xscale="log", xlabel=f"{one.curves.grows} rows", ylabel="error (%)")
    _from_zero_if_near(ax)
    ticks = np.unique([*one.curves.sizes[[0, -1]], *one.targets])
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45, fontsize="small")
    ax.minorticks_off()
    ax.legend(fontsize="small")
    ax.set_title("Error with more rows (bands: 80 %)", fontsize="medium")


def draw_teachers(plan: Any, ax: Any) -> None:
    """Draw what each teacher knows, and what its best student learns."""
    finding = plan.findings_["teacher"]
    accuracies = finding.values["accuracies"]
    best_of = _best_by_teacher(plan)
    names = list(best_of)
    y = np.arange(len(names))[::-1]
    own = [100 * accuracies.get(name, np.nan) for name in names]
    learnt = [100 * best_of[name][0] for name in names]
    errors = [100 * best_of[name][1] for name in names]
    ax.plot(own, y + 0.12, "D", color=OF_TEACHER, label="the teacher itself")
    ax.errorbar(learnt, y - 0.12, xerr=errors, fmt="o", color=OF_STUDENT, label="its best student")
    ax.set_yticks(y, names, fontsize="small")
    ax.set(xlabel="accuracy (%)", ylim=(-0.6, len(names) - 0.4))
    ax.legend(fontsize="small")
    ax.set_title("Teachers", fontsize="medium")


def _best_by_teacher(plan: Any) -> dict[str, tuple[float, float]]:
    """Return the best held-out accuracy with each teacher, and its standard error."""
    results, found = plan.teacher_search_.cv_results_, {}
    order = np.argsort(results["mean_test_score"])
    for index in order:
        name = plan._teachers.named(results["params"][index].get("teacher_weights"))
        found[name] = (
            results["mean_test_score"][index],
            results["stderr_test_score"][index],
        )
    return found


def draw_stopping(plan: Any, ax: Any) -> None:
    """Draw held-out error and training loss as training goes on."""
    values = plan.findings_["stopping"].values
    loss, error = values["training loss"], 100 * (1 - values["accuracy"])
    steps = np.arange(len(error))
    ax.plot(steps, error, "o-", color=OF_STUDENT)
    ax.set_ylabel("held-out error (%)", color=OF_STUDENT)
    ax.set_xticks(steps, _told_apart(loss), fontsize="small")
    ax.set_xlabel("training loss (Eq. 2)")
    _from_zero_if_near(ax)
    ax.set_title("Held-out error as training goes on", fontsize="medium")


def _told_apart(loss: np.ndarray) -> list[str]:
    """Return the losses with as many digits as tell one from the next, at most five."""
    for digits in (2, 3, 4, 5):
        labels = ["end" if not np.isfinite(v) else f"{v:.{digits}g}" for v in loss]
        if len(set(labels)) == len(labels):
            break
    return labels


def _from_zero_if_near(ax: Any) -> None:
    """Begin the axis of errors at 0, unless most of it were then empty."""
    low, high = ax.get_ylim()
    if low < high / 2:
        ax.set_ylim(bottom=0)


def draw_students(plan: Any, ax: Any) -> None:
    """Draw the held-out accuracy of every student by its best recipe."""
    names = list(plan.searches_)
    y = np.arange(len(names))[::-1]
    for index, (name, search) in enumerate(plan.searches_.items()):
        error = search.cv_results_["stderr_test_score"][search.best_index_]
        colour = candidate_colour(0 if name == plan.findings_["student"].claim else 2)
        ax.errorbar(100 * search.best_score_, y[index], xerr=100 * error, fmt="o", color=colour)
    ax.set_yticks(y, names, fontsize="small")
    ax.set(xlabel="held-out accuracy (%)", ylim=(-0.6, len(names) - 0.4))
    ax.set_title("Students", fontsize="medium")


def pieces_of(plan: Any) -> dict[str, Any]:
    """Return the pictures that this plan has, by the topic that they belong to."""
    found: dict[str, Any] = {"recipe": draw_surface, "teacher": draw_teachers}
    if len(plan.searches_) > 1:
        found["student"] = draw_students
    if plan.forecasts_:
        found["rows"] = draw_curves
    found["stopping"] = draw_stopping
    return found


def height_of(plan: Any, topic: str) -> float:
    """Return the height of a picture in inches: lists are as high as they are long."""
    n_names = {"teacher": len(plan._teachers.weights or [1]), "student": len(plan.searches_)}
    return 1.2 + 0.35 * n_names[topic] if topic in n_names else 3.7


def plot(self: Any, topic: str | None = None, ax: Any = None) -> Any:
    """Draw the plan, or one piece of it.

    Parameters
    ----------
    topic : {"recipe", "teacher", "student", "rows", "stopping"}, default=None
        The piece: the surface of ρ and T, what teachers know and teach, students side by side, the
        learning curve with its forecast, or the error as training goes on. None: all that there
        are.
    ax : matplotlib Axes, default=None
        Where to draw a piece. None: a new figure.

    Returns
    -------
    matplotlib Figure
        The figure.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the plan has no such piece.
    """
    check_is_fitted(self)
    plt = import_pyplot(type(self))
    pieces = pieces_of(self)
    if topic is not None:
        if topic not in pieces:
            raise ValueError(f"topic={topic!r} must be one of {list(pieces)}, or None for all.")
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        pieces[topic](self, ax)
        return ax.figure
    if ax is not None:
        raise ValueError("ax is for one piece; name it by topic=, or leave ax out.")
    n_rows = -(-len(pieces) // 2)
    figure, axes = plt.subplots(
        n_rows, 2, figsize=(12, 4.2 * n_rows), layout="constrained", squeeze=False
    )
    for one, draw in zip(axes.flat, pieces.values(), strict=False):
        draw(self, one)
    for one in axes.flat[len(pieces) :]:
        one.set_axis_off()
    return figure
