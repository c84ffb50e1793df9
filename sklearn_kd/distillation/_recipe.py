"""A recipe of distillation as a value: to keep, to pass on, and to write for other toolkits.

==================  ==============
paper               here
==================  ==============
ρ, T                soft_ratio,
                    temperature
==================  ==============
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from sklearn_kd.distillation._arguments import check_temperature_scaling, scalar
from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.distillation._recipe_code import code_of, scale_of
from sklearn_kd.distillation._recipes import equivalent_soft_ratio


@dataclass(frozen=True)
class Recipe:
    r"""How much a student learns from its teacher: soft ratio and temperature of Eq. 2.

    .. math::

        \rho\, H\bigl(\sigma(z_t / T), \sigma(z / T)\bigr) + (1 - \rho)\, H\bigl(y, \sigma(z)\bigr)

    ``dataclasses.asdict`` gives the parameters by the names that students and
    :class:`DistillationLoss` know them by: ``LinearizedKDStudent(teacher, **asdict(recipe))``,
    ``torch_student.set_params(**asdict(recipe))``.

    Parameters
    ----------
    soft_ratio : float in [0, 1]
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels.
    temperature : float > 0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T², as Hinton et al.
        (2015) do.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number or word, or out of its range.

    See Also
    --------
    equivalent_soft_ratio, toolkit_weight : The same translations for arrays of recipes.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data Efficiency
    and Imperfect Teacher", NeurIPS 2020.

    Examples
    --------
    >>> from dataclasses import asdict
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.distillation import Recipe
    >>> recipe = Recipe(soft_ratio=0.9, temperature=4.0)
    >>> LinearizedKDStudent(**asdict(recipe)).temperature
    4.0
    >>> recipe.loss()
    DistillationLoss(soft_ratio=0.9, temperature=4.0, temperature_scaling='none', ...)
    >>> print(recipe.as_code("hinton"))
    # Recipe(soft_ratio=0.9, temperature=4.0, temperature_scaling='none') x 6.4: ...
    """

    soft_ratio: float
    temperature: float
    temperature_scaling: str = field(default="none", kw_only=True)

    def __post_init__(self) -> None:
        """Check the parameters, and make Python floats of numbers of other kinds."""
        object.__setattr__(self, "soft_ratio", scalar(self.soft_ratio, "soft_ratio"))
        object.__setattr__(self, "temperature", scalar(self.temperature, "temperature"))
        check_temperature_scaling(self.temperature_scaling)
        if not 0 <= self.soft_ratio <= 1:
            raise ValueError(
                f"soft_ratio must be in [0, 1]; got {self.soft_ratio}; it is the share of the soft "
                "labels, and 1 - soft_ratio that of the hard labels."
            )
        self.loss()  # refuses what the loss refuses

    @classmethod
    def from_toolkit(
        cls,
        weight: float,
        temperature: float,
        *,
        temperature_scaling: str,
        reduction: str = "batchmean",
        n_classes: int | None = None,
    ) -> Recipe:
        """Return the recipe with the same minimiser as a toolkit's distillation loss.

        Parameters
        ----------
        weight : float in [0, 1]
            Weight a of the soft term, when that of the hard term is 1 - a. For separate weights
            w_s and w_h take a = w_s / (w_s + w_h). Where α weighs the *hard* term, as in
            torchdistill, it is 1 - α.
        temperature : float > 0
            Temperature T of the soft labels.
        temperature_scaling : {"none", "squared"}
            Whether the toolkit multiplies its soft term by T².
        reduction : {"batchmean", "mean"}, default="batchmean"
            How its soft term averages: over rows, or over rows *and classes*.
        n_classes : int >= 2, optional
            Number of classes; needed for, and only used by, ``reduction="mean"``.

        Returns
        -------
        Recipe
            With ``temperature_scaling="none"``.

        Raises
        ------
        ValueError
            As :func:`equivalent_soft_ratio`, except that a weight of 0 is hard labels alone.

        Examples
        --------
        The default α = 0.5, T = 2 of many a training script:

        >>> from sklearn_kd.distillation import Recipe
        >>> Recipe.from_toolkit(0.5, 2.0, temperature_scaling="squared")
        Recipe(soft_ratio=0.8, temperature=2.0, temperature_scaling='none')
        """
        weight = scalar(weight, "weight")
        # The other arguments are checked at a weight of 0, too, whose soft ratio is 0.
        ratio = equivalent_soft_ratio(
            weight if weight != 0 else 1.0,
            scalar(temperature, "temperature"),
            temperature_scaling=temperature_scaling,
            reduction=reduction,
            n_classes=n_classes,
        )
        return cls(float(ratio) if weight != 0 else 0.0, temperature)

    def loss(self, reduction: str = "mean") -> DistillationLoss:
        """Return the loss of this recipe, a torch module.

        Parameters
        ----------
        reduction : {"mean", "sum", "none"}, default="mean"
            Over rows.

        Returns
        -------
        DistillationLoss
        """
        return DistillationLoss(**asdict(self), reduction=reduction)

    def as_code(self, target: str, *, n_classes: int | None = None) -> str:
        r"""Return the loss of this recipe as the text that another toolkit runs.

        Parameters
        ----------
        target : {"torch", "torchdistill", "huggingface", "hinton"}
            - "torch": ``distillation_loss(student_logits, teacher_logits, labels)``, a function
              of plain torch: Eq. 2 with its own weights.
            - "hinton": the same function, as α T² KL + (1 − α) CE.
            - "huggingface": a subclass of the ``Trainer`` of transformers, for models with a logit
              for each class; α CE + (1 − α) T² KL.
            - "torchdistill": the YAML of ``criterion``, a ``KDLoss``; α CE + β T² KL.
        n_classes : int >= 2, optional
            Number of classes. 2 lets the functions of "torch" and "hinton" take one logit a row,
            (n,) or (n, 1), beside (n, 2); other targets need a logit for each class anyway.

        Returns
        -------
        str
            The text; its first line is a comment that says the recipe and the factor of
            :meth:`loss_scale`.

        Raises
        ------
        ValueError
            If ``target`` or ``n_classes`` is none of these, or if the toolkit's own weights cannot
            hold the recipe: T² or the weight of a term leaves the range of float64.

        Notes
        -----
        Every text has the gradient of :class:`DistillationLoss` up to a constant factor, at any
        soft ratio in [0, 1]. These differences remain:

        - **Rows without a label** (-1) are learnt at ρ = 1 by "torch" alone. The other targets have
          one weight for all rows: remove such rows, or train with "torch".
        - **One logit a row** is two classes to "torch" and "hinton". A ``KDLoss`` of torchdistill
          needs two columns, and a model of transformers with ``num_labels=1`` is a regression.
        - **Digits**: α and 1 − α hold both weights of "hinton" and "huggingface". From T below 0.01
          or above 100 on, one of them has lost digits; "torch" and "torchdistill" keep them.
        - **Labels** are class indices; for shares of classes take :meth:`loss`.
        - torchdistill's ``KDLoss`` drops β and T² where α = 0, at ρ = 1; the ``weight`` of its term
          makes up for it. Its texts are those of version 1.
        - DistilBERT's scripts name the weights after what they weigh: ``alpha_ce`` is that of the
          *soft* term, ``alpha_mlm`` that of the hard one. With ``restrict_ce_to_mask`` these are
          the α and 1 − α of "hinton".

        Examples
        --------
        >>> from sklearn_kd.distillation import Recipe
        >>> print(Recipe(0.9, 4.0).as_code("torch"))
        # Recipe(soft_ratio=0.9, temperature=4.0, ...) x 1: lr stays as it is.
        import torch
        from torch.nn import functional as F
        <BLANKLINE>
        <BLANKLINE>
        def distillation_loss(student_logits, teacher_logits, labels):
            T, soft_ratio = 4.0, 0.9
            soft_labels = F.softmax(teacher_logits.detach() / T, dim=1)
            soft = F.cross_entropy(student_logits / T, soft_labels, reduction="none")
            hard = F.cross_entropy(student_logits, labels, ignore_index=-1, reduction="none")
            mixed = soft_ratio * soft + (1 - soft_ratio) * hard
            return torch.where(labels == -1, soft, mixed).mean()  # -1: a row without a label
        <BLANKLINE>
        """
        return code_of(target, n_classes, **asdict(self))

    def loss_scale(self, target: str) -> float:
        """Return the factor c between the loss of :meth:`as_code` and that of this recipe.

        The gradient of the text is c times that of :meth:`loss`. For the steps of SGD at learning
        rate η and weight decay λ, train with η / c and c λ; the steps of AdamW do not depend on it,
        but for its ε.

        Parameters
        ----------
        target : {"torch", "torchdistill", "huggingface", "hinton"}
            As in :meth:`as_code`.

        Returns
        -------
        float
            c > 0; 1 where the toolkit has a weight for each of the two terms.

        Raises
        ------
        ValueError
            If ``target`` is none of these, or T² leaves the range of float64.

        Examples
        --------
        >>> from sklearn_kd.distillation import Recipe
        >>> round(Recipe(0.9, 4.0).loss_scale("hinton"), 4)
        6.4
        >>> Recipe(0.36, 4.0, temperature_scaling="squared").loss_scale("hinton")
        1.0
        """
        return scale_of(target, **asdict(self))
