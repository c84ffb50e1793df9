"""The effective logits of a mix of soft and hard labels, against the teacher's (Eq. 3, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._array import to_numpy
from sklearn_kd.distillation import correction_margin, effective_logits
from sklearn_kd.inspection._plotting import (
    COLOURS,
    SHADE,
    axes_to_draw_on,
    candidate_label,
    candidate_styles,
    import_pyplot,
    legend_below,
)
from sklearn_kd.inspection._training_rows import effective_training_logits, merged_training_labels
from sklearn_kd.metrics._scorers import student_and_rows

LOGIT_LABELS = ("teacher's logit $z_t$", r"effective logit $z_\mathrm{eff}$")
MARGIN_LABELS = (
    r"teacher's margin for the true class, $z_{t,y} - \max_{k \neq y} z_{t,k}$",
    "effective margin for the true class",
)
OVERRULED = "teacher wrong,\nhard label overrules it"


class EffectiveLogitsDisplay:
    """Effective logits against the teacher's logits, for one or more (ρ, T).

    The effective logit z_eff (Eq. 3) is the logit on a training row of a student trained to
    convergence on soft and hard labels. Without hard labels (ρ = 1) it is the teacher's logit, the
    diagonal. Hard labels raise it for rows of class 1 and lower it for rows of class 0. In the
    shaded quadrants hard labels overrule a wrong teacher.

    Use `from_parameters` for the curves alone, `from_predictions` for a teacher's logits on
    labelled rows, `from_estimator` for the training rows of a student.

    Parameters
    ----------
    teacher_logits : ndarray of shape (n_points,), default=None
        The teacher's logits z_t at which the curves are given.
    effective_logits : ndarray of shape (n_candidates, n_labels, n_points), default=None
        The curves, one per candidate (ρ, T) and hard label.
    y : sequence of {0, 1}, default=(1,)
        The hard labels of the curves.
    params : list of dict, default=()
        ``soft_ratio``, ``temperature`` and ``temperature_scaling`` of each candidate.
    margins : ndarray of shape (n_candidates,), default=()
        How confident a wrong teacher may be and still be overruled
        (:func:`~sklearn_kd.distillation.correction_margin`); known for two classes only.
    row_teacher_logits, row_effective_logits : ndarray of shape (n_rows,), default=None
        Rows to draw as points. With ``quantity="margin"`` their margins for the true class.
    row_labels : ndarray of shape (n_rows,), default=None
        Hard labels of the rows, in [0, 1]; a fraction is the mean of merged duplicates.
    quantity : {"logit", "margin"}, default="logit"
        What the axes show. "margin", for three or more classes, is the logit of the true class
        minus the largest other one, which for two classes is the logit of the true class.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        The curves: the hard labels of the first candidate, those of the second, and so on.
    identity_ : matplotlib Line2D
        The diagonal.
    points_ : list of matplotlib PathCollection
        The rows; one collection per hard label.

    See Also
    --------
    sklearn_kd.distillation.effective_logits : The numbers.

    Examples
    --------
    >>> from sklearn_kd.inspection import EffectiveLogitsDisplay
    >>> EffectiveLogitsDisplay.from_parameters([0.5, 0.8, 0.95], temperature=2.0)
    <sklearn_kd.inspection._effective_logits_display.EffectiveLogitsDisplay object at ...>
    """

    def __init__(
        self,
        *,
        teacher_logits: Any = None,
        effective_logits: Any = None,
        y: Sequence[int] = (1,),
        params: Sequence[dict[str, Any]] = (),
        margins: Any = (),
        row_teacher_logits: Any = None,
        row_effective_logits: Any = None,
        row_labels: Any = None,
        quantity: str = "logit",
    ) -> None:
        self.teacher_logits = teacher_logits
        self.effective_logits = effective_logits
        self.y = y
        self.params = params
        self.margins = margins
        self.row_teacher_logits = row_teacher_logits
        self.row_effective_logits = row_effective_logits
        self.row_labels = row_labels
        self.quantity = quantity

    def plot(self, ax: Any = None) -> Self:
        """Draw the curves and the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : EffectiveLogitsDisplay
            This display, with the artists.
        """
        self.ax_ = ax = axes_to_draw_on(self, ax, figsize=(6.4, 5.2))
        self.figure_ = ax.figure
        self.lines_: list[Any] = []
        self.points_: list[Any] = []
        if self.effective_logits is not None:
            self._draw_curves(ax)
        if self.row_teacher_logits is not None:
            self._draw_rows(ax)
        self._draw_guides(ax)
        x_label, y_label = LOGIT_LABELS if self.quantity == "logit" else MARGIN_LABELS
        labels = self._shown_labels()
        if self.quantity == "logit" and len(labels) == 1:
            y_label += f", hard label y = {labels[0]}"
        ax.set(xlabel=x_label, ylabel=y_label)
        title = None
        if len(self.params) == 1:
            title = candidate_label(self.params[0])
            title += "".join(map(overruled_label, self.margins))
        if len(labels) > 1:
            legend_below(ax, title)
        else:
            ax.legend(title=title, loc="lower right" if labels == [1] else "upper left")
        return self

    def _shown_labels(self) -> list[int]:
        return [1] if self.quantity == "margin" else list(self.y)

    def _draw_curves(self, ax: Any) -> None:
        """Draw the curves: coloured by label if there is one candidate, else by candidate."""
        one = len(self.params) == 1
        candidates = zip(self.params, self.margins, candidate_styles(self.params), strict=True)
        for (params, margin, style), curves in zip(candidates, self.effective_logits, strict=True):
            for label, curve in zip(self.y, curves, strict=True):
                colour = label_colour(label) if one else style["color"]
                name = candidate_label(params) + overruled_label(margin)
                (line,) = ax.plot(
                    self.teacher_logits,
                    curve,
                    color=colour,
                    linestyle="solid" if one else label_style(label),
                    label=f"y = {label}" if one else name if label == self.y[0] else "_",
                )
                self.lines_.append(line)
                if 0 < margin < np.max(np.abs(self.teacher_logits)):
                    crossing = -margin if label == 1 else margin
                    ax.plot(crossing, 0, marker="o", color=colour, linestyle="none", zorder=3)
        if not one and len(self.y) > 1:
            for label in self.y:
                ax.plot([], [], color="0.3", linestyle=label_style(label), label=f"y = {label}")

    def _draw_rows(self, ax: Any) -> None:
        teacher, effective = map(np.asarray, (self.row_teacher_logits, self.row_effective_logits))
        if self.quantity == "margin":
            groups = [(np.ones(len(teacher), bool), COLOURS[0], "row")]
        else:
            labels = np.asarray(self.row_labels)
            groups = [
                (labels == 1, label_colour(1), "row, y = 1"),
                (labels == 0, label_colour(0), "row, y = 0"),
                ((labels > 0) & (labels < 1), "0.4", "merged row, labels disagree"),
            ]
        style = {"s": 22, "alpha": 0.6, "edgecolors": "white", "linewidths": 0.4, "zorder": 2.5}
        for rows, colour, label in groups:
            if rows.any():
                points = ax.scatter(teacher[rows], effective[rows], color=colour, **style)
                points.set_label(f"{label} ({rows.sum()})")
                self.points_.append(points)
        wrong, overruled = self._wrong_rows()
        share = f"{overruled} of them overruled" if wrong else "nothing to overrule"
        ax.set_title(f"teacher wrong on {wrong} of {len(teacher)} rows, {share}", fontsize="medium")

    def _wrong_rows(self) -> tuple[int, int]:
        """Return the number of rows on which the teacher is wrong, and of those overruled."""
        teacher, effective = map(np.asarray, (self.row_teacher_logits, self.row_effective_logits))
        if self.quantity == "logit":
            side = np.sign(2 * np.asarray(self.row_labels) - 1)
            teacher, effective = side * teacher, side * effective
        wrong = teacher < 0
        return int(wrong.sum()), int((wrong & (effective > 0)).sum())

    def _draw_guides(self, ax: Any) -> None:
        """Draw the diagonal, the zero lines, and the quadrants where a teacher is overruled."""
        left, right = ax.get_xlim()
        bottom, top = ax.get_ylim()
        left, right = min(left, -1.0), max(right, 1.0)
        bottom, top = min(bottom, -1.0), max(top, 1.0)
        ends = [max(left, bottom), min(right, top)]
        (self.identity_,) = ax.plot(
            ends, ends, color="0.6", linestyle="dotted", label="soft labels only, ρ = 1", zorder=1
        )
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=-1)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=-1)
        if 1 in self._shown_labels():
            ax.fill_between([left, 0], 0, top, **SHADE)
            ax.text(left, top, "\n " + OVERRULED.replace("\n", "\n "), va="top", color="0.35")
        if 0 in self._shown_labels():
            ax.fill_between([0, right], bottom, 0, **SHADE)
            text = OVERRULED.replace("\n", " \n") + " "
            ax.text(right, bottom, text + "\n", va="bottom", ha="right", color="0.35")
        ax.set(xlim=(left, right), ylim=(bottom, top))

    @classmethod
    def from_parameters(
        cls,
        soft_ratio: float | Sequence[float],
        temperature: float | Sequence[float],
        *,
        temperature_scaling: str = "none",
        y: int | Sequence[int] = 1,
        limits: tuple[float, float] = (-8.0, 8.0),
        ax: Any = None,
    ) -> Self:
        """Draw the curves of soft ratios and temperatures; no data, no fit.

        Parameters
        ----------
        soft_ratio : float or sequence of float in (0, 1]
            Weights ρ of the soft labels.
        temperature : float or sequence of float > 0
            Temperatures T. Every pair (ρ, T) gives one curve.
        temperature_scaling : {"none", "squared"}, default="none"
            Whether the soft term is multiplied by T².
        y : {0, 1} or sequence of both, default=1
            Hard labels to draw.
        limits : tuple of two floats, default=(-8.0, 8.0)
            Range of the teacher's logits.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : EffectiveLogitsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from sklearn_kd.inspection import EffectiveLogitsDisplay
        >>> display = EffectiveLogitsDisplay.from_parameters([0.5, 0.8], 2.0, y=[0, 1])
        >>> display.margins.round(2)
        array([inf, 2.2])
        """
        import_pyplot(cls)
        labels = np.atleast_1d(y).tolist()
        if not labels or len(set(labels)) < len(labels) or not set(labels) <= {0, 1}:
            raise ValueError(f"y={y!r} must be 0, 1, or both.")
        if not limits[0] < limits[1]:
            raise ValueError(f"limits={limits!r} must be two increasing logits.")
        z_t = np.linspace(*limits, 401)
        return cls(**_curves(z_t, labels, soft_ratio, temperature, temperature_scaling)).plot(ax)

    @classmethod
    def from_predictions(
        cls,
        teacher_logits: Any,
        y: Any,
        *,
        soft_ratio: float,
        temperature: float,
        temperature_scaling: str = "none",
        ax: Any = None,
    ) -> Self:
        """Draw a teacher's logits on labelled rows, and the effective logits there.

        Parameters
        ----------
        teacher_logits : array-like of shape (n_rows,) or (n_rows, n_classes)
            The teacher's logits. One column per class for three or more classes; the axes then
            show margins for the true class.
        y : array-like of shape (n_rows,) or (n_rows, n_classes)
            Hard labels: class indices, or shares of the classes (for two, of class 1). Of shares
            the largest marks the true class.
        soft_ratio : float in (0, 1]
            Weight ρ of the soft labels.
        temperature : float > 0
            Temperature T.
        temperature_scaling : {"none", "squared"}, default="none"
            Whether the soft term is multiplied by T².
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : EffectiveLogitsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If an argument is out of range or shapes do not match.

        Examples
        --------
        >>> from sklearn_kd.inspection import EffectiveLogitsDisplay
        >>> display = EffectiveLogitsDisplay.from_predictions(
        ...     [-4.0, -0.5, 3.0], [1, 1, 1], soft_ratio=0.9, temperature=2.0
        ... )
        >>> display.ax_.get_title()
        'teacher wrong on 2 of 3 rows, 1 of them overruled'
        """
        import_pyplot(cls)
        z_t, labels = np.asarray(teacher_logits, dtype=float), np.asarray(y)
        recipe: dict[str, Any] = {
            "soft_ratio": soft_ratio,
            "temperature": temperature,
            "temperature_scaling": temperature_scaling,
        }
        z_eff = effective_logits(z_t, labels, **recipe)
        return cls._of_rows(z_t, z_eff, labels, recipe=recipe).plot(ax)

    @classmethod
    def from_estimator(cls, student: Any, *, ax: Any = None) -> Self:
        """Draw the training rows of a fitted student that have a hard label.

        Parameters
        ----------
        student : LinearizedKDStudent
            A fitted student. For three or more classes the axes show margins for the true class.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : EffectiveLogitsDisplay
            The display, drawn.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudent
        >>> from sklearn_kd.inspection import EffectiveLogitsDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> student = LinearizedKDStudent(LogisticRegression()).fit(scale(X), y)
        >>> EffectiveLogitsDisplay.from_estimator(student)
        <sklearn_kd.inspection._effective_logits_display.EffectiveLogitsDisplay object at ...>
        """
        import_pyplot(cls)
        student, _ = student_and_rows(student)
        check_is_fitted(student)
        z_t, labels, is_labelled = merged_training_labels(student)
        z_eff = effective_training_logits(student)
        drawn = [to_numpy(values.double()[is_labelled]) for values in (z_t, z_eff, labels)]
        return cls._of_rows(*drawn, recipe=student._recipe()).plot(ax)

    @classmethod
    def _of_rows(
        cls, z_t: np.ndarray, z_eff: np.ndarray, labels: np.ndarray, *, recipe: dict[str, Any]
    ) -> Self:
        """Return the display of rows with these logits and hard labels."""
        if z_t.ndim == 2:
            true_class = labels if labels.ndim == 1 else labels.argmax(axis=1)
            return cls(
                params=[recipe],
                row_teacher_logits=_margins_for(z_t, true_class),
                row_effective_logits=_margins_for(z_eff, true_class),
                quantity="margin",
            )
        reach = 1.05 * max(np.abs(z_t).max(), 1.0)
        ratio, temperature, scaling, *_ = recipe.values()
        return cls(
            **_curves(np.linspace(-reach, reach, 401), [1, 0], ratio, temperature, scaling),
            row_teacher_logits=z_t,
            row_effective_logits=z_eff,
            row_labels=labels,
        )


def label_colour(label: int) -> str:
    """Return the colour of a hard label."""
    return COLOURS[0] if label == 1 else COLOURS[1]


def label_style(label: int) -> str:
    """Return the line style of a hard label, where colours tell candidates apart."""
    return "solid" if label == 1 else "dashed"


def overruled_label(margin: float) -> str:
    """Return the legend's text for a correction margin."""
    if np.isinf(margin):
        return " (overrules every wrong teacher)"
    return f" (overrules |$z_t$| < {margin:.2g})" if margin > 0 else " (overrules none)"


