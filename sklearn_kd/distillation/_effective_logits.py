"""Effective logits: the logits a student converges to under soft and hard labels (Eq. 3).

Ji and Zhu, NeurIPS 2020, Eq. 3 and, for K classes, its softmax analogue. Symbols:

==========  ====================  =====================================================
paper       here                  shape
==========  ====================  =====================================================
z_t         teacher_logits        any (binary); (..., K) (multi-class)
y_g         y                     broadcasts with z_t (binary); (...) or (..., K)
rho, T      soft_ratio,           broadcast with z_t (binary); scalar or (...)
            temperature           (multi-class)
z_eff       the value returned    the common shape (binary); (..., K) (multi-class)
==========  ====================  =====================================================

Only the ratio of the two weights of Eq. 2 matters, so the solvers take ``soft`` and ``hard``:
rho and 1 - rho, or rho T^2 and 1 - rho where the soft term carries Hinton's factor T^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd._array import on_arrays

TEMPERATURE_SCALINGS = ("none", "squared")

# Newton's method squares the error, so a last step this small leaves nothing but rounding.
_STEP_TOLERANCE = 1e-9
_ROUNDING = 16 * torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
_MAX_STEPS = 200
_BLOCK = 1 << 16  # entries solved together: the temporaries of a block stay in cache


@on_arrays
def effective_logits(
    teacher_logits: Tensor,
    y: Tensor,
    *,
    soft_ratio: Tensor,
    temperature: Tensor,
    temperature_scaling: str = "none",
) -> Tensor:
    r"""Logits that a student trained to convergence on soft and hard labels attains.

    The loss of one row (Eq. 2),
    :math:`\rho H(\sigma(z_t/T), \sigma(z/T)) + (1-\rho) H(y, \sigma(z))`, is convex in the
    student's logit :math:`z`. Its minimiser :math:`z_\mathrm{eff}` is the root of

    .. math::

        \tfrac{\rho}{T}\bigl(\sigma(z/T) - \sigma(z_t/T)\bigr) + (1-\rho)\bigl(\sigma(z) - y\bigr)
        = 0,

    and for K classes, with :math:`\sum_k z_k = 0`, of

    .. math::

        \tfrac{\rho}{T}\bigl(\mathrm{softmax}(z/T) - \mathrm{softmax}(z_t/T)\bigr)
        + (1-\rho)\bigl(\mathrm{softmax}(z) - y\bigr) = 0.

    Which of the two is meant is read off the shape of ``teacher_logits`` alone: **an array of
    two or more dimensions whose last axis is longer than one has its classes on that axis**;
    everything else is binary. To broadcast binary logits against a grid, give them a last axis
    of length one: ``effective_logits(z[:, None], y[:, None], soft_ratio=grid[None, :], ...)``.

    Parameters
    ----------
    teacher_logits : array-like or tensor, binary: any shape; multi-class: (..., K)
        The teacher's logits. A binary logit is the log-odds of the class labelled 1.
    y : array-like or tensor
        Ground-truth labels. Binary: in [0, 1], broadcast with ``teacher_logits``; 0 and 1 are
        hard labels, a fraction is the mean label of merged duplicates. Multi-class: class
        indices 0, ..., K-1 of shape (...), or rows of the simplex of shape (..., K).
    soft_ratio : float or array-like in (0, 1]
        Weight ρ of the soft labels. Binary: broadcast with ``teacher_logits``. Multi-class:
        a scalar, or one value a row, broadcast with the shape (...).
    temperature : float or array-like, > 0
        Temperature T of the soft labels; broadcast as ``soft_ratio``.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss. "squared" multiplies the soft term by T², as Hinton et al.
        (2015) propose; it amounts to the soft ratio ρT² / (ρT² + 1 - ρ).

    Returns
    -------
    ndarray or tensor
        Effective logits, a tensor if ``teacher_logits`` is one. Binary: the common shape.
        Multi-class: (..., K), each row summing to zero. Computed in float64; float32 logits
        give a result rounded once to float32. Where ``soft_ratio`` is 1, the teacher's logits
        bit for bit.

    Raises
    ------
    ValueError
        If ``soft_ratio`` is not in (0, 1] (without soft labels hard labels have no finite
        minimiser), ``temperature`` is not positive and finite, logits are not finite, labels
        are not valid, or shapes do not broadcast.

    Notes
    -----
    The root is found in terms of the logarithm of both sides, so saturated logits (±700 at any
    temperature) lose nothing: the binary result agrees with 50-digit arithmetic to 1e-12
    relative.

    Examples
    --------
    >>> from sklearn_kd.distillation import effective_logits
    >>> effective_logits([-4.0, 1.0, 4.0], [1, 1, 1], soft_ratio=0.8, temperature=2.0).round(4)
    array([-0.5308,  1.6949,  4.1519])

    A grid of soft ratios (columns) for each logit (rows):

    >>> import numpy as np
    >>> z, y = np.array([[-4.0], [4.0]]), np.array([[1], [1]])
    >>> effective_logits(z, y, soft_ratio=[[0.5, 1.0]], temperature=2.0).round(4)
    array([[ 1.0687, -4.    ],
           [ 4.4713,  4.    ]])

    Three classes, labels as indices:

    >>> z = np.array([[2.0, 0.0, -2.0], [1.0, -1.0, 0.0]])
    >>> effective_logits(z, [0, 1], soft_ratio=0.8, temperature=2.0).round(4)
    array([[ 2.2493, -0.2226, -2.0267],
           [ 0.1094,  0.5591, -0.6685]])
    """
    check_temperature_scaling(temperature_scaling)
    rho, big_t = (double(v, teacher_logits) for v in (soft_ratio, temperature))
    y = double(y, teacher_logits)
    check_soft_ratio(rho)
    check_temperature(big_t)
    check_finite(teacher_logits, "teacher_logits")
    if is_class_last(teacher_logits):
        y = simplex_rows(y, teacher_logits)
        check_broadcast(teacher_logits.shape[:-1], soft_ratio=rho, temperature=big_t)
        return multiclass_effective_logits(teacher_logits, y, rho, big_t, temperature_scaling)
    check_binary_labels(y)
    check_broadcast(None, teacher_logits=teacher_logits, y=y, soft_ratio=rho, temperature=big_t)
    return binary_effective_logits(teacher_logits, y, rho, big_t, temperature_scaling)


def binary_effective_logits(
    teacher_logits: Tensor,
    y: Tensor,
    soft_ratio: Tensor | float,
    temperature: Tensor | float,
    temperature_scaling: str = "none",
) -> Tensor:
    """Root of Eq. 3 in its binary form; arguments broadcast, nothing is checked.

    Computed in float64 and rounded once to the dtype of ``teacher_logits``.
    """
    inputs = torch.broadcast_tensors(
        *(double(v, teacher_logits) for v in (teacher_logits, y, soft_ratio, temperature))
    )
    columns = [t.reshape(-1) for t in inputs]
    out = torch.empty_like(columns[0])
    for start in range(0, out.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        out[block] = _binary_block([c[block] for c in columns], temperature_scaling)
    return out.reshape(inputs[0].shape).to(teacher_logits.dtype)


def _binary_block(columns: list[Tensor], scaling: str) -> Tensor:
    """Root of Eq. 3 for vectors z_t, y, rho and T of shape (n,)."""
    z_t, y, rho, big_t = columns
    # By symmetry (z -> -z, y -> 1 - y) the root lies above z_t and below logit(y).
    limit = torch.where(
        (y - 0.5).abs() < 0.25, 2 * torch.atanh(2 * y - 1), torch.log(y) - torch.log1p(-y)
    )
    sign = torch.where(limit < z_t, -1.0, 1.0).to(z_t)
    x, limit = sign * z_t, sign * limit
    y = torch.where(sign < 0, 1 - y, y)
    soft, hard = loss_weights(rho, big_t, scaling)

    z = torch.where(rho == 1, x, torch.where(limit == x, x, math.nan))
    for is_hard in (True, False):
        rows = (z.isnan() & (torch.isinf(limit) == is_hard)).nonzero().squeeze(1)
        if rows.numel():
            log_odds = torch.log(soft[rows] / (hard[rows] * big_t[rows]))
            end = None if is_hard else limit[rows]
            z[rows] = _root_above(x[rows], end, big_t[rows], log_odds)
    z = _polish_near_zero(z, x, y, rho, big_t, scaling).clamp(x, limit)
    return torch.where(rho == 1, z_t, sign * z)


def _root_above(x: Tensor, limit: Tensor | None, big_t: Tensor, log_odds: Tensor) -> Tensor:
    """Root z of the logarithm of Eq. 3 above x and, for a fractional y, below limit = logit(y).

    With d = z - x, rest = limit - z and σ(b) - σ(a) = σ(-a) σ(b) (1 - exp(a - b)),

        log(soft / (hard T)) + log σ(-x/T) + log σ(z/T) + log(1 - exp(-d/T))
            = log σ(limit) + log σ(-z) + log(1 - exp(-rest)).

    Newton's method runs on v = log(exp(d) - 1) - log(1 - exp(-rest)), in which the difference
    of both sides is close to linear from d -> 0 to rest -> 0 or d -> infinity.
    """
    constant = log_odds + logsigmoid(-x / big_t)
    if limit is not None:
        constant = constant - logsigmoid(limit)
    d = _first_guess(x, limit, big_t, -constant)
    v = torch.where(d < 1, torch.log(torch.expm1(d.clamp(max=1))), d + _log1mexp(d))
    if limit is not None:
        v = v - _log1mexp(limit - x - d)
    z = _bracketed_newton(v, x, limit, big_t, constant)
    # Digits are lost where x + d or limit - rest cancels: one more step, on z itself.
    far = x.abs() if limit is None else x.abs().maximum(limit.abs())
    lost = (z.abs() < 0.5 * far).nonzero().squeeze(1)
    z_lost, d = z[lost], (z[lost] - x[lost]).clamp(min=_TINY)
    rest = None if limit is None else (limit[lost] - z_lost).clamp(min=_TINY)
    value, slope = _log_equation(z_lost, d, rest, big_t[lost], constant[lost])
    return z.index_copy(0, lost, z_lost - value / slope)


def _bracketed_newton(
    v: Tensor, x: Tensor, limit: Tensor | None, big_t: Tensor, constant: Tensor
) -> Tensor:
    """Newton's method on v (see :func:`_root_above`) from a first guess; returns z."""
    root = torch.empty_like(x)
    low, high = torch.full_like(v, -math.inf), torch.full_like(v, math.inf)
    last = high  # |value| of the step before
    todo = torch.arange(len(x), device=x.device)
    for _ in range(_MAX_STEPS):
        z, d, rest = _place(v, x, limit)
        value, slope = _log_equation(z, d, rest, big_t, constant)
        dv_dz = -1 / torch.expm1(-d) + (0 if rest is None else 1 / torch.expm1(rest))
        low, high = torch.where(value < 0, v, low), torch.where(value > 0, v, high)
        move = -value / slope
        new = v + move * dv_dz
        size = (new - v).abs() / v.abs().clamp(min=1)
        # The second test is for |x| so large that rounding of the value keeps v from settling.
        done = (size <= _STEP_TOLERANCE) | (
            (size <= 1e-3) & (move.abs() <= _ROUNDING * (x.abs() + d))
        )
        # A step that leaves the bracket, or follows one that did not halve the value: halve the
        # bracket. While one of its ends is open only the first can happen, by rounding.
        is_open = torch.isinf(high - low)
        good = (new > low) & (new < high) & (is_open | (value.abs() <= 0.5 * last))
        middle = torch.where(is_open, v + move.sign(), (low + high) / 2)
        v, last = torch.where(done | good, new, middle), value.abs()
        root[todo] = _place(v, x, limit)[0]
        left = (~done).nonzero().squeeze(1)
        if not left.numel():
            return root
        todo, v, x, big_t, constant = todo[left], v[left], x[left], big_t[left], constant[left]
        low, high, last = low[left], high[left], last[left]
        limit = None if limit is None else limit[left]
    raise ArithmeticError(
        f"effective_logits did not converge for {len(x)} rows, the first with "
        f"|teacher logit| {x[0].abs().item():.17g} at temperature {big_t[0].item():.17g}; "
        "please report this as a bug."
    )


