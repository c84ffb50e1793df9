"""Transfer risk: how often the student's class differs from the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_kd._logits import require_logits
from sklearn_kd.distillation._arguments import row_logits, row_weights


def transfer_risk(
    teacher_logits: Tensor, student_logits: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    """Return the share of rows on which teacher and student disagree on the class.

    R = P_x[z_t(x) z_s(x) < 0] for two classes (Ji & Zhu 2020); for more, the arg max differs.

    Parameters
    ----------
    teacher_logits, student_logits : array-like of shape (n,) or (n, K)
        Logits of the same rows. A logit of exactly 0 (two classes) disagrees with nothing.
    sample_weight : array-like of shape (n,), default=None
        Row weights of the mean: non-negative, not all 0.

    Returns
    -------
    float
        The transfer risk, in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ, there are no rows, a logit or a weight is out of its range, or the
        arguments are probabilities or labels.
    TypeError
        If an argument does not hold numbers.

    Examples
    --------
    >>> from sklearn_kd.metrics import transfer_risk
    >>> float(transfer_risk([2.0, -1.0, 0.5, -3.0], [1.0, 0.5, 0.1, -2.0]))
    0.25
    """
    z_t = row_logits(teacher_logits, "teacher_logits")
    z_s = row_logits(student_logits, "student_logits")
    if z_t.shape != z_s.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(z_t.shape)}, but student_logits has shape "
            f"{tuple(z_s.shape)}; give the logits of the same rows and classes."
        )
    _require_logits(z_t, z_s)
    weights = None if sample_weight is None else row_weights(sample_weight, len(z_t))
    disagree = disagreement(z_t, z_s.to(z_t.device), is_binary=z_t.ndim == 1)
    return weighted_mean(disagree.to(z_t.dtype), weights)


def _require_logits(z_t: Tensor, z_s: Tensor) -> None:
    """Raise where the risk would be 0 whatever the classes are.

    A few binary logits may all be in [0, 1] by chance, but hardly those of teacher and student.

    Raises
    ------
    ValueError
        If teacher or student have probabilities or labels, and no logits.
    """
    for z, name in ((z_t, "teacher_logits"), (z_s, "student_logits")):
        require_logits(z, name=name)
        is_count = z.ndim == 1 and len(z) > 1 and bool(((z >= 0) & (z == z.round())).all())
        if is_count and z.min() < z.max():
            raise ValueError(
                f"{name} holds whole numbers from {z.min():g} to {z.max():g}, as labels are. Give "
                "decision_function(X), or np.mean(a != b) of two sets of labels a and b."
            )
    both = torch.stack([z_t, z_s.to(z_t)])
    is_binary, is_varied = z_t.ndim == 1, both.min() < both.max()
    if is_binary and len(z_t) > 1 and is_varied and both.min() >= 0 and both.max() <= 1:
        raise ValueError(
            "teacher_logits and student_logits are all in [0, 1], as probabilities are, where "
            "logits never differ in sign. Give scipy.special.logit of probabilities, or "
            "decision_function(X)."
        )


def disagreement(teacher_logits: Tensor, student_logits: Tensor, *, is_binary: bool) -> Tensor:
    """Return where z_t z_s < 0, for more than two classes where the arg max differs.

    The logits broadcast against each other; the classes are on the last axis.
    """
    if is_binary:
        # The sign, not the product: z_t z_s underflows for small logits.
        return student_logits * teacher_logits.sign() < 0
    return teacher_logits.argmax(dim=-1) != student_logits.argmax(dim=-1)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return Σ w v / Σ w over the rows; w = 1 where ``weights`` is None."""
    if weights is None:
        return values.mean()
    return torch.dot(weights, values) / weights.sum()
