"""`LinearizedKDStudent.prefix_path`: the student at every training-set size, without a refit."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils import Bunch, check_random_state
from torch import Tensor

from sklearn_kd._array import like
from sklearn_kd._logits import centred
from sklearn_kd._memory import MEMORY_REMEDY, require, workspace_bytes
from sklearn_kd._sklearn import Interval, StrOptions, validate_parameter_constraints
from sklearn_kd._warnings import warn
from sklearn_kd.distillation._effective_logits_of_rows import merged_effective_logits, mixed_logits
from sklearn_kd.exceptions import SeenLabelsWarning
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg._frame import _COLUMN_COPIES, frame_bytes
from sklearn_kd.metrics._inefficiency import data_inefficiency, data_inefficiency_std
from sklearn_kd.rows._checking import class_indices_of
from sklearn_kd.rows._copies import merge_rows
from sklearn_kd.students._prefix_curves import (
    NewRows,
    PrefixRisks,
    PrefixWeightChanges,
    prefix_risks,
    prefix_weight_changes,
)
from sklearn_kd.students._prior import GaussianPrior
from sklearn_kd.teachers._several import normalised_weights

SOFT_RATIO = Interval(Real, 0, 1, closed="right")  # the converged student has one
CONSTRAINTS = {
    "n_permutations": [Interval(Integral, 1, None, closed="left"), None],
    "init": [StrOptions({"student", "random"})],
    "window": [Interval(Real, 1, None, closed="neither")],
    "random_state": ["random_state"],
}


def prefix_path(
    student: Any,
    X: Any = None,
    *,
    teacher_logits: Any = None,
    y: Any = None,
    sizes: Any = None,
    n_permutations: int | None = None,
    param_grid: dict | list[dict] | None = None,
    init: str = "student",
    window: float = 2.0,
    random_state: Any = None,
) -> Bunch:
    """Follow the student through its training-set sizes, without a refit.

    In the tangent frame the student trained on the first m rows is the first m coordinates of
    one vector, so one factor gives every size. ρ and T change only right-hand sides, so it also
    gives every candidate of ``param_grid``.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), default=None
        Rows on which to measure the transfer risk, other than the training rows.
    teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
        The teacher's logits on ``X``. None: those of ``teacher_``.
    y : array-like of shape (n_samples,), default=None
        Labels of ``X``, to measure the error too, on the rows that have one.
    sizes : increasing sequence of int, default=None
        Training-set sizes, in 1…n with n the number of *distinct* training rows. None: all.
    n_permutations : int, default=None
        Number of random orders of the rows to go through, one factor each; Eq. 10 averages
        over them. None: one pass in the order of ``X_fit_``.
    param_grid : dict or list of dicts, default=None
        Values of ``soft_ratio``, ``temperature``, ``temperature_scaling`` and
        ``teacher_weights``, as in :class:`~sklearn.model_selection.GridSearchCV`. None: those of
        the student.
    init : {"student", "random"}, default="student"
        Initial network z₀. "student": the start of the student itself. "random": one for each
        permutation, drawn from the NNGP prior of the kernel: an infinitely wide network at
        initialisation.
    window : float > 1, default=2.0
        Ratio of sizes over which the smoothed data inefficiency is averaged; see
        :func:`~sklearn_kd.metrics.data_inefficiency`.
    random_state : int, RandomState instance or None, default=None
        Orders of the rows and initial networks.

    Returns
    -------
    path : Bunch
        Arrays over P permutations and S sizes; with ``param_grid`` all but ``sizes`` have a
        leading axis of candidates.

        sizes : ndarray of int of shape (S,)
            Numbers of training rows.
        params : list of dict
            The candidates; only with ``param_grid``.
        weight_change_norm : ndarray of shape (P, S)
            ‖Δ_ŵ,m‖₂.
        one_step_error : ndarray of shape (P, S) or (P, S, n_classes)
            z_eff − f on row m, f the student trained on the m − 1 rows before it.
        data_inefficiency : ndarray of shape (S,)
            Eq. 10, the mean over permutations inside the logarithm. At n, which has no next
            row, Eq. 10's value at n − 1.
        data_inefficiency_std : ndarray of shape (S,)
            Its spread over permutations, to first order; divide by √P for the standard error.
        smoothed_data_inefficiency, smoothed_data_inefficiency_std : ndarray of shape (S,)
            The same over ``window``; a single step is noisy.
        transfer_risk : ndarray of shape (P, S)
            Share of the rows ``X`` on which student and teacher disagree; only with ``X``.
        error : ndarray of shape (P, S)
            Share of the rows ``X`` on which the student's class is not ``y``; only with ``y``.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``init="random"`` meets a kernel without a known
        prior.

    Warns
    -----
    SeenLabelsWarning
        If ``y`` is given, the teacher was cross-fitted, and rows of ``X`` are training rows.

    Notes
    -----
    **The teacher is that of all rows at every size**, as if it had been there before the student.
    A cross-fitted one has seen the labels of later rows, too. To fit it anew to the rows of each
    size, use :func:`~sklearn.model_selection.learning_curve`. On new rows no label reaches its own
    score. On later training rows it would, by way of the logits of earlier ones. Errors one step
    ahead and data inefficiency compare the student with its own z_eff, not with labels. From a
    cross-fitted teacher these contain the differences between its clones.

    Rows that repeat are one row with the mean labels of all its copies, at every size. With a
    ridge λ, Eq. 10 is that of √(Δzᵀ (Θ_m + λ W⁻¹)⁻¹ Δz), the norm that grows with every row;
    ``weight_change_norm`` is that of the weights alone. Each permutation needs one n × n
    matrix besides the student's own.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> student = LinearizedKDStudent(LogisticRegression()).fit(X[:400], y[:400])
    >>> path = student.prefix_path(
    ...     X[400:], sizes=[50, 100, 200, 400], n_permutations=5, random_state=0
    ... )
    >>> path.transfer_risk.mean(axis=0).round(3)
    array([0.011, 0.005, 0.001, 0.   ])
    """
    student._require_all_rows("prefix_path")
    check_options(
        n_permutations=n_permutations, init=init, window=window, random_state=random_state
    )
    sizes = checked_sizes(sizes, len(student.X_fit_))
    recipes = checked_recipes(param_grid, student)
    rng = check_random_state(random_state)
    rows, weights = map(student._to_working, (student.X_fit_, student._distinct.weights))

    # 1. The effective logits of every candidate, (n, C) or (n, C, K) (Eq. 3).
    members = student._member_logits()
    columns = [merged_effective_logits(members, student._distinct, r) for r in recipes]
    z_eff = torch.stack(columns, dim=1).to(rows)

    # 2. The rows on which to compare student, teacher and truth.
    new = new_rows(student, X, teacher_logits, y, recipes)
    require_memory(student, z_eff, new, n_permutations or 0, draws=init == "random")

    # 3. For each order of the rows, and initial network z₀, one factor for everything.
    initial = InitialNetworks(student, init, rows, new and new.X)
    runs = []
    for order in row_orders(len(rows), n_permutations, rng):
        z_0, z_0_new = initial.draw(z_eff.shape[2:], rng, rows)
        runs.append(
            run(
                student,
                rows,
                weights,
                z_eff - z_0[:, None],
                sizes,
                None if order is None else order.to(rows.device),
                None if new is None else new._replace(initial_logits=z_0_new),
            )
        )
    return collected(runs, sizes, window, None if param_grid is None else recipes, student.X_fit_)


class Run(NamedTuple):
    """What one order of the rows, and one initial network, gave."""

    changes: PrefixWeightChanges
    risks: PrefixRisks | None


def run(
    student: Any,
    X: Tensor,
    weights: Tensor,
    targets: Tensor,
    sizes: list[int],
    order: Tensor | None,
    new: NewRows | None,
) -> Run:
    """Return the curves of one order of the rows; None is the order of the student's own frame."""
    if order is None:
        frame = student.tangent_frame()
    else:
        targets = targets[order]
        frame = student._build_frame(X[order], weights[order])
    risks = None if new is None else prefix_risks(frame, targets, sizes, new)
    return Run(prefix_weight_changes(frame, targets), risks)


