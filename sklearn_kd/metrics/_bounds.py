r"""Upper bounds on the transfer risk: Theorem 1, its predecessor, and two useful in practice.

==============  ======================  ==================================================
paper           here                    shape
==============  ======================  ==================================================
p(β)            feature_angles          (m,), the angles that p counts
ᾱ_n             weight_change_angle     any
z_*(x)          effective_logits        (m,) or (m, K)
v(x)            new_directions          (..., m), from `TangentFrame.features`
‖w_*‖, ‖ŵ_n‖    oracle_norm,            scalar, (...)
                student_norm
==============  ======================  ==================================================
"""

from __future__ import annotations

import math

import scipy.special
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd.distillation._arguments import (
    check_broadcast,
    fraction,
    numbers,
    positive_scalar,
    require_each,
    row_logits,
)
from sklearn_kd.metrics._angles import accumulative_angle_distribution, row_angles

# A student's norm above the oracle's by less than this part of it is rounding.
_ROUNDING = 1e-6


def transfer_risk_bound(feature_angles: Tensor, weight_change_angle: Tensor | float) -> Tensor:
    r"""Return the upper bound on the transfer risk of Theorem 1.

    .. math:: R_n \le p\bigl(\tfrac{\pi}{2} - \bar\alpha_n\bigr) \qquad (\text{Eq. 7}).

    **It is close to 1 in practice**: the paper's own Fig. 2 gives 1 at every training-set size it
    plots. The features of almost every row are nearly orthogonal to any weights, so p(β) is 1
    until β is close to π/2. For a bound below 1 see :func:`power_function_bound` and
    :func:`binomial_upper_bound`.

    Parameters
    ----------
    feature_angles : array-like of shape (m,)
        ᾱ(φ(x), Δ_w* − Δ_wz) in radians, from :func:`feature_angles`. Two classes only.
    weight_change_angle : float or array-like of any shape, in [0, π]
        ᾱ_n in radians: ``centred`` of :func:`weight_change_angles`.

    Returns
    -------
    ndarray or float
        The bound, in [0, 1], of the shape of ``weight_change_angle``.

    Raises
    ------
    ValueError
        If there are no angles, or an angle is out of its range.

    Examples
    --------
    >>> from sklearn_kd.metrics import transfer_risk_bound
    >>> transfer_risk_bound([1.2, 1.5, 1.5, 1.57], [1.0, 0.2, 0.01])
    array([1.  , 0.75, 0.25])
    """
    feature_angles = row_angles(feature_angles, "feature_angles")
    angle = numbers(weight_change_angle, "weight_change_angle", feature_angles.device)
    require_each(
        (angle >= 0) & (angle <= math.pi),
        "weight_change_angle",
        angle,
        "must be in [0, π]",
        "take it in radians.",
    )
    return accumulative_angle_distribution(feature_angles, math.pi / 2 - angle)


def phuong_lampert_bound(feature_angles: Tensor, n_rows: Tensor | int) -> Tensor:
    r"""Return the upper bound of Phuong and Lampert on the expected transfer risk.

    .. math:: E\,R_n \le \min_\beta \; p(\beta) + p\bigl(\tfrac{\pi}{2} - \beta\bigr)^n .

    It bounds the expectation over draws of the n training rows, for distillation with soft labels
    alone and a teacher that the student can represent. p is a step function, so the minimum over
    its steps is exact.

    Parameters
    ----------
    feature_angles : array-like of shape (m,)
        ᾱ(φ(x), Δ_w* − Δ_wz) in [0, π/2], from :func:`feature_angles`.
    n_rows : int or array-like of int
        Number n ≥ 1 of training rows.

    Returns
    -------
    ndarray or float
        The bound, in [0, 1], of the shape of ``n_rows``.

    Raises
    ------
    ValueError
        If there are no angles, or an argument is out of its range.

    References
    ----------
    M. Phuong and C. H. Lampert, "Towards Understanding Knowledge Distillation", ICML 2019.

    Examples
    --------
    >>> from sklearn_kd.metrics import phuong_lampert_bound
    >>> phuong_lampert_bound([0.3, 0.4, 0.9, 1.4], [1, 10, 100]).round(4)
    array([0.75 , 0.251, 0.25 ])
    """
    feature_angles = row_angles(feature_angles, "feature_angles")
    n = numbers(n_rows, "n_rows", feature_angles.device)
    require_each(
        (n >= 1) & (n == n.round()) & torch.isfinite(n),
        "n_rows",
        n,
        "must be an integer of at least 1",
        "it counts the training rows.",
    )
    # p(β) steps down at an angle, and p(π/2 − β)ⁿ up just after a complement of one; so the sum is
    # smallest at an angle, where the first has stepped and the second has not yet, or at β = 0.
    beta = torch.cat((feature_angles.new_zeros(1), feature_angles.unique()))
    missed = accumulative_angle_distribution(feature_angles, beta)
    near = accumulative_angle_distribution(feature_angles, math.pi / 2 - beta)
    bounds = torch.stack([(missed + near**size).min() for size in n.reshape(-1)])
    return bounds.reshape(n.shape)


