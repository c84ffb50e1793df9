"""The training time of a `TorchStudent`: learning rate × steps / (1 − momentum)."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch

from sklearn_kd._sklearn import Interval, validate_parameter_constraints
from sklearn_kd.students._torch_training import (
    Schedule,
    changes_the_learning_rate,
    n_held_out,
)
from sklearn_kd.training import stopping_time_of

# Options of SGD that leave the path of small steps as it is, or only lengthen the steps.
_WITHOUT_EFFECT_ON_TIME = {"momentum", "nesterov", "foreach", "fused", "differentiable"}


def stopping_time(self: Any, n_rows: int, n_epochs: int | None = None) -> float:
    """Return the training time of a fit: learning rate × steps / (1 − momentum).

    It is the ``stopping_time`` of the :class:`LinearizedKDStudent` that starts where the network
    does, ``kernel=EmpiricalNTK(module)``.

    Parameters
    ----------
    n_rows : int ≥ 2
        Rows that ``fit`` is given, of positive weight; a ``validation_fraction`` is taken off.
    n_epochs : int ≥ 1, default=None
        Epochs. None is ``max_epochs``. Of a fit that stopped early, pass ``n_epochs_``.

    Returns
    -------
    float
        See :func:`~sklearn_kd.training.stopping_time_of`.

    Raises
    ------
    ValueError
        If the optimizer is not SGD, or has weight decay or dampening, or callbacks schedule
        the learning rate: there is no such time, and
        :func:`~sklearn_kd.training.match_stopping_time` finds one by the loss.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd import TorchStudent
    >>> student = TorchStudent(torch.nn.Linear(2, 1), lr=0.1, batch_size=50, max_epochs=3)
    >>> round(student.stopping_time(200), 6)  # four batches in each epoch
    1.2
    """
    self._validate_params()
    validate_parameter_constraints(
        {
            "n_rows": [Interval(Integral, 2, None, closed="left")],
            "n_epochs": [Interval(Integral, 1, None, closed="left"), None],
        },
        {"n_rows": n_rows, "n_epochs": n_epochs},
        caller_name="stopping_time",
    )
    schedule = Schedule.of(self)
    if n_epochs is not None:
        schedule = replace(schedule, max_epochs=n_epochs)
    return training_time(schedule, n_rows - n_held_out(self.validation_fraction, n_rows))


def training_time(schedule: Schedule, n_rows: int) -> float:
    """Return learning rate x steps / (1 − momentum) of a schedule on ``n_rows`` rows.

    Raises
    ------
    ValueError
        If the optimizer is no gradient descent at a constant rate.
    """
    if (reason := why_no_time(schedule)) is not None:
        raise ValueError(
            f"{reason}, so that its steps have no time; give LinearizedKDStudent a sequence of "
            "stopping times, and compare losses by sklearn_kd.training.match_stopping_time."
        )
    n_steps = schedule.max_epochs * math.ceil(n_rows / schedule.rows_of_a_batch(n_rows))
    momentum = schedule.optimizer_params.get("momentum", 0.0)
    return stopping_time_of(schedule.lr, n_steps, momentum=momentum)


def why_no_time(schedule: Schedule) -> str | None:
    """Return why a schedule is no gradient descent at a constant rate; None if it is."""
    if schedule.optimizer is not torch.optim.SGD:
        name = getattr(schedule.optimizer, "__name__", repr(schedule.optimizer))
        return f"optimizer={name} is not torch.optim.SGD"
    options = {name: value for name, value in schedule.optimizer_params.items() if value}
    if extra := sorted(options.keys() - _WITHOUT_EFFECT_ON_TIME):
        return f"optimizer_params holds {extra[0]}={options[extra[0]]!r}"
    if changes_the_learning_rate(schedule.callbacks):
        return "callbacks change the learning rate"
    return None
