"""Pilot runs: a network trained for a few epochs on the teacher alone, and its tangent kernel.

Symbols: z_t is ``logits``, (n,) or (n, K); Θ_m and f_m are the kernel and the outputs of pilot m
of M.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_kd._array import plain, resolve_device, to_tensor
from sklearn_kd._logits import saturated_rows
from sklearn_kd._modules import require_input_shape
from sklearn_kd._sklearn import Interval, get_namespace, validate_parameter_constraints
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.rows._checking import precision_of
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.rows._refusals import naming_columns, require_rows
from sklearn_kd.rows._views import rows_of_student, rows_of_teacher
from sklearn_kd.students._torch_network import (
    as_inputs,
    seeds_of,
    started_network,
)
from sklearn_kd.students._torch_training import (
    BatchLoss,
    RowsToLearn,
    Schedule,
    batch_norms_of,
    skorch_module,
    train,
)
from sklearn_kd.teachers._doubts import warn_if_certain, warn_of
from sklearn_kd.teachers._given_logits import given_logits, warn_if_large
from sklearn_kd.teachers._logits_of import Reading, logits_of, name_of
from sklearn_kd.teachers._several import members_of
from sklearn_kd.teachers._teaching import is_fitted

_COUNT = Interval(Integral, 1, None, closed="left")


class MeanNetwork(nn.Module):
    """One network with the mean outputs and the mean tangent kernel of several.

    f = (1/M) Σ f_m in value, with the gradient of (1/√M) Σ f_m. The networks share no weights, so
    the kernel is (1/M) Σ Θ_m.
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the outputs."""
        outputs = [network(x) for network in self.networks]
        mean = sum(one.detach() for one in outputs) / len(outputs)
        # The differences are 0, and only their gradients count.
        return mean + sum(one - one.detach() for one in outputs) / math.sqrt(len(outputs))


def settle_batch_statistics(network: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """Set the statistics of batch normalisation to those of all rows at the weights as they are.

    During training they trail behind the weights, by a running average. The layers see the rows in
    batches of equal size, and average over these.
    """
    layers = [part for part in batch_norms_of(network) if part.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    with torch.no_grad():
        for batch in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):
            network(batch.clone())
    network.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def teacher_logits_on(student: Any, X: Any, n_rows: int, teacher_logits: Any) -> tuple[Tensor, int]:
    """Return logits that no label of these rows has reached, (n,) or (n, K), and K.

    Raises
    ------
    ValueError
        If the teacher is unfitted, or there is none.
    """
    if teacher_logits is not None:
        shape = np.shape(teacher_logits)
        n_classes = 2 if len(shape) < 2 else max(shape[1], 2)
        z_t = given_logits(teacher_logits, n_rows, np.arange(n_classes))
        warn_if_large(z_t)
        warn_if_certain("teacher_logits", bool(saturated_rows(z_t).all()), n_rows)
        return z_t, n_classes
    members = members_of(student.teacher)
    for one in members:
        if one is None or not is_fitted(one, student.cv):
            given = "None" if one is None else f"an unfitted {name_of(one)}"
            raise ValueError(
                f"teacher is {given}, and would be trained on the labels of these rows: the kernel "
                "would hold them, and held-out scores of a student with it would mislead. Pass "
                "teacher_logits, or a teacher that was fitted on other rows, as by "
                "FrozenEstimator(teacher) or TorchTeacher(module, classes)."
            )
        check_is_fitted(one)
    classes = np.unique(np.asarray(members[0].classes_))
    reading = Reading(n_rows=n_rows, is_frozen=True)
    values = []
    for one in members:
        found = logits_of(one, rows_of_teacher(X), classes, reading)
        warn_of(one, found, reading)
        is_certain = found.is_certain or bool(saturated_rows(found.values).all())
        warn_if_certain(f"teacher={name_of(one)}", is_certain, n_rows)
        values.append(found.values)
    recipe = student._given_recipe(student.teacher)
    return mixed_logits(torch.stack(values), recipe), len(classes)


def pilot_kernel(
    self: Any, X: Any, *, teacher_logits: Any = None, n_epochs: int = 5, n_pilots: int = 1
) -> EmpiricalNTK:
    """Return the tangent kernel of the network after a short run on the teacher alone.

    A copy of the network is trained on the soft labels, ρ = 1, with the parameters of this
    student, but without its ``callbacks`` and held-out rows. Its tangent kernel and outputs at
    that point tell where full training will lead, for any ρ, better than those at random
    weights. No hard label enters, so that leave-one-out and held-out scores of
    ``LinearizedKDStudentCV(kernel=kernel)`` stay honest. The student itself
    need not be fitted, and is not changed.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The rows that the student is going to learn.
    teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
        The teacher's logits on ``X``, of a teacher that was not trained on these rows. None:
        those of ``teacher``, which must be fitted.
    n_epochs : int ≥ 1, default=5
        Epochs of a pilot.
    n_pilots : int ≥ 1, default=1
        Pilots. The kernel and the outputs are the means of theirs. Several need a ``module``
        that builds a network, so that they start from weights of their own.

    Returns
    -------
    EmpiricalNTK
        At the weights of the pilot. The statistics of batch normalisation are those of ``X`` at
        these weights. It holds a network with a part for each pilot.

    Raises
    ------
    ValueError
        If the teacher is unfitted: its cross-fitted logits hold the labels of ``X``, and so
        would the kernel. If ``n_pilots`` > 1 and ``module`` is a network.
    KeyboardInterrupt
        If it is interrupted: there is no kernel of half a pilot.

    Warns
    -----
    SaturatedTeacherWarning
        As ``fit`` does.
    UserWarning
        If the teacher is certain in every row, of 50 or more.

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
    >>> student = TorchStudent(network, teacher, random_state=0)
    >>> kernel = student.pilot_kernel(X[100:], n_epochs=3)
    >>> search = LinearizedKDStudentCV(
    ...     teacher, kernel=kernel, soft_ratios=[0.5, 1.0], ridges=[0.1]
    ... )
    >>> search.fit(X[100:], y[100:]).best_score_ > 0.95
    True
    """
    skorch_module()
    self._validate_params()
    validate_parameter_constraints(
        {"n_epochs": [_COUNT], "n_pilots": [_COUNT]},
        {"n_epochs": n_epochs, "n_pilots": n_pilots},
        caller_name="pilot_kernel",
    )
    if n_pilots > 1 and isinstance(self.module, nn.Module):
        raise ValueError(
            f"n_pilots={n_pilots} needs as many random starts, but "
            f"module={type(self.module).__name__} is a network whose weights are the start. "
            "Pass a function or class that builds it, or n_pilots=1."
        )
    schedule = Schedule.of(self).for_epochs(n_epochs)
    taught = read_taught(self, X, teacher_logits)
    networks = []
    # The first pilot starts as the fit of the same random_state does.
    for seed in seeds_of(self.random_state, n_pilots):
        network, inputs = train_on_teacher(taught, schedule, seed)
        settle_batch_statistics(network, inputs, schedule.rows_of_a_batch(len(inputs)))
        networks.append(network)
    module = networks[0] if n_pilots == 1 else MeanNetwork(networks).eval()
    return EmpiricalNTK(module, input_shape=taught.shape, device=self.device)


class Taught(NamedTuple):
    """Rows, the teacher's logits on them, and the network that learns these."""

    module: Any
    rows: Tensor  # (n, d)
    logits: Tensor  # (n,) or (n, K)
    n_classes: int
    shape: tuple[int, ...] | None  # of a row, as the network takes it
    loss: BatchLoss


