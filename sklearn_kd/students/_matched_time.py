"""The time at which a kernel's student has learnt the teacher as well as a trained network has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.students._pilot import read_taught, train_on_teacher
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.students._torch_network import logits_of_network, seeds_of
from sklearn_kd.students._torch_training import Schedule
from sklearn_kd.training import match_stopping_time

# Times among which to look, in units of that in which the gradient moves a logit by one.
TIMES = np.geomspace(0.1, 1e6, 22)
_ROWS_AT_ONCE = 1024


def matched_time(student: Any, kernel: Any, X: Any, teacher_logits: Any = None) -> float | None:
    """Return the stopping time of ``kernel`` that a whole training of a network comes to.

    The network is trained as by ``fit``, with its schedule of the learning rate, but on the soft
    labels alone, on all rows and to the end. The time is that at which the training loss of the
    closed form is the network's. No label is needed, and the optimizer may be any.

    Parameters
    ----------
    student : TorchStudent
        The network and how it is trained; it is not changed.
    kernel : EmpiricalNTK
        That of a pilot.
    X : array-like of shape (n_samples, n_features)
        Rows.
    teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
        The teacher's logits on them. None: those of the fitted ``teacher``.

    Returns
    -------
    float or None
        None if the network has learnt the teacher better than the closed form at any time: it has
        converged.
    """
    taught = read_taught(student, X, teacher_logits)
    (seed,) = seeds_of(student.random_state, 1)
    network, _ = train_on_teacher(taught, Schedule.of(student).to_the_end(), seed)
    array = taught.rows.cpu().numpy()
    z = logits_of_network(
        network, array, taught.n_classes, input_shape=taught.shape, batch_size=_ROWS_AT_ONCE
    )
    no_label = torch.full((len(z),), NO_LABEL, device="cpu")
    loss = taught.loss.of_rows(z, taught.logits.cpu().to(z), no_label).mean().item()

    closed = LinearizedKDStudent(
        kernel=kernel,
        soft_ratio=1.0,
        temperature=student.temperature,
        temperature_scaling=student.temperature_scaling,
        stopping_time=TIMES / _speed(student, kernel, array),
        device=student.device,
    )
    # At ρ = 1 the labels are not learnt.
    labels, classes = np.arange(len(array)) % taught.n_classes, np.arange(taught.n_classes)
    closed.fit(array, labels, teacher_logits=taught.logits.cpu().numpy(), classes=classes)
    losses = closed.fit_report_.training_loss
    if loss < min(losses):
        return None
    return match_stopping_time(closed, min(loss, losses[0]))


def _speed(student: Any, kernel: Any, array: np.ndarray) -> float:
    """Return the curvature of the loss at small logits times the mean of Θ(x, x)."""
    scale = 1.0 if student.temperature_scaling == "squared" else student.temperature**-2
    return scale * float(kernel.diag(array).mean())