def _curves(
    z_t: np.ndarray,
    y: list[int],
    soft_ratios: Any,
    temperatures: Any,
    temperature_scaling: str,
) -> dict[str, Any]:
    """Return the display's curve arguments for every pair of soft ratio and temperature."""
    pairs = np.meshgrid(np.atleast_1d(soft_ratios), np.atleast_1d(temperatures), indexing="ij")
    ratio, temperature = (grid.ravel() for grid in pairs)
    # (candidate, label, point, 1): a last axis of length one marks binary logits
    curves = effective_logits(
        z_t[:, None],
        np.reshape(y, (1, -1, 1, 1)).astype(float),
        soft_ratio=ratio[:, None, None, None],
        temperature=temperature[:, None, None, None],
        temperature_scaling=temperature_scaling,
    )
    return {
        "teacher_logits": z_t,
        "effective_logits": curves[..., 0],
        "y": y,
        "params": [
            {"soft_ratio": r, "temperature": t, "temperature_scaling": temperature_scaling}
            for r, t in zip(ratio.tolist(), temperature.tolist(), strict=True)
        ],
        "margins": correction_margin(ratio, temperature, temperature_scaling=temperature_scaling),
    }


def _margins_for(logits: np.ndarray, true_class: np.ndarray) -> np.ndarray:
    """Return the logit of the true class minus the largest other one, (n_rows,)."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, true_class] = -np.inf
    return logits[rows, true_class] - others.max(axis=1)