def _place(v: Tensor, x: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return z, d and rest for v (see :func:`_root_above`), free of cancellation."""
    if limit is None:
        d = _softplus(v).clamp(min=_TINY)
        return x + d, d, None
    gap = limit - x
    log_gap = _log1mexp(gap)
    d = _softplus(v + log_gap - _softplus(v - gap)).clamp(min=_TINY)
    rest = _softplus(gap + log_gap - _softplus(v)).clamp(min=_TINY)
    return torch.where(rest < d, limit - rest, x + d), d, rest


def _log_equation(
    z: Tensor, d: Tensor, rest: Tensor | None, big_t: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor]:
    """Left minus right of the logarithm of Eq. 3, and its slope in z."""
    log_soft, log_hard = logsigmoid(z / big_t), logsigmoid(-z)
    shrink = torch.expm1(-d / big_t)  # 1 / expm1(d/T) = -1 - 1 / expm1(-d/T)
    value = constant + log_soft + torch.log(-shrink) - log_hard
    slope = (-torch.expm1(log_soft) - 1 - 1 / shrink) / big_t - torch.expm1(log_hard)
    if rest is not None:
        value = value - _log1mexp(rest)
        slope = slope + 1 / torch.expm1(rest)
    return value, slope


def _first_guess(x: Tensor, limit: Tensor | None, big_t: Tensor, target: Tensor) -> Tensor:
    """Least of three upper bounds of d, each the limit of Eq. 3 in one regime."""
    # Large z: σ(z/T) >= 1/2 and 1 - exp(-d/T) >= 1/2.
    d = (target + 2 * math.log(2)).clamp(min=0).maximum(x + big_t * math.log(2)) - x
    # Small d: σ(z/T) >= σ(x/T) and σ(-z) <= σ(-x).
    small = target - logsigmoid(x / big_t) + logsigmoid(-x)
    if limit is not None:
        small = small + _log1mexp(limit - x)
    d = torch.where(small < 0, d.minimum(-big_t * torch.log1p(-torch.exp(small))), d)
    # Very negative z: σ(-z) <= 1.
    wide = big_t * (_softplus(target - x / big_t) - torch.log1p(-torch.exp(target)))
    d = torch.where(target < 0, d.minimum(wide), d).clamp(min=_TINY)
    return d if limit is None else torch.where(d < limit - x, d, (limit - x) / 2)


def _polish_near_zero(
    z: Tensor, x: Tensor, y: Tensor, rho: Tensor, big_t: Tensor, scaling: str
) -> Tensor:
    """One step on Eq. 3 in a form that keeps the relative accuracy of a root near zero.

    soft tanh(z/2T) + hard T tanh(z/2) = soft tanh(x/2T) + hard T (2y - 1)
    """
    near = ((z.abs() < 0.5 * big_t.clamp(max=1)) & (rho < 1)).nonzero().squeeze(1)
    if not near.numel():
        return z
    w, x, y, rho, big_t = z[near], x[near], y[near], rho[near], big_t[near]
    soft, hard = loss_weights(rho, big_t, scaling)
    right = soft * torch.tanh(x / (2 * big_t)) + hard * big_t * (2 * y - 1)
    # A saturated wrong teacher against y = 1: the two terms cancel but for exp(x/T).
    saturated = (y == 1) & (x < -2 * big_t)
    excess = 2 * soft * torch.sigmoid(x / big_t) - soft_excess(rho, big_t, scaling)
    right = torch.where(saturated, excess, right)
    # The left side is odd in z: the chord through the origin keeps every digit of z.
    w = torch.where(w == 0, _TINY, w)
    left = soft * torch.tanh(w / (2 * big_t)) + hard * big_t * torch.tanh(w / 2)
    return z.index_copy(0, near, right / (left / w))


def soft_excess(rho: Tensor, big_t: Tensor, scaling: str) -> Tensor:
    """Return soft - T hard, exact to rounding even where the terms cancel.

    It is positive iff a confidently wrong teacher can win over a hard label.
    """
    # rho + rho T - T, times T where soft is rho T^2: both are sums of three terms with an
    # exact product (Dekker's two-product) and an exact difference (Knuth's two-sum).
    base = big_t if scaling == "none" else torch.ones_like(big_t)
    product = rho * big_t
    rho_high, t_high = _high_half(rho), _high_half(big_t)
    rho_low, t_low = rho - rho_high, big_t - t_high
    product_error = ((rho_high * t_high - product) + rho_high * t_low + rho_low * t_high) + (
        rho_low * t_low
    )
    difference = rho - base
    back = difference - rho
    difference_error = (rho - (difference - back)) - (base + back)
    excess = (difference + product) + (difference_error + product_error)
    return excess if scaling == "none" else big_t * excess


def _high_half(a: Tensor) -> Tensor:
    """Leading 26 bits of a float64 (Veltkamp's splitting)."""
    scaled = (2.0**27 + 1) * a
    return scaled - (scaled - a)


def multiclass_effective_logits(
    teacher_logits: Tensor,
    y: Tensor,
    soft_ratio: Tensor | float,
    temperature: Tensor | float,
    temperature_scaling: str = "none",
) -> Tensor:
    """Root of the K-class form of Eq. 3, rows summing to zero; nothing is checked.

    ``teacher_logits`` and ``y`` (rows of the simplex) are (..., K), ``soft_ratio`` and
    ``temperature`` broadcast with (...). Computed in float64 and rounded once to the dtype of
    ``teacher_logits``.
    """
    shape = teacher_logits.shape
    inputs = (double(v, teacher_logits) for v in (soft_ratio, temperature))
    rho, big_t = (v.expand(shape[:-1]).reshape(-1) for v in inputs)
    z_t, y = (double(v, teacher_logits).reshape(-1, shape[-1]) for v in (teacher_logits, y))
    if shape[-1] == 2:
        z = binary_effective_logits(z_t[:, 1] - z_t[:, 0], y[:, 1], rho, big_t, temperature_scaling)
        z = torch.stack((-z / 2, z / 2), dim=1)
    else:
        z = torch.empty_like(z_t)
        n_rows = max(1, _BLOCK // shape[-1])
        for start in range(0, len(z), n_rows):
            rows = slice(start, start + n_rows)
            weights = loss_weights(rho[rows, None], big_t[rows, None], temperature_scaling)
            z[rows] = _multiclass_block(z_t[rows], y[rows], *weights, big_t[rows, None])
    z = torch.where(rho[:, None] == 1, z_t, z)
    return z.reshape(shape).to(teacher_logits.dtype)


def _multiclass_block(z_t: Tensor, y: Tensor, soft: Tensor, hard: Tensor, big_t: Tensor) -> Tensor:
    """Root of the K-class form of Eq. 3 for rows (n, K); weights and T are (n, 1).

    Given the log-normaliser A = log Σ exp(z/T), in the gauge log Σ exp(z) = 0, each class has
    its own increasing equation

        φ_k = log[(soft/T) exp(z_k/T - A) + hard exp(z_k)]
              - log[(soft/T) softmax(z_t/T)_k + hard y_k] = 0,

    and A is where Ψ = log Σ exp(z) - log Σ exp(z/T) + A = 0, which increases in A along the
    solutions z(A). A lies between 0 and (1 - 1/T) log K. Newton's method runs on (z, A)
    jointly: the matrix is an arrow, so a step costs O(K).
    """
    rate = 1 / big_t
    log_odds = torch.log(soft / (hard.clamp(min=_TINY) * big_t))
    log_q = torch.logaddexp(log_odds + torch.log_softmax(z_t * rate, dim=1), torch.log(y))
    edge = (1 - rate) * math.log(z_t.shape[1])
    low, high = edge.clamp(max=0), edge.clamp(min=0)
    # At T = 1 the root is log_q up to its normaliser.
    z = torch.log_softmax(log_q, dim=1)
    a = torch.logsumexp(z * rate, dim=1, keepdim=True)
    last = torch.full_like(a, math.inf)  # |Ψ| when A last moved
    out = torch.empty_like(z)
    todo = torch.arange(len(z), device=z.device)
    for _ in range(_MAX_STEPS):
        tilt = log_odds - a + z * (rate - 1)
        phi = z + _softplus(tilt) - log_q
        w = torch.sigmoid(tilt)  # share of the soft term
        slope = w * rate + (1 - w)
        top = z.amax(1, keepdim=True)
        hard_terms, soft_terms = torch.exp(z - top), torch.exp((z - top) * rate)
        hard_sum, soft_sum = hard_terms.sum(1, keepdim=True), soft_terms.sum(1, keepdim=True)
        row = (hard_terms / hard_sum - soft_terms * (rate / soft_sum)) / slope
        behind = row * phi
        psi = top * (1 - rate) + torch.log(hard_sum / soft_sum) + a - behind.sum(1, keepdim=True)
        da = -psi / (1 + (row * w).sum(1, keepdim=True))
        # A moves, and its bracket shrinks, once z(A) is known well enough to trust Ψ's sign.
        known = (behind.abs().sum(1, keepdim=True) <= 0.1 * psi.abs()) & (phi.abs() <= 0.1).all(
            1, keepdim=True
        )
        known |= (phi.abs() <= _STEP_TOLERANCE * log_q.abs().clamp(min=1)).all(1, keepdim=True)
        low, high = torch.where(known & (psi < 0), a, low), torch.where(known & (psi > 0), a, high)
        settled = da.abs() <= _STEP_TOLERANCE * a.abs().clamp(min=1)
        settled |= psi.abs() <= _ROUNDING * (1 + a.abs() + (top * (1 - rate)).abs())
        # A step that leaves the bracket, or follows one that did not halve Ψ: halve the bracket.
        good = (a + da > low) & (a + da < high) & (psi.abs() <= 0.5 * last)
        last = torch.where(known, psi.abs(), last)
        da = torch.where(settled | good, da, (low + high) / 2 - a).where(known, 0.0)
        a = a + da
        # Each term of φ_k alone bounds z_k from above, which stops overshooting.
        bound = torch.minimum((log_q - log_odds + a) / rate, log_q)
        new_z = torch.minimum(z + (w * da - phi) / slope, bound)
        dz, z = new_z - z, new_z
        out[todo] = z
        still = (dz.abs() > _STEP_TOLERANCE * z.abs().clamp(min=1)).any(1, keepdim=True)
        left = (still | ~settled | ~known).nonzero()[:, 0]
        if not left.numel():
            return out - out.mean(dim=1, keepdim=True)
        todo, z, a, log_q, log_odds = todo[left], z[left], a[left], log_q[left], log_odds[left]
        rate, low, high, last = rate[left], low[left], high[left], last[left]
    raise ArithmeticError(
        f"effective_logits did not converge for {len(z)} rows at temperature "
        f"{1 / rate[0].item():.17g}; please report this as a bug."
    )


def merge_soft_labels(
    teacher_logits: Tensor, weights: Tensor, index: Tensor, n_rows: int, temperature: float
) -> Tensor:
    """Teacher logits whose soft labels are the weighted means of groups of soft labels.

    Eq. 3 is linear in the labels, so duplicate rows act as one row whose soft label is the mean
    of σ(z_t/T): row j of the result is T logit(Σ w_i σ(z_i/T) / Σ w_i) over the i with
    ``index[i] == j``; for K classes T log Σ w_i softmax(z_i/T), summing to zero. Formed from
    log σ(±z/T), so saturated labels survive. Members that agree return their logits bit for
    bit.

    ``teacher_logits`` (n,) or (n, K), ``weights`` (n,) nonnegative, ``index`` (n,) integers in
    [0, n_rows). A merged row needs a positive total weight.
    """
    binary = teacher_logits.ndim == 1
    z = double(teacher_logits[:, None] if binary else teacher_logits, teacher_logits)
    soft = z / temperature
    log_label = (
        torch.cat((logsigmoid(-soft), logsigmoid(soft)), dim=1)
        if binary
        else torch.log_softmax(soft, dim=1)
    )
    log_label = log_label + torch.log(double(weights, z))[:, None]
    group = index[:, None].expand_as(log_label)
    top = torch.full((n_rows, log_label.shape[1]), -math.inf).to(z)
    top = top.scatter_reduce(0, group, log_label, "amax")
    shift = top.nan_to_num(neginf=0.0)
    mean = torch.zeros_like(top).index_add(0, index, torch.exp(log_label - shift[index]))
    mean = shift + torch.log(mean)
    merged = temperature * (mean[:, 1:] - mean[:, :1] if binary else mean)
    if not binary:
        merged = merged - merged.mean(dim=1, keepdim=True)
    group = index[:, None].expand_as(z)
    lowest = torch.full((n_rows, z.shape[1]), math.inf).to(z).scatter_reduce(0, group, z, "amin")
    highest = torch.full_like(lowest, -math.inf).scatter_reduce(0, group, z, "amax")
    agree = (lowest == highest).all(dim=1, keepdim=True)
    merged = torch.where(agree, lowest, merged).to(teacher_logits.dtype)
    return merged[:, 0] if binary else merged


def loss_weights(rho: Tensor, big_t: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Weights of the soft and of the hard term of Eq. 2."""
    return (rho if scaling == "none" else rho * big_t**2), 1 - rho


def is_class_last(teacher_logits: Tensor) -> bool:
    """Whether the last axis of ``teacher_logits`` counts classes (the rule of the docstring)."""
    return teacher_logits.ndim >= 2 and teacher_logits.shape[-1] >= 2


def check_temperature_scaling(temperature_scaling: str) -> None:
    """Raise unless ``temperature_scaling`` is one of the accepted words."""
    if temperature_scaling not in TEMPERATURE_SCALINGS:
        raise ValueError(
            f"temperature_scaling must be one of {TEMPERATURE_SCALINGS}; "
            f"got {temperature_scaling!r}."
        )


def check_soft_ratio(soft_ratio: Tensor) -> None:
    """Raise unless every soft ratio is in (0, 1]."""
    require(
        (soft_ratio > 0) & (soft_ratio <= 1),
        "soft_ratio",
        soft_ratio,
        "must be in (0, 1]",
        "hard labels alone (soft_ratio=0) have no finite effective logit; use a small positive "
        "value such as 1e-3.",
    )


def check_temperature(temperature: Tensor) -> None:
    """Raise unless every temperature is positive and finite."""
    require(
        (temperature > 0) & torch.isfinite(temperature),
        "temperature",
        temperature,
        "must be positive and finite",
        "1.0 leaves the teacher's logits as they are.",
    )


def check_finite(logits: Tensor, name: str) -> None:
    """Raise unless every logit is finite."""
    require(
        torch.isfinite(logits),
        name,
        logits,
        "must be finite",
        "clip the teacher's probabilities away from 0 and 1 before taking log-odds.",
    )


def check_binary_labels(y: Tensor) -> None:
    """Raise unless every label is in [0, 1]."""
    require(
        (y >= 0) & (y <= 1),
        "y",
        y,
        "must be in [0, 1] for binary logits",
        "encode the two classes as 0 and 1, or give teacher_logits a class axis of length >= 2.",
    )


def simplex_rows(y: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return class indices or rows of the simplex as rows of the simplex (..., K); checked."""
    n_classes = teacher_logits.shape[-1]
    if y.shape == teacher_logits.shape:
        total = y.sum(dim=-1, keepdim=True)
        require(
            (y >= 0).all(dim=-1) & ((total[..., 0] - 1).abs() <= 1e-6),
            "y",
            y,
            "must have nonnegative rows that sum to 1 (the last axis of teacher_logits counts "
            "classes)",
            "normalise its rows, pass class indices, or, if the logits are binary, give "
            "teacher_logits a last axis of length one.",
        )
        return y / total
    if y.shape != teacher_logits.shape[:-1]:
        raise ValueError(
            f"y must have shape {tuple(teacher_logits.shape[:-1])} (class indices) or "
            f"{tuple(teacher_logits.shape)} (rows of the simplex) for teacher_logits with "
            f"{n_classes} classes on the last axis; got shape {tuple(y.shape)}. If the logits "
            "are binary, give teacher_logits a last axis of length one."
        )
    require(
        (y >= 0) & (y < n_classes) & (y == y.round()),
        "y",
        y,
        f"must hold class indices 0, ..., {n_classes - 1}",
        "encode the classes by their position on the last axis of teacher_logits.",
    )
    return torch.nn.functional.one_hot(y.long(), n_classes).to(teacher_logits)


def check_broadcast(shape: torch.Size | None, **tensors: Tensor) -> None:
    """Raise unless the tensors broadcast together (with the result ``shape``, if given)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        common = torch.broadcast_shapes(*shapes.values(), *([] if shape is None else [shape]))
    except RuntimeError as error:
        raise ValueError(
            f"shapes do not broadcast: {shapes}"
            + ("" if shape is None else f" against rows of shape {tuple(shape)}")
            + "; give scalars or arrays that match."
        ) from error
    if shape is not None and common != shape:
        raise ValueError(
            f"{shapes} must broadcast to the rows of teacher_logits, of shape {tuple(shape)}; "
            "give scalars or one value a row."
        )


def require(ok: Tensor, name: str, value: Tensor, requirement: str, remedy: str) -> None:
    """Raise a ValueError that names the first offending entry (or row) of ``value``."""
    if bool(ok.all()):
        return
    position = tuple((~ok).nonzero()[0].tolist())
    where = f" at index {position if len(position) > 1 else position[0]}" if position else ""
    raise ValueError(f"{name} {requirement}; got {value[position].tolist()}{where}; {remedy}")


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact in both tails (torch's own is linear from 20 on)."""
    return -logsigmoid(-x)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(-x)) for positive x."""
    return torch.log(-torch.expm1(-x))


def double(value: Tensor | float, device_of: Tensor) -> Tensor:
    """Return ``value`` as a float64 tensor on the device of another tensor."""
    return torch.as_tensor(value, dtype=torch.float64, device=device_of.device)
