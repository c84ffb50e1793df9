"""Effective logits of the distinct rows of a student (Eq. 3): exact copies act as one row.

Eq. 3 is linear in the labels, so copies act as one row whose hard and soft labels are the means
of the copies' labels. Symbols, with n rows of which m are distinct:

=====  ================================  ======================================
z_t    ``teacher_logits``                (n,) or (n, K)
w      ``weights``                       (n,)
p      softmax(z_t/T), σ(±z_t/T)         (n, K), (n, 2)
p̄      Σ w p / Σ w over the copies       (m, K), (m, 2)
=====  ================================  ======================================
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_kd._logits import centred, logits
from sklearn_kd.distillation._arguments import double
from sklearn_kd.distillation._effective_logits import (
    binary_effective_logits,
    multiclass_effective_logits,
)
from sklearn_kd.rows._training_rows import DistinctRows

# These set the student's targets, given teacher and labels; one factor serves all their values.
RECIPE = ("soft_ratio", "temperature", "temperature_scaling")


def merged_effective_logits(
    teacher_logits: Tensor, distinct: DistinctRows, recipe: dict[str, Any]
) -> Tensor:
    """Return z_eff of the distinct rows from the teacher's logits on all rows (Eq. 3)."""
    merged = merged_teacher_logits(teacher_logits, distinct, recipe["temperature"])
    return root_of_eq_3(merged, distinct.hard_labels, **recipe)


def merged_teacher_logits(
    teacher_logits: Tensor, distinct: DistinctRows, temperature: float
) -> Tensor:
    """Return logits of the distinct rows whose soft labels are the means of their copies'."""
    return merge_soft_labels(
        teacher_logits.to(distinct.weights)[distinct.kept],
        distinct.kept_weights,
        distinct.merged.group,
        len(distinct.weights),
        temperature,
    )


def root_of_eq_3(
    teacher_logits: Tensor,
    hard_labels: Tensor,
    soft_ratio: float,
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
