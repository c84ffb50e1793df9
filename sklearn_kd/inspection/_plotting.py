"""Helpers of the displays: matplotlib on demand, colours, and the names of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito (2008): colours that differ under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("solid", (0, (6, 2)), (0, (3, 1, 1, 1)))
BAND = {"alpha": 0.2, "linewidth": 0}
SHADE = {"color": "0.93", "zorder": -2}


def import_pyplot(display: Any) -> Any:
    """Return `matplotlib.pyplot`, imported only now.

    Raises
    ------
    ImportError
        If matplotlib is not installed; names ``display`` and the remedy.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{display.__name__} needs matplotlib; install it with pip install 'sklearn_kd[plot]'."
        ) from error
    return plt


def axes_to_draw_on(display: Any, ax: Any, figsize: tuple[float, float] = (6.4, 4.8)) -> Any:
    """Return ``ax``, or for None the axes of a new figure."""
    plt = import_pyplot(type(display))
    return plt.subplots(figsize=figsize, layout="constrained")[1] if ax is None else ax


def candidate_colour(index: int) -> str:
    """Return the colour of the candidate at ``index``; they repeat after seven."""
    return COLOURS[index % len(COLOURS)]


def candidate_style(index: int) -> dict[str, Any]:
    """Return colour and line style of the candidate at ``index``: 21 that differ."""
    style = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
    return {"color": candidate_colour(index), "linestyle": style}


def candidate_label(params: dict[str, Any] | None) -> str:
    """Return how a legend names a candidate, such as "ρ = 0.9, T = 2"."""
    if params is None:
        return "student"
    parts = [
        f"{symbol} = {params[name]:g}"
        for name, symbol in (("soft_ratio", "ρ"), ("temperature", "T"))
        if name in params
    ]
    if params.get("temperature_scaling") == "squared":
        parts.append("soft term × T²")
    return ", ".join(parts)


def legend_below(ax: Any, title: str | None) -> None:
    """Put the legend under the axes, for plots that leave no corner free."""
    ax.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def over_candidates(
    array: Any, params: Sequence[dict[str, Any]] | None, ndim: int, name: str
) -> tuple[np.ndarray, Sequence[dict[str, Any] | None]]:
    """Return ``array`` with a leading candidate axis, and one entry of ``params`` for each.

    Parameters
    ----------
    array : array-like
        Of ``ndim`` dimensions for one candidate (``params`` is None); otherwise of one more.
    params : list of dict or None
        The candidates.
    ndim : int
        Dimensions of one candidate's array.
    name : str
        What the error calls ``array``.

    Raises
    ------
    ValueError
        If ``array`` does not have one entry per candidate.
    """
    values = np.asarray(array, dtype=float)
    if params is None:
        # The caller's params holds no None; what is returned may.
        params, values = [None], values[None]  # type: ignore[list-item]
    if values.ndim != ndim + 1 or len(values) != len(params):
        raise ValueError(
            f"{name} has shape {np.shape(array)}, which does not fit params={params!r}: give "
            f"params=None with {ndim} axes, or one dict per entry of a leading axis."
        )
    return values, params


def require_two_classes(student: Any, display: Any, what: str) -> None:
    """Raise `ValueError` if the student has three or more classes."""
    if len(student.classes_) != 2:
        raise ValueError(
            f"{display.__name__} needs a student of two classes, but this one has "
            f"{len(student.classes_)}: {what}."
        )
