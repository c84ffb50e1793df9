"""The tasks of the paper's synthetic experiments: rows, logits, labels, and the function itself.

Symbols (paper -> code -> shape), with n rows of d features and q modes:

====  ==============  =============================================
x_j   ``centres``     (q, d)
A_j   ``amplitudes``  (q,)
σ_j   ``widths``      (q,)
z     ``logits``      (n,) z(x) = Σ_j A_j exp(−‖x − x_j‖² / σ_j²)
====  ==============  =============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.utils import Bunch, check_array, check_random_state, check_scalar, gen_batches

_BLOCK_ENTRIES = 2**22  # of the distances held at once


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The function z(x) = Σ_j A_j exp(−‖x − x_j‖² / σ_j²); zero without modes."""

    amplitudes: np.ndarray  # (q,)
    centres: np.ndarray  # (q, d)
    widths: np.ndarray  # (q,)

    def __call__(self, X: Any) -> np.ndarray:
        """Return the logits, shape (n,), of rows of shape (n, d)."""
        X = check_array(X, dtype=np.float64, input_name="X")
        n_modes, n_features = self.centres.shape
        if X.shape[1] != n_features:
            raise ValueError(
                f"X has {X.shape[1]} features, but this function was made with "
                f"n_features={n_features}."
            )
        logits = np.zeros(len(X))
        for rows in gen_batches(len(X), max(1, _BLOCK_ENTRIES // max(1, n_modes))):
            squared_distances = cdist(X[rows], self.centres, "sqeuclidean")
            logits[rows] = np.exp(-squared_distances / self.widths**2) @ self.amplitudes
        return logits


def make_gaussian_mixture_logits(
    n_samples: int = 100,
    n_features: int = 2,
    *,
    n_modes: int = 20,
    flip_probability: float = 0.0,
    width: Sequence[float] = (0.3, 0.7),
    random_state: Any = None,
) -> Bunch:
    r"""Make a two-class task whose logits are a mixture of Gaussian bumps.

    The logit function has :math:`q` modes,

    .. math:: z(x) = \sum_{j=1}^q A_j \exp\bigl(-\|x - x_j\|^2 / \sigma_j^2\bigr),

    with amplitudes :math:`A_j \sim N(0, 1)`, centres :math:`x_j \sim N(0, I)` and widths
    :math:`\sigma_j` uniform in ``width``; the rows are :math:`x \sim N(0, I)`. More modes make a
    harder task, and sign flips make an imperfect teacher.

    Parameters
    ----------
    n_samples : int >= 1, default=100
        Number of rows n.
    n_features : int >= 1, default=2
        Number of features d.
    n_modes : int >= 1, default=20
        Number of modes q.
    flip_probability : float in [0, 1], default=0.0
        Probability with which a row's logit has its sign flipped. For the same ``random_state``
        a larger probability flips the same rows and some more.
    width : pair of floats, default=(0.3, 0.7)
        Smallest and largest width, 0 < smallest <= largest.
    random_state : int, RandomState instance or None, default=None
        Source of the function, the rows and the flips, in this order.

    Returns
    -------
    Bunch
        ``X`` : ndarray of shape (n_samples, n_features)
            Rows.
        ``logits`` : ndarray of shape (n_samples,)
            The teacher's logits, with the flips.
        ``y`` : ndarray of int of shape (n_samples,)
            True labels: 1 where the function is positive, else 0; no flips.
        ``function`` : callable
            The function without flips: ``function(X)`` returns the logits of any rows. It can
            be pickled, and holds ``amplitudes``, ``centres`` and ``widths``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of its range.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data Efficiency
    and Imperfect Teacher", NeurIPS 2020. The distributions of amplitudes, centres, widths and
    rows are choices of this library.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.datasets import make_gaussian_mixture_logits
    >>> task = make_gaussian_mixture_logits(500, flip_probability=0.1, random_state=0)
    >>> task.X.shape, task.logits.shape
    ((500, 2), (500,))
    >>> float(np.mean((task.logits > 0) != task.y))  # the teacher's error
    0.084
    >>> task.function([[0.0, 0.0], [9.0, 9.0]]).round(4)
    array([1.5348, 0.    ])
    """
    _check_shape(n_samples, n_features)
    check_scalar(n_modes, "n_modes", Integral, min_val=1)
    check_scalar(flip_probability, "flip_probability", Real, min_val=0, max_val=1)
    smallest, largest = _check_width(width)
    rng = check_random_state(random_state)
    function = GaussianMixture(
        amplitudes=rng.standard_normal(n_modes),
        centres=rng.standard_normal((n_modes, n_features)),
        widths=rng.uniform(smallest, largest, n_modes),
    )
    X = rng.standard_normal((n_samples, n_features))
    logits = function(X)
    flipped = rng.uniform(size=n_samples) < flip_probability
    return Bunch(
        X=X,
        logits=np.where(flipped, -logits, logits),
        y=(logits > 0).astype(int),
        function=function,
    )


def make_random_logits(
    n_samples: int = 100, n_features: int = 2, *, random_state: Any = None
) -> Bunch:
    """Make a task without structure: rows x ~ N(0, I), and logits z ~ N(0, 1) independent of x.

    The reference for a task that cannot be learnt: its data inefficiency stays constant.

    Parameters
    ----------
    n_samples : int >= 1, default=100
        Number of rows n.
    n_features : int >= 1, default=2
        Number of features d.
    random_state : int, RandomState instance or None, default=None
        Source of the rows and the logits.

    Returns
    -------
    Bunch
        ``X``, ``logits`` and ``y`` as in `make_gaussian_mixture_logits`; ``function`` is None,
        because the logits of other rows are not determined.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of its range.

    References
    ----------
    The *random* task of G. Ji and Z. Zhu, NeurIPS 2020, Fig. 3.

    Examples
    --------
    >>> from sklearn_kd.datasets import make_random_logits
    >>> task = make_random_logits(3, random_state=0)
    >>> task.logits.round(3), task.y
    (array([ 0.95 , -0.151, -0.103]), array([1, 0, 0]))
    """
    _check_shape(n_samples, n_features)
    rng = check_random_state(random_state)
    X = rng.standard_normal((n_samples, n_features))
    logits = rng.standard_normal(n_samples)
    return Bunch(X=X, logits=logits, y=(logits > 0).astype(int), function=None)


def make_zero_logits(
    n_samples: int = 100, n_features: int = 2, *, random_state: Any = None
) -> Bunch:
    """Make the easiest task: rows x ~ N(0, I), and logits z(x) = 0 everywhere.

    A student with a random initialisation only has to forget it. The task is the reference for one
    that is easy to learn.

    Parameters
    ----------
    n_samples : int >= 1, default=100
        Number of rows n.
    n_features : int >= 1, default=2
        Number of features d.
    random_state : int, RandomState instance or None, default=None
        Source of the rows and the labels.

    Returns
    -------
    Bunch
        ``X``, ``logits`` and ``function`` as in `make_gaussian_mixture_logits`; ``y`` is 0
        or 1 with equal probability.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of its range.

    References
    ----------
    The *zero* task of G. Ji and Z. Zhu, NeurIPS 2020, Fig. 3.

    Examples
    --------
    >>> from sklearn_kd.datasets import make_zero_logits
    >>> task = make_zero_logits(3, random_state=0)
    >>> task.logits, task.y
    (array([0., 0., 0.]), array([0, 1, 0]))
    """
    _check_shape(n_samples, n_features)
    rng = check_random_state(random_state)
    function = GaussianMixture(np.empty(0), np.empty((0, n_features)), np.empty(0))
    X = rng.standard_normal((n_samples, n_features))
    return Bunch(
        X=X, logits=np.zeros(n_samples), y=rng.randint(2, size=n_samples), function=function
    )


def _check_shape(n_samples: int, n_features: int) -> None:
    check_scalar(n_samples, "n_samples", Integral, min_val=1)
    check_scalar(n_features, "n_features", Integral, min_val=1)


def _check_width(width: Sequence[float]) -> tuple[float, float]:
    limits = np.asarray(width)
    if limits.dtype.kind not in "iuf":
        raise TypeError(f"width must be a pair of numbers, such as (0.3, 0.7); got {width!r}.")
    limits = limits.astype(float)
    if limits.shape != (2,) or not np.isfinite(limits).all() or not 0 < limits[0] <= limits[1]:
        raise ValueError(
            f"width must be a pair (smallest, largest) with 0 < smallest <= largest, got {width!r}."
        )
    smallest, largest = limits.tolist()
    return smallest, largest