def new_rows(
    student: Any, X: Any, teacher_logits: Any, y: Any, recipes: list[dict[str, Any]]
) -> NewRows | None:
    """Return the rows on which the student is measured, checked; None without ``X``."""
    if X is None:
        if teacher_logits is not None or y is not None:
            raise ValueError("teacher_logits and y are those of X; pass X too.")
        return None
    checked = student._to_working(student._check_new_rows(X, "prefix_path"))
    members = student._to_working(student._members_on(X, len(checked), teacher_logits))
    # A single teacher has the same logits in all recipes.
    differing = recipes if len(members) > 1 else recipes[:1]
    z_t = torch.stack([mixed_logits(members, recipe) for recipe in differing], dim=1)
    labels = None if y is None else class_indices_of(y, student.classes_).to(checked.device)
    if labels is not None and len(labels) != len(checked):
        raise ValueError(f"y has {len(labels)} labels, but X has {len(checked)} rows.")
    if labels is not None and student.fit_report_.cross_fitted_teacher:
        warn_of_training_rows(student, checked)
    return NewRows(checked, z_t, None, labels)


def warn_of_training_rows(student: Any, X: Tensor) -> None:
    """Warn with `SeenLabelsWarning` if rows of ``X`` equal rows that ``student`` was fitted to."""
    fitted = student._to_working(student.X_fit_)
    merged = merge_rows(torch.cat([fitted, X]))
    n_seen = int((merged.first[merged.group[len(fitted) :]] < len(fitted)).sum())
    if n_seen:
        warn(
            f"{n_seen} of the {len(X)} rows of X equal training rows. If they are these, the error "
            "is too small at every size: the teacher was cross-fitted, and has handed their labels "
            "to the student of the first rows. Measure it on rows that fit has not seen.",
            SeenLabelsWarning,
        )


