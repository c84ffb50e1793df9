"""How the transfer risk falls with the number of training rows, and bounds on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.inspection._plotting import (
    BAND,
    axes_to_draw_on,
    candidate_label,
    candidate_styles,
    import_pyplot,
    legend_below,
    over_candidates,
    plain_log_ticks,
)
from sklearn_kd.linalg._running_sum import running_sum
from sklearn_kd.metrics import (
    binomial_upper_bound,
    feature_angles,
    power_function_bound,
    transfer_risk_bound,
)
from sklearn_kd.metrics._scorers import student_and_rows


class TransferRiskDisplay:
    """Transfer risk R(n) against the number of training rows, on logarithmic axes.

    The transfer risk is the share of held-out rows on which student and teacher disagree. It
    falls as a power law, a straight line here, as long as the rows suffice to resolve it. Below
    1/m, the risk of one row in m, the axis is linear, so that a risk of 0 can be drawn.

    Use `from_estimator`, or pass what
    :meth:`LinearizedKDStudent.prefix_path <sklearn_kd.LinearizedKDStudent.prefix_path>` returns.

    Parameters
    ----------
    sizes : ndarray of int of shape (n_sizes,)
        Training-set sizes n.
    transfer_risk : ndarray of shape (n_permutations, n_sizes) or \
            (n_candidates, n_permutations, n_sizes)
        Share of held-out rows on which student and teacher disagree.
    n_rows : int
        Number m of held-out rows.
    params : list of dict, default=None
        The candidates (ρ, T); None for arrays without an axis of candidates.
    error : ndarray of the shape of ``transfer_risk``, default=None
        Share of held-out rows on which the student is wrong.
    upper_bound : ndarray of shape (n_candidates,), default=None
        Upper confidence bound of the transfer risk at the last size, one per candidate.
    confidence_level : float, default=0.95
        Confidence of ``upper_bound``.
    power_function_bound : ndarray of shape (n_sizes,), default=None
        Power-function bound (:func:`~sklearn_kd.metrics.power_function_bound`).
    theorem_bound : ndarray of shape (n_sizes,), default=None
        The bound of Theorem 1 (:func:`~sklearn_kd.metrics.transfer_risk_bound`).

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        Mean transfer risk, one line per candidate.
    error_lines_ : list of matplotlib Line2D
        Mean error, one line per candidate; empty without ``error``.
    bands_ : list of matplotlib PolyCollection
        Mean ± one standard deviation of the transfer risk over permutations; empty for a single
        permutation.
    upper_bounds_ : list of matplotlib Line2D
        The upper confidence bounds; empty without ``upper_bound``.
    bound_lines_ : list of matplotlib Line2D
        Those given of the power-function bound and the bound of Theorem 1.

    See Also
    --------
    DataInefficiencyDisplay : How much the student still moves when one more row arrives.

    Examples
    --------
    >>> from sklearn_kd.inspection import TransferRiskDisplay
    >>> display = TransferRiskDisplay(
    ...     sizes=[10, 100], transfer_risk=[[0.2, 0.04], [0.3, 0.06]], n_rows=50
    ... )
    >>> display.plot().lines_[0].get_ydata()
    array([0.25, 0.05])
    """

    def __init__(
        self,
        *,
        sizes: Any,
        transfer_risk: Any,
        n_rows: int,
        params: Sequence[dict[str, Any]] | None = None,
        error: Any = None,
        upper_bound: Any = None,
        confidence_level: float = 0.95,
        power_function_bound: Any = None,
        theorem_bound: Any = None,
    ) -> None:
        self.sizes = sizes
        self.transfer_risk = transfer_risk
        self.n_rows = n_rows
        self.params = params
        self.error = error
        self.upper_bound = upper_bound
        self.confidence_level = confidence_level
        self.power_function_bound = power_function_bound
        self.theorem_bound = theorem_bound

    def plot(self, ax: Any = None) -> Self:
        """Draw the curves and the bounds.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : TransferRiskDisplay
            This display, with the artists.

        Raises
        ------
        ValueError
            If ``transfer_risk`` or ``error`` does not fit ``params``.
        """
        risk, params = over_candidates(self.transfer_risk, self.params, 2, "transfer_risk")
        self.ax_ = ax = axes_to_draw_on(self, ax, figsize=(6.4, 5.6))
        self.figure_ = ax.figure
        n_orders = risk.shape[1]
        self.lines_, self.bands_ = [], []
        styles = candidate_styles(params)
        for values, candidate, style in zip(risk, params, styles, strict=True):
            mean, spread = values.mean(axis=0), values.std(axis=0)
            self.lines_ += ax.plot(self.sizes, mean, **style, label=candidate_label(candidate))
            if n_orders > 1:
                low, high = np.clip(mean - spread, 0, None), mean + spread
                band = ax.fill_between(self.sizes, low, high, color=style["color"], **BAND)
                self.bands_.append(band)
        self._draw_errors(ax)
        self._draw_bounds(ax)
        self._scale_axes(ax, risk)
        title = f"mean ± std over {n_orders} orders of the rows" if n_orders > 1 else None
        legend_below(ax, title)
        return self

    def _draw_errors(self, ax: Any) -> None:
        self.error_lines_: list[Any] = []
        if self.error is None:
            return
        error, params = over_candidates(self.error, self.params, 2, "error")
        for values, style in zip(error, candidate_styles(params), strict=True):
            style = style | {"linestyle": "dotted"}
            self.error_lines_ += ax.plot(self.sizes, values.mean(axis=0), **style, label="_")
        ax.plot([], [], color="0.3", linestyle="dotted", label="error (dotted)")

    def _draw_bounds(self, ax: Any) -> None:
        self.upper_bounds_: list[Any] = []
        if self.upper_bound is not None:
            params = [None] if self.params is None else self.params
            for style, bound in zip(
                candidate_styles(params), np.atleast_1d(self.upper_bound), strict=True
            ):
                self.upper_bounds_ += ax.plot(
                    self.sizes[-1],
                    bound,
                    marker="v",
                    markersize=8,
                    color=style["color"],
                    linestyle="none",
                )
            ax.plot(
                [],
                [],
                marker="v",
                color="0.3",
                linestyle="none",
                label=f"{self.confidence_level:.0%} upper bound at n = {self.sizes[-1]}",
            )
        self.bound_lines_: list[Any] = []
        for bound, label, marker in (
            (self.power_function_bound, "power-function bound", "s"),
            (self.theorem_bound, "bound of Theorem 1", "D"),
        ):
            if bound is not None:
                self.bound_lines_ += ax.plot(
                    self.sizes,
                    bound,
                    color="black" if marker == "s" else "0.5",
                    linestyle=(0, (6, 2)),
                    marker=marker,
                    markevery=evenly_in_log(self.sizes),
                    label=label,
                )

    def _scale_axes(self, ax: Any, risk: np.ndarray) -> None:
        """Scale logarithmically, as far down as the held-out rows resolve the risk."""
        shown = ["transfer risk R(n)"]
        drawn = [risk.mean(axis=1)]
        if self.error is not None:
            shown.append("error")
            drawn.append(np.asarray(self.error, dtype=float).mean(axis=-2))
        if self.bound_lines_:
            shown.append("bound")
            drawn += [line.get_ydata() for line in self.bound_lines_]
        ax.set(xscale="log", xlabel="training rows n", ylabel=", ".join(shown))
        plain_log_ticks(ax.xaxis)
        one_row = 1 / self.n_rows
        if min(np.min(values) for values in drawn) > 0.999 * one_row:
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
        else:
            self._draw_down_to_zero(ax, one_row)
        if self.bound_lines_:
            ax.set_ylim(top=1.3)

    def _draw_down_to_zero(self, ax: Any, one_row: float) -> None:
        """Scale the risk linearly below that of one row, and say so."""
        ax.set_yscale("symlog", linthresh=one_row, linscale=0.4)
        decades = 10.0 ** np.arange(np.ceil(np.log10(one_row)), 1)
        ax.set_yticks([0, *decades], ["0", *(f"{decade:g}" for decade in decades)])
        ax.set_ylim(bottom=0)
        ax.axhspan(0, one_row, color="0.93", zorder=-2)
        ax.annotate(
            f"below 1 of {self.n_rows} rows: linear, down to R = 0",
            (0.01, one_row),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, -2),
            textcoords="offset points",
            va="top",
            color="0.35",
            fontsize="small",
        )

    @classmethod
    def from_estimator(
        cls,
        student: Any,
        X: Any,
        *,
        teacher_logits: Any = None,
        y: Any = None,
        sizes: Any = None,
        n_permutations: int | None = None,
        param_grid: dict | list[dict] | None = None,
        confidence_level: float | None = 0.95,
        oracle_norm: float | None = None,
        random_state: Any = None,
        ax: Any = None,
    ) -> Self:
        """Draw the transfer risk of a fitted student at its training-set sizes; no refit.

        Parameters
        ----------
        student : LinearizedKDStudent
            A fitted student.
        X : array-like of shape (n_samples, n_features)
            Held-out rows on which to measure.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``. None: those of the student's teacher.
        y : array-like of shape (n_samples,), default=None
            Labels of ``X``, to draw the error too.
        sizes : increasing sequence of int, default=None
            Training-set sizes. None: all from 1 to the number of distinct training rows.
        n_permutations : int, default=None
            Number of random orders of the training rows. None: their order in ``fit``.
        param_grid : dict or list of dicts, default=None
            Candidates ``soft_ratio``, ``temperature``, ``temperature_scaling``, one line each.
        confidence_level : float in (0, 1), default=0.95
            Confidence of the exact binomial upper bound at the size of all training rows, drawn
            if ``sizes`` ends there. It holds for each candidate alone, not for the best of
            several. None: not drawn.
        oracle_norm : float, default=None
            ‖Δ_w*‖₂ of the teacher in the student's kernel, measured from the student's initial
            network. Draws the power-function bound and, for two classes and ``init="zero"``, that
            of Theorem 1. Both need a student of ``soft_ratio=1`` and the rows in their order in
            ``fit``. They hold if the teacher is a machine of this kernel with this norm. The norm
            of the weight change on finitely many rows is a lower bound of ‖Δ_w*‖₂, and the bounds
            drawn from it are optimistic.
        random_state : int, RandomState instance or None, default=None
            Orders of the rows.
        ax : matplotlib Axes, default=None
            Where to draw. None: a new figure.

        Returns
        -------
        display : TransferRiskDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If an argument is out of range, ``oracle_norm`` is below the student's own norm, or
            is given where the bounds do not hold.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_kd import LinearizedKDStudent
        >>> from sklearn_kd.inspection import TransferRiskDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X = scale(X)
        >>> student = LinearizedKDStudent(LogisticRegression()).fit(X[:300], y[:300])
        >>> display = TransferRiskDisplay.from_estimator(
        ...     student, X[300:], n_permutations=3, param_grid={"soft_ratio": [0.5, 1.0]},
        ...     random_state=0,
        ... )
        >>> [line.get_label() for line in display.lines_]
        ['ρ = 0.5, T = 2', 'ρ = 1, T = 2']
        """
        import_pyplot(cls)
        student, X = student_and_rows(student, X)
        check_is_fitted(student)
        if oracle_norm is not None:
            _require_oracle(student, n_permutations, param_grid)
        path = student.prefix_path(
            X,
            teacher_logits=teacher_logits,
            y=y,
            sizes=sizes,
            n_permutations=n_permutations,
            param_grid={} if param_grid is None else param_grid,
            random_state=random_state,
        )
        at = to_tensor(path.sizes, dtype=torch.int64)
        risk = to_numpy(to_tensor(path.transfer_risk))
        z_t = to_tensor(student.teacher_decision_function(X, teacher_logits))
        extras: dict[str, Any] = {}
        if y is not None:
            extras["error"] = to_numpy(to_tensor(path.error))
        if confidence_level is not None and at[-1] == len(student.X_fit_):
            # All rows give the same student in any order.
            n_disagreements = np.round(risk[:, 0, -1] * len(z_t))
            extras["upper_bound"] = binomial_upper_bound(
                n_disagreements, len(z_t), confidence_level
            )
            extras["confidence_level"] = confidence_level
        if oracle_norm is not None:
            extras |= _certificates(student, X, z_t, at, oracle_norm)
        return cls(
            sizes=to_numpy(at), transfer_risk=risk, n_rows=len(z_t), params=path.params, **extras
        ).plot(ax)


def evenly_in_log(sizes: Any, n_marks: int = 8) -> list[int]:
    """Return the positions of some sizes that are evenly spaced on a logarithmic axis."""
    marks = np.geomspace(sizes[0], sizes[-1], n_marks)
    return np.unique(np.searchsorted(sizes, marks).clip(max=len(sizes) - 1)).tolist()


def _require_oracle(student: Any, n_permutations: int | None, param_grid: Any) -> None:
    """Raise `ValueError` unless the student's targets are the teacher's logits themselves."""
    soft_ratio = student._recipe()["soft_ratio"]
    if soft_ratio != 1:
        raise ValueError(
            "oracle_norm bounds how often the student differs from the function it is trained on, "
            f"which is the teacher only at soft_ratio=1; got soft_ratio={soft_ratio!r}. Fit a "
            "student with soft_ratio=1."
        )
    report = student.fit_report_
    if report.ridge + report.noise > 0:
        raise ValueError(
            "oracle_norm bounds a student that fits its rows exactly, which neither a ridge nor a "
            f"noise of the kernel does; got ridge={report.ridge!r} and noise={report.noise!r}, fit "
            "with ridge=0 and a kernel without WhiteKernel."
        )
    if n_permutations is not None or param_grid is not None:
        raise ValueError(
            "oracle_norm bounds one student in the order of its rows; leave n_permutations and "
            "param_grid at None."
        )


def _certificates(
    student: Any, X: Any, teacher_logits: Tensor, sizes: Tensor, oracle_norm: float
) -> dict[str, Any]:
    """Return the power-function bound and, for two classes, Theorem 1's at the sizes.

    |z_*(x) − f_n(x)| ≤ √(‖w_*‖² − ‖ŵ_n‖²) √v_n(x), with v_n(x) = Θ(x, x) − ‖u(x)[:n]‖²: the
    residual w_* − ŵ_n is orthogonal to the frame. For the same reason cos ᾱ_n = ‖ŵ_n‖ / ‖w_*‖.
    """
    frame = student.tangent_frame()
    rows = student._to_working(student._check_new_rows(X, "from_estimator"))
    last = sizes.to(rows.device) - 1
    norms = frame.prefix_norms(student._logit_change())[last]
    squared_norms = frame.kernel.diag(rows)
    new_directions = rows.new_empty((len(last), len(rows)))
    for block, u, _ in frame.feature_blocks(rows):
        reached = running_sum(u.square(), dim=1)[:, last]
        new_directions[:, block] = (squared_norms[block, None] - reached).clamp_min(0).T
    power = power_function_bound(teacher_logits, new_directions, oracle_norm, norms)
    # Theorem 1 needs the angle to Δ_w* − Δ_wz, which is a ratio of norms only for z₀ = 0.
    if teacher_logits.ndim > 1 or student.fit_report_.init != "zero":
        return {"power_function_bound": to_numpy(power)}
    angles = feature_angles(teacher_logits, squared_norms, oracle_norm)
    theorem = transfer_risk_bound(angles, torch.arccos((norms / oracle_norm).clamp_max(1)))
    return {"power_function_bound": to_numpy(power), "theorem_bound": to_numpy(theorem)}
