"""The network before training: its logits z₀, from which the student moves (Eq. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_kd._logits import canonical_logits
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.rows._streams import RowStream


def start_of(init: str, function: KernelFunction) -> str:
    """Return "zero" or "network": what ``init`` stands for beside a kernel."""
    if init != "auto":
        return init
    has_network = type(function).outputs is not KernelFunction.outputs
    return "network" if has_network else "zero"


def initial_logits(
    init: str,
    kernel: Any,
    function: KernelFunction,
    X: Tensor | RowStream,
    n_classes: int,
    like: Tensor | None = None,
) -> Tensor:
    """Return z₀ of the rows ``X``, (n,) or (n, K): zero, or the outputs of the kernel's network.

    ``function`` is ``kernel`` on tensors. The logits have the dtype and the device of ``like``, or
    those of ``X``; a stream of rows has none.

    Raises
    ------
    ValueError
        If ``init="network"`` and there is no network behind the kernel, or the number of its
        outputs is not that of the classes.
    """
    if like is None:
        assert isinstance(X, Tensor)
        like = X
    init = start_of(init, function)
    if init == "zero":
        return like.new_zeros((len(X),) if n_classes == 2 else (len(X), n_classes))
    if isinstance(X, RowStream):
        blocks = X.blocks(dtype=like.dtype, device=like.device)
        parts = [initial_logits(init, kernel, function, block, n_classes) for _, block in blocks]
        return torch.cat(parts)
    outputs = function.outputs(X)
    if outputs is None:
        raise ValueError(
            "init='network' starts from the outputs of the network behind the kernel and needs "
            f"kernel=EmpiricalNTK(module), not kernel={kernel!r}; use init='zero'."
        )
    name = f"The output of the network behind kernel={type(kernel).__name__}"
    return canonical_logits(outputs, len(X), n_classes, name=name).to(X)