def require_memory(
    student: Any, z_eff: Tensor, new: NewRows | None, n_orders: int, *, draws: bool
) -> None:
    """Raise `MemoryBudgetError` unless all that stands side by side fits ``memory_limit``."""
    n_rows, n_features = student.X_fit_.shape
    n_new = 0 if new is None else len(new.X)
    require(
        path_bytes(
            n_rows=n_rows,
            n_features=n_features,
            n_targets=z_eff[0].numel(),
            n_new=n_new,
            n_orders=n_orders,
            n_drawn=n_rows + n_new if draws else 0,
            builds_frame=n_orders > 0 or student._frame is None,
            dtype=z_eff.dtype,
            device=z_eff.device,
        ),
        student.memory_limit,
        z_eff.device,
        what=f"prefix_path of n={n_rows} distinct rows",
        remedy=MEMORY_REMEDY,
    )


def check_options(**options: Any) -> None:
    """Raise `InvalidParameterError` unless the options of ``prefix_path`` are valid."""
    validate_parameter_constraints(CONSTRAINTS, options, caller_name="prefix_path")


def checked_sizes(sizes: Any, n_rows: int) -> list[int]:
    """Return the training-set sizes, 1…n for None."""
    if n_rows < 2:
        raise ValueError(
            "prefix_path needs two distinct training rows or more, but all rows that this student "
            "was fitted on are copies of one."
        )
    if sizes is None:
        return list(range(1, n_rows + 1))
    values = np.asarray(sizes)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iu":
        raise ValueError(f"sizes={sizes!r} must be a sequence of integers, or None for all sizes.")
    if (np.diff(values) <= 0).any() or values[0] < 1 or values[-1] > n_rows:
        raise ValueError(
            f"sizes={values.tolist()} must increase and lie in 1…{n_rows}, the number of distinct "
            "training rows."
        )
    return values.tolist()


def checked_recipes(param_grid: Any, student: Any) -> list[dict[str, Any]]:
    """Return the candidates of ``param_grid``, the student's own recipe for None."""
    default = student._recipe()
    constraints = student._parameter_constraints | {"soft_ratio": [SOFT_RATIO]}
    candidates = [{}] if param_grid is None else list(ParameterGrid(param_grid))
    for candidate in candidates:
        unknown = sorted(set(candidate) - set(default))
        if unknown:
            raise ValueError(
                f"param_grid holds {unknown[0]!r}; one factor serves only {', '.join(default)}. "
                "Set the others by set_params and fit again."
            )
        validate_parameter_constraints(
            {name: constraints[name] for name in candidate}, candidate, caller_name="prefix_path"
        )
        if "teacher_weights" in candidate:
            weights = normalised_weights(candidate["teacher_weights"], student.teacher_)
            candidate["teacher_weights"] = weights
    return [default | candidate for candidate in candidates]


def row_orders(
    n_rows: int, n_permutations: int | None, random_state: np.random.RandomState
) -> Iterator[Tensor | None]:
    """Yield the orders of the rows; None is the order they have."""
    if n_permutations is None:
        yield None
        return
    for _ in range(n_permutations):
        yield torch.from_numpy(random_state.permutation(n_rows))


