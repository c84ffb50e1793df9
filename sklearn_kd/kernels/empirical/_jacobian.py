"""Per-row gradients of any module with respect to some of its parameters, and their adjoint.

    J_k(x) = ∂f_k(x)/∂θ,    Jᵀ V = Σ_i Σ_k V_ik J_k(x_i).

Nothing is assumed about how the module uses its parameters. So this is exact where `_layers` has
no rule, but slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.overrides import TorchFunctionMode

from sklearn_kd.kernels.empirical._network import Network

# torch's fused attention and transformer layers cannot be mapped over rows. The switches belong to
# the whole process, so overlapping uses in several threads agree on who saves and restores them.
_lock = threading.Lock()
_users = 0
_fused: list[bool] = []


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have attention computed by plain matrix products, for the whole process."""
    global _users
    switches, layers = torch.backends.cuda, torch.backends.mha
    with _lock:
        if _users == 0:
            _fused[:] = [
                switches.flash_sdp_enabled(),
                switches.mem_efficient_sdp_enabled(),
                switches.cudnn_sdp_enabled(),
                layers.get_fastpath_enabled(),
            ]
            _switch_fused(False, False, False, False)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _switch_fused(*_fused)


def _switch_fused(flash: bool, mem_efficient: bool, cudnn: bool, layers: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(mem_efficient)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.mha.set_fastpath_enabled(layers)


class MappablePReLU(TorchFunctionMode):
    """Has PReLU computed by its definition: torch maps its derivative wrongly over several rows."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``, or an equal function that can be mapped."""
        return (_prelu if func is torch.prelu else func)(*args, **(kwargs or {}))


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Return x where x > 0, else a x, with a slope a for each channel or one for all."""
    slopes = weight
    if weight.numel() > 1 and input.ndim > 2:
        slopes = weight.reshape(-1, *[1] * (input.ndim - 2))
    return torch.where(input > 0, input, slopes * input)


def mapped_gradients(
    network: Network, names: Sequence[str], inputs: Tensor, cotangents: Tensor
) -> list[Tensor]:
    """Return ∂(u · f(x_i))/∂θ for all rows and all u, for each parameter (n, k, *shape).

    Parameters
    ----------
    network : Network
    names : sequence of str
        The parameters.
    inputs : Tensor
        A batch for the module.
    cotangents : Tensor of shape (k, K)
        The vectors u.
    """
    detached = {name: parameter.detach() for name, parameter in network.parameters.items()}
    values = {name: detached[name] for name in names}

    def of_one(row: Tensor) -> tuple[Tensor, ...]:
        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            inputs = row[None].clone()  # the module may work in place
            result = functional_call(network.module, detached | parameters, (inputs,))
            return result.reshape(-1)

        pull_back = vjp(outputs, values)[1]
        (gradients,) = vmap(pull_back)(cotangents)
        return tuple(gradients[name] for name in names)

    with network.lock, plain_attention(), MappablePReLU():
        return list(vmap(of_one)(inputs))


def looped_gradients(
    network: Network, names: Sequence[str], inputs: Tensor, cotangents: Tensor
) -> list[Tensor]:
    """Compute `mapped_gradients` row by row, for modules that cannot be mapped."""
    parameters = [network.parameters[name] for name in names]
    results = [
        inputs.new_empty(len(inputs), len(cotangents), *p.shape, dtype=p.dtype) for p in parameters
    ]
    for i, row in enumerate(inputs):
        with torch.enable_grad():
            outputs = network(row[None])[0]
        for k, cotangent in enumerate(cotangents):
            gradients = torch.autograd.grad(
                outputs, parameters, cotangent, retain_graph=True, materialize_grads=True
            )
            for result, gradient in zip(results, gradients, strict=True):
                result[i, k] = gradient
    return results


def adjoint(network: Network, inputs: Tensor, cotangents: Tensor) -> list[Tensor]:
    """Return Jᵀ V for V of shape (n, K): one tensor like each trainable parameter."""
    with torch.enable_grad():
        outputs = network(inputs)
    return list(
        torch.autograd.grad(
            outputs,
            list(network.parameters.values()),
            cotangents,
            allow_unused=True,
            materialize_grads=True,
        )
    )
