r"""Recipes in the words of toolkits: weights, and code.

The loss of a recipe is :math:`\rho T^k\,\mathrm{soft} + (1-\rho)\,\mathrm{hard}`, k = 2 where the
soft term is scaled, else 0. Toolkits write
:math:`\alpha T^2\,\mathrm{soft} + (1-\alpha)\,\mathrm{hard}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sklearn_kd._array import on_arrays
from sklearn_kd.distillation._arguments import (
    check_broadcast,
    check_soft_ratio,
    check_temperature,
    check_temperature_scaling,
    check_word,
    count,
    numbers,
)
from sklearn_kd.distillation._recipes import REDUCTIONS


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

    The inverse of :func:`equivalent_soft_ratio`: of
    :math:`a\,T^k\,\mathrm{soft} + (1-a)\,\mathrm{hard}`, with the soft term divided by K under
    ``reduction="mean"``, the weight

    .. math:: a = \frac{\rho/u}{\rho/u + 1 - \rho}, \qquad u = T^k \ (\text{or } T^k / K).

    Parameters
    ----------
    soft_ratio : float or array-like in (0, 1]
        Weight ρ of the soft labels in Eq. 2, without a factor T².
    temperature : float or array-like, > 0
        Temperature T of the soft labels; broadcast with ``soft_ratio``.
    temperature_scaling : {"none", "squared"}
        Whether the toolkit multiplies the soft term by T².
    reduction : {"batchmean", "mean"}, default="batchmean"
        How the toolkit's soft term averages: over rows, or over rows and classes.
    n_classes : int >= 2, optional
        Number of classes K; needed for ``reduction="mean"``.

    Returns
    -------
    ndarray, scalar or tensor
        The weight a, in [0, 1]; that of the hard term is 1 - a.

    Raises
    ------
    ValueError
        If an argument is out of its range, ``n_classes`` is missing, or shapes do not broadcast.

    Examples
    --------
    >>> from sklearn_kd.distillation import equivalent_soft_ratio, toolkit_weight
    >>> a = toolkit_weight([0.5, 0.9], 4.0, temperature_scaling="squared")
    >>> a.round(4)
    array([0.0588, 0.36  ])
    >>> equivalent_soft_ratio(a, 4.0, temperature_scaling="squared").round(4)
    array([0.5, 0.9])
    """
    check_temperature_scaling(temperature_scaling)
    check_word(reduction, "reduction", REDUCTIONS)
    if reduction == "mean" and n_classes is None:
        raise ValueError("n_classes must be the number of classes with reduction='mean'; got None.")
    if n_classes is not None:
        n_classes = count(n_classes, "n_classes, the number of classes,", least=2)
    rho, T = numbers(soft_ratio, "soft_ratio"), numbers(temperature, "temperature")
    check_soft_ratio(rho)
    check_temperature(T)
    check_broadcast(None, soft_ratio=rho, temperature=T)
    # a : 1 - a = ρ/u : 1 - ρ, over T where k = 2: squares of T may overflow.
    T = T.to(rho.device)
    unit = torch.ones_like(T) if temperature_scaling == "none" else T
    share = 1 if n_classes is None or reduction == "batchmean" else n_classes
    soft = rho * share / unit
    return soft / (soft + (1 - rho) * unit)


class ToolkitWeights(NamedTuple):
    """The weights of α·T²·KL + (1 − α)·CE, and how many times Eq. 2 that loss is."""

    soft: float
    hard: float
    factor: float

    @classmethod
    def of(cls, soft_ratio: float, temperature: float, temperature_scaling: str) -> Self:
        """Return those of a recipe."""
        # ρ T^k soft + (1 − ρ) hard = s T² soft + h hard; α = s/(s + h), factor = 1/(s + h).
        soft = soft_ratio if temperature_scaling == "squared" else soft_ratio / temperature**2
        hard = 1 - soft_ratio
        return cls(soft / (soft + hard), hard / (soft + hard), 1 / (soft + hard))