class InitialNetworks:
    """Draws of z₀ on training rows and new rows jointly: the student's own, or of the prior."""

    def __init__(self, student: Any, init: str, X: Tensor, X_new: Tensor | None) -> None:
        self._prior = None
        self._n_rows = len(X)
        if init == "student":
            z_0_new = None if X_new is None else student._initial_logits(X_new)
            self._own = student._to_working(student.initial_logits_), z_0_new
            return
        kernel = student.kernel_
        if not isinstance(kernel, NTK) or kernel.kind != "ntk":
            raise ValueError(
                "init='random' draws the initial network from the NNGP prior, which is known for "
                f"kernel=NTK(kind='ntk'), not for kernel={kernel!r}; use init='student'."
            )
        rows = X if X_new is None else torch.cat([X, X_new])
        prior_kernel = clone(kernel).set_params(kind="nngp").to_torch()
        self._prior = GaussianPrior(prior_kernel, rows)

    def draw(
        self, shape: tuple[int, ...], random_state: np.random.RandomState, reference: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return z₀ on the training rows, (n, *shape), and on the new rows (None for zero)."""
        if self._prior is None:
            return self._own
        noise = random_state.standard_normal((self._prior.n_distinct, *shape))
        z_0 = centred(self._prior.transform(torch.from_numpy(noise).to(reference)))
        return z_0[: self._n_rows], z_0[self._n_rows :]


def collected(
    runs: list[Run], sizes: list[int], window: float, params: list[dict] | None, reference: Any
) -> Bunch:
    """Return the curves of all runs in the array library of ``reference``.

    Axes: candidates where ``params`` is given, then permutations, then sizes.
    """
    at = torch.tensor(sizes, device="cpu")

    def stacked(tensors: list[Tensor]) -> Tensor:
        # (P, S, C, ...) -> (C, P, S, ...)
        return torch.stack(tensors).movedim(2, 0)

    def curve(function: Any, ratio: float | None) -> Tensor:
        return torch.stack([function(norms, at, window=ratio) for norms in all_norms])

    all_norms = stacked([run.changes.norms for run in runs])
    rows = at.to(all_norms.device) - 1
    curves = {
        "weight_change_norm": stacked([run.changes.weight_change_norms[rows] for run in runs]),
        "one_step_error": stacked([run.changes.one_step_errors[rows] for run in runs]),
        "data_inefficiency": curve(data_inefficiency, None),
        "data_inefficiency_std": curve(data_inefficiency_std, None),
        "smoothed_data_inefficiency": curve(data_inefficiency, window),
        "smoothed_data_inefficiency_std": curve(data_inefficiency_std, window),
    }
    risks = [run.risks for run in runs if run.risks is not None]
    if risks:
        curves["transfer_risk"] = stacked([risk.transfer_risk for risk in risks])
        errors = [risk.error for risk in risks if risk.error is not None]
        if errors:
            curves["error"] = stacked(errors)
    path = Bunch(sizes=like(at, reference))
    if params is None:
        return Bunch(**path, **{name: like(v[0], reference) for name, v in curves.items()})
    return Bunch(**path, params=params, **{k: like(v, reference) for k, v in curves.items()})


def path_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    n_new: int,
    n_orders: int,
    n_drawn: int,
    builds_frame: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return the peak bytes of following a student through its sizes.

    Parameters
    ----------
    n_new : int
        Rows on which it is measured, in blocks of features.
    n_orders : int
        Orders of the rows, each with a factor of its own, one at a time; 0 for the one they have.
    n_drawn : int
        Rows on which initial networks are drawn, by a factor of their own; 0 for none.
    builds_frame : bool
        Whether there is a factor to build, beside what the student holds.
    """
    # Norms, their changes and errors, of every order and stacked.
    planned = 6 * n_rows * n_targets * max(n_orders, 1) * dtype.itemsize
    planned += min(3 * n_new * n_rows * dtype.itemsize, 3 * workspace_bytes(device) // 2)
    if n_drawn:
        planned += frame_bytes(n_drawn, n_features, 1, dtype, device)
    if builds_frame:
        return planned + frame_bytes(n_rows, n_features, n_targets, dtype, device)
    return planned + n_rows * _COLUMN_COPIES * n_targets * dtype.itemsize
