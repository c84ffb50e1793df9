"""A recipe of distillation: ρ, T and the scale of the soft term, and how toolkits write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sklearn_kd.distillation._arguments import (
    check_soft_ratio,
    check_temperature,
    check_temperature_scaling,
    check_word,
    numbers,
)
from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.distillation._recipes import equivalent_soft_ratio
from sklearn_kd.distillation._toolkits import CODES, ToolkitWeights


@dataclass(frozen=True)
class Recipe:
    r"""How much the soft labels count, and at which temperature (Eq. 2).

    Parameters
    ----------
    soft_ratio : float in [0, 1]
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels.
    temperature : float > 0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T².

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    See Also
    --------
    equivalent_soft_ratio, toolkit_weight : The same for arrays of recipes.

    Examples
    --------
    >>> from sklearn_kd.distillation import Recipe
    >>> recipe = Recipe(0.5, 2.0)
    >>> print(recipe.as_code("hinton"))
    # rho = 0.5, T = 2.0 (Eq. 2 of Ji and Zhu, 2020).
    # Exact up to a factor: this is 1.6 times that loss, so divide the
    # learning rate by it.
    import torch.nn.functional as F
    <BLANKLINE>
    alpha = 0.2  # of the soft term
    temperature = 2.0
    <BLANKLINE>
    <BLANKLINE>
    def distillation_loss(student_logits, teacher_logits, labels):
        kl = F.kl_div(
            F.log_softmax(student_logits / temperature, dim=1),
            F.softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
        )
        ce = F.cross_entropy(student_logits, labels)
        return alpha * temperature**2 * kl + (1 - alpha) * ce
    <BLANKLINE>
    """

    soft_ratio: float
    temperature: float
    temperature_scaling: str = "none"

    def __post_init__(self) -> None:
        if self.soft_ratio != 0:
            check_soft_ratio(numbers(self.soft_ratio, "soft_ratio"))
        check_temperature(numbers(self.temperature, "temperature"))
        check_temperature_scaling(self.temperature_scaling)
        # Plain numbers, whatever a grid held.
        object.__setattr__(self, "soft_ratio", float(self.soft_ratio))
        object.__setattr__(self, "temperature", float(self.temperature))

    @classmethod
    def of_toolkit(
        cls,
        weight: float,
        temperature: float,
        *,
        temperature_scaling: str = "squared",
        reduction: str = "batchmean",
        n_classes: int | None = None,
    ) -> Self:
        r"""Return the recipe of a toolkit's loss, a·Tᵏ·soft + (1 − a)·hard.

        Parameters
        ----------
        weight, temperature, temperature_scaling, reduction, n_classes
            As in :func:`equivalent_soft_ratio`; the weight may be 0.

        Returns
        -------
        Recipe
            With ``temperature_scaling="none"``.

        Examples
        --------
        >>> from sklearn_kd.distillation import Recipe
        >>> Recipe.of_toolkit(0.5, 4.0)
        Recipe(soft_ratio=0.9411764705882353, temperature=4.0, temperature_scaling='none')
        """
        ratio = 0.0
        if weight != 0:
            ratio = equivalent_soft_ratio(
                weight,
                temperature,
                temperature_scaling=temperature_scaling,
                reduction=reduction,
                n_classes=n_classes,
            )
        return cls(float(ratio), temperature)

    def loss(self, reduction: str = "mean") -> DistillationLoss:
        """Return the loss of this recipe, for a training loop.

        Parameters
        ----------
        reduction : {"mean", "sum", "none"}, default="mean"
            Over rows.

        Returns
        -------
        DistillationLoss
            A `torch.nn.Module`.
        """
        return DistillationLoss(
            self.soft_ratio,
            self.temperature,
            temperature_scaling=self.temperature_scaling,
            reduction=reduction,
        )

    def weights(self) -> ToolkitWeights:
        """Return the weight of the soft term in α·T²·KL + (1 − α)·CE, and what it scales.

        Returns
        -------
        ToolkitWeights
            ``soft``, α, and ``hard``, 1 − α; ``factor`` is that of the whole loss: divide the
            learning rate by it, and the steps of plain SGD are those of this recipe.
        """
        return ToolkitWeights.of(self.soft_ratio, self.temperature, self.temperature_scaling)

    def as_code(self, target: str = "torch", *, single_logit: bool = False) -> str:
        """Return the recipe in the words of a toolkit.

        Parameters
        ----------
        target : {"torch", "hinton", "huggingface", "torchdistill"}, default="torch"
            "torch": a function of plain torch that is Eq. 2 itself, with rows without a label
            (-1). "hinton": α·T²·KL + (1 − α)·CE, as in most scripts. "huggingface": a
            ``compute_loss`` for a ``transformers.Trainer``, where α is the weight of the *hard*
            term. "torchdistill": the YAML of its ``KDLoss``, whose α is that of the hard term too.
        single_logit : bool, default=False
            Whether the networks of two classes have one output, the log-odds of the second; for
            "torch" only.

        Returns
        -------
        str
            Code, or YAML, that holds the numbers in full.

        Raises
        ------
        ValueError
            If ``target`` is unknown, or takes no single logit.

        Notes
        -----
        The Kullback-Leibler divergence differs from the cross-entropy by a constant. The losses
        of "hinton", "huggingface" and "torchdistill" are a multiple of Eq. 2; the first lines say
        which. They have no place for rows without a label: leave these out, or use "torch".
        """
        check_word(target, "target", tuple(CODES))
        if single_logit and target != "torch":
            raise ValueError(
                f"single_logit=True with target={target!r}: that loss takes a logit for each "
                "class; use target='torch', or networks with two outputs."
            )
        if target == "torch":
            return CODES[target](self, single_logit)
        return CODES[target](self)
