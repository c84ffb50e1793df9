"""Which labels to check: the rows that decide between the cells of the best set.

Symbols, with m cells in the set, K classes and a row x_i:

=======  =======================================================================================
n_ic     cells whose student, which has not seen the row, predicts class c there
p_ic     probability of class c by these students, their mean
u_i      weight of the row in the mean score
v_i      value of a true label: the variance that it settles, of all differences of two cells
=======  =======================================================================================

On a row where cell a predicts c and cell b predicts d, the difference of their scores is u if the
true class is c, −u if it is d, and 0 otherwise. Its variance is u² [p_c + p_d − (p_c − p_d)²]. Over
all pairs of cells,

    v = u² Σ_{c < d} n_c n_d [ p_c + p_d − (p_c − p_d)² ],

with two classes 4 u² n_0 n_1 p_0 p_1. It is 0 where all cells agree.

The label at hand does not enter. A rule that looks for labels that the students hold to be wrong
would find the errors of one direction only, those against the majority of the cells, and so favour
this majority.
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


def values_of_labels(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the value v of a true label for each row, shape (n,).

    Parameters
    ----------
    logits : sequence of Tensor of shape (n,) or (n, K)
        The held-out logits by each cell of the set.
    weights : Tensor of shape (n,)
        The weights u of the rows in the mean score.

    Examples
    --------
    Two cells disagree on the last two rows, and are surer of the last one:

    >>> import torch
    >>> from sklearn_kd.search._rows_to_check import values_of_labels
    >>> first, second = torch.tensor([2.0, 0.5, 3.0]), torch.tensor([1.0, -0.5, -0.1])
    >>> values_of_labels([first, second], torch.ones(3))
    tensor([0.0000, 1.0000, 0.8172])
    """
    p = torch.stack([class_probabilities(z) for z in logits]).mean(dim=0)
    n = torch.zeros_like(p)
    rows = torch.arange(len(p), device=p.device)
    for z in logits:
        n[rows, class_indices(z)] += 1
    # Σ_{c<d} n_c n_d [p_c + p_d − (p_c − p_d)²]: half the sum over all c and d of
    # n_c n_d [p_c (1 − p_c) + p_d (1 − p_d) + 2 p_c p_d], less that over c = d.
    spread = p * (1 - p)
    every = 2 * n.sum(dim=1) * (n * spread).sum(dim=1) + 2 * (n * p).sum(dim=1).square()
    same = (2 * n.square() * p).sum(dim=1)
    agrees = (n > 0).sum(dim=1) == 1
    return weights.square() * torch.where(agrees, 0, (every - same) / 2)


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
    these. A row is worth the variance that a true label settles, of all differences of two of
    their scores: the pairs of cells that it separates, the more the less sure the students are of
    its class. The label at hand does not enter, so that what is checked favours no cell. Correct
    the labels and call ``fit`` again.

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
    With n_c cells of the set that predict class c, p_c the mean probability of it by all of them,
    and u the weight of the row in the mean score, the value is
    u² Σ_{c < d} n_c n_d [p_c + p_d − (p_c − p_d)²], with two classes 4 u² n_0 n_1 p_0 p_1.
    Whatever the score, it is the predicted classes that are compared.

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
