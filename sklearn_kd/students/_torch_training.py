"""Training a network on Eq. 2: batches of rows, the loss of a batch, and skorch's loop.

Symbols, with n rows of positive weight and K classes (no K axis for two):

====  ===========  =============
z_t   ``logits``   (n,) or (n, K)
y     ``labels``   (n,), class indices, -1 for a row without a label
w     ``weights``  (n,), with mean 1
====  ===========  =============
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sklearn_kd._modules import tensors_of
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import fit_in_search
from sklearn_kd._warnings import is_called_by
from sklearn_kd.distillation._loss import DistillationLoss
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.students._torch_network import as_inputs, as_logits, seeded
from sklearn_kd.teachers._cross_fitting import fit_teacher

PATIENCE = 10  # epochs without a lower loss on the held-out rows, after which training stops


def skorch_module() -> Any:
    """Return skorch, which is optional.

    Raises
    ------
    ImportError
        With the line that installs it.
    """
    try:
        import skorch
        import skorch.callbacks
        import skorch.helper
    except ImportError as error:
        raise ImportError(
            "TorchStudent trains with skorch, which is not installed: "
            "pip install 'sklearn_kd[networks]', or pip install 'skorch>=1.4'."
        ) from error
    return skorch


class RowsToLearn(Dataset):
    """Rows with what they teach; a batch is taken at once."""

    def __init__(self, inputs: Tensor, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        if not inputs.is_floating_point():  # token ids
            dtype = torch.float32
        self.inputs = inputs
        # Rows of weight 0 are not among them, and the mean loss is Σ w l / Σ w.
        weights = weights / weights.mean()
        self.targets = (
            logits.to(inputs.device, dtype),
            labels.to(inputs.device),
            weights.to(inputs.device, dtype),
        )

    @classmethod
    def of(
        cls,
        rows: TrainingRows,
        part: Tensor,
        logits: Tensor,
        network: nn.Module,
        input_shape: tuple[int, ...] | None,
    ) -> Self:
        """Return the rows of the numbers ``part``, for ``network``; logits (n, ...) are of all."""
        inputs = as_inputs(rows.X[part.to(rows.X.device)], network, input_shape)
        weights = rows.weights.cpu()[part]
        return cls(inputs, logits[part], torch.from_numpy(rows.labels)[part], weights)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], tuple(target[index] for target in self.targets)

    def __getitems__(self, indices: list[int]) -> Any:
        rows = torch.as_tensor(indices, device=self.inputs.device)
        return self.inputs[rows], tuple(target[rows] for target in self.targets)


def _as_it_is(batch: Any) -> Any:
    return batch


class Diverged(ArithmeticError):
    """The training loss is not finite."""


class BatchLoss(nn.Module):
    """The weighted mean of Eq. 2 over the rows of a batch."""

    def __init__(self, n_classes: int, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.of_rows = DistillationLoss(
            recipe["soft_ratio"],
            recipe["temperature"],
            temperature_scaling=recipe["temperature_scaling"],
            reduction="none",
            ignore_index=NO_LABEL,
        )

    def forward(self, outputs: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return (1/m) Σ w l of the batch, for weights w with mean 1 over all rows."""
        logits, labels, weights = targets
        losses = self.of_rows(as_logits(outputs, self.n_classes), logits, labels)
        loss = (losses * weights).mean()
        if self.training and not loss.isfinite():
            raise Diverged
        return loss


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: parameters of the student."""

    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    optimizer_params: dict[str, Any]
    max_epochs: int
    batch_size: int | None
    callbacks: Any = None

    @classmethod
    def of(cls, student: Any) -> Self:
        """Return that of a `TorchStudent`.

        Raises
        ------
        ValueError
            If ``optimizer`` names none, or ``optimizer_params`` holds the learning rate.
        TypeError
            If one of ``callbacks`` is none of skorch's.
        """
        _require_callbacks(student.callbacks)
        options = dict(student.optimizer_params or {})
        if "lr" in options:
            raise ValueError(
                f"optimizer_params={options!r} holds lr; the learning rate is the parameter lr."
            )
        return cls(
            optimizer_of(student.optimizer),
            float(student.lr),
            options,
            student.max_epochs,
            student.batch_size,
            student.callbacks,
        )

    def for_epochs(self, n_epochs: int) -> Self:
        """Return the same without callbacks, for another number of epochs."""
        return replace(self, max_epochs=n_epochs, callbacks=None)

    def rows_of_a_batch(self, n_rows: int) -> int:
        """Return how many rows a step sees."""
        return n_rows if self.batch_size is None else min(self.batch_size, n_rows)

    def require_optimizer(self, network: nn.Module) -> None:
        """Raise `ValueError` where the optimizer does not take its options."""
        options = {k: v for k, v in self.optimizer_params.items() if k != "param_groups"}
        try:
            self.optimizer(network.parameters(), lr=self.lr, **options)
        except (TypeError, ValueError) as error:
            name = getattr(self.optimizer, "__name__", repr(self.optimizer))
            raise ValueError(
                f"optimizer={name} does not take lr={self.lr:g} and optimizer_params={options!r}: "
                f"{error}."
            ) from error


def optimizer_of(optimizer: Any) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimizer that a class, a function or a name of `torch.optim` stands for.

    Raises
    ------
    ValueError
        If `torch.optim` has none of that name.
    """
    if not isinstance(optimizer, str):
        return optimizer
    found = getattr(torch.optim, optimizer, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(
            f"optimizer={optimizer!r} is none of torch.optim; use a name such as 'SGD' or 'Adam', "
            "or a class."
        )
    return found


class Trained(NamedTuple):
    """What training leaves beside the network's weights."""

    history: Any  # of skorch
    n_epochs: int  # that were completed
    interrupted: bool  # by Ctrl-C


def train(
    network: nn.Module,
    loss: BatchLoss,
    schedule: Schedule,
    rows: RowsToLearn,
    held_out: RowsToLearn | None = None,
    *,
    seed: int,
    progress: FitTask | None = None,
) -> Trained:
    """Train ``network`` on ``rows``, in place, and put it into evaluation mode.

    It stops early when the loss on the rows ``held_out`` no longer falls, at the weights that were
    best there. A Ctrl-C ends training, unless this is one of the fits of a search or of a
    cross-fitting, which it ends instead.

    Raises
    ------
    ValueError
        If the loss, or a weight at the end, is not finite.
    """
    with seeded(seed, rows.inputs.device):
        net = _skorch_net(network, loss, schedule, rows, held_out, seed)
        net.initialize()
        trained = _epochs(net, schedule, rows, progress)
        network.eval()
        for parameter in network.parameters():
            parameter.grad = None
    if not all(tensor.isfinite().all() for tensor in tensors_of(network)):
        raise ValueError(_diverged(schedule, trained.n_epochs))
    return trained


def _epochs(net: Any, schedule: Schedule, rows: RowsToLearn, progress: FitTask | None) -> Trained:
    """Run the epochs of skorch's loop, each a step of ``progress``."""
    net.notify("on_train_begin", X=rows, y=None)
    try:
        for _ in range(schedule.max_epochs):
            if progress is None:
                net.fit_loop(rows, epochs=1)
                continue
            with progress.step("epoch"):
                net.fit_loop(rows, epochs=1)
    except KeyboardInterrupt:  # by the user, or by a callback that ends training
        pass
    except Diverged as error:
        raise ValueError(_diverged(schedule, len(net.history))) from error
    history = net.history
    # A callback stops between epochs, after the loss of the last one was recorded.
    interrupted = not history or "train_loss" not in history[-1]
    if interrupted and (is_called_by(fit_in_search) or is_called_by(fit_teacher)):
        raise KeyboardInterrupt  # ends what this is one of many fits of
    if history:
        net.notify("on_train_end", X=rows, y=None)
        if interrupted:
            del history[-1]
    return Trained(history, len(history), interrupted)


def _diverged(schedule: Schedule, epoch: int) -> str:
    return (
        f"The training loss is not finite in epoch {epoch}: lr={schedule.lr:g} is too large for "
        "this optimizer, module and batch_size. Use a smaller lr, or scale the rows, such as by "
        "StandardScaler."
    )


def _skorch_net(
    network: nn.Module,
    loss: BatchLoss,
    schedule: Schedule,
    rows: RowsToLearn,
    held_out: RowsToLearn | None,
    seed: int,
) -> Any:
    """Return skorch's network, to be initialized; it prints nothing of its own."""
    skorch = skorch_module()
    batch_size = schedule.rows_of_a_batch(len(rows))
    callbacks = list(schedule.callbacks or [])
    if held_out is not None and not _stops_early(callbacks):
        stops_early = skorch.callbacks.EarlyStopping(
            patience=PATIENCE, threshold=0, load_best=True, sink=skorch.utils.noop
        )
        callbacks.append(stops_early)
    return skorch.NeuralNet(
        network,
        loss,
        optimizer=schedule.optimizer,
        lr=schedule.lr,
        max_epochs=schedule.max_epochs,
        batch_size=batch_size,
        iterator_train__shuffle=batch_size < len(rows),
        iterator_train__generator=torch.Generator().manual_seed(seed),
        iterator_train__collate_fn=_as_it_is,
        # Batch statistics of one row do not exist; another row is left out in each epoch.
        iterator_train__drop_last=_has_batch_norm(network) and len(rows) % batch_size == 1,
        iterator_valid__collate_fn=_as_it_is,
        train_split=None if held_out is None else skorch.helper.predefined_split(held_out),
        callbacks=callbacks,
        callbacks__print_log=None,
        device=str(rows.inputs.device),
        **{f"optimizer__{name}": value for name, value in schedule.optimizer_params.items()},
    )


def _require_callbacks(callbacks: Any) -> None:
    if not callbacks:
        return
    base = skorch_module().callbacks.Callback
    for index, kind in enumerate(_callback_types(list(callbacks))):
        if not issubclass(kind, base):
            raise TypeError(
                f"callbacks[{index}]={callbacks[index]!r} is no callback of skorch; those of "
                "sklearn.callback go to set_callbacks."
            )


def _callback_types(callbacks: list[Any]) -> list[type]:
    """Return the classes of skorch callbacks, which may be named and may be classes."""
    bare = [one[1] if isinstance(one, tuple) else one for one in callbacks]
    return [one if isinstance(one, type) else type(one) for one in bare]


def _stops_early(callbacks: list[Any]) -> bool:
    early = skorch_module().callbacks.EarlyStopping
    return any(issubclass(one, early) for one in _callback_types(callbacks))


def without_early_stopping(callbacks: Any) -> list[Any] | None:
    """Return the callbacks that do not watch rows which are held out."""
    if not callbacks:
        return None
    watching = (skorch_module().callbacks.EarlyStopping, skorch_module().callbacks.Checkpoint)
    kinds = _callback_types(list(callbacks))
    return [
        one for one, kind in zip(callbacks, kinds, strict=True) if not issubclass(kind, watching)
    ]


def changes_the_learning_rate(callbacks: Any) -> bool:
    """Whether a callback of skorch among them schedules the learning rate."""
    if not callbacks:
        return False
    scheduler = skorch_module().callbacks.LRScheduler
    return any(issubclass(one, scheduler) for one in _callback_types(list(callbacks)))


def batch_norms_of(network: nn.Module) -> list[Any]:
    """Return the layers of batch normalisation."""
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _has_batch_norm(network: nn.Module) -> bool:
    return bool(batch_norms_of(network))


def parts_of(
    rows: TrainingRows, validation_fraction: float | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows to train on, and of those held out, all of positive weight.

    Raises
    ------
    ValueError
        If no row is left to train on.
    """
    kept = torch.arange(len(rows.labels), device="cpu")
    if rows.sample_weight is not None:
        kept = kept[torch.from_numpy(rows.sample_weight) > 0]
    n = n_held_out(validation_fraction, len(kept))
    if n == 0:
        return kept, kept[:0]
    order = torch.randperm(
        len(kept), generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    )
    return kept[order[n:].sort().values], kept[order[:n].sort().values]


def n_held_out(validation_fraction: float | None, n_rows: int) -> int:
    """Return how many of the rows are held out from training.

    Raises
    ------
    ValueError
        If no row is left to train on.
    """
    if validation_fraction is None:
        return 0
    n = math.ceil(validation_fraction * n_rows)
    if n >= n_rows:
        raise ValueError(
            f"validation_fraction={validation_fraction} holds all {n_rows} rows out; use a "
            "smaller one."
        )
    return n
