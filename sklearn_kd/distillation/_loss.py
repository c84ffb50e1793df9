r"""The distillation loss (Eq. 2) for networks that are really trained.

==================  ==================  ==============================================
paper               here                shape
==================  ==================  ==============================================
z, z_t              student_logits,     (n,) for two classes, (n, K) for two or more
                    teacher_logits
y                   y                   (n,), or (n, K) rows of the simplex
ρ, T                soft_ratio,         scalars
                    temperature
==================  ==================  ==============================================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
)

from sklearn_kd.distillation._arguments import (
    check_soft_ratio,
    check_temperature,
    check_temperature_scaling,
    check_word,
    numbers,
)

REDUCTIONS = ("mean", "sum", "none")


class DistillationLoss(nn.Module):
    r"""Loss of knowledge distillation, for the training loop of any network.

    .. math::

        \rho\, H\bigl(\sigma(z_t / T), \sigma(z / T)\bigr) + (1 - \rho)\, H\bigl(y, \sigma(z)\bigr)

    on each row (Eq. 2), with the cross-entropy H and the sigmoid or softmax :math:`\sigma`. It is
    the loss that :class:`~sklearn_kd.LinearizedKDStudent` minimises. The Kullback-Leibler
    divergence of other recipes differs by the entropy of the soft labels, which no student
    changes: :func:`equivalent_soft_ratio` translates their weights.

    Parameters
    ----------
    soft_ratio : float in [0, 1], default=0.9
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels.
    temperature : float > 0, default=2.0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T², as Hinton et al.
        (2015) do.
    reduction : {"mean", "sum", "none"}, default="mean"
        Over rows.
    ignore_index : int, default=-1
        The label of rows without one. Their loss is the soft term alone, at ρ = 1.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or shapes do not match in a call.

    See Also
    --------
    equivalent_soft_ratio : The soft ratio of another toolkit's recipe.
    Recipe : The parameters as a value, which writes this loss for other toolkits.

    Notes
    -----
    ``loss(student_logits, teacher_logits, y)`` takes logits of shape (n,), log-odds of two classes,
    or (n, K). Labels are class indices (n,), or shares of the classes: (n,) of class 1 beside
    logits (n,), or (n, K). A row of shares that holds ``ignore_index`` has no label. No gradient
    reaches the teacher's logits. Half precision is computed in single precision.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data Efficiency
    and Imperfect Teacher", NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.distillation import DistillationLoss
    >>> loss = DistillationLoss(soft_ratio=0.7, temperature=4.0)
    >>> student_logits = torch.zeros(2, 3, requires_grad=True)
    >>> teacher_logits = torch.tensor([[2.0, 0.0, -2.0], [0.0, 1.0, -1.0]])
    >>> value = loss(student_logits, teacher_logits, torch.tensor([0, 2]))
    >>> value.backward()
    >>> round(value.item(), 4)  # three classes at even odds: ln 3
    1.0986
    """

    def __init__(
        self,
        soft_ratio: float = 0.9,
        temperature: float = 2.0,
        *,
        temperature_scaling: str = "none",
        reduction: str = "mean",
        ignore_index: int = -1,
    ) -> None:
        super().__init__()
        if soft_ratio != 0:  # no root of Eq. 3, but a loss
            check_soft_ratio(numbers(soft_ratio, "soft_ratio"))
        check_temperature(numbers(temperature, "temperature"))
        check_temperature_scaling(temperature_scaling)
        check_word(reduction, "reduction", REDUCTIONS)
        self.soft_ratio = soft_ratio
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum.

        Parameters
        ----------
        student_logits : Tensor of shape (n,) or (n, n_classes)
            z_s, with gradients.
        teacher_logits : Tensor of the same shape
            z_t; no gradient flows into it.
        y : Tensor of shape (n,) or (n, n_classes)
            Classes, ``ignore_index`` for rows without a label, or shares of the classes.

        Returns
        -------
        Tensor
            A scalar, or of shape (n,) with ``reduction="none"``.
        """
        _require_floats(student_logits=student_logits, teacher_logits=teacher_logits)
        z, z_t = _at_least_single(student_logits), _at_least_single(teacher_logits.detach())
        _require_shapes(z, z_t, y)

        # ρ H(σ(z_t/T), σ(z/T)) + (1 - ρ) H(y, σ(z)), and H(σ(z_t/T), σ(z/T)) without a label.
        scale = self.temperature**2 if self.temperature_scaling == "squared" else 1.0
        soft = scale * _cross_entropy_of_logits(z_t / self.temperature, z / self.temperature)
        hard, has_label = _hard_term(z, y, self.ignore_index)
        mixed = self.soft_ratio * soft + (1 - self.soft_ratio) * hard
        rows = torch.where(has_label, mixed, soft)

        if self.reduction == "none":
            return rows
        return rows.mean() if self.reduction == "mean" else rows.sum()

    def extra_repr(self) -> str:
        """Return the parameters, for the module's repr."""
        return (
            f"soft_ratio={self.soft_ratio}, temperature={self.temperature}, "
            f"temperature_scaling={self.temperature_scaling!r}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}"
        )


def _require_floats(**logits: Any) -> None:
    for name, values in logits.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(
                f"{name} must be a tensor of floats, but is of {kind}; the order is "
                "(student_logits, teacher_logits, y)."
            )


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _cross_entropy_of_logits(z_t: Tensor, z: Tensor) -> Tensor:
    """Return H(σ(z_t), σ(z)) of each row."""
    if z.ndim == 1:
        return binary_cross_entropy_with_logits(z, z_t.sigmoid().to(z), reduction="none")
    return cross_entropy(z, z_t.softmax(dim=1).to(z), reduction="none")


def _hard_term(z: Tensor, y: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return H(y, σ(z)) of each row, anything finite where there is no label, and where one is."""
    has_label = y != ignore_index if y.ndim == 1 else (y != ignore_index).all(dim=1)
    if z.ndim == 1:
        known = torch.where(has_label, y, 0).to(z)
        return binary_cross_entropy_with_logits(z, known, reduction="none"), has_label
    if y.ndim == 1:
        shares = one_hot(torch.where(has_label, y, 0).long(), z.shape[1])
    else:
        shares = torch.where(has_label[:, None], y, 0)
    return cross_entropy(z, shares.to(z), reduction="none"), has_label


def _require_shapes(z: Tensor, z_t: Tensor, y: Tensor) -> None:
    if z.ndim not in (1, 2) or z.shape[1:] == (1,):
        raise ValueError(
            f"student_logits has shape {tuple(z.shape)}; it must be (n,), log-odds of two classes, "
            "or (n, K) with a column for each class. Use logits.squeeze(1) for a single column."
        )
    if z_t.shape != z.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(z_t.shape)}, but student_logits {tuple(z.shape)}; "
            "both need the same rows and classes."
        )
    if y.shape != z.shape[:1] and y.shape != z.shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)} beside student_logits of shape {tuple(z.shape)}; it "
            "must hold a label for each row, or a share for each row and class."
        )
    if z.ndim == 2 and y.ndim == 1 and y.is_floating_point():
        raise ValueError(
            f"y is {y.dtype} of shape {tuple(y.shape)} beside logits of {z.shape[1]} classes; use "
            "y.long() for class indices, or shares of shape (n, K)."
        )
