"""Effective logits of the distinct rows of a student (Eq. 3): exact copies act as one row.

Eq. 3 is linear in the labels, so copies act as one row whose hard and soft labels are the means
of the copies' labels, each weighted as in the loss. Symbols, with n rows of which m are distinct:

=====  ================================  ======================================
z_t    ``teacher_logits``                (n,) or (n, K)
w      ``weights``                       (n,)
p      softmax(z_t/T), σ(±z_t/T)         (n, K), (n, 2)
ρ      ``ratios``, 1 without a label     (n,)
p̄      Σ w ρ p / Σ w ρ over the copies   (m, K), (m, 2)
=====  ================================  ======================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd._logits import centred, logits
from sklearn_kd.distillation._arguments import check_soft_ratio, double
from sklearn_kd.distillation._effective_logits import (
    binary_effective_logits,
    multiclass_effective_logits,
)
from sklearn_kd.rows._labels import RowLabels
from sklearn_kd.rows._training_rows import DistinctRows

# These set the student's targets, given teacher and labels; one factor serves all their values.
RECIPE = ("soft_ratio", "temperature", "temperature_scaling", "teacher_weights")


# Rows whose targets are found together, for all soft ratios.
_BLOCK_ROWS = 2**14


class MergedLabels(NamedTuple):
    """The soft and hard labels of distinct rows, and the share of the soft ones in the loss."""

    teacher_logits: Tensor  # (m,) or (m, K), as soft labels
    hard_labels: Tensor  # (m,) share of class 1, or (m, K) class shares
    soft_ratio: float | Tensor  # (m,) where it differs by row


def merged_effective_logits(
    members: Tensor, distinct: DistinctRows, recipe: dict[str, Any]
) -> Tensor:
    """Return z_eff of the distinct rows from the teachers' logits on all rows (Eq. 3).

    ``members`` (M, n) or (M, n, K) are the logits of M teachers, which act as one: `mixed_logits`.
    """
    return effective_logits_of_merged(merged_labels(members, distinct, recipe), recipe)


def effective_logits_if_any(labels: MergedLabels, recipe: dict[str, Any]) -> Tensor | None:
    """Return z_eff of merged labels; None with ρ = 0, whose hard labels alone have none."""
    return effective_logits_of_merged(labels, recipe) if recipe["soft_ratio"] > 0 else None


def effective_logits_of_merged(labels: MergedLabels, recipe: dict[str, Any]) -> Tensor:
    """Return z_eff of the distinct rows from their labels (Eq. 3)."""
    z_t, hard, soft_ratio = labels
    return root_of_eq_3(z_t, hard, soft_ratio, recipe["temperature"], recipe["temperature_scaling"])


def merged_effective_logits_of_grid(
    members: Tensor, distinct: DistinctRows, recipes: list[dict[str, Any]]
) -> Tensor:
    """Return z_eff of the distinct rows for every recipe, (m, C) or (m, C, K) (Eq. 3).

    All recipes have one scaling of the temperature. Those with the same temperature are solved
    together, which takes a third of the time where rows are few.
    """
    n_rows, shape = len(distinct.weights), members.shape[2:]
    out = distinct.weights.new_empty((n_rows, len(recipes), *shape))
    by_temperature: dict[float, list[int]] = {}
    for column, recipe in enumerate(recipes):
        by_temperature.setdefault(recipe["temperature"], []).append(column)
    solve = multiclass_effective_logits if shape else binary_effective_logits
    for temperature, columns in by_temperature.items():
        of_each = [merged_labels(members, distinct, recipes[column]) for column in columns]
        ratios = [double(labels.soft_ratio, out).expand(n_rows) for labels in of_each]
        at = torch.tensor(columns, device=out.device)
        for rows in torch.arange(n_rows, device=out.device).split(_BLOCK_ROWS):
            # (b, C_T) or (b, C_T, K) for the C_T recipes with this temperature
            z_t = torch.stack([labels.teacher_logits[rows] for labels in of_each], dim=1)
            hard = torch.stack([labels.hard_labels[rows] for labels in of_each], dim=1)
            ratio = torch.stack([ratio[rows] for ratio in ratios], dim=1)
            z = solve(z_t, hard, ratio, temperature, recipes[0]["temperature_scaling"])
            out[rows[:, None], at] = z.to(out)
    return out


def effective_logits_of_each(members: Tensor, labels: RowLabels, recipe: dict[str, Any]) -> Tensor:
    """Return z_eff of each row by itself, copies or not, (n,) or (n, K) (Eq. 3).

    Raises
    ------
    ValueError
        If the soft ratio is 0, as that of a student that stops may be.
    """
    check_soft_ratio(torch.as_tensor(recipe["soft_ratio"], device="cpu"))
    z_t = mixed_logits(members, recipe)
    hard, soft_ratio = labels.hard.to(z_t), labels.soft_ratios(recipe["soft_ratio"])
    soft_ratio = recipe["soft_ratio"] if soft_ratio is None else soft_ratio
    return root_of_eq_3(z_t, hard, soft_ratio, recipe["temperature"], recipe["temperature_scaling"])


def mixed_logits(members: Tensor, recipe: dict[str, Any]) -> Tensor:
    """Return the logits of the one teacher that has the mean soft labels of M teachers at T.

    The weighted sum Σ v_m H(p_m, .) of cross-entropies is H(Σ v_m p_m, .), so that a student
    learns from T log Σ v_m softmax(z_m/T), with sum zero over the classes, as from all of them.

    Parameters
    ----------
    members : Tensor of shape (M, n) or (M, n, K)
        Logits of each teacher.
    recipe : dict
        ``teacher_weights``, v, which sum to one, and ``temperature``, T. A single teacher has none.

    Returns
    -------
    Tensor of shape (n,) or (n, K)
        Bit for bit those of a teacher that is alone, or the only one of positive weight.
    """
    if len(members) == 1:
        return members[0]
    v = torch.as_tensor(recipe["teacher_weights"], dtype=torch.float64, device=members.device)
    used = v.nonzero()[:, 0]
    n_rows = members.shape[1]
    return merge_soft_labels(
        members[used].flatten(0, 1),
        v[used].repeat_interleave(n_rows),
        torch.arange(n_rows, device=members.device).repeat(len(used)),
        n_rows,
        recipe["temperature"],
    )


def merged_labels(members: Tensor, distinct: DistinctRows, recipe: dict[str, Any]) -> MergedLabels:
    """Return the labels of the distinct rows: those of the sum of their copies' losses.

    With H the cross-entropy to a student, Σ w [ρ H(p) + (1 − ρ) H(y)] over the copies of a row is
    w̄ [ρ̄ H(p̄) + (1 − ρ̄) H(ȳ)], where w̄ = Σ w, ρ̄ = Σ w ρ / w̄, p̄ = Σ w ρ p / Σ w ρ and
    ȳ = Σ w (1 − ρ) y / Σ w (1 − ρ). A factor T² on H(p) changes nothing in these.
    """
    merged, labels, weights = distinct.merged, distinct.labels, distinct.kept_weights
    z_t = mixed_logits(members.to(distinct.weights)[:, distinct.kept], recipe)
    n_rows, temperature = len(distinct.weights), recipe["temperature"]
    ratios = labels.soft_ratios(recipe["soft_ratio"])
    if ratios is None:
        z_t = merge_soft_labels(z_t, weights, merged.group, n_rows, temperature)
        return MergedLabels(z_t, distinct.hard_labels, recipe["soft_ratio"])
    weights = double(weights, weights)

    def counting(parts: Tensor) -> Tensor:
        # Of copies that all have ρ = 1 the hard labels do not count, nor the soft ones at ρ = 0.
        return torch.where((merged.total(parts) == 0)[merged.group], weights, parts)

    soft_weights, hard_weights = counting(weights * ratios), counting(weights * (1 - ratios))
    z_t = merge_soft_labels(z_t, soft_weights, merged.group, n_rows, temperature)
    hard = merged.mean(labels.hard.to(weights), hard_weights)
    return MergedLabels(z_t, hard, merged.mean(ratios, weights))


def root_of_eq_3(
    teacher_logits: Tensor,
    hard_labels: Tensor,
    soft_ratio: float | Tensor,
    temperature: float,
    temperature_scaling: str,
) -> Tensor:
    """Return z_eff for two classes, logits (n,), or more, (n, K)."""
    solve = binary_effective_logits if teacher_logits.ndim == 1 else multiclass_effective_logits
    return solve(teacher_logits, hard_labels, soft_ratio, temperature, temperature_scaling)


def merge_soft_labels(
    teacher_logits: Tensor,  # (n,) or (n, K)
    weights: Tensor,  # (n,), non-negative
    index: Tensor,  # (n,), in [0, n_rows)
    n_rows: int,
    temperature: float,
) -> Tensor:
    """Return teacher logits whose soft labels are the weighted means of groups of soft labels.

    Row j of the result is T logit(p̄) or, for K classes, T log p̄ with sum zero, where p̄ is the mean
    over the rows i with ``index[i] == j``. A group needs a positive total weight. Members that
    agree return their logits bit for bit.
    """
    if n_rows == len(teacher_logits):  # no copies
        return torch.empty_like(teacher_logits).index_copy_(0, index, teacher_logits)
    z, w = double(teacher_logits, teacher_logits), double(weights, teacher_logits)
    columns = torch.stack((torch.zeros_like(z), z), dim=1) if z.ndim == 1 else z
    merged = _log_of_mean(columns, w, index, n_rows, temperature)
    merged = logits(merged) if z.ndim == 1 else centred(merged)
    group = index.view(-1, *[1] * (z.ndim - 1)).expand_as(z)
    shape = (n_rows, *z.shape[1:])
    lowest = z.new_full(shape, math.inf).scatter_reduce(0, group, z, "amin")
    highest = z.new_full(shape, -math.inf).scatter_reduce(0, group, z, "amax")
    agree = lowest == highest
    agree = agree if z.ndim == 1 else agree.all(dim=1, keepdim=True)
    return torch.where(agree, lowest, merged).to(teacher_logits.dtype)


def _log_of_mean(
    z: Tensor, weights: Tensor, index: Tensor, n_rows: int, temperature: float
) -> Tensor:
    """Return T log p̄ for logits (n, K), up to a constant in each row."""

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(n_rows, values.shape[1]).index_add(0, index, values)

    # log Σ w exp(log p), from the largest term of each class, so that saturated labels survive.
    log_label = _log_softmax(z / temperature) + torch.log(weights)[:, None]
    group = index[:, None].expand_as(log_label)
    top = z.new_full((n_rows, z.shape[1]), -math.inf)
    shift = top.scatter_reduce(0, group, log_label, "amax").nan_to_num(neginf=0.0)
    far = temperature * (shift + torch.log(total(torch.exp(log_label - shift[index]))))
    # T log p̄ = z̄ + T log(1 + Σ w (exp(δ - B) - 1) / Σ w), δ = (z - z̄)/T, B = log Σ_k q exp(δ_k),
    # q = softmax(z̄/T): keeps the digits that p̄, nearly uniform at a high temperature, has lost.
    size = total(weights[:, None])
    mean = total(weights[:, None] * z) / size
    delta = (z - mean[index]) / temperature
    q = torch.exp(_log_softmax(mean / temperature))
    normaliser = torch.log1p((q[index] * torch.expm1(delta)).sum(dim=1, keepdim=True))
    excess = total(weights[:, None] * torch.expm1(delta - normaliser)) / size
    near = mean + temperature * torch.log1p(excess)
    is_near = (excess.abs() < 0.5).all(dim=1, keepdim=True)
    return torch.where(is_near, near, far)


def _log_softmax(z: Tensor) -> Tensor:
    if z.shape[1] > 2:
        return torch.log_softmax(z, dim=1)
    gap = z[:, 1:] - z[:, :1]  # exact in the tails, where log_softmax of two is not
    return torch.cat((logsigmoid(-gap), logsigmoid(gap)), dim=1)
