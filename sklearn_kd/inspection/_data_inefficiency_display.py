"""How much the student still moves when one more row arrives (Eq. 10, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.inspection._plotting import (
    BAND,
    axes_to_draw_on,
    candidate_label,
    candidate_styles,
    import_pyplot,
    over_candidates,
    plain_log_ticks,
)
from sklearn_kd.metrics._scorers import student_and_rows

CURVES = (
    "data_inefficiency",
    "smoothed_data_inefficiency",
    "smoothed_data_inefficiency_std",
)


class DataInefficiencyDisplay:
    r"""Data inefficiency :math:`\mathcal I(n)` against the number of training rows.

    :math:`\mathcal I(n)` (Eq. 10) is the elasticity of the student's weight change in the number
    of rows. Near 0, the rows so far determine the student. Where it does not fall, every new row
    still moves the student, as for targets that are noise. The line is the slope of ln E‖Δ_m‖ over
    a window of sizes, stated on the axis. The faint points are Eq. 10 itself, for single steps.

    Use `from_estimator`, or pass what
    :meth:`LinearizedKDStudent.prefix_path <sklearn_kd.LinearizedKDStudent.prefix_path>` returns.

    Parameters
    ----------
    sizes : ndarray of int of shape (n_sizes,)
        Training-set sizes n.
    data_inefficiency : ndarray of shape (n_sizes,) or (n_candidates, n_sizes)
        Eq. 10 at each size.
    smoothed_data_inefficiency : ndarray of the shape of ``data_inefficiency``
        Its mean over the window.
    smoothed_data_inefficiency_std : ndarray of the shape of ``data_inefficiency``
        Standard deviation of the smoothed values over permutations.
    window : float
        Ratio of the largest to the smallest size in the window.
    n_permutations : int, default=1
        Number of permutations behind the spread, which is drawn if there are two or more.
    params : list of dict, default=None
        The candidates (ρ, T); None for arrays without an axis of candidates.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        The smoothed data inefficiency, one line per candidate.
    raw_ : list of matplotlib Line2D
        Eq. 10 as faint points, one per candidate.
    bands_ : list of matplotlib PolyCollection
        Smoothed ± one standard deviation over permutations; empty for a single permutation.

    See Also
    --------
    TransferRiskDisplay : How often student and teacher disagree.

    Examples
    --------
    >>> from sklearn_kd.inspection import DataInefficiencyDisplay
    >>> DataInefficiencyDisplay(
    ...     sizes=[10, 100],
    ...     data_inefficiency=[0.5, 0.1],
    ...     smoothed_data_inefficiency=[0.4, 0.2],
    ...     smoothed_data_inefficiency_std=[0.0, 0.0],
    ...     window=2.0,
    ... ).plot()
    <sklearn_kd.inspection._data_inefficiency_display.DataInefficiencyDisplay object at ...>
    """

    def __init__(
        self,
        *,
        sizes: Any,
        data_inefficiency: Any,
        smoothed_data_inefficiency: Any,
        smoothed_data_inefficiency_std: Any,
        window: float,
        n_permutations: int = 1,
        params: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self.sizes = sizes
        self.data_inefficiency = data_inefficiency
        self.smoothed_data_inefficiency = smoothed_data_inefficiency
        self.smoothed_data_inefficiency_std = smoothed_data_inefficiency_std
        self.window = window
        self.n_permutations = n_permutations
        self.params = params

    def plot(self, ax: Any = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : DataInefficiencyDisplay
            This display, with the artists.

        Raises
        ------
        ValueError
            If an array does not fit ``params``.
        """
        (raw, params), (smooth, _), (spread, _) = (
            over_candidates(getattr(self, name), self.params, 1, name) for name in CURVES
        )
        self.ax_ = ax = axes_to_draw_on(self, ax)
        self.figure_ = ax.figure
        self.lines_, self.raw_, self.bands_ = [], [], []
        styles = candidate_styles(params)
        for c, (candidate, style) in enumerate(zip(params, styles, strict=True)):
            color = style["color"]
            self.lines_ += ax.plot(self.sizes, smooth[c], **style, label=candidate_label(candidate))
            self.raw_ += ax.plot(
                self.sizes, raw[c], ".", color=color, alpha=0.25, markersize=3, zorder=1
            )
            if self.n_permutations > 1:
                low, high = smooth[c] - spread[c], smooth[c] + spread[c]
                self.bands_.append(ax.fill_between(self.sizes, low, high, color=color, **BAND))
        self._limit_axes(ax, raw, smooth, spread)
        orders = "one order of the rows"
        if self.n_permutations > 1:
            orders = f"± std over {self.n_permutations} orders of the rows"
        ax.legend(title=f"lines: smoothed, {orders}")
        return self

    def _limit_axes(self, ax: Any, raw: np.ndarray, smooth: np.ndarray, spread: np.ndarray) -> None:
        """Fit the axis to the lines: single steps may be many times larger than their mean."""
        top = 1.4 * np.max(smooth + spread)
        hidden = int((raw > top).sum())
        steps = "points: single steps" + (f", {hidden} beyond the axis" if hidden else "")
        ax.plot([], [], ".", color="0.5", label=steps)
        reach = np.sqrt(self.window)
        ax.set(
            xscale="log",
            xlabel="training rows n",
            ylabel=r"data inefficiency $\mathcal{I}(n)$"
            f"\nover sizes from n/{reach:.3g} to {reach:.3g}n",
            ylim=(0, top),
        )
        plain_log_ticks(ax.xaxis)

    @classmethod
    def from_estimator(
        cls,
        student: Any,
        *,
        sizes: Any = None,
        n_permutations: int | None = None,
        param_grid: dict | list[dict] | None = None,
        init: str = "student",
        window: float = 2.0,
        random_state: Any = None,
        ax: Any = None,
    ) -> Self:
        """Draw the data inefficiency of a fitted student at its training-set sizes; no refit.

        Parameters
        ----------
        student : LinearizedKDStudent
            A fitted student.
        sizes : increasing sequence of int, default=None
            Training-set sizes. None: all from 10 (for fewer than 20 distinct training rows,
            from 1) to the number of distinct training rows.
        n_permutations : int, default=None
            Number of random orders of the training rows. None: their order in ``fit``.
        param_grid : dict or list of dicts, default=None
            Candidates ``soft_ratio``, ``temperature``, ``temperature_scaling``, one line each.
        init : {"student", "random"}, default="student"
            Initial network: the student's own, or one drawn per permutation.
        window : float > 1, default=2.0
            Ratio of sizes over which to smooth.
        random_state : int, RandomState instance or None, default=None
            Orders of the rows and initial networks.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : DataInefficiencyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudent
        >>> from sklearn_kd.inspection import DataInefficiencyDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> student = LinearizedKDStudent(LogisticRegression()).fit(scale(X)[:200], y[:200])
        >>> display = DataInefficiencyDisplay.from_estimator(
        ...     student, n_permutations=3, random_state=0
        ... )
        >>> display.ax_.get_xlabel()
        'training rows n'
        """
        import_pyplot(cls)
        student, _ = student_and_rows(student)
        check_is_fitted(student)
        if sizes is None:  # the steps from the first few rows are large and would fill the axis
            n = len(student.X_fit_)
            sizes = range(10 if n >= 20 else 1, n + 1)
        path = student.prefix_path(
            sizes=sizes,
            n_permutations=n_permutations,
            param_grid={} if param_grid is None else param_grid,
            init=init,
            window=window,
            random_state=random_state,
        )
        return cls(
            sizes=to_numpy(to_tensor(path.sizes, dtype=torch.int64)),
            window=window,
            n_permutations=n_permutations or 1,
            params=path.params,
            **{name: to_numpy(to_tensor(path[name])) for name in CURVES},
        ).plot(ax)
