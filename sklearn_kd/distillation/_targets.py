"""What the student is trained towards: the effective logits of its distinct rows (Eq. 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sklearn_kd.distillation._effective_logits import (
    binary_effective_logits,
    merge_soft_labels,
    multiclass_effective_logits,
)
from sklearn_kd.rows._training_rows import DistinctRows

# What a student trains towards, given teacher and labels; one factor serves all of their values.
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
