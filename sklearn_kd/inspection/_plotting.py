"""Helpers of the displays: matplotlib on demand, colours, and the names of candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito (2008): colours that differ under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("solid", (0, (6, 2)), (0, (3, 1, 1, 1)))
# Soft ratios at equal steps of the colours, and how far the colours go: the end is too light.
RATIO_STEPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0)
LIGHTEST = 0.8
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


def soft_ratio_color(soft_ratio: float) -> str:
    """Return the colour that stands for a soft ratio in all plots of this library.

    From dark blue for hard labels to orange for soft labels alone, with equal steps between
    ρ = 0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99 and 1. Needs matplotlib.

    Parameters
    ----------
    soft_ratio : float in [0, 1]
        ρ.

    Returns
    -------
    str
        The colour, such as "#0d0887".

    Examples
    --------
    >>> from sklearn_kd.inspection import soft_ratio_color
    >>> soft_ratio_color(0.0), soft_ratio_color(1.0)
    ('#0d0887', '#fca636')
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    position = np.interp(soft_ratio, RATIO_STEPS, np.linspace(0, LIGHTEST, len(RATIO_STEPS)))
    return to_hex(colormaps["plasma"](float(position)))


def candidate_colour(index: int) -> str:
    """Return the colour at ``index`` of what does not stand for a ρ; they repeat after seven."""
    return COLOURS[index % len(COLOURS)]


def candidate_styles(params: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return colour and line style of each candidate: a colour for each ρ, a style for each T.

    Candidates that all have one ρ, or have none, get colours in order.
    """
    ratios = [one["soft_ratio"] for one in params if one is not None and "soft_ratio" in one]
    if len(ratios) < len(params) or (len(set(ratios)) == 1 and len(ratios) > 1):
        return [
            {
                "color": candidate_colour(i),
                "linestyle": LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)],
            }
            for i in range(len(params))
        ]
    seen: Counter = Counter()
    styles = []
    for ratio in ratios:
        style = LINE_STYLES[seen[ratio] % len(LINE_STYLES)]
        styles.append({"color": soft_ratio_color(ratio), "linestyle": style})
        seen[ratio] += 1
    return styles


def short_ratio(soft_ratio: float) -> str:
    """Return ρ with as many digits as tell it from 0 and from 1, such as 0.993 for 0.993103."""
    room = min(soft_ratio, 1 - soft_ratio)
    if not 0 < room < 1:
        return f"{soft_ratio:g}"
    digits = next(d for d in range(1, 17) if abs(round(soft_ratio, d) - soft_ratio) <= room / 20)
    return f"{soft_ratio:.{digits}f}"


def candidate_label(params: dict[str, Any] | None) -> str:
    """Return how a legend names a candidate, such as "ρ = 0.9, T = 2"."""
    if params is None:
        return "student"
    parts = [
        f"{symbol} = {short(params[name])}"
        for name, symbol, short in (
            ("soft_ratio", "ρ", short_ratio),
            ("temperature", "T", "{:g}".format),
        )
        if name in params
    ]
    if params.get("temperature_scaling") == "squared":
        parts.append("soft term × T²")
    return ", ".join(parts)


def plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis by plain numbers: 60, not 6 × 10¹.

    Between powers of ten only 2 and 5 are labelled, where the axis is shorter than two decades.
    """

    def between(value: float, _: int) -> str:
        low, high = sorted(axis.get_view_interval())
        leading = f"{value:.0e}"[0]
        return f"{value:g}" if high < 100 * low and leading in "25" else ""

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(between)


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
