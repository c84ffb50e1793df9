"""The scores of a search over soft ratio × temperature, with their uncertainty."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_kd.inspection._plotting import axes_to_draw_on, import_pyplot, short_ratio
from sklearn_kd.search._uncertainty import parts_by_fold, uncertainty


class SelectionDisplay:
    """Held-out score over soft ratio ρ and temperature T, as found by a search.

    The best cell has a star. The scored rows cannot tell framed cells from it, at 90 % and
    simultaneously for all cells: the set ``in_best_set`` of
    :class:`~sklearn_kd.LinearizedKDStudentCV`. Left of the dashed line, at ρ ≤ T/(1 + T), hard
    labels overrule every error of the teacher. This is exact for two classes and a guide for more;
    students that stop may not get that far.

    Use `from_estimator`.

    Parameters
    ----------
    soft_ratios : ndarray of shape (n_soft_ratios,)
        Increasing soft ratios.
    temperatures : ndarray of shape (n_temperatures,)
        Increasing temperatures.
    mean : ndarray of shape (n_temperatures, n_soft_ratios)
        Mean held-out score; greater is better. NaN where the search has no such candidate.
    standard_error : ndarray of shape (n_temperatures, n_soft_ratios)
        Its standard error.
    in_best_set : ndarray of bool of shape (n_temperatures, n_soft_ratios)
        The cells to frame.
    best : tuple of int
        Row and column of the best cell.
    score_name : str, default="score"
        Name of the score.
    temperature_scaling : {"none", "squared"}, default="none"
        With "squared" the line is at ρ = 1/(1 + T).
    stopping_time : float, default=None
        That of the students, for the title; None: they are converged.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    image_ : matplotlib AxesImage
        The surface.
    frames_ : list of matplotlib Rectangle
        The frames of the cells in the best set.
    best_ : matplotlib Line2D
        The star.
    line_ : matplotlib Line2D
        The border of the cells in which every error is overruled.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.inspection import SelectionDisplay
    >>> display = SelectionDisplay(
    ...     soft_ratios=[0.5, 0.9], temperatures=[1.0, 4.0], best=(1, 0),
    ...     mean=np.array([[0.8, 0.7], [0.9, 0.75]]), standard_error=np.full((2, 2), 0.02),
    ...     in_best_set=np.array([[True, False], [True, False]]),
    ... )
    >>> len(display.plot().frames_)
    2
    """

    def __init__(
        self,
        *,
        soft_ratios: Any,
        temperatures: Any,
        mean: Any,
        standard_error: Any,
        in_best_set: Any,
        best: tuple[int, int],
        score_name: str = "score",
        temperature_scaling: str = "none",
        stopping_time: float | None = None,
    ) -> None:
        self.soft_ratios = soft_ratios
        self.temperatures = temperatures
        self.mean = mean
        self.standard_error = standard_error
        self.in_best_set = in_best_set
        self.best = best
        self.score_name = score_name
        self.temperature_scaling = temperature_scaling
        self.stopping_time = stopping_time

    def plot(self, ax: Any = None) -> Self:
        """Draw the surface.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : SelectionDisplay
            This display, with the artists.
        """
        mean, error = np.asarray(self.mean), np.asarray(self.standard_error)
        n_rows, n_columns = mean.shape
        figsize = (2.2 + 0.85 * n_columns, 2.2 + 0.6 * n_rows)
        self.ax_ = ax = axes_to_draw_on(self, ax, figsize=figsize)
        self.figure_ = ax.figure
        self.image_ = ax.imshow(mean, origin="lower", cmap="viridis", aspect="auto")
        self.figure_.colorbar(self.image_, ax=ax, label=self.score_name)
        middle = (np.nanmin(mean) + np.nanmax(mean)) / 2
        self.frames_ = []
        framed = np.asarray(self.in_best_set, bool)
        for row, column in np.argwhere(np.isfinite(mean)):
            value = mean[row, column]
            color = "black" if value > middle else "white"
            ax.text(
                column,
                row - 0.18,
                f"{value:.3g}\n± {error[row, column]:.1g}",
                ha="center",
                va="center",
                fontsize="small",
                color=color,
            )
            if framed[row, column]:
                self.frames_.append(_frame(ax, row, column))
        row, column = self.best
        color = "black" if mean[self.best] > middle else "white"
        (self.best_,) = ax.plot(column, row + 0.3, "*", color=color, markersize=11)
        self.line_ = self._draw_border(ax)
        ax.set_xticks(range(n_columns), list(map(short_ratio, self.soft_ratios)))
        ax.set_yticks(range(n_rows), [f"{temperature:g}" for temperature in self.temperatures])
        ax.set(xlabel="soft ratio ρ", ylabel="temperature T")
        stops = "" if self.stopping_time is None else f"; stopped at t = {self.stopping_time:g}"
        ax.set_title(
            f"★ best{stops}; framed: not told from it at 90 %\n"
            "left of the dashes every error is overruled",
            fontsize="medium",
        )
        return self

    def _draw_border(self, ax: Any) -> Any:
        """Draw the steps between cells with ρ ≤ T/(1 + T) and the others."""
        temperatures = np.asarray(self.temperatures, dtype=float)
        scale = 1.0 if self.temperature_scaling == "squared" else temperatures
        limits = scale / (1 + temperatures)
        columns = np.searchsorted(np.asarray(self.soft_ratios, dtype=float), limits, side="right")
        x = np.repeat(columns - 0.5, 2)
        y = np.repeat(np.arange(len(temperatures) + 1) - 0.5, 2)[1:-1]
        (line,) = ax.plot(x, y, color="#D55E00", linestyle="--", linewidth=2.5)
        ax.set(xlim=(-0.5, len(self.soft_ratios) - 0.5), ylim=(-0.5, len(temperatures) - 0.5))
        return line

    @classmethod
    def from_estimator(cls, search: Any, *, score: str | None = None, ax: Any = None) -> Self:
        """Draw the surface of a fitted search.

        Parameters
        ----------
        search : LinearizedKDStudentCV or search of scikit-learn
            Fitted, over ``soft_ratio`` and ``temperature`` (also of a student in a pipeline). Other
            parameters are held at those of the best candidate. The best set of a search of
            scikit-learn is found by fold, as for scores that are no mean over rows.
        score : str, default=None
            Which of several scores. None: the only one, or that of ``refit``.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : SelectionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the search was not over both parameters, or does not have ``score``.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudentCV
        >>> from sklearn_kd.inspection import SelectionDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> search = LinearizedKDStudentCV(LogisticRegression()).fit(scale(X), y)
        >>> SelectionDisplay.from_estimator(search).mean.shape
        (3, 7)
        """
        import_pyplot(cls)
        if isinstance(search, type) or not hasattr(search, "fit"):
            raise TypeError(f"search is a {type(search).__name__}; give a fitted search.")
        check_is_fitted(search)
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"{type(search).__name__} has no cv_results_; give a fitted LinearizedKDStudentCV "
                "or a search of scikit-learn."
            )
        results = search.cv_results_
        if score is None:
            score = "score" if "mean_test_score" in results else search.refit
        if f"mean_test_{score}" not in results:
            names = [k.removeprefix("mean_test_") for k in results if k.startswith("mean_test_")]
            raise ValueError(f"score={score!r} is not one of this search's: {names}; give one.")
        values = results[f"mean_test_{score}"]
        errors, in_set = _uncertainty(search, score)
        params = results["params"]
        axes = [_name(params[0], parameter) for parameter in ("soft_ratio", "temperature")]
        best = params[int(np.nanargmax(values))]
        if score == "score" or score == search.refit:
            best = params[search.best_index_]
        others = {name: value for name, value in best.items() if name not in axes}
        cells = {
            (candidate[axes[1]], candidate[axes[0]]): (value, error, is_in_set)
            for candidate, value, error, is_in_set in zip(
                params, values, errors, in_set, strict=True
            )
            if all(candidate[name] is v or candidate[name] == v for name, v in others.items())
        }
        temperatures, soft_ratios = (sorted({cell[i] for cell in cells}) for i in (0, 1))
        empty = (np.nan, np.nan, False)
        grid = np.array([[cells.get((t, r), empty) for r in soft_ratios] for t in temperatures])
        return cls(
            soft_ratios=np.array(soft_ratios, dtype=float),
            temperatures=np.array(temperatures, dtype=float),
            mean=grid[..., 0],
            standard_error=grid[..., 1],
            in_best_set=grid[..., 2].astype(bool),
            best=(temperatures.index(best[axes[1]]), soft_ratios.index(best[axes[0]])),
            score_name=score,
            temperature_scaling=_scaling(search, best),
            stopping_time=_stopping_time(best),
        ).plot(ax)


def _uncertainty(search: Any, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard errors of the cells, and which cannot be told from the best."""
    results = search.cv_results_
    if f"in_best_set_{score}" in results:
        return results[f"stderr_test_{score}"], results[f"in_best_set_{score}"]
    n_splits, mean = search.n_splits_, results[f"mean_test_{score}"]
    splits = np.array([results[f"split{k}_test_{score}"] for k in range(n_splits)])
    # scikit-learn's spread divides by the number of splits
    errors = results[f"std_test_{score}"] / np.sqrt(max(1, n_splits - 1))
    in_set, cells = np.zeros(len(mean), bool), np.flatnonzero(np.isfinite(mean))
    parts = parts_by_fold(splits[:, cells], overlap=0.0)
    best = int(mean[cells].argmax())
    in_set[cells] = uncertainty(mean[cells], parts, best, many_units=False).in_best_set
    return errors, in_set


