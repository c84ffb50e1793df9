r"""Every quantity of the paper, of one student beside an oracle.

Symbols (paper -> name in the result -> shape), with n rows of the student, N of the oracle, m rows
to measure on and K classes (no K axis for two):

==================  =============================  ==================
z_eff               ``effective_logits``           (m,) or (m, K)
R_n                 ``transfer_risk``              scalar
‖Δ_ŵ‖, ‖Δ_w*‖       ``weight_change_norm``,        scalars
                    ``oracle_norm``
α_n, ᾱ_n            ``angle``, ``centred_angle``   scalars, radians
p(β)                ``angle_distribution``         (n_betas,)
𝓘(n)                ``data_inefficiency``          scalar
δz_h                ``correction_logits``          (n,) or (n, K)
==================  =============================  ==================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._array import to_numpy
from sklearn_kd._logits import canonical_logits
from sklearn_kd.distillation import correction_logits
from sklearn_kd.distillation._effective_logits_of_rows import RECIPE, merged_labels
from sklearn_kd.metrics import (
    accumulative_angle_distribution,
    binomial_upper_bound,
    feature_angles,
    hard_label_effect,
    neg_data_inefficiency_scorer,
    phuong_lampert_bound,
    power_function_bound,
    transfer_risk,
    transfer_risk_bound,
    weight_change_angles,
)
from sklearn_kd.students._student import LinearizedKDStudent


def paper_quantities(
    student: LinearizedKDStudent,
    oracle: LinearizedKDStudent,
    X: Any,
    y: Any,
    *,
    teacher_logits: Any = None,
    ground_truth_logits: Any = None,
    betas: Any = None,
    confidence_level: float = 0.95,
) -> Bunch:
    r"""Return every quantity of the paper for a fitted student.

    Parameters
    ----------
    student : LinearizedKDStudent
        Fitted, converged, without a ridge.
    oracle : LinearizedKDStudent
        The same student, fitted to a pool of rows that *begins* with those of ``student``: it
        stands for the weights that reach z_eff on every row there could be. The larger the pool,
        the better it does.
    X : array-like of shape (n_samples, n_features)
        Rows to measure on, other than those of the fits.
    y : array-like of shape (n_samples,)
        Their hard labels, which are in z_eff.
    teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
        The teacher's logits on ``X``. None: those of the student's teacher.
    ground_truth_logits : array-like of shape (n_rows,) or (n_rows, n_classes), default=None
        z_g on the distinct rows of the student, for Eqs. 11 and 12. None: labels as ±1, or as
        indicators less 1/K, which are a proxy.
    betas : array-like of shape (n_betas,), default=None
        Angles at which p(β) is given, in radians. None: 0 to π/2 in steps of a degree.
    confidence_level : float in (0, 1), default=0.95
        Of the binomial bound.

    Returns
    -------
    Bunch
        n_rows, n_pool : int
            n and N.
        transfer_risk : float
            :math:`R_n`, the share of rows on which student and teacher disagree.
        effective_logits, teacher_logits, student_logits : ndarray
            :math:`z_\mathrm{eff}` (Eq. 3), :math:`z_t` and :math:`z_s` on ``X``.
        weight_change_norm, oracle_norm, centred_oracle_norm : float
            :math:`\|\Delta_{\hat w}\|, \|\Delta_{w_*}\|, \|\Delta_{w_*} - \Delta_{w_z}\|`.
        angle, centred_angle, approximate_angle : float
            :math:`\alpha(\Delta_{\hat w}, \Delta_{w_*})`, :math:`\bar\alpha_n` (Eq. 7) and its
            approximation :math:`\arccos(\|\Delta_{\hat w}\| / \|\Delta_{w_*}\|)` (Eq. 9), radians.
        feature_angles : ndarray of shape (n_samples,), or None
            Eq. 8, of two classes.
        betas, angle_distribution : ndarray of shape (n_betas,), the latter or None
            β and p(β) (Eq. 6).
        risk_bound, phuong_lampert_bound : float, or None
            :math:`p(\pi/2 - \bar\alpha_n)` (Theorem 1), and the earlier bound.
        power_function_bound, binomial_bound : float
            Bounds that are below 1 in practice; see the guide.
        data_inefficiency : float
            𝓘(n) (Eq. 10), by the rows ``X`` as next ones.
        hard_label_cosine : float, or None
            :math:`\cos\alpha(\Delta_{\hat w}, \Delta_{w_g})` (Eq. 11). None, as are the next
            three, where rows have no label, or a ``teacher_trust``.
        hard_label_effect : dict, or None
            Its derivative towards hard labels at ρ = 1 (Eq. 12): ``value``, ``sign`` and
            ``interval``, as :func:`~sklearn_kd.metrics.hard_label_effect` gives them. With
            ``temperature_scaling="squared"`` it is 1/T² of that, and so are the next.
        correction_logits : ndarray of shape (n_rows,) or (n_rows, n_classes), or None
            :math:`\delta z_h` of the student's distinct rows.
        is_proxy : bool, or None
            Whether labels stand in for the ground truth's logits.

    Raises
    ------
    TypeError
        If student or oracle is no `LinearizedKDStudent`, such as a pipeline that ends in one.
    ValueError
        If student and oracle differ in their recipe, kernel, teacher or labels, or have a ridge,
        or the oracle's rows do not begin with the student's.
    AttributeError
        If one of them stopped, or has no tangent frame.

    See Also
    --------
    sklearn_kd.metrics.feature_angles : The angles of Eq. 6 on arrays; others stand beside it.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent, NTKTeacher
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn_kd.paper import paper_quantities
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> teacher = FrozenEstimator(NTKTeacher(stopping_time=100.0).fit(X[:150], y[:150]))
    >>> student = LinearizedKDStudent(teacher, soft_ratio=1.0).fit(X[150:250], y[150:250])
    >>> oracle = LinearizedKDStudent(teacher, soft_ratio=1.0).fit(X[150:450], y[150:450])
    >>> found = paper_quantities(student, oracle, X[450:], y[450:])
    >>> found.transfer_risk < found.binomial_bound < found.risk_bound
    True
    """
    _require_a_pair(student, oracle)
    of_hard_labels = _of_hard_labels(student, ground_truth_logits)
    frame, n = student.tangent_frame(), len(student.X_fit_)

    # The student and the oracle as weights: Eqs. 5, 7 and 9.
    angles = weight_change_angles(
        oracle.tangent_frame(), oracle.effective_logits_, oracle.initial_logits_, sizes=[n]
    )
    ratio = min(1.0, student.weight_change_norm_ / float(angles.oracle_norm))

    # The rows to measure on: R_n, z_eff and the features outside of the frame.
    z_t = student.teacher_decision_function(X, teacher_logits)
    z_s = student.decision_function(X)
    z_eff = student.effective_decision_function(X, y, teacher_logits)
    rows = student._to_working(student._check_new_rows(X, "paper_quantities"))
    _, new_directions = frame.features(rows)
    risk = float(transfer_risk(z_t, z_s))
    bounds = _bounds_of_angles(student, rows, z_eff, angles, n, betas)
    options = {} if teacher_logits is None else {"teacher_logits": teacher_logits}
    n_wrong = round(risk * len(z_s))
    return Bunch(
        n_rows=n,
        n_pool=len(oracle.X_fit_),
        transfer_risk=risk,
        effective_logits=z_eff,
        teacher_logits=z_t,
        student_logits=z_s,
        weight_change_norm=student.weight_change_norm_,
        oracle_norm=float(angles.oracle_norm),
        centred_oracle_norm=float(angles.centred_oracle_norm),
        angle=float(angles.to_oracle[0]),
        centred_angle=float(angles.centred[0]),
        approximate_angle=math.acos(ratio),
        **bounds,
        power_function_bound=float(
            power_function_bound(
                z_eff,
                to_numpy(new_directions),
                float(angles.oracle_norm),
                min(student.weight_change_norm_, float(angles.oracle_norm)),
            )
        ),
        binomial_bound=float(binomial_upper_bound(n_wrong, len(z_s), confidence_level)),
        data_inefficiency=-float(neg_data_inefficiency_scorer(student, X, y, **options)),
        **of_hard_labels,
    )


def _require_a_pair(student: LinearizedKDStudent, oracle: LinearizedKDStudent) -> None:
    """Raise unless the oracle is the same student of a pool that begins with its rows."""
    for name, one in (("student", student), ("oracle", oracle)):
        if not isinstance(one, LinearizedKDStudent):
            raise TypeError(
                f"{name} must be a fitted LinearizedKDStudent; got {type(one).__name__}. Of a "
                "pipeline pass the last step, and X as the steps before return it; of a search "
                "its best_estimator_."
            )
        check_is_fitted(one)
        one._require_all_rows("paper_quantities")
        if one.fit_report_.ridge + one.fit_report_.noise > 0:
            raise ValueError(
                "The paper's student has no ridge, and its weight changes are projections; fit "
                f"with ridge=0 and a kernel without noise, not {one.fit_report_.ridge:g} and "
                f"{one.fit_report_.noise:g}."
            )
    names = ("soft_ratio", "temperature", "temperature_scaling", "init")
    for name in names:
        of_student, of_oracle = student.fit_report_[name], oracle.fit_report_[name]
        if of_student != of_oracle:
            raise ValueError(
                f"student has {name}={of_student!r}, but oracle {of_oracle!r}; fit both alike."
            )
    n = len(student.X_fit_)
    if not np.array_equal(np.asarray(oracle.X_fit_)[:n], np.asarray(student.X_fit_)):
        raise ValueError(
            "The rows of oracle do not begin with those of student; fit it to "
            "np.concatenate([X, X_more]) with the student's X."
        )
    rows = student._to_working(student.X_fit_)
    of_student, of_oracle = (one._kernel_function().gram(rows) for one in (student, oracle))
    if not torch.allclose(of_student, of_oracle.to(of_student)):
        raise ValueError(
            f"student has kernel={student.kernel_!r}, but oracle {oracle.kernel_!r}, and these "
            "differ on the student's rows; fit both alike."
        )
    for name, why in (
        ("effective_logits_", "teacher or labels are others"),
        ("initial_logits_", "the initial network is another"),
    ):
        values, others = (np.asarray(getattr(one, name))[:n] for one in (student, oracle))
        if values.shape != others.shape or not np.allclose(values, others):
            raise ValueError(
                f"student and oracle differ in {name} on the student's rows: {why}; fit both with "
                "the same ones."
            )


def _bounds_of_angles(
    student: LinearizedKDStudent, rows: torch.Tensor, z_eff: Any, angles: Bunch, n: int, betas: Any
) -> dict[str, Any]:
    """Return what follows from the angles of the features: Eqs. 6 to 8, for two classes."""
    betas = np.radians(np.arange(91)) if betas is None else np.asarray(betas, dtype=float)
    names = ("feature_angles", "angle_distribution", "risk_bound", "phuong_lampert_bound")
    if np.ndim(z_eff) > 1:
        return {"betas": betas, **dict.fromkeys(names)}
    squares = to_numpy(student._kernel_function().diag(rows))
    of_features = feature_angles(z_eff, squares, float(angles.centred_oracle_norm))
    return {
        "betas": betas,
        "feature_angles": of_features,
        "angle_distribution": accumulative_angle_distribution(of_features, betas),
        "risk_bound": float(transfer_risk_bound(of_features, float(angles.centred[0]))),
        "phuong_lampert_bound": float(phuong_lampert_bound(of_features, n)),
    }


def _of_hard_labels(student: LinearizedKDStudent, ground_truth: Any) -> dict[str, Any]:
    """Return Eqs. 11 and 12 and δz_h, where every row has a label and the teacher full trust."""
    report, distinct = student.fit_report_, student._distinct
    names = ("hard_label_cosine", "hard_label_effect", "correction_logits", "is_proxy")
    frame = student.tangent_frame()
    z_0, n_classes = np.asarray(student.initial_logits_), len(student.classes_)
    if ground_truth is not None:
        name = "ground_truth_logits"
        ground_truth = canonical_logits(ground_truth, len(z_0), n_classes, name=name).numpy()
    if report.n_unlabelled_rows or distinct.labels.trust is not None:
        return dict.fromkeys(names)
    # At ρ = 1 copies of a row are one whose labels, hard and soft, are their means.
    members = student.teacher_logits_[None] if student._members is None else student._members
    recipe = {name: report[name] for name in RECIPE} | {"soft_ratio": 1.0}
    labels = merged_labels(torch.as_tensor(np.asarray(members)), distinct, recipe)
    z_t, y = labels.teacher_logits.numpy(), labels.hard_labels.numpy()
    is_proxy = ground_truth is None
    if is_proxy:
        ground_truth = 2 * y - 1 if z_0.ndim == 1 else y - 1 / n_classes
    # cos α = ⟨Δz_g, Δz_eff⟩ / (‖Δ_wg‖ √⟨Δz_eff, Δz_eff⟩) (Eq. 11), over all classes.
    ends = ground_truth, np.asarray(student.effective_logits_)
    g, s = (to_numpy(frame.coordinates(student._to_working(z - z_0))).ravel() for z in ends)
    _require_weight_change(g, "ground_truth_logits")
    _require_weight_change(s, "the effective logits")
    T = report.temperature
    effect = hard_label_effect(
        frame,
        z_t,
        y,
        temperature=T,
        ground_truth_logits=ground_truth,
        initial_logits=z_0,
        random_state=0,
    )
    # A soft term of T² times the weight answers to hard labels T² times less.
    scale = T**2 if report.temperature_scaling == "squared" else 1.0
    low, high = effect["interval"]
    effect = {"value": effect["value"] / scale, "interval": (low / scale, high / scale)}
    return {
        "hard_label_cosine": float(g @ s / np.linalg.norm(g) / np.linalg.norm(s)),
        "hard_label_effect": effect | {"sign": int(np.sign(effect["value"]))},
        "correction_logits": correction_logits(z_t, y, temperature=T) / scale,
        "is_proxy": is_proxy,
    }


def _require_weight_change(coordinates: np.ndarray, name: str) -> None:
    if not np.linalg.norm(coordinates) > 0:
        raise ValueError(
            f"{name} equal the initial logits on all rows: a weight change of norm 0 has no angle "
            "(Eq. 11)."
        )
