"""Targets of distillation: effective logits and how soft ratio and temperature affect them."""

from sklearn_kd.distillation._diagnosis import diagnose_teacher
from sklearn_kd.distillation._effective_logits import effective_logits
from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.distillation._recipe import Recipe
from sklearn_kd.distillation._recipes import (
    correction_logits,
    correction_margin,
    equivalent_soft_ratio,
    toolkit_weight,
)

__all__ = [
    "DistillationLoss",
    "Recipe",
    "correction_logits",
    "correction_margin",
    "diagnose_teacher",
    "effective_logits",
    "equivalent_soft_ratio",
    "toolkit_weight",
]