def _head(recipe: Any, factor: float) -> str:
    """Return comments on the recipe, and on what its loss is multiplied by here."""
    scaled = ", soft term x T^2" if recipe.temperature_scaling == "squared" else ""
    first = (
        f"# rho = {recipe.soft_ratio!r}, T = {recipe.temperature!r}{scaled}"
        " (Eq. 2 of Ji and Zhu, 2020).\n"
    )
    if factor == 1:
        return first
    return (
        f"{first}# Exact up to a factor: this is {factor!r} times that loss, so divide the\n"
        "# learning rate by it.\n"
    )


def _torch(recipe: Any, single_logit: bool) -> str:
    scale = " * T**2" if recipe.temperature_scaling == "squared" else ""
    if single_logit:
        soft = (
            "F.binary_cross_entropy_with_logits(\n"
            "        student_logits / T, torch.sigmoid(teacher_logits / T), "
            'reduction="none"\n    )'
        )
        hard = (
            "F.binary_cross_entropy_with_logits(\n"
            "        student_logits, labels.clamp(min=0).to(student_logits), "
            'reduction="none"\n    )'
        )
    else:
        soft = (
            "F.cross_entropy(\n"
            "        student_logits / T, F.softmax(teacher_logits / T, dim=1), "
            'reduction="none"\n    )'
        )
        hard = 'F.cross_entropy(student_logits, labels.clamp(min=0), reduction="none")'
    return f"""{_head(recipe, 1)}import torch
import torch.nn.functional as F

rho = {recipe.soft_ratio!r}  # weight of the soft labels
T = {recipe.temperature!r}


def distillation_loss(student_logits, teacher_logits, labels):
    soft = {soft}{scale}
    hard = {hard}
    # Rows without a label, -1, are learnt from the teacher alone.
    return torch.where(labels >= 0, rho * soft + (1 - rho) * hard, soft).mean()
"""


def _hinton(recipe: Any) -> str:
    weights = recipe.weights()
    return f"""{_head(recipe, weights.factor)}import torch.nn.functional as F

alpha = {weights.soft!r}  # of the soft term
temperature = {recipe.temperature!r}


def distillation_loss(student_logits, teacher_logits, labels):
    kl = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
    )
    ce = F.cross_entropy(student_logits, labels)
    return alpha * temperature**2 * kl + (1 - alpha) * ce
"""


def _huggingface(recipe: Any) -> str:
    weights = recipe.weights()
    return f"""{_head(recipe, weights.factor)}import torch
import torch.nn.functional as F
from transformers import Trainer

alpha = {weights.hard!r}  # of the hard term
temperature = {recipe.temperature!r}


class DistillationTrainer(Trainer):
    def __init__(self, *args, teacher_model, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model.eval()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        kl = F.kl_div(
            F.log_softmax(outputs.logits / temperature, dim=-1),
            F.softmax(teacher_logits / temperature, dim=-1),
            reduction="batchmean",
        )
        loss = alpha * outputs.loss + (1 - alpha) * temperature**2 * kl
        return (loss, outputs) if return_outputs else loss
"""


def _torchdistill(recipe: Any) -> str:
    weights = recipe.weights()
    factor = weights.factor
    if weights.hard == 0:
        factor = 1.0  # KDLoss with alpha 0 is the soft term alone, without T²
        if recipe.temperature_scaling == "squared":
            factor = recipe.temperature**-2
    return f"""{_head(recipe, factor)}criterion:
  key: 'KDLoss'
  kwargs:
    student_module_path: '.'
    student_module_io: 'output'
    teacher_module_path: '.'
    teacher_module_io: 'output'
    temperature: {recipe.temperature!r}
    alpha: {weights.hard!r}  # of the hard term
    beta: {weights.soft!r}
    reduction: 'batchmean'
"""


CODES: dict[str, Callable[..., str]] = {
    "torch": _torch,
    "hinton": _hinton,
    "huggingface": _huggingface,
    "torchdistill": _torchdistill,
}
