r"""Meaning of soft ratio and temperature: toolkit recipes, and corrections by hard labels.

Ji and Zhu, NeurIPS 2020, the paragraphs around Eq. 3, and consequences of Eq. 3.

==================  ==============  ==================================================
paper               here            shape
==================  ==============  ==================================================
ρ, T                soft_ratio,     broadcast together
                    temperature
δz_h                correction      that of the teacher's logits
                    logit
==================  ==============  ==================================================
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd._array import on_arrays
from sklearn_kd._logits import centred
from sklearn_kd.distillation._arguments import (
    check_binary_labels,
    check_broadcast,
    check_finite,
    check_no_outer,
    check_soft_ratio,
    check_temperature,
    check_temperature_scaling,
    check_word,
    count,
    is_class_last,
    loss_weights,
    numbers,
    require_each,
    simplex_rows,
)
from sklearn_kd.distillation._binary_root import soft_excess

REDUCTIONS = ("batchmean", "mean")


@on_arrays
def correction_logits(teacher_logits: Tensor, y: Tensor, *, temperature: Tensor) -> Tensor:
    r"""First-order effect of hard labels on the effective logits of a pure-soft student.

    As :math:`\rho \to 1`, :math:`z_\mathrm{eff} \approx z_t + (1-\rho)\,\delta z_h` with

    .. math::

        \delta z_h = \frac{T^2 (y - \sigma(z_t))}{\sigma(z_t/T)(1 - \sigma(z_t/T))},
        \qquad
        \delta z_{h,k} = \frac{T^2 (y_k - \mathrm{softmax}(z_t)_k)}{\mathrm{softmax}(z_t/T)_k}
        - \text{mean over } k,

    for two and for K classes: the derivative of Eq. 3's root with respect to :math:`1-\rho`.

    Parameters
    ----------
    teacher_logits : array-like or tensor, binary: any shape; multi-class: (..., K)
        The teacher's logits; binary or multi-class as in :func:`effective_logits`.
    y : array-like or tensor
        Ground-truth labels, as in :func:`effective_logits`.
    temperature : float or array-like, > 0
        Temperature T of the soft labels.

    Returns
    -------
    ndarray or tensor
        Correction logits: the common shape (binary) or (..., K) with rows summing to zero.

    Raises
    ------
    ValueError
        As :func:`effective_logits`; also if the correction exceeds the largest float64. This
        needs a saturated teacher: :math:`|z_t|/T` above 700.

    Examples
    --------
    >>> from sklearn_kd.distillation import correction_logits
    >>> correction_logits([-2.0, 2.0], [1, 1], temperature=2.0).round(4)
    array([17.9195,  2.4251])
    """
    teacher_logits = numbers(teacher_logits, "teacher_logits")
    temperature = numbers(temperature, "temperature", teacher_logits.device)
    y = numbers(y, "y", teacher_logits.device)
    check_temperature(temperature)
    check_finite(teacher_logits, "teacher_logits")
    if is_class_last(teacher_logits):
        y = simplex_rows(y, teacher_logits)
        check_broadcast(teacher_logits.shape[:-1], temperature=temperature)
        correction = _multiclass_correction(teacher_logits, y, temperature.unsqueeze(-1))
    else:
        check_binary_labels(y)
        check_no_outer(teacher_logits, y)
        check_broadcast(None, teacher_logits=teacher_logits, y=y, temperature=temperature)
        correction = _binary_correction(teacher_logits, y, temperature)
    require_each(
        torch.isfinite(correction),
        "correction_logits",
        correction,
        "overflow float64; must be finite",
        "the teacher is too saturated for this temperature, or its square too large.",
    )
    return correction


def _binary_correction(z_t: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    # δz_h = T^2 (y - σ(z_t)) / [σ(z_t/T) σ(-z_t/T)], the difference without cancellation in
    # the tails and the quotient in logarithms, since either factor may underflow alone.
    difference = y * torch.sigmoid(-z_t) - (1 - y) * torch.sigmoid(z_t)
    log_size = torch.log(difference.abs())
    log_size = torch.where(y == 1, logsigmoid(-z_t), log_size)
    log_size = torch.where(y == 0, logsigmoid(z_t), log_size)
    sign = torch.where(y == 1, 1.0, torch.where(y == 0, -1.0, difference.sign()))
    log_size = log_size - logsigmoid(z_t / temperature) - logsigmoid(-z_t / temperature)
    return sign * torch.exp(log_size + 2 * torch.log(temperature))


def _multiclass_correction(z_t: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    # (diag p - p p') δ = T^2 (y - softmax(z_t)), p = softmax(z_t/T), Σ δ = 0.
    log_p, log_s = torch.log_softmax(z_t / temperature, dim=-1), torch.log_softmax(z_t, dim=-1)
    log_scale = 2 * torch.log(temperature) - log_p
    return centred(torch.exp(torch.log(y) + log_scale) - torch.exp(log_s + log_scale))


@on_arrays
def correction_margin(
    soft_ratio: Tensor, temperature: Tensor, *, temperature_scaling: str = "none"
) -> Tensor:
    r"""How confident a wrong teacher may be and still be overruled by the hard label.

    The effective logit of a wrong teacher has the sign of the hard label iff
    :math:`|z_t| < 2T\,\mathrm{artanh}\bigl(T(1-\rho)/\rho\bigr)`. The margin is infinite, and
    every wrong teacher is overruled, iff :math:`\rho \le T/(1+T)`.

    Parameters
    ----------
    soft_ratio : float or array-like in (0, 1]
        Weight ρ of the soft labels.
    temperature : float or array-like, > 0
        Temperature T of the soft labels; broadcast with ``soft_ratio``.
    temperature_scaling : {"none", "squared"}, default="none"
        "squared" if the soft term carries a factor T² (see :func:`effective_logits`); the
        threshold is then :math:`\rho \le 1/(1+T)`.

    Returns
    -------
    ndarray, scalar or tensor
        The margin in units of the teacher's logit, in [0, inf]; 0 at ρ = 1.

    Raises
    ------
    ValueError
        If an argument is out of its range or the shapes do not broadcast.

    Examples
    --------
    >>> from sklearn_kd.distillation import correction_margin
    >>> correction_margin([0.5, 0.8, 0.95, 1.0], 2.0).round(4)
    array([   inf, 2.1972, 0.4226, 0.    ])
    """
    check_temperature_scaling(temperature_scaling)
    soft_ratio, temperature = numbers(soft_ratio, "soft_ratio"), numbers(temperature, "temperature")
    check_soft_ratio(soft_ratio)
    check_temperature(temperature)
    check_broadcast(None, soft_ratio=soft_ratio, temperature=temperature)
    soft_ratio, temperature = torch.broadcast_tensors(soft_ratio, temperature.to(soft_ratio))
    _, hard = loss_weights(soft_ratio, temperature, temperature_scaling)
    # 2 artanh(r) = log1p(2 r / (1 - r)) with r = hard / soft; 1 - r = excess / soft.
    excess = soft_excess(soft_ratio, temperature, temperature_scaling)
    margin = temperature * torch.log1p(2 * hard / excess)
    return torch.where(excess > 0, margin, torch.inf)


@on_arrays
def equivalent_soft_ratio(
    weight: Tensor,
    temperature: Tensor,
    *,
    temperature_scaling: str,
    reduction: str = "batchmean",
    n_classes: int | None = None,
) -> Tensor:
    r"""Soft ratio of this library with the same minimiser as a toolkit's distillation loss.

    Toolkits minimise :math:`a\,T^k\,\mathrm{soft} + (1-a)\,\mathrm{hard}`, with k = 2 if the soft
    term carries Hinton's factor T² and k = 0 otherwise. With ``reduction="mean"`` the soft term
    is divided by the number of classes K. The minimiser is that of Eq. 2 with

    .. math:: \rho = \frac{a'}{a' + 1 - a}, \qquad a' = a T^k \ (\text{or } a T^k / K).

    Parameters
    ----------
    weight : float or array-like in (0, 1]
        Weight a of the soft term, when that of the hard term is 1 - a. For separate weights
        :math:`w_s` and :math:`w_h` take :math:`a = w_s/(w_s + w_h)`.
    temperature : float or array-like, > 0
        Temperature T of the soft labels; broadcast with ``weight``.
    temperature_scaling : {"none", "squared"}
        Whether the soft term is multiplied by T².
    reduction : {"batchmean", "mean"}, default="batchmean"
        How the soft term averages: over rows, or over rows *and classes*. The hard term is the
        mean cross-entropy over rows.
    n_classes : int >= 2, optional
        Number of classes K; needed for, and only used by, ``reduction="mean"``.

    Returns
    -------
    ndarray, scalar or tensor
        Soft ratio in (0, 1], to be used with ``temperature_scaling="none"``.

    Raises
    ------
    ValueError
        If an argument is out of its range, ``n_classes`` is missing, or shapes do not
        broadcast.

    See Also
    --------
    toolkit_weight : The inverse.
    Recipe.from_toolkit : The same for one recipe, as an object.

    Notes
    -----
    Common recipes, ``kl = F.kl_div(log_softmax(s / T), softmax(t / T), reduction=...)``:

    ===============================================================  ===========  ===========
    loss                                                             scaling      reduction
    ===============================================================  ===========  ===========
    ``a * T**2 * kl + (1 - a) * ce``, ``reduction="batchmean"``      "squared"    "batchmean"
    the same with ``nn.KLDivLoss()``, whose default is ``"mean"``    "squared"    "mean"
    ``a * kl + (1 - a) * ce``, ``reduction="batchmean"``             "none"       "batchmean"
    ``a * T**2 * F.cross_entropy(s / T, softmax(t / T)) + ...``      "squared"    "batchmean"
    ``a * ce + (1 - a) * T**2 * kl`` (weight on the hard term)       "squared",   "batchmean"
                                                                     weight 1-a
    ===============================================================  ===========  ===========

    Two sigmoid cross-entropies averaged over rows are "batchmean".

    Examples
    --------
    >>> from sklearn_kd.distillation import equivalent_soft_ratio
    >>> equivalent_soft_ratio([0.5, 0.9], 4.0, temperature_scaling="squared").round(4)
    array([0.9412, 0.9931])
    >>> equivalent_soft_ratio(
    ...     [0.5, 0.9], 4.0, temperature_scaling="squared", reduction="mean", n_classes=10
    ... ).round(4)
    array([0.6154, 0.9351])
    """
    check_temperature_scaling(temperature_scaling)
    divisor = _divisor_of_soft_term(reduction, n_classes)
    a, temperature = numbers(weight, "weight"), numbers(temperature, "temperature")
    require_each(
        (a > 0) & (a <= 1),
        "weight",
        a,
        "must be in (0, 1]",
        "for weights that do not sum to 1 divide the soft one by their sum.",
    )
    check_temperature(temperature)
    check_broadcast(None, weight=a, temperature=temperature)
    # a T^k : 1 - a, over T where k = 2: squares of T may overflow.
    temperature = temperature.to(a.device)
    unit = torch.ones_like(temperature) if temperature_scaling == "none" else temperature
    soft = a * unit / divisor
    soft_ratio = soft / (soft + (1 - a) / unit)
    require_each(
        soft_ratio > 0,
        "the equivalent soft ratio",
        soft_ratio,
        "must be positive",
        "raise weight or temperature: next to the hard term the soft one is below any float64.",
    )
    return soft_ratio


@on_arrays
def toolkit_weight(
    soft_ratio: Tensor,
    temperature: Tensor,
    *,
    temperature_scaling: str,
    reduction: str = "batchmean",
    n_classes: int | None = None,
) -> Tensor:
    r"""Weight of the soft term in a toolkit's loss with the same minimiser as Eq. 2.

    The inverse of :func:`equivalent_soft_ratio`: the loss
    :math:`a\,T^k\,\mathrm{soft} + (1-a)\,\mathrm{hard}` is Eq. 2 up to a factor for

    .. math:: a = \frac{\rho / s}{\rho / s + 1 - \rho}, \qquad s = T^k \ (\text{or } T^k / K),

    with k = 2 if the soft term carries Hinton's factor T² and k = 0 otherwise.

    Parameters
    ----------
    soft_ratio : float or array-like in [0, 1]
        Weight ρ of the soft labels in Eq. 2, as with ``temperature_scaling="none"`` here.
    temperature : float or array-like, > 0
        Temperature T of the soft labels; broadcast with ``soft_ratio``.
    temperature_scaling : {"none", "squared"}
        Whether the toolkit multiplies its soft term by T².
    reduction : {"batchmean", "mean"}, default="batchmean"
        How the toolkit's soft term averages: over rows, or over rows *and classes*.
    n_classes : int >= 2, optional
        Number of classes K; needed for, and only used by, ``reduction="mean"``.

    Returns
    -------
    ndarray, scalar or tensor
        The weight a in [0, 1] of the soft term; that of the hard term is 1 - a.

    Raises
    ------
    ValueError
        If an argument is out of its range, ``n_classes`` is missing, shapes do not broadcast, or
        the weight is below any float64 although ``soft_ratio`` is positive.

    See Also
    --------
    equivalent_soft_ratio : The inverse, with a table of common losses.
    Recipe.as_code : The loss of a toolkit, written out.

    Examples
    --------
    >>> from sklearn_kd.distillation import equivalent_soft_ratio, toolkit_weight
    >>> a = toolkit_weight([0.5, 0.9, 1.0], 4.0, temperature_scaling="squared")
    >>> a.round(4)
    array([0.0588, 0.36  , 1.    ])
    >>> equivalent_soft_ratio(a, 4.0, temperature_scaling="squared").round(4)
    array([0.5, 0.9, 1. ])
    """
    check_temperature_scaling(temperature_scaling)
    divisor = _divisor_of_soft_term(reduction, n_classes)
    rho, temperature = numbers(soft_ratio, "soft_ratio"), numbers(temperature, "temperature")
    require_each(
        (rho >= 0) & (rho <= 1),
        "soft_ratio",
        rho,
        "must be in [0, 1]",
        "it is the share of the soft labels; 1 - soft_ratio is that of the hard labels.",
    )
    check_temperature(temperature)
    check_broadcast(None, soft_ratio=rho, temperature=temperature)
    # ρ / T^k : (1 - ρ) / K, times T where k = 2: squares of T may overflow.
    rho, temperature = torch.broadcast_tensors(rho, temperature.to(rho.device))
    unit = torch.ones_like(temperature) if temperature_scaling == "none" else temperature
    soft, hard = rho / unit, (1 - rho) * unit / divisor
    weight = soft / (soft + hard)
    require_each(
        (weight > 0) | (rho == 0),
        "the toolkit's weight",
        weight,
        "must be positive",
        "raise soft_ratio or lower temperature: next to the hard term the soft one is below any "
        "float64.",
    )
    return weight


def _divisor_of_soft_term(reduction: str, n_classes: int | None) -> int:
    """Return what a toolkit divides the mean of the soft term over rows by; checked."""
    check_word(reduction, "reduction", REDUCTIONS)
    if reduction == "mean" and n_classes is None:
        raise ValueError("n_classes must be the number of classes with reduction='mean'; got None.")
    if n_classes is None:
        return 1
    n_classes = count(n_classes, "n_classes, the number of classes,", least=2)
    return n_classes if reduction == "mean" else 1