def power_function_bound(
    effective_logits: Tensor,
    new_directions: Tensor,
    oracle_norm: Tensor | float,
    student_norm: Tensor | float,
) -> Tensor:
    r"""Return a certificate: an upper bound on the transfer risk that needs no held-out labels.

    .. math:: R_n \le P_x\Bigl[\,|z_*(x)| \le \sqrt{\|w_*\|^2 - \|\hat w_n\|^2}\,\sqrt{v_n(x)}
        \,\Bigr].

    The student is the orthogonal projection of the oracle on the span of its training rows, so
    the error at x is at most ‖w_* − ŵ_n‖ = √(‖w_*‖² − ‖ŵ_n‖²) times √v_n(x), the part of φ(x)
    outside that span (the *power function* of kernel interpolation). A logit larger than this
    cannot have changed its sign. With K classes the margin between the oracle's two largest logits
    replaces :math:`|z_*(x)|`, the right-hand side is multiplied by :math:`\sqrt2`, and the squared
    norms are summed over the classes.

    It is never above Theorem 1's bound (for z₀ = 0), as v_n(x) ≤ Θ(x, x).

    Parameters
    ----------
    effective_logits : array-like of shape (m,) or (m, K)
        z_*(x), the oracle's logits on held-out rows, including z₀(x). At ρ = 1 these are the
        teacher's. For ρ < 1 the bound is on the disagreement with the sign of z_eff.
    new_directions : array-like of shape (..., m)
        v_n(x) ≥ 0 of the same rows: the second result of `TangentFrame.features`.
    oracle_norm : float > 0
        ‖w_*‖, the norm of the oracle's weight change (``oracle_norm``, not
        ``centred_oracle_norm``, of :func:`weight_change_angles`).
    student_norm : float or array-like of shape (...)
        ‖ŵ_n‖, the norm of the student's weight change, such as ``weight_change_norm_``.

    Returns
    -------
    ndarray or float
        The bound, in [0, 1], of the shape (...) to which ``student_norm`` and the leading axes of
        ``new_directions`` broadcast.

    Raises
    ------
    ValueError
        If shapes or ranges are wrong, or ``student_norm`` exceeds ``oracle_norm``, which is
        impossible for a projection.

    Notes
    -----
    **The bound is only as good as the value of ‖w_*‖.** The norm is exact when the teacher is a
    kernel machine in the student's kernel, Σ_j a_j Θ(x, c_j), and ``soft_ratio=1``: then
    ‖w_*‖ = √(aᵀ Θ a). Otherwise only the norm on a finite pool of rows is known, which is a lower
    bound. It grows with the pool, without limit if the teacher is not in the kernel's function
    space. The certificate is then optimistic and may fail. :func:`binomial_upper_bound` always
    holds.

    The bound is about the rows given, and holds for other rows up to sampling error. A student
    with a ridge (``ridge > 0``) is not a projection and has no such certificate.

    Examples
    --------
    >>> from sklearn_kd.metrics import power_function_bound
    >>> power_function_bound([2.0, -0.5, 0.1, 3.0], [0.1, 0.1, 0.2, 0.3], 5.0, [3.0, 4.9]).round(4)
    array([0.5 , 0.25])
    """
    z = row_logits(effective_logits, "effective_logits")
    if z.ndim == 1:
        # f and z_* differ in sign only if |z_*| ≤ |z_* − f|.
        margin, factor = z.abs(), 1.0
    else:
        # f_l ≥ f_k although z_k is largest: z_k − z_l ≤ |(D_k − D_l)ᵀφ| with D = w_* − ŵ, and
        # ‖D_k − D_l‖ ≤ √2 ‖D‖, with equality for D_l = −D_k and no others.
        largest = z.topk(2, dim=1).values
        margin, factor = largest[:, 0] - largest[:, 1], math.sqrt(2)
    v = numbers(new_directions, "new_directions", z.device)
    if v.shape[-1:] != margin.shape:
        raise ValueError(
            f"new_directions has shape {tuple(v.shape)}, but its last axis must hold the rows of "
            f"effective_logits; there are {len(margin)}."
        )
    require_each(
        (v >= 0) & torch.isfinite(v),
        "new_directions",
        v,
        "must be >= 0 and finite",
        "take the second result of TangentFrame.features.",
    )
    w = positive_scalar(oracle_norm, "oracle_norm")
    student = numbers(student_norm, "student_norm", z.device)
    check_broadcast(None, new_directions=v[..., 0], student_norm=student)
    require_each(
        (student >= 0) & (student <= w * (1 + _ROUNDING)),
        "student_norm",
        student,
        f"must be in [0, oracle_norm={w:.6g}], the student being a projection of the oracle",
        "oracle_norm comes from too small a pool, or both are not of the same logits.",
    )
    residual = ((w - student) * (w + student)).clamp_min(0).sqrt()
    reach = factor * residual[..., None] * v.sqrt()
    return (margin <= reach).double().mean(dim=-1)


