"""The network that a `TorchStudent` trains: built or copied, tried on two rows, and evaluated."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from sklearn_kd._array import to_tensor
from sklearn_kd._logits import centred, n_logits
from sklearn_kd._modules import naming_batch
from sklearn_kd.kernels.empirical._network import as_token_ids, first_embedding
from sklearn_kd.teachers._torch_teacher import in_eval_mode, parameter_dtype, require_outputs

# Last layers whose outputs are no logits of a student, which may be of any sign and size.
_SQUASHING = (nn.Sigmoid, nn.Softmax, nn.Softmin)


def seeds_of(random_state: Any, n_seeds: int) -> list[int]:
    """Return seeds that follow from ``random_state``; None draws them without a global state."""
    if random_state is None:
        return np.random.default_rng().integers(2**31, size=n_seeds).tolist()
    return check_random_state(random_state).randint(2**31, size=n_seeds).tolist()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave torch's own state, and its modes, as they were."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu"),  # a default device is for the tensors of its user
    ):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def network_of(
    module: nn.Module | Callable[..., nn.Module], n_features: int, n_classes: int, seed: int
) -> nn.Module:
    """Return a copy of a module, or of what a function returns that builds one.

    Raises
    ------
    TypeError
        If the function needs arguments that nobody knows, or returns no module.
    """
    if isinstance(module, nn.Module):
        return _copied(module)
    known = {
        "n_features": n_features,
        "n_classes": n_classes,
        "generator": torch.Generator().manual_seed(seed),
    }
    needed = _needed_by(module)
    unknown = [name for name in needed if name not in known]
    if unknown:
        raise TypeError(
            f"module={_name(module)} needs the argument {unknown[0]!r}, but is called with "
            f"{', '.join(known)} alone, where it has these; bind the others, as by "
            f"functools.partial({_name(module)}, {unknown[0]}=...)."
        )
    network = module(**{name: known[name] for name in needed})
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"module={_name(module)} returned a {type(network).__name__}, but a torch.nn.Module "
            "is needed."
        )
    return _copied(network)


def _needed_by(function: Callable[..., Any]) -> list[str]:
    """Return the parameters of a function that have no default."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variable
    ]


def _name(module: Any) -> str:
    return getattr(module, "__name__", type(module).__name__)


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy, without gradients that an earlier loop has left."""
    try:
        network = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"module={type(module).__name__} cannot be copied by copy.deepcopy ({error}). Its "
            "attributes must be parameters, buffers, modules or plain values."
        ) from error
    for parameter in network.parameters():
        parameter.grad = None
    return network


def started_network(
    module: nn.Module | Callable[..., nn.Module],
    X: Tensor,
    n_classes: int,
    input_shape: tuple[int, ...] | None,
    seed: int,
) -> nn.Module:
    """Return the network that is to be trained on rows ``X`` (n, d), where they are; tried on two.

    Raises
    ------
    ValueError, TypeError
        If it cannot be built, or cannot learn these rows and classes.
    """
    with seeded(seed, X.device):
        network = network_of(module, X.shape[1], n_classes, seed).to(X.device)
        require_student(network, as_inputs(X[:2], network, input_shape), n_classes)
    return network


def as_inputs(X: Tensor, network: nn.Module, input_shape: tuple[int, ...] | None) -> Tensor:
    """Return rows (n, d) as the network takes them: its dtype and shape, token ids as integers."""
    tokens = first_embedding(network)
    X = X.to(parameter_dtype(network)) if tokens is None else as_token_ids(X, tokens.num_embeddings)
    return X if input_shape is None else X.reshape(len(X), *input_shape)


def require_student(network: nn.Module, inputs: Tensor, n_classes: int) -> None:
    """Raise unless the network maps a batch to logits of ``n_classes``, and can be trained.

    A forward pass in evaluation mode, which gives lazy layers their shapes.

    Raises
    ------
    ValueError
        If it fails on the rows, or has another number of outputs, or outputs that are no logits.
    """
    name = type(network).__name__
    network.eval()
    with torch.no_grad():
        outputs = _forward(network, inputs.clone())
    require_outputs(network, outputs, len(inputs))
    n_outputs = 1 if outputs.ndim == 1 else outputs.shape[1]
    if n_outputs != n_classes and (n_outputs, n_classes) != (1, 2):
        needed = "1 or 2" if n_classes == 2 else str(n_classes)
        raise ValueError(
            f"module={name} has {n_outputs} output{'s' * (n_outputs > 1)} per row, but "
            f"{n_classes} classes need {needed}, in the order of the sorted classes. Change its "
            "last layer."
        )
    if not outputs.isfinite().all():
        raise ValueError(
            f"module={name} returned NaN or infinity on the first rows: "
            f"{outputs[0].tolist()}. Check that its weights are finite and the rows are scaled, "
            "such as by StandardScaler."
        )
    last = list(network.modules())[-1]
    if isinstance(last, _SQUASHING) and ((outputs >= 0) & (outputs <= 1)).all():
        raise ValueError(
            f"module={name} ends in a {type(last).__name__} and returns probabilities, but logits "
            "are needed: leave out that layer."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"module={name} has no parameter with requires_grad=True, so that there is nothing to "
            "train."
        )


def _forward(network: nn.Module, inputs: Tensor) -> Any:
    check = "the number of features and input_shape"
    with naming_batch(network, inputs, owner="TorchStudent", check=check):
        return network(inputs)


def as_logits(outputs: Tensor, n_classes: int) -> Tensor:
    """Return outputs (n,) or (n, K) as what the loss takes: (n,) log-odds of two classes.

    Two outputs are a softmax of two classes, and their difference is its log-odds.
    """
    if n_classes > 2 or outputs.ndim == 1:
        return outputs
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


def logits_of_network(
    network: nn.Module,
    X: Any,
    n_classes: int,
    *,
    input_shape: tuple[int, ...] | None,
    batch_size: int,
) -> Tensor:
    """Return the network's logits of rows (m, d), (m,) or (m, K) with sum zero, in float64.

    It is evaluated where it is, in evaluation mode and in its own precision.
    """
    network = in_eval_mode(network)
    where = next(network.parameters()).device
    wide = torch.promote_types(parameter_dtype(network), torch.float32)  # half rounds token ids
    blocks = []
    for start in range(0, X.shape[0], batch_size):
        rows = to_tensor(X[start : start + batch_size], dtype=wide, device=where)
        with torch.inference_mode():
            inputs = as_inputs(rows, network, input_shape).clone()  # a module may work in place
            outputs = _forward(network, inputs)
        # A copy, made outside of inference mode: an ordinary tensor.
        blocks.append(as_logits(outputs, n_classes).to("cpu", torch.float64, copy=True))
    if not blocks:
        shape = (0, n_classes) if n_logits(n_classes) > 1 else (0,)
        return torch.empty(shape, dtype=torch.float64, device="cpu")
    return centred(torch.cat(blocks))
