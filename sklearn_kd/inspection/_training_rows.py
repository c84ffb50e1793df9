"""A student's training rows with exact copies merged, as in its frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sklearn_kd._array import to_tensor
from sklearn_kd.distillation._effective_logits_of_rows import merged_labels


def effective_training_logits(student: Any) -> Tensor:
    """Return z_eff of a student's distinct training rows (Eq. 3).

    Raises
    ------
    ValueError
        If hard labels alone were learnt, which have none.
    """
    if student.effective_logits_ is None:
        raise ValueError(
            "The student was fitted with soft_ratio=0: hard labels alone have no effective "
            "logits. Fit one with soft_ratio > 0."
        )
    return to_tensor(student.effective_logits_)


def merged_training_labels(student: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's logits and the hard labels of a student's distinct training rows.

    Returns
    -------
    teacher_logits : Tensor of shape (n,) or (n, K)
        Logits whose soft labels are the means of those of the merged rows.
    y : Tensor of shape (n,) or (n, K)
        Share of class 1, or shares of the classes; 0 and 1 unless copies differ in label.
    is_labelled : Tensor of shape (n,)
        Whether the row, or a copy of it, has a hard label; ``y`` means nothing where not.
    """
    distinct = student._distinct
    labels = merged_labels(student._member_logits(), distinct, student._recipe())
    is_labelled = distinct.merged.total(distinct.labels.is_labelled.double()) > 0
    return labels.teacher_logits, to_tensor(labels.hard_labels), is_labelled
