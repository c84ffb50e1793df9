"""Moving torch modules between devices."""

from __future__ import annotations

import copy

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
