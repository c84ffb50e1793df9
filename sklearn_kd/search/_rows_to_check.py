"""Which labels to check: the rows that decide between the cells of the best set.

Symbols, with m cells in the set, K classes and a row x_i of label y_i:

=======  =======================================================================================
n_ic     cells whose student, which has not seen the row, predicts class c there
p_ic     probability of class c by these students, their mean
u_i      weight of the row in the mean score
v_i      value of a true label: expected squared change of the differences, over all pairs of cells
=======  =======================================================================================

If the true label is c instead of y, cell a gains g_a = 1(a predicts c) − 1(a predicts y) on the
row, and the difference of two cells changes by u (g_a − g_b). Over all pairs, Σ (g_a − g_b)² =
m Σ g_a² − (Σ g_a)², hence

    v = u² Σ_{c ≠ y} p_c [ m (n_c + n_y) − (n_c − n_y)² ],

with two classes 4 u² p_c n_c n_y: the pairs that the row separates, times the probability that the
label is wrong. It is 0 where all cells agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._logits import class_indices, class_probabilities


def values_of_labels(logits: Sequence[Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Return the value v of a true label for each row, shape (n,).

    Parameters
    ----------
    logits : sequence of Tensor of shape (n,) or (n, K)
        The held-out logits by each cell of the set.
    labels : Tensor of int of shape (n,)
        The labels at hand, as class indices.
    weights : Tensor of shape (n,)
        The weights u of the rows in the mean score.

    Examples
    --------
    Two cells disagree on the last two rows, and hold the label of the last one to be wrong:

    >>> import torch
    >>> from sklearn_kd.search._rows_to_check import values_of_labels
    >>> first, second = torch.tensor([2.0, 0.5, 3.0]), torch.tensor([1.0, -0.5, -0.1])
    >>> values_of_labels([first, second], torch.tensor([0, 1, 0]), torch.ones(3))
    tensor([0.0000, 2.0000, 2.8552])
    """
    n_cells = len(logits)
    p = torch.stack([class_probabilities(z) for z in logits]).mean(dim=0)
    n = torch.zeros_like(p)
    rows = torch.arange(len(p), device=p.device)
    for z in logits:
        n[rows, class_indices(z)] += 1
    n_y = n[rows, labels][:, None]
    changes = n_cells * (n + n_y) - (n - n_y).square()
    changes[rows, labels] = 0
    return weights.square() * (p * changes).sum(dim=1)


class LabelValues(NamedTuple):
    """What a true label of each training row is worth."""

    values: np.ndarray | None  # (n,); None where validation rows are scored

    def ranked(self) -> np.ndarray:
        """Return the numbers of the rows of positive value, the most valuable first.

        Raises
        ------
        AttributeError
            If no label of these rows is in a score.
        """
        if self.values is None:
            raise AttributeError(
                "The scores are those of X_val, so that no label of X decides between the cells; "
                "add rows to X_val, or fit without it."
            )
        order = np.argsort(-self.values, kind="stable")
        return order[self.values[order] > 0]


def rows_to_check(search: Any, n: int) -> np.ndarray:
    """Return the training rows whose labels are worth checking, in order of their value.

    Only rows on which cells of the best set predict different classes, held out, decide between
    these. A row is worth the expected squared change of the differences of their scores by a
    true label, over all pairs of cells: the pairs that it separates times the probability that
    its label is wrong, by the same held-out predictions. Correct the labels and call ``fit``
    again.

    Parameters
    ----------
    n : int
        How many rows, at least one.

    Returns
    -------
    ndarray of int of shape (n_found,)
        Row numbers in the ``X`` of the fit, the most valuable first; n, or as many as there
        are rows on which the cells disagree.

    Raises
    ------
    AttributeError
        If no score decides (several scores, and ``refit=False``), or ``X_val`` was scored.

    Notes
    -----
    With m cells in the set, n_c of them that predict class c, p_c their mean probability of it,
    y the label and u the weight of the row in the mean score, the value is
    u² Σ_{c ≠ y} p_c [m (n_c + n_y) − (n_c − n_y)²], with two classes 4 u² p_c n_c n_y. Whatever
    the score, it is their predicted classes that are compared.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd import LinearizedKDStudentCV
    >>> X = np.random.default_rng(0).normal(size=(80, 2))
    >>> y = (X[:, 0] > 0).astype(int)
    >>> wrong = y.copy()
    >>> wrong[::8] = 1 - wrong[::8]  # one in eight
    >>> search = LinearizedKDStudentCV(ridges=[0.1]).fit(X, wrong, teacher_logits=X[:, 1])
    >>> rows = search.rows_to_check(5)
    >>> corrected = wrong.copy()
    >>> corrected[rows] = y[rows]
    >>> search = search.fit(X, corrected, teacher_logits=X[:, 1])
    """
    check_is_fitted(search)
    check_scalar(n, "n", Integral, min_val=1)
    if not hasattr(search, "_values_of_labels"):
        raise AttributeError(
            f"rows_to_check needs the best set of one score; name it by refit= one of "
            f"{sorted(search.scorer_._scorers)} and fit again."
        )
    return search._values_of_labels.ranked()[:n]
