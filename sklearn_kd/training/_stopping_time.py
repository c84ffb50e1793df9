"""Training time: learning rate times steps on the mean loss, and where to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["match_stopping_time", "stopping_time_of", "stopping_times"]


def stopping_times(stopping_time: Any) -> list[float] | None:
    """Return the parameter ``stopping_time`` as increasing numbers; None if training converges.

    Raises
    ------
    ValueError
        If they are not positive, finite and increasing.
    """
    if stopping_time is None:
        return None
    times = np.atleast_1d(np.asarray(stopping_time, dtype=float))
    valid = times.ndim == 1 and len(times) and np.isfinite(times).all() and times[0] > 0
    if not valid or (np.diff(times) <= 0).any():
        raise ValueError(
            "stopping_time must be a positive finite number or an increasing sequence of "
            f"them, got {stopping_time!r}."
        )
    return times.tolist()


def stopping_time_of(
    learning_rate: float,
    n_steps: int,
    *,
    momentum: float = 0.0,
    schedule: Callable[[int], float] | None = None,
) -> float:
    r"""Return the training time of a run of stochastic gradient descent.

    .. math:: t = \frac{1}{1 - \beta} \sum_{s=0}^{S-1} \eta_s,

    with the learning rates :math:`\eta_s` of S steps on batches, whose loss is the mean over their
    rows, and the momentum β: heavy-ball and Nesterov momentum lengthen every step by 1/(1 − β) in
    the end.

    Parameters
    ----------
    learning_rate : float > 0
        Learning rate η of the first step.
    n_steps : int ≥ 1
        Number of steps S: epochs times batches.
    momentum : float in [0, 1), default=0.0
        Momentum β, without dampening.
    schedule : callable, default=None
        Factor of the learning rate at step s = 0, 1, ..., as that of
        `torch.optim.lr_scheduler.LambdaLR` stepped after each batch. None is 1.

    Returns
    -------
    float
        The ``stopping_time`` of :class:`~sklearn_kd.LinearizedKDStudent` and
        :class:`~sklearn_kd.NTKTeacher` in the parameterization of the kernel.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    It holds for small learning rates, up to the reach of the closed form. Adam has no such time:
    see :func:`match_stopping_time`.

    Examples
    --------
    >>> from sklearn_kd.training import stopping_time_of
    >>> round(stopping_time_of(0.1, 600), 6), round(stopping_time_of(0.1, 600, momentum=0.9), 6)
    (60.0, 600.0)
    >>> round(stopping_time_of(0.1, 600, schedule=lambda step: 1 - step / 600), 6)
    30.05
    """
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate={learning_rate!r} must be positive and finite.")
    if n_steps != int(n_steps) or n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r} must be a whole number of at least 1.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r} must be in [0, 1).")
    factors = n_steps if schedule is None else sum(schedule(step) for step in range(int(n_steps)))
    return float(learning_rate * factors / (1 - momentum))


def match_stopping_time(student: Any, loss: float) -> float:
    """Return the time at which a student's training loss is that of a real run.

    Optimizers such as Adam are no gradient flow, so that their steps have no time. The training
    loss that a run has reached gives one.

    Parameters
    ----------
    student : LinearizedKDStudent
        Fitted with an increasing sequence of stopping times, to the rows, teacher and recipe of the
        run.
    loss : float
        The run's mean training loss at its end: Eq. 2 with cross-entropies, as
        :class:`~sklearn_kd.distillation.DistillationLoss` returns it.

    Returns
    -------
    float
        Stopping time, interpolated linearly between the logarithms of the student's.

    Raises
    ------
    ValueError
        If the student has fewer than two stopping times, or the loss lies outside of those that it
        went through.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd import LinearizedKDStudent
    >>> from sklearn_kd.training import match_stopping_time
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 3))
    >>> z_t = 2 * X[:, 0]
    >>> y = (z_t + rng.logistic(size=60) > 0).astype(int)
    >>> student = LinearizedKDStudent(stopping_time=np.geomspace(1, 1000, 7))
    >>> losses = student.fit(X, y, teacher_logits=z_t).fit_report_.training_loss
    >>> round(match_stopping_time(student, losses[3]), 3)
    31.623
    """
    times = student.fit_report_.stopping_time
    if times is None or len(times) < 2:
        raise ValueError(
            f"stopping_time={times!r} of the student must be an increasing sequence, among which "
            "to look for the loss."
        )
    losses = np.asarray(student.fit_report_.training_loss)
    falling = np.minimum.accumulate(losses)
    if not falling[-1] <= loss <= falling[0]:
        raise ValueError(
            f"loss={loss!r} is not among the training losses of the student, {losses[0]:.4g} at "
            f"time {times[0]:g} to {falling[-1]:.4g} at {times[-1]:g}; fit it with earlier or "
            "later stopping times, and compare the same loss: the mean of Eq. 2 with "
            "cross-entropies."
        )
    return float(np.exp(np.interp(-loss, -falling, np.log(times))))