def read_taught(student: Any, X: Any, teacher_logits: Any) -> Taught:
    """Return what a `TorchStudent` learns at ρ = 1; see `teacher_logits_on`."""
    array = _checked(X)
    n_rows, shape = len(array), require_input_shape(student.input_shape, array.shape[1])
    z_t, n_classes = teacher_logits_on(student, X, n_rows, teacher_logits)
    loss = BatchLoss(n_classes, {**student._given_recipe(None), "soft_ratio": 1.0})
    rows = to_tensor(array, dtype=precision_of(array), device=resolve_device(student.device))
    return Taught(student.module, rows, z_t, n_classes, shape, loss)


def train_on_teacher(taught: Taught, schedule: Schedule, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a network trained on the soft labels alone, and the rows as it takes them."""
    network = started_network(taught.module, taught.rows, taught.n_classes, taught.shape, seed)
    schedule.require_optimizer(network)
    inputs, n_rows = as_inputs(taught.rows, network, taught.shape), len(taught.rows)
    labels = torch.full((n_rows,), NO_LABEL, device="cpu")
    data = RowsToLearn(inputs, taught.logits, labels, torch.ones(n_rows, device="cpu"))
    if train(network, taught.loss, schedule, data, seed=seed).interrupted:
        raise KeyboardInterrupt  # a network of fewer epochs is another one
    return network, inputs


def _checked(X: Any) -> Any:
    """Return rows as an array of numbers, as a fit would take them."""
    X = rows_of_student(X)
    require_rows(X)
    X = plain(X)
    xp, _ = get_namespace(X)
    with naming_columns(X, "encode or impute them first, in a pipeline"):
        dtypes = [xp.float64, xp.float32]
        return check_array(X, dtype=dtypes, ensure_min_samples=2, input_name="X")
