"""The time at which a kernel's student has the training loss of a network that was trained."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.rows._checking import class_indices_of
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.students._torch_training import without_early_stopping
from sklearn_kd.training import match_stopping_time

# Times among which to look, in units of that in which the gradient moves a logit by one: four in
# each power of ten, one power more at a time.
FIRST_TIMES = np.geomspace(0.1, 100, 13)
LAST_TIME = 1e7


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
    loss_of_network = loss(z, z_t, class_indices_of(y, network.classes_)).item()

    closed = LinearizedKDStudent(kernel=Remembered(kernel, len(z)), **recipe)
    times = FIRST_TIMES
    while True:
        closed.stopping_time = times / speed(recipe, float(kernel.diag(X).mean()))
        closed.fit(X, y, teacher_logits=z_t.numpy(), classes=network.classes_)
        losses = closed.fit_report_.training_loss
        if loss_of_network >= min(losses):
            return match_stopping_time(closed, min(loss_of_network, losses[0]))
        if times[-1] > LAST_TIME / 2:
            return None
        times = np.append(times, times[-1] * np.geomspace(1, 10, 5)[1:])


class Remembered(KernelFunction):
    """A kernel that evaluates the matrix and the outputs of the training rows once.

    Parameters
    ----------
    kernel : callable
        As estimators take it.
    n_rows : int
        Number of the training rows; others are fewer, and not remembered.
    """

    def __init__(self, kernel: Any, n_rows: int) -> None:
        self._function = as_kernel_function(kernel)
        self._n_rows = n_rows
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __sklearn_clone__(self) -> Self:
        """Return itself: what a student keeps remembers, too."""
        return self

    def to_torch(self) -> Self:
        """Return itself."""
        return self

    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return K(X, Y)."""
        return self._function.block(X, Y)

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X)."""
        matrix = self._remembered("gram", X)
        return matrix.clone() if out is None else out.copy_(matrix)

    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row."""
        return self._function.diag(X)

    def outputs(self, X: Tensor) -> Tensor | None:
        """Return z₀(X)."""
        return self._remembered("outputs", X)

    def _remembered(self, name: str, X: Tensor) -> Tensor:
        if name in self._known and torch.equal(self._known[name][0], X):
            return self._known[name][1]
        values = getattr(self._function, name)(X)
        if len(X) == self._n_rows:
            self._known[name] = X, values
        return values


def speed(recipe: dict[str, Any], mean_of_diagonal: float) -> float:
    """Return the curvature of the loss at small logits times the mean of Θ(x, x)."""
    rho, T = recipe["soft_ratio"], recipe["temperature"]
    scale = 1.0 if recipe["temperature_scaling"] == "squared" else T**-2
    return (rho * scale + 1 - rho) * mean_of_diagonal
