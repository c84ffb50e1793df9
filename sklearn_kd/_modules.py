"""Torch modules: moving them between devices, and running them on batches of rows."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Return ``module`` if all of it is on ``device``, else a copy of it there.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd._modules import on_device
    >>> module = torch.nn.Linear(2, 1)
    >>> on_device(module, torch.device("cpu")) is module
    True
    """
    if all(tensor.device == device for tensor in tensors_of(module)):
        return module
    return copy.deepcopy(module).to(device)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of ``module``."""
    return [*module.parameters(), *module.buffers()]


def require_input_shape(input_shape: Any, n_features: int) -> tuple[int, ...] | None:
    """Return the shape of a row as a tuple.

    Raises
    ------
    ValueError
        If it does not hold as many numbers as a row.
    """
    if input_shape is None:
        return None
    shape = tuple(input_shape)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"X has {n_features} features, but input_shape={shape} needs {math.prod(shape)}."
        )
    return shape


@contextlib.contextmanager
def naming_batch(module: nn.Module, batch: Tensor, *, owner: str, check: str) -> Iterator[None]:
    """Say of an error of ``module`` on a batch what it was given, and what its user may change.

    Raises
    ------
    ValueError
        In place of a RuntimeError; ``check`` names what to look at.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(f"{owner}: use a smaller batch_size than {len(batch)}.")
        raise
    except RuntimeError as error:
        raise ValueError(
            f"module={type(module).__name__} failed on a batch of {len(batch)} rows of shape "
            f"{tuple(batch.shape[1:])}: {error}. Check {check}."
        ) from error
