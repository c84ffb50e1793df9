"""The distribution of feature angles behind the bound of Theorem 1 (Eqs. 6-8, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.inspection._plotting import (
    COLOURS,
    axes_to_draw_on,
    candidate_colour,
    candidate_label,
    import_pyplot,
    require_two_classes,
)
from sklearn_kd.metrics import feature_angles, transfer_risk_bound, weight_change_angles
from sklearn_kd.metrics._scorers import student_and_rows

HALF_PI = np.pi / 2
TICKS = {0: "0", np.pi / 8: "π/8", np.pi / 4: "π/4", 3 * np.pi / 8: "3π/8", HALF_PI: "π/2"}


class AngleDistributionDisplay:
    """Share p(β) of rows whose feature lies further than β from the oracle's weight change.

    Theorem 1 bounds the transfer risk of a student on n rows by p(π/2 − ᾱ_n), the height of the
    curve at the mark of n. ᾱ_n is the angle between the student's weight change and the oracle's.
    Features of wide networks are nearly orthogonal to any one direction, so the curve stays at 1
    until close to π/2. The bound is therefore 1 unless the student is very close to the oracle.

    Use `from_predictions` or `from_estimator`.

    Parameters
    ----------
    feature_angles : ndarray of shape (n_rows,)
        Angles ᾱ(φ(x), Δ_w* − Δ_wz) in radians, in [0, π/2] (Eq. 8).
    sizes : sequence of int of shape (n_sizes,), default=()
        Training-set sizes n to mark.
    weight_change_angles : array-like of shape (n_sizes,), default=()
        Angles ᾱ_n in radians, in [0, π/2] (Eq. 7).
    params : dict, default=None
        ``soft_ratio`` and ``temperature``, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    line_ : matplotlib Line2D
        The curve p(β).
    marks_ : list of matplotlib Line2D
        One point (π/2 − ᾱ_n, p(π/2 − ᾱ_n)) per size.
    bounds_ : ndarray of shape (n_sizes,)
        The bound of Theorem 1 at each mark.

    See Also
    --------
    TransferRiskDisplay : The measured risk beside a tighter bound.

    Examples
    --------
    >>> from sklearn_kd.inspection import AngleDistributionDisplay
    >>> display = AngleDistributionDisplay(
    ...     feature_angles=[1.0, 1.2, 1.4, 1.5], sizes=[10, 20], weight_change_angles=[0.8, 0.2]
    ... )
    >>> display.plot().bounds_
    array([1.  , 0.5])
    """

    def __init__(
        self,
        *,
        feature_angles: Any,
        sizes: Sequence[int] = (),
        weight_change_angles: Any = (),
        params: dict[str, Any] | None = None,
    ) -> None:
        self.feature_angles = feature_angles
        self.sizes = sizes
        self.weight_change_angles = weight_change_angles
        self.params = params

    def plot(self, ax: Any = None) -> Self:
        """Draw the curve and the marks.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : AngleDistributionDisplay
            This display, with the artists.
        """
        self.ax_ = ax = axes_to_draw_on(self, ax)
        self.figure_ = ax.figure
        angles = np.sort(np.asarray(self.feature_angles, dtype=float))
        beta = np.concatenate([[0.0], angles, [HALF_PI]])
        share = np.concatenate([[1.0], np.arange(len(angles) - 1, -1, -1) / len(angles), [0.0]])
        (self.line_,) = ax.plot(
            beta, share, drawstyle="steps-post", color=COLOURS[0], label="p(β) over the rows"
        )
        at = HALF_PI - np.asarray(self.weight_change_angles, dtype=float)
        self.bounds_ = np.atleast_1d(
            transfer_risk_bound(angles, np.asarray(self.weight_change_angles, dtype=float))
        )
        self.marks_ = []
        for i, (n, x, bound) in enumerate(zip(self.sizes, at, self.bounds_, strict=True)):
            color = candidate_colour(i + 1)
            ax.vlines(x, 0, bound, color=color, linestyle="dotted", linewidth=1)
            self.marks_ += ax.plot(
                x, bound, "o", color=color, label=f"n = {n}: Theorem 1 says R ≤ {bound:.2g}"
            )
        ax.set_xticks(list(TICKS), list(TICKS.values()))
        ax.set(
            xlim=(0, HALF_PI * 1.02),
            ylim=(0, 1.05),
            xlabel=r"angle β; marks at $\pi/2 - \bar\alpha_n$",
            ylabel="share p(β) of rows further than β from the oracle",
        )
        ax.legend(title=None if self.params is None else candidate_label(self.params), loc="best")
        return self

    @classmethod
    def from_predictions(
        cls,
        effective_logits: Any,
        squared_feature_norms: Any,
        oracle_norm: float,
        *,
        sizes: Sequence[int] = (),
        weight_change_norms: Any = (),
        ax: Any = None,
    ) -> Self:
        """Draw from effective logits and kernel values; z₀ = 0.

        Parameters
        ----------
        effective_logits : array-like of shape (n_rows,)
            z_eff(x), the oracle's logits.
        squared_feature_norms : array-like of shape (n_rows,)
            Θ(x, x), the kernel's diagonal.
        oracle_norm : float
            ‖Δ_w*‖₂.
        sizes : sequence of int of shape (n_sizes,), default=()
            Training-set sizes n to mark.
        weight_change_norms : array-like of shape (n_sizes,), default=()
            ‖Δ_ŵ,n‖₂ at these sizes, such as ``weight_change_norm`` of ``prefix_path``.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : AngleDistributionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If ``oracle_norm`` is below a student's norm, or too small for the logits.

        Examples
        --------
        >>> from sklearn_kd.inspection import AngleDistributionDisplay
        >>> display = AngleDistributionDisplay.from_predictions(
        ...     [1.0, -0.5, 2.0], [1.0, 1.0, 2.0], 4.0, sizes=[100], weight_change_norms=[3.9]
        ... )
        >>> display.bounds_
        array([0.33333333])
        """
        import_pyplot(cls)
        norms = np.asarray(weight_change_norms, dtype=float)
        if norms.shape != (len(sizes),):
            raise ValueError(
                f"weight_change_norms has shape {norms.shape} for {len(sizes)} sizes; give one "
                "norm per size."
            )
        angles = feature_angles(
            np.asarray(effective_logits, dtype=float), squared_feature_norms, oracle_norm
        )
        if (norms > oracle_norm).any():
            raise ValueError(
                f"oracle_norm={oracle_norm!r} is below weight_change_norms, which reach "
                f"{norms.max():.6g}: a student's weight change is a projection of the oracle's. "
                "Take oracle_norm from a larger pool."
            )
        return cls(
            feature_angles=angles,
            sizes=sizes,
            # Eq. 9, exact for z₀ = 0: Δ_ŵ is the projection of Δ_w*, so cos ᾱ_n = ‖Δ_ŵ‖/‖Δ_w*‖.
            weight_change_angles=np.arccos(norms / oracle_norm),
        ).plot(ax)

    @classmethod
    def from_estimator(
        cls, student: Any, *, sizes: Sequence[int] | None = None, ax: Any = None
    ) -> Self:
        """Draw for a fitted student; its training rows stand in for the distribution of rows.

        The oracle is the student on all of its training rows, and the bounds are for students
        on fewer of them. With more rows the norm of this oracle's weight change would be larger.

        Parameters
        ----------
        student : LinearizedKDStudent
            A fitted student of two classes.
        sizes : increasing sequence of int, default=None
            Training-set sizes to mark. None: 1/16, 1/8, 1/4 and 1/2 of the distinct rows.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : AngleDistributionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the student has three or more classes, or a size is out of range.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudent
        >>> from sklearn_kd.inspection import AngleDistributionDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> student = LinearizedKDStudent(LogisticRegression()).fit(scale(X), y)
        >>> AngleDistributionDisplay.from_estimator(student).bounds_
        array([1., 1., 1., 1.])
        """
        import_pyplot(cls)
        student, _ = student_and_rows(student)
        check_is_fitted(student)
        require_two_classes(student, cls, "an angle to the oracle is defined for one logit")
        frame = student.tangent_frame()
        if sizes is None:
            sizes = sorted({max(1, frame.n_rows // part) for part in (16, 8, 4, 2)})
        z_eff = student._to_working(student.effective_logits_)
        path = weight_change_angles(
            frame,
            z_eff,
            student._to_working(student.initial_logits_),
            sizes=to_tensor(sizes, device=z_eff.device),
        )
        # The frame's features include the ridge's axes: their norms are the diagonal of L Lᵀ.
        squared_norms = frame.kernel.diag(frame.X) + frame.row_ridges
        return cls(
            feature_angles=to_numpy(feature_angles(z_eff, squared_norms, path.centred_oracle_norm)),
            sizes=list(sizes),
            weight_change_angles=to_numpy(path.centred),
            params=student._recipe(),
        ).plot(ax)
