"""The search that stands for a network: kernels of pilots, and the time that training comes to."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.students._matched_time import matched_time
from sklearn_kd.students._torch_student import TorchStudent

PILOT_EPOCHS = 5
N_PILOTS = 3
# Where training stops early: so many times, the first a small part of the last.
N_TIMES = 6
FIRST_TIME = 1 / 300


def for_network(
    cls: Any,
    student: TorchStudent,
    X: Any,
    y: Any,
    *,
    teacher_logits: Any = None,
    n_epochs: int | None = None,
    n_pilots: int | None = None,
    **params: Any,
) -> Any:
    """Return the search that stands for a network: by pilot kernels, in finite time.

    Its kernel is that of a few :meth:`pilots <sklearn_kd.TorchStudent.pilot_kernel>` of the
    network, from whose outputs its students start. They stop at the time at which the closed form
    of the student's own recipe has the training loss of one network that is trained with it. This
    is the surrogate that we recommend for networks that are really trained. Fit it to the same
    rows, then train the network with the recipe that it chose.

    Parameters
    ----------
    student : TorchStudent
        The network and how it is trained; it is not changed. Its ``teacher`` and
        ``temperature_scaling`` are those of the search, its ``temperature`` that of the pilots, and
        its recipe that of the network that is trained. A small ``soft_ratio`` tells most of how far
        training goes: the run on hard labels that you would have for comparison.
    X : array-like of shape (n_samples, n_features)
        The rows that the search and the network are going to learn.
    y : array-like of shape (n_samples,)
        Their labels. The pilots do not see them; the one trained network does, of which nothing
        but its training loss is used.
    teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
        The teacher's logits on ``X``, to be passed to ``fit`` too. None: those of a fitted
        ``teacher``. The teacher must not have been trained on the labels of these rows.
    n_epochs : int ≥ 1, default=None
        Epochs of a pilot. None is 5, or a third of ``max_epochs`` if these are fewer.
    n_pilots : int ≥ 1, default=None
        Pilots. None is 3 where ``module`` builds networks, and 1 where it is one.
    **params : dict
        Parameters of the search, such as ``soft_ratios`` and ``temperatures``; a
        ``stopping_times`` replaces that of the network.

    Returns
    -------
    LinearizedKDStudentCV
        Not fitted yet.

    Raises
    ------
    TypeError
        If ``student`` is no `TorchStudent`.
    ValueError
        If the teacher is unfitted, or the pilots leave no epoch of ``max_epochs``.

    Notes
    -----
    Matching the training loss serves any optimizer, schedule and normalisation; learning rate ×
    steps / (1 − momentum) is right for networks that stay in the linear regime alone. Where the
    network's loss is lower than that of the closed form at any time, students converge. With a
    ``validation_fraction`` six times up to the matched one are searched. The cost is that of one
    trained network, of the pilots, and of the search.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from torch import nn
    >>> from sklearn_kd import LinearizedKDStudentCV, TorchStudent
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> X = X / 16
    >>> teacher = FrozenEstimator(LogisticRegression(C=0.1).fit(X[:100], y[:100]))
    >>> def network():
    ...     return nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 1))
    >>> student = TorchStudent(network, teacher, lr=0.2, max_epochs=20, random_state=0)
    >>> search = LinearizedKDStudentCV.for_network(
    ...     student, X[100:], y[100:], soft_ratios=[0.5, 1.0]
    ... )
    >>> len(search.stopping_times)
    1
    >>> best = search.fit(X[100:], y[100:]).best_params_
    >>> recipe = {name: best[name] for name in ("soft_ratio", "temperature")}
    >>> student.set_params(**recipe).fit(X[100:], y[100:]).score(X[100:], y[100:]) > 0.95
    True
    """
    if not isinstance(student, TorchStudent):
        raise TypeError(
            f"student={student!r} is a {type(student).__name__}; for_network needs a TorchStudent, "
            "which says how the network is trained."
        )
    n_epochs = _epochs_of_pilots(student, n_epochs)
    if n_pilots is None:
        n_pilots = 1 if isinstance(student.module, nn.Module) else N_PILOTS
    of_student = {
        "temperature_scaling": student.temperature_scaling,
        "teacher_cv": "prefit" if isinstance(student.cv, str) else None,
        "device": student.device,
    }
    search = cls(student.teacher, **{**of_student, **params})
    search.kernel = student.pilot_kernel(
        X, teacher_logits=teacher_logits, n_epochs=n_epochs, n_pilots=n_pilots
    )
    if "stopping_times" not in params:
        search.stopping_times = _times(student, search.kernel, X, y, teacher_logits)
    return search


def _epochs_of_pilots(student: TorchStudent, n_epochs: int | None) -> int:
    if n_epochs is None:
        n_epochs = min(PILOT_EPOCHS, max(1, student.max_epochs // 3))
    if n_epochs >= student.max_epochs:
        raise ValueError(
            f"Pilots of n_epochs={n_epochs} leave nothing of the training, which has "
            f"max_epochs={student.max_epochs}; use fewer epochs for the pilots."
        )
    return n_epochs


def _times(
    student: TorchStudent, kernel: EmpiricalNTK, X: Any, y: Any, teacher_logits: Any
) -> list[float] | None:
    """Return the stopping times to search; None, convergence, if the network has got there."""
    last = matched_time(student, kernel, X, y, teacher_logits)
    if last is None:
        return None
    if student.validation_fraction is None:
        return [last]
    return np.geomspace(FIRST_TIME * last, last, N_TIMES).tolist()
