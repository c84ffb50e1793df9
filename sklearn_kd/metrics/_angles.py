r"""Angles between features and weight changes, the terms of Theorem 1.

Ji and Zhu, NeurIPS 2020, Eqs. 6-9. Symbols, with N rows in the pool, m of them seen by the
student, and K classes (no K axis for two):

===================  ===================  ================================================
paper                here                 shape
===================  ===================  ================================================
z_eff                effective_logits     (N,) or (N, K)
z₀                   initial_logits       as z_eff
Δ_w* − Δ_wz          ``p`` = L⁻¹ z_eff    (N, K) in the frame of the pool
−Δ_wz                ``w_0`` = L⁻¹ z₀     (N, K)
Δ_w*; Δ_ŵ,m          ``q`` = p − w₀;      (N, K), (m, K)
                     ``q[:m]``
ᾱ(φ(x), Δ_w* − Δ_wz) feature_angles       one a row x
p(β)                 the distribution     that of β
===================  ===================  ================================================
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sklearn_kd.distillation._arguments import numbers, positive_scalar, require_each, vector
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._running_sum import running_sum, sum_of_rest
from sklearn_kd.metrics._arguments import (
    check_frame,
    check_two_classes,
    logits_like,
    logits_on_frame,
    training_set_sizes,
)

# |z| above ‖Δ‖√Θ by less than this part of it is rounding, in float32 inputs too.
_ROUNDING = 1e-6


def feature_angles(
    effective_logits: Tensor, squared_feature_norms: Tensor, oracle_norm: Tensor | float
) -> Tensor:
    r"""Return the angle between the features of each row and the oracle's weights.

    .. math:: \bar\alpha(\phi(x), \Delta_{w_*} - \Delta_{w_z}) = \arccos
        \frac{|z_\mathrm{eff}(x)|}{\|\Delta_{w_*} - \Delta_{w_z}\|_2 \sqrt{\Theta(x, x)}}
        \qquad (\text{Eq. 8}).

    A row at an angle near π/2 is hard: a small turn of the weights changes its class.

    Parameters
    ----------
    effective_logits : array-like of shape (m,)
        z_eff(x), the logits of the oracle: at ρ = 1 those of the teacher.
    squared_feature_norms : array-like of shape (m,)
        Θ(x, x) > 0 of the same rows, such as ``NTK().diag(X)``.
    oracle_norm : float > 0
        ‖Δ_w* − Δ_wz‖₂: ``centred_oracle_norm`` of :func:`weight_change_angles`. Without initial
        logits it is ‖Δ_w*‖₂.

    Returns
    -------
    ndarray of shape (m,)
        Angles in [0, π/2], in radians.

    Raises
    ------
    ValueError
        If there are more than two classes (see :func:`power_function_bound`), a shape or a range
        is wrong, or a logit is too large for weights of norm ``oracle_norm``.

    Examples
    --------
    >>> from sklearn_kd.metrics import feature_angles
    >>> feature_angles([0.0, 1.0, -2.0], [4.0, 4.0, 1.0], 2.0).round(4)
    array([1.5708, 1.3181, 0.    ])
    """
    z_eff = numbers(effective_logits, "effective_logits")
    check_two_classes(z_eff, "effective_logits", "use power_function_bound.")
    z_eff = vector(z_eff, "effective_logits")
    squares = numbers(squared_feature_norms, "squared_feature_norms")
    if squares.shape != z_eff.shape:
        raise ValueError(
            f"squared_feature_norms has shape {tuple(squares.shape)}, but effective_logits has "
            f"shape {tuple(z_eff.shape)}; give both for each row."
        )
    require_each(
        (squares > 0) & torch.isfinite(squares),
        "squared_feature_norms",
        squares,
        "must be positive and finite",
        "a row without features has no angle: leave it out.",
    )
    norm = positive_scalar(oracle_norm, "oracle_norm")
    size, largest = z_eff.abs(), norm * squares.sqrt()
    require_each(
        size <= largest * (1 + _ROUNDING),
        "effective_logits",
        z_eff,
        f"cannot exceed oracle_norm √Θ(x, x) in size, with oracle_norm={norm:.6g}",
        "these weights are not the oracle's: take oracle_norm from a larger pool that holds these "
        "rows (centred_oracle_norm of weight_change_angles).",
    )
    # arccos(size / largest), without cancellation near 0
    return torch.atan2(((largest - size) * (largest + size)).clamp_min(0).sqrt(), size)


def accumulative_angle_distribution(angles: Tensor, beta: Tensor | float) -> Tensor:
    r"""Return the share of rows whose features are further than β from the oracle's weights.

    .. math:: p(\beta) = P_x[\bar\alpha(\phi(x), \Delta_{w_*} - \Delta_{w_z}) > \beta]
        \qquad (\text{Eq. 6}).

    Parameters
    ----------
    angles : array-like of shape (m,)
        Angles in radians, from :func:`feature_angles`.
    beta : float or array-like of any shape
        β in radians.

    Returns
    -------
    ndarray or float
        p(β), in [0, 1], of the shape of ``beta``.

    Raises
    ------
    ValueError
        If there are no angles, or some are not finite.

    Examples
    --------
    >>> from sklearn_kd.metrics import accumulative_angle_distribution
    >>> accumulative_angle_distribution([1.2, 1.5, 1.5, 1.57], [0.0, 1.2, 1.5, 1.57])
    array([1.  , 0.75, 0.25, 0.  ])
    """
    angles = row_angles(angles, "angles")
    beta = numbers(beta, "beta", angles.device)
    require_each(torch.isfinite(beta), "beta", beta, "must be finite", "give it in radians.")
    ordered = angles.sort().values
    at_most = torch.searchsorted(ordered, beta.reshape(-1).contiguous(), right=True)
    return 1 - at_most.reshape(beta.shape).to(angles) / len(angles)


def row_angles(value: Any, name: str) -> Tensor:
    """Return angles in radians, one for each of one or more rows; checked."""
    angles = numbers(value, name)
    if angles.ndim != 1 or len(angles) == 0:
        raise ValueError(
            f"{name} must hold one angle a row, of one row or more; got shape "
            f"{tuple(angles.shape)}."
        )
    require_each(torch.isfinite(angles), name, angles, "must be finite", "leave such rows out.")
    require_each(
        (angles >= 0) & (angles <= math.pi), name, angles, "must be in [0, π]", "use radians."
    )
    return angles


def weight_change_angles(
    frame: TangentFrame,
    effective_logits: Tensor,
    initial_logits: Tensor | None = None,
    sizes: Tensor | None = None,
) -> dict[str, Any]:
    r"""Return the angles between the student's weight change and the oracle's.

    The oracle has seen the whole pool, the student its first m rows:

    .. math:: \alpha_m = \alpha(\Delta_{\hat w, m}, \Delta_{w_*}), \qquad
        \bar\alpha_m = \alpha(\Delta_{w_*} - \Delta_{w_z}, \Delta_{\hat w, m} - \Delta_{w_z})
        \qquad (\text{Eq. 7}),

    where :math:`\Delta_{w_z}` is the weight change that makes all logits zero. One triangular
    solve serves all sizes. For K classes the inner products are summed over the classes.

    Parameters
    ----------
    frame : TangentFrame
        Frame of the N rows of the pool, without a ridge. The order of its rows is the order in
        which the student gets them.
    effective_logits : array-like of shape (N,) or (N, K)
        z_eff on the pool.
    initial_logits : array-like of shape (N,) or (N, K), default=None
        z₀, the logits before training. None means zero; both angles are then equal.
    sizes : array-like of int of shape (S,), default=None
        Training-set sizes m in 1…N; None means all.

    Returns
    -------
    Bunch
        ``sizes`` (S,), ``to_oracle`` (S,): α_m, and ``centred`` (S,): ᾱ_m, in radians;
        ``oracle_norm``: ‖Δ_w*‖₂ and ``centred_oracle_norm``: ‖Δ_w* − Δ_wz‖₂, scalars.

    Raises
    ------
    ValueError
        If a shape or a size is wrong, or one of the weight changes is zero and has no direction.

    Notes
    -----
    Eq. 7 takes the absolute value of the cosine. Here its sign is kept: where the two weight
    changes point away from each other (large z₀, few rows) ᾱ_m exceeds π/2 and Theorem 1 gives
    the bound 1. The supplementary angle would give a false bound. For acute angles there is no
    difference.

    Oracle and norms are those of the pool, so both angles vanish at m = N. Use a pool many times
    larger than m to stand for the population.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels import NTK
    >>> from sklearn_kd.linalg import TangentFrame
    >>> from sklearn_kd.metrics import weight_change_angles
    >>> X = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    >>> frame = TangentFrame(NTK(depth=1).to_torch(), X)
    >>> angles = weight_change_angles(frame, [2.0, 1.0, 0.0, -1.0, -2.0])
    >>> angles.to_oracle.round(4)
    array([1.0168, 0.7341, 0.5737, 0.3743, 0.    ])
    >>> float(angles.oracle_norm.round(4))
    2.1949

    With an infinitely wide random network as z₀, a draw of its NNGP prior:

    >>> from sklearn.gaussian_process import GaussianProcessRegressor
    >>> prior = GaussianProcessRegressor(NTK(depth=1, kind="nngp"))
    >>> z_0 = prior.sample_y(X, random_state=0)[:, 0]
    >>> angles = weight_change_angles(frame, [2.0, 1.0, 0.0, -1.0, -2.0], z_0)
    >>> bool((angles.centred != angles.to_oracle)[:-1].all())
    True
    """
    # Δ_w* − Δ_wz = p, −Δ_wz = w₀, Δ_w* = q and Δ_ŵ,m = q[:m], followed by zeros.
    check_frame(frame)
    z_eff = logits_on_frame(frame, effective_logits, "effective_logits")
    z_0 = torch.zeros_like(z_eff)
    if initial_logits is not None:
        z_0 = logits_like(frame, initial_logits, "initial_logits", z_eff, "effective_logits")
    columns = torch.stack((z_eff, z_eff - z_0, z_0), dim=-1)
    p, q, w_0 = frame.coordinates(columns).double().unbind(dim=-1)
    at = training_set_sizes(sizes, frame.n_rows).to(p.device)

    def tail(a: Tensor, b: Tensor) -> Tensor:
        return sum_of_rest(_row_products(a, b))

    def after(a: Tensor, b: Tensor) -> Tensor:
        """⟨a[m:], b[m:]⟩ at each m: the tails, and nothing after the last row."""
        return torch.cat((tail(a, b), p.new_zeros(1)))[at]

    def before(a: Tensor) -> Tensor:
        """‖a[:m]‖² at each m."""
        return running_sum(_row_products(a, a))[at - 1]

    oracle_norm, centred_norm = tail(q, q)[0].sqrt(), tail(p, p)[0].sqrt()
    _require_direction(oracle_norm, "effective_logits equal initial_logits: the oracle")
    _require_direction(
        centred_norm,
        "effective_logits are all 0: the centred oracle (frame.prefix_norms still gives cos α_m, "
        "as a ratio of norms)",
    )
    seen = before(q)
    for size, norm in zip(at.tolist(), seen.tolist(), strict=True):
        _require_direction(norm, f"sizes holds {size}, but there the student")

    # Both angles from sine and cosine: arccos alone loses half the digits of small angles.
    to_oracle = torch.atan2(after(q, q).sqrt(), seen.sqrt())
    # a = p and b = a − (0, q[m:]): ⟨a, b⟩ = ‖p[:m]‖² + ⟨p[m:], w₀[m:]⟩, and by Lagrange's identity
    # |a|²|b|² − ⟨a, b⟩² = ‖p[:m]‖²‖q[m:]‖² + (‖p[m:]‖²‖q[m:]‖² − ⟨p[m:], q[m:]⟩²).
    inner = before(p) + after(p, w_0)
    parallelogram = (after(p, p) * after(q, q) - after(p, q).square()).clamp_min(0)
    outer = (before(p) * after(q, q) + parallelogram).sqrt()
    for size, length in zip(at.tolist(), torch.hypot(inner, outer).tolist(), strict=True):
        _require_direction(length, f"sizes holds {size}, but there the centred student")
    return {
        "sizes": at,
        "to_oracle": to_oracle,
        "centred": torch.atan2(outer, inner),
        "oracle_norm": oracle_norm,
        "centred_oracle_norm": centred_norm,
    }


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of each pair of frame coordinates, summed over the classes."""
    return (a * b).reshape(len(a), -1).sum(dim=1)


def _require_direction(norm: Tensor | float, what: str) -> None:
    if not norm > 0:
        raise ValueError(f"{what} has a weight change of norm 0, which makes no angle.")
