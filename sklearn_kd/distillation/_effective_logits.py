"""Effective logits: the logits a student converges to under soft and hard labels (Eq. 3).

Ji and Zhu, NeurIPS 2020, Eq. 3 and, for K classes, its softmax analogue. Symbols:

==========  ====================  =====================================================
paper       here                  shape
==========  ====================  =====================================================
z_t         teacher_logits        any (binary); (..., K) (multi-class)
y_g         y                     broadcasts with z_t (binary); (...) or (..., K)
ρ, T        soft_ratio,           broadcast with z_t (binary); scalar or (...)
            temperature           (multi-class)
z_eff       the value returned    the common shape (binary); (..., K) (multi-class)
==========  ====================  =====================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklearn_kd._array import on_arrays
from sklearn_kd.distillation._arguments import (
    LEAST_OF_CLASSES,
    LEAST_OF_FRACTIONS,
    check_binary_labels,
    check_broadcast,
    check_finite,
    check_no_outer,
    check_quotients,
    check_resolved_temperature,
    check_soft_ratio,
    check_temperature,
    check_temperature_scaling,
    double,
    is_class_last,
    log_weight_ratio,
    numbers,
    simplex_rows,
)
from sklearn_kd.distillation._binary_root import binary_roots
from sklearn_kd.distillation._softmax_root import softmax_roots

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
    r"""Logits of a student trained to convergence on soft and hard labels.

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

    The shape of ``teacher_logits`` alone decides between the two: **an array of
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
        minimiser), ``temperature`` is not positive and finite or too low to resolve the answer,
        logits are not finite, labels are not valid, or shapes do not broadcast.
    TypeError
        If an argument does not hold numbers.
    ArithmeticError
        If the root of a row was not found; an unconverged root is never returned.

    Notes
    -----
    The root is found in terms of the logarithm of both sides, so saturated logits (±700) lose
    nothing. For temperatures from 0.05 to 100 the binary result agrees with 50-digit arithmetic to
    1e-12 relative. At any other temperature the error is below 1e-10 of the largest logit of a
    row, or the temperature is refused: below 1e-5 for three or more classes, and below 1e-10 for
    fractional labels, float64 does not resolve the answer.

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
    teacher_logits = numbers(teacher_logits, "teacher_logits")
    device = teacher_logits.device
    soft_ratio = numbers(soft_ratio, "soft_ratio", device)
    temperature = numbers(temperature, "temperature", device)
    y = numbers(y, "y", device)
    check_soft_ratio(soft_ratio)
    check_temperature(temperature)
    check_finite(teacher_logits, "teacher_logits")
    if is_class_last(teacher_logits):
        y = simplex_rows(y, teacher_logits)
        check_broadcast(teacher_logits.shape[:-1], soft_ratio=soft_ratio, temperature=temperature)
        return multiclass_effective_logits(
            teacher_logits, y, soft_ratio, temperature, temperature_scaling
        )
    check_binary_labels(y)
    check_no_outer(teacher_logits, y)
    check_broadcast(
        None, teacher_logits=teacher_logits, y=y, soft_ratio=soft_ratio, temperature=temperature
    )
    return binary_effective_logits(teacher_logits, y, soft_ratio, temperature, temperature_scaling)


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
    check_quotients(columns[0], columns[3])
    fractional = (columns[1] > 0) & (columns[1] < 1)
    check_resolved_temperature(
        torch.where(fractional, columns[3], math.inf), LEAST_OF_FRACTIONS, "for fractional labels"
    )
    out = torch.empty_like(columns[0])
    for start in range(0, out.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        out[block] = binary_roots([c[block] for c in columns], temperature_scaling)
    return out.reshape(inputs[0].shape).to(teacher_logits.dtype)


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
    soft_ratio, temperature = (v.expand(shape[:-1]).reshape(-1) for v in inputs)
    z_t, y = (double(v, teacher_logits).reshape(-1, shape[-1]) for v in (teacher_logits, y))
    if shape[-1] == 2:
        z = binary_effective_logits(
            z_t[:, 1] - z_t[:, 0], y[:, 1], soft_ratio, temperature, temperature_scaling
        )
        z = torch.stack((-z / 2, z / 2), dim=1)
    else:
        check_resolved_temperature(temperature, LEAST_OF_CLASSES, "for three or more classes")
        check_quotients(z_t, temperature[:, None])
        z = z_t.clone()
        for rows in (soft_ratio < 1).nonzero()[:, 0].split(max(1, _BLOCK // shape[-1])):
            log_odds = log_weight_ratio(soft_ratio[rows], temperature[rows], temperature_scaling)
            z[rows] = softmax_roots(z_t[rows], y[rows], log_odds, temperature[rows])
    z = torch.where(soft_ratio[:, None] == 1, z_t, z)
    return z.reshape(shape).to(teacher_logits.dtype)
