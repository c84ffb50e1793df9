"""The time at which a kernel's student has the training loss of a network that was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.students._torch_training import without_early_stopping
from sklearn_kd.training import match_stopping_time

# Times among which to look, in units of that in which the gradient moves a logit by one.
TIMES = np.geomspace(0.1, 1e7, 25)


def matched_time(
    student: Any, kernel: Any, X: Any, y: Any, teacher_logits: Any = None
) -> float | None:
    """Return the stopping time of ``kernel`` that a whole training of the network comes to.

    A clone of ``student`` is fitted to all rows, without early stopping. The time is that at which
    the closed form of the same recipe has its training loss, so that the optimizer may be any. It
    is None if the network's loss is lower than the closed form's at any time: it has converged.
    """
    recipe = {
        name: getattr(student, name)
        for name in ("soft_ratio", "temperature", "temperature_scaling")
    }
    callbacks = without_early_stopping(student.callbacks)
    network = clone(student).set_params(validation_fraction=None, callbacks=callbacks)
    network.fit(X, y, teacher_logits=teacher_logits)
    if network.fit_report_.interrupted:
        raise KeyboardInterrupt  # the loss is that of fewer epochs
    z_t, z = (
        torch.as_tensor(np.asarray(logits), dtype=torch.float64)
        for logits in (network.teacher_logits_, network.decision_function(X))
    )
    loss = DistillationLoss(**recipe, ignore_index=NO_LABEL)
    loss_of_network = loss(z, z_t, _indices(y, network.classes_)).item()

    closed = LinearizedKDStudent(
        kernel=kernel, **recipe, stopping_time=TIMES / _speed(recipe, kernel, X)
    )
    closed.fit(X, y, teacher_logits=z_t.numpy(), classes=network.classes_)
    losses = closed.fit_report_.training_loss
    if loss_of_network < min(losses):
        return None
    return match_stopping_time(closed, min(loss_of_network, losses[0]))


def _indices(y: Any, classes: np.ndarray) -> torch.Tensor:
    """Return the class of each row by number, and -1 for a row without one."""
    y = np.asarray(y)
    is_labelled = np.isin(y, classes)
    indices = np.full(len(y), NO_LABEL)
    indices[is_labelled] = np.searchsorted(classes, y[is_labelled])
    return torch.from_numpy(indices)


def _speed(recipe: dict[str, Any], kernel: Any, X: Any) -> float:
    """Return the curvature of the loss at small logits times the mean of Θ(x, x)."""
    rho, T = recipe["soft_ratio"], recipe["temperature"]
    scale = 1.0 if recipe["temperature_scaling"] == "squared" else T**-2
    return (rho * scale + 1 - rho) * float(kernel.diag(X).mean())