def _frame(ax: Any, row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    corner = (column - 0.46, row - 0.45)
    frame = Rectangle(corner, 0.92, 0.9, fill=False, edgecolor="black", linewidth=1.8)
    frame.set_path_effects([withStroke(linewidth=4, foreground="white")])  # on dark cells too
    return ax.add_patch(frame)


def _name(params: dict[str, Any], parameter: str) -> str:
    """Return the key of a student's parameter, which a pipeline prefixes."""
    for name in params:
        if name == parameter or name.endswith(f"__{parameter}"):
            return name
    raise ValueError(
        f"The search did not vary {parameter!r}, but {sorted(params)}; search over both soft_ratio "
        "and temperature, one value of either being enough."
    )


def _scaling(search: Any, best: dict[str, Any]) -> str:
    """Return the temperature scaling of the best candidate."""
    for name, value in best.items():
        if name.rsplit("__", 1)[-1] == "temperature_scaling":
            return value
    if not hasattr(search, "best_estimator_"):  # refit=False: no fitted student to ask
        keys = [k for k in search.get_params() if k.endswith("temperature_scaling")]
        return search.get_params()[keys[0]]
    student = search.best_estimator_
    while isinstance(student, Pipeline):
        student = student.steps[-1][1]
    return student._recipe()["temperature_scaling"]


def _stopping_time(best: dict[str, Any]) -> float | None:
    """Return the stopping time of the best candidate, if that was searched: the last of several."""
    found = [value for name, value in best.items() if name.rsplit("__", 1)[-1] == "stopping_time"]
    return float(np.max(found[0])) if found and found[0] is not None else None