def binomial_upper_bound(
    n_errors: Tensor | int, n_rows: Tensor | int, confidence_level: float = 0.95
) -> Tensor:
    r"""Return the exact upper confidence bound on a risk, given k errors in n rows.

    The one-sided bound of Clopper and Pearson: the risk r at which k errors or fewer have
    probability 1 − c,

    .. math:: \sum_{j \le k} \binom nj r^j (1 - r)^{n - j} = 1 - c ,

    a quantile of the beta distribution with k + 1 and n − k degrees; 1 for k = n.

    Parameters
    ----------
    n_errors : int or array-like of int
        Number k of errors, or of disagreements between student and teacher.
    n_rows : int or array-like of int
        Number n ≥ k of rows; broadcast with ``n_errors``.
    confidence_level : float in (0, 1), default=0.95
        Probability c with which the bound holds, at least.

    Returns
    -------
    ndarray or float
        The bound, in [0, 1].

    Raises
    ------
    ValueError
        If a count is not an integer in its range, or ``confidence_level`` is out of (0, 1).

    Notes
    -----
    The bound is exact for held-out rows that are drawn independently. Leave-one-out
    disagreements are not independent, as their students share almost all rows. For them the bound
    is an approximation.

    Examples
    --------
    >>> from sklearn_kd.metrics import binomial_upper_bound
    >>> binomial_upper_bound([0, 3, 100], 100).round(4)
    array([0.0295, 0.0757, 1.    ])
    """
    level = fraction(confidence_level, "confidence_level")
    k, n = numbers(n_errors, "n_errors"), numbers(n_rows, "n_rows")
    check_broadcast(None, n_errors=k, n_rows=n)
    k, n = torch.broadcast_tensors(k, n)
    require_each(
        (n >= 1) & (n == n.round()) & torch.isfinite(n),
        "n_rows",
        n,
        "must be an integer of at least 1",
        "a bound needs at least one row.",
    )
    require_each(
        (k >= 0) & (k <= n) & (k == k.round()),
        "n_errors",
        k,
        "must be an integer in 0…n_rows",
        "it counts rows; multiply a share by n_rows.",
    )
    quantile = scipy.special.betaincinv(*map(to_numpy, (k + 1, (n - k).clamp_min(1))), level)
    return torch.where(k == n, 1.0, torch.as_tensor(quantile, device="cpu"))
