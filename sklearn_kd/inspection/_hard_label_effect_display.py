"""Whether hard labels help: the value of Eq. 12 beside the measured error, which decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._logits import canonical_logits, require_logits
from sklearn_kd.inspection._plotting import COLOURS, import_pyplot, short_ratio
from sklearn_kd.inspection._training_rows import merged_training_labels
from sklearn_kd.metrics import hard_label_effect
from sklearn_kd.metrics._scorers import student_and_rows

SOFT_RATIOS = (0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999, 1.0)
TOWARDS = "hard labels turn the\nweights towards the truth"
AWAY = "hard labels turn the\nweights away from it"


class HardLabelEffectDisplay:
    """Whether hard labels help this teacher's student: by Eq. 12, and by the measured error.

    The left panel is Eq. 12: how the angle between the student's weight change and that of the
    truth responds to a small weight of the hard labels, at ρ = 1. It describes an angle, not the
    error, and its sign can be misleading. The right panel is the measured error over the soft
    ratio ρ. **Advice on hard labels comes from the right panel**; where the two disagree, the
    display says so.

    Use `from_estimator`.

    Parameters
    ----------
    effect : float
        Eq. 12's value (:func:`~sklearn_kd.metrics.hard_label_effect`).
    interval : tuple of two floats
        Its bootstrap interval.
    soft_ratios : sequence of float of shape (n_ratios,)
        Soft ratios ρ, with 1, no hard labels, among them.
    error : array-like of shape (n_ratios,)
        Share of held-out rows on which the student is wrong.
    n_rows : int
        Number m of held-out rows. The bars are the binomial standard error √(e (1 − e) / m) of
        each error alone. All errors share the rows, so their differences are more certain.
    is_proxy : bool, default=True
        Whether labels ±1 stood in for the ground-truth logits.
    confidence_level : float, default=0.95
        Confidence of the interval.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (2,)
        Left and right panel.
    figure_ : matplotlib Figure
        The figure.
    effect_ : matplotlib ErrorbarContainer
        Eq. 12's value and interval.
    error_ : matplotlib ErrorbarContainer
        The error over ρ with one standard error.
    best_ : matplotlib Line2D
        The soft ratio of the lowest error; in a tie, the largest.
    best_soft_ratio_ : float
        That soft ratio.
    disagree_ : bool
        Whether the interval of Eq. 12 excludes 0 and the measured error shows the opposite sign
        by more than one standard error of the error at ρ = 1.

    See Also
    --------
    sklearn_kd.metrics.hard_label_effect : The number of the left panel.

    Examples
    --------
    Eq. 12 advises against hard labels, which nevertheless lower the error:

    >>> from sklearn_kd.inspection import HardLabelEffectDisplay
    >>> display = HardLabelEffectDisplay(
    ...     effect=-0.2, interval=(-0.3, -0.1), soft_ratios=[0.5, 0.9, 1.0],
    ...     error=[0.03, 0.02, 0.07], n_rows=1000,
    ... ).plot()
    >>> display.best_soft_ratio_, display.disagree_
    (0.9, True)
    """

    def __init__(
        self,
        *,
        effect: float,
        interval: tuple[float, float],
        soft_ratios: Sequence[float],
        error: Any,
        n_rows: int,
        is_proxy: bool = True,
        confidence_level: float = 0.95,
    ) -> None:
        self.effect = effect
        self.interval = interval
        self.soft_ratios = soft_ratios
        self.error = error
        self.n_rows = n_rows
        self.is_proxy = is_proxy
        self.confidence_level = confidence_level

    def plot(self, ax: Any = None) -> Self:
        """Draw the two panels.

        Parameters
        ----------
        ax : sequence of two matplotlib Axes, default=None
            Left and right panel. None: a new figure.

        Returns
        -------
        display : HardLabelEffectDisplay
            This display, with the artists.

        Raises
        ------
        ValueError
            If ``ax`` is not two axes, or 1 is not among the soft ratios.
        """
        if not np.any(np.asarray(self.soft_ratios) == 1):
            raise ValueError(
                f"soft_ratios={list(self.soft_ratios)!r} must contain 1: without the error of "
                "soft labels alone nothing shows what hard labels change."
            )
        self.axes_ = self._axes(ax)
        self.figure_ = self.axes_[0].figure
        self._draw_effect(self.axes_[0])
        self._draw_error(self.axes_[1])
        return self

    def _axes(self, ax: Any) -> np.ndarray:
        plt = import_pyplot(type(self))
        if ax is None:
            _, ax = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1, 2), layout="constrained")
        axes = np.asarray(ax, dtype=object).ravel()
        if len(axes) != 2:
            raise ValueError(f"ax must be two axes, left and right panel; got {len(axes)}.")
        return axes

    def _draw_effect(self, ax: Any) -> None:
        """Draw Eq. 12 with its interval; text in the half planes explains the sign."""
        low, high = self.interval
        self.effect_ = ax.errorbar(
            0,
            self.effect,
            [[self.effect - low], [high - self.effect]],
            marker="o",
            capsize=6,
            color="black",
        )
        reach = 1.8 * max(abs(low), abs(high), abs(self.effect))
        reach = reach if reach > 0 else 1.0
        ax.axhspan(0, reach, color=COLOURS[0], alpha=0.12, linewidth=0)
        ax.axhspan(-reach, 0, color=COLOURS[1], alpha=0.12, linewidth=0)
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.text(0, 0.97 * reach, TOWARDS, ha="center", va="top", color=COLOURS[0])
        ax.text(0, -0.97 * reach, AWAY, ha="center", va="bottom", color=COLOURS[1])
        ax.set(xlim=(-1, 1), ylim=(-reach, reach), xticks=[])
        truth = "labels ±1 as the truth" if self.is_proxy else "ground-truth logits"
        ax.set_xlabel(f"{self.confidence_level:.0%} bootstrap interval,\n{truth}")
        ax.set_ylabel(r"$\partial\cos\alpha\,/\,\partial(1-\rho)$ at ρ = 1")
        ax.set_title("Eq. 12: an angle, not the error", fontsize="medium")

    def _draw_error(self, ax: Any) -> None:
        """Draw the error over ρ, evenly spaced, as useful soft ratios crowd towards 1."""
        order = np.argsort(self.soft_ratios)
        ratios = np.asarray(self.soft_ratios, dtype=float)[order]
        error = np.asarray(self.error, dtype=float)[order]
        standard_error = np.sqrt(error * (1 - error) / self.n_rows)
        ticks = np.arange(len(ratios))
        self.error_ = ax.errorbar(
            ticks,
            error,
            standard_error,
            marker="o",
            capsize=3,
            color=COLOURS[0],
            label="error ± 1 standard error",
        )
        best = len(error) - 1 - int(np.argmin(error[::-1]))
        self.best_soft_ratio_ = float(ratios[best])
        (self.best_,) = ax.plot(
            best,
            error[best],
            marker="*",
            markersize=17,
            color=COLOURS[4],
            linestyle="none",
            markeredgecolor="black",
            label=f"lowest: ρ = {short_ratio(ratios[best])}",
            zorder=3,
        )
        ax.axhline(
            error[-1], color="0.4", linestyle="dotted", label="soft labels only, ρ = 1", zorder=1
        )
        ax.set_xticks(ticks, list(map(short_ratio, ratios)))
        ax.set(
            xlabel="soft ratio ρ (hard labels weigh 1 − ρ)",
            ylabel=f"error on {self.n_rows} held-out rows",
        )
        ax.set_ylim(bottom=0)
        ax.legend()
        self._say_which_decides(ax, error, standard_error[-1])

    def _say_which_decides(self, ax: Any, error: np.ndarray, standard_error: float) -> None:
        """State in the title whether hard labels lower the error, and whether Eq. 12 agrees."""
        low, high = self.interval
        sign = int(low > 0) - int(high < 0)
        if error[-1] - error.min() > standard_error:
            measured, verdict = 1, "hard labels help"
        elif error.max() - error[-1] > standard_error:
            measured, verdict = -1, "hard labels do not help"
        else:
            measured, verdict = 0, "all ρ within one standard error of ρ = 1"
        self.disagree_ = sign * measured < 0
        title = f"The measured error decides: {verdict}"
        if self.disagree_:
            title += "\nEq. 12 disagrees; follow the error"
        elif sign == 0:
            title += "\nEq. 12 has no say: its interval holds 0"
        ax.set_title(title, fontsize="medium", color=COLOURS[1] if self.disagree_ else "black")

    @classmethod
    def from_estimator(
        cls,
        student: Any,
        X: Any,
        y: Any,
        *,
        teacher_logits: Any = None,
        ground_truth_logits: Any = None,
        soft_ratios: Sequence[float] = SOFT_RATIOS,
        n_bootstraps: int = 1000,
        confidence_level: float = 0.95,
        random_state: Any = None,
        ax: Any = None,
    ) -> Self:
        """Draw for a fitted student; no refit.

        Eq. 12 is taken over the student's training rows, the error over ``X`` and ``y``.

        Parameters
        ----------
        student : LinearizedKDStudent
            A fitted student. Its temperature is kept; its soft ratio plays no part.
        X : array-like of shape (n_samples, n_features)
            Held-out rows.
        y : array-like of shape (n_samples,)
            Their labels.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``, for a student that was fitted on logits.
        ground_truth_logits : array-like of shape (n_training_samples,) or \
                (n_training_samples, n_classes), default=None
            Logits z_g of the truth on the rows that were passed to ``fit``. None: the hard labels
            as ±1, a proxy.
        soft_ratios : sequence of float in (0, 1]
            Soft ratios ρ at which to measure the error, with 1 among them.
        n_bootstraps : int, default=1000
            Bootstrap samples for the interval.
        confidence_level : float in (0, 1), default=0.95
            Confidence of the interval.
        random_state : int, numpy.random.Generator or None, default=None
            Bootstrap samples.
        ax : sequence of two matplotlib Axes, default=None
            Left and right panel. None: a new figure.

        Returns
        -------
        display : HardLabelEffectDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If an argument is out of range, or 1 is not among ``soft_ratios``.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudent
        >>> from sklearn_kd.inspection import HardLabelEffectDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X = scale(X)
        >>> student = LinearizedKDStudent(LogisticRegression()).fit(X[:300], y[:300])
        >>> HardLabelEffectDisplay.from_estimator(student, X[300:], y[300:], random_state=0)
        <sklearn_kd.inspection._hard_label_effect_display.HardLabelEffectDisplay object at ...>
        """
        import_pyplot(cls)
        student, X = student_and_rows(student, X)
        check_is_fitted(student)
        recipe = student._recipe()
        z_t, labels, _ = map(student._to_working, merged_training_labels(student))
        if student.fit_report_.n_unlabelled_rows:
            raise ValueError(
                f"{student.fit_report_.n_unlabelled_rows} training rows have no label, and Eq. 12 "
                "asks what those of all rows change; fit the student without these rows."
            )
        effect = hard_label_effect(
            student.tangent_frame(),
            z_t,
            labels,
            temperature=recipe["temperature"],
            ground_truth_logits=_of_distinct_rows(student, ground_truth_logits),
            initial_logits=student._to_working(student.initial_logits_),
            n_bootstraps=n_bootstraps,
            confidence_level=confidence_level,
            random_state=random_state,
        )
        low, high = effect.interval
        # Eq. 12 is the slope in 1 − ρ; a factor T² on the soft term makes it T² times smaller.
        is_squared = recipe["temperature_scaling"] == "squared"
        scale = recipe["temperature"] ** -2 if is_squared else 1.0
        path = student.prefix_path(
            X,
            teacher_logits=teacher_logits,
            y=y,
            sizes=[len(student.X_fit_)],
            param_grid={"soft_ratio": list(soft_ratios)},
        )
        return cls(
            effect=scale * float(effect.value),
            interval=(scale * float(low), scale * float(high)),
            soft_ratios=list(soft_ratios),
            error=to_numpy(to_tensor(path.error))[:, 0, 0],
            n_rows=len(X),
            is_proxy=effect.is_proxy,
            confidence_level=confidence_level,
        ).plot(ax)


def _of_distinct_rows(student: Any, ground_truth_logits: Any) -> Any:
    """Return the logits of the rows of ``X_fit_``, given those of the rows passed to ``fit``."""
    if ground_truth_logits is None:
        return None
    logits = canonical_logits(
        ground_truth_logits,
        len(student.teacher_logits_),
        len(student.classes_),
        name="ground_truth_logits",
    )
    require_logits(logits, name="ground_truth_logits")
    distinct = student._distinct
    return student._to_working(logits[distinct.kept][distinct.merged.first])
