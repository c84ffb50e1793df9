"""A torch module at its current weights: rows in, one row of outputs each.

Symbols, with n rows and K outputs:

========  ===========  ===============================================
f(x)      outputs      (n, K) what the module returns
z₀(x)     `logits`     (n,) or (n, K) the same in the library's gauge
========  ===========  ===============================================
"""

from __future__ import annotations

import copy
import math
import threading

import torch
from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def require_evaluable(module: nn.Module) -> None:
    """Raise unless the outputs of ``module`` are functions of one row each, and of its weights.

    Raises
    ------
    ValueError
        If a layer whose outputs are random or depend on the batch in training mode is in that mode,
        if a batch normalisation has no running statistics, if no parameter is trainable, or if the
        derivative of a parameter would not be real.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            "module: TorchScript hides its layers and parameters; give the module it was made from."
        )
    for path, part in module.named_modules():
        name = f"{path or 'the module itself'} ({type(part).__name__})"
        if part.training and _differs_in_training(part):
            raise ValueError(
                f"module: {name} is in training mode, where its outputs are random or depend on "
                "the other rows of a batch. Call module.eval() first."
            )
        if isinstance(part, _BATCH_NORMS) and part.running_mean is None:
            raise ValueError(
                f"module: {name} has no running statistics, so that the outputs for a row depend "
                "on the other rows of its batch. Use track_running_stats=True, or another "
                "normalisation."
            )
        if getattr(part, "scale_grad_by_freq", False):
            raise ValueError(
                f"module: {name} scales gradients by the frequency of tokens, so that they are no "
                "derivatives. Use scale_grad_by_freq=False."
            )
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"module: parameter {name} has no shape yet; run the module once on a batch."
            )
        if parameter.is_complex():
            raise ValueError(
                f"module: parameter {name} is complex, but the kernel is that of real parameters. "
                "Keep its real and imaginary parts as two parameters."
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            "module: no parameter has requires_grad=True, so its tangent kernel is zero."
        )


def _differs_in_training(part: nn.Module) -> bool:
    if isinstance(part, _DROPOUTS):
        return part.p > 0
    if isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):
        return part.dropout > 0
    if isinstance(part, _INSTANCE_NORMS):
        return part.track_running_stats
    return isinstance(part, (*_BATCH_NORMS, nn.RReLU))


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of ``module``, or raise an error that says why it cannot be copied."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"module cannot be copied by copy.deepcopy ({error}). Attributes must be parameters, "
            "buffers, modules or plain values; torch.nn.utils.weight_norm and its like keep "
            "computed tensors, torch.nn.utils.parametrizations.weight_norm does not."
        ) from error


class Network:
    """A copy of a module, in evaluation mode, on one device and in one dtype.

    Parameters
    ----------
    module : nn.Module
        Takes a batch of inputs, and returns a tensor of shape (n, K) or (n,).
    input_shape : tuple of ints or None
        Shape of one input; a row of that many numbers is reshaped to it.
    device : torch.device
    dtype : torch.dtype

    Attributes
    ----------
    module : nn.Module
        The copy. `torch.func` exchanges its parameters while it works: hold ``lock`` to call it.
    parameters : dict of str to Parameter
        The trainable parameters of the copy.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.module = copied(module).to(device=device, dtype=dtype).eval()
        for part in self.module.modules():
            part._backward_hooks.clear()  # what a hook returns is no derivative
            part._backward_pre_hooks.clear()
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
                part.sparse = False
            if isinstance(part, nn.RNNBase):
                # cuDNN keeps what a gradient needs in training mode only, where dropout, the one
                # thing that the mode changes, has to be off.
                part.dropout = 0.0
                part.train()
        for parameter in self.module.parameters():
            parameter.grad = None
        self.lock = threading.Lock()
        self.input_shape = input_shape
        self.parameters = {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }
        self._tokens = first_embedding(self.module)

    def inputs(self, X: Tensor) -> Tensor:
        """Return rows (n, d) as a batch for the module: reshaped, token ids as integers."""
        if self._tokens is not None:
            X = as_token_ids(X, self._tokens.num_embeddings)
        if self.input_shape is None:
            return X
        if math.prod(self.input_shape) != X.shape[1]:
            raise ValueError(
                f"input_shape={self.input_shape} takes {math.prod(self.input_shape)} features, but "
                f"X has {X.shape[1]}."
            )
        return X.reshape(-1, *self.input_shape)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the module's outputs on a batch, shape (n, K).

        Raises
        ------
        TypeError
            If the module does not return a tensor.
        ValueError
            If the tensor is not of shape (n, K) or (n,), not real, or not finite.
        """
        try:
            with self.lock:
                outputs = self.module(inputs.clone())  # it may work in place
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # what torch's layers raise
            raise ValueError(
                f"module failed on rows of {math.prod(inputs.shape[1:])} features, given as a "
                f"batch of shape {tuple(inputs.shape)} and dtype {inputs.dtype}: {error}. If it "
                "takes other inputs, set input_shape, such as EmpiricalNTK(module, "
                "input_shape=(1, 28, 28)), or dtype."
            ) from error
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"module returned a {type(outputs).__name__}; it must return one tensor of logits. "
                "Wrap it in a module that does."
            )
        if outputs.ndim == 1:
            outputs = outputs[:, None]
        if outputs.ndim != 2 or len(outputs) != len(inputs) or not outputs.shape[1]:
            raise ValueError(
                f"module returned a tensor of shape {tuple(outputs.shape)} for {len(inputs)} rows; "
                "it must be of shape (n, K) or (n,). Wrap it in a module that reduces it, there "
                "with squeeze(-1) rather than squeeze(), which drops a single row too."
            )
        if not outputs.is_floating_point():
            raise ValueError(
                f"module returned a tensor of dtype {outputs.dtype}; it must return real logits."
            )
        bad = torch.nonzero(~outputs.detach().isfinite().all(dim=1)).ravel()
        if len(bad):
            raise ValueError(
                f"module: the outputs of {len(bad)} rows are not finite in {outputs.dtype}; one of "
                f"these rows begins with {inputs[bad[0]].ravel()[:3].tolist()}. Remove rows with "
                "NaN or infinity, and rescale large values."
            )
        return outputs

    def is_random(self, inputs: Tensor) -> bool:
        """Whether a forward pass draws random numbers.

        Dropout of a low rate may leave the outputs for a few rows unchanged, but it always draws.
        The state of torch's global generators is restored.
        """
        devices = [inputs.device] if inputs.device.type == "cuda" else []

        def draws() -> bool:
            with torch.random.fork_rng(devices):
                before = _random_states(inputs.device)
                with torch.no_grad():
                    self(inputs)
                after = _random_states(inputs.device)
            return not all(map(torch.equal, before, after))

        # other threads may draw at the same time, but not at every attempt
        return all(draws() for _ in range(3))


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def first_embedding(module: nn.Module) -> nn.Embedding | nn.EmbeddingBag | None:
    """Return the first layer of ``module``, in the order of registration, if it is an embedding."""
    layers = (part for part in module.modules() if next(part.children(), None) is None)
    first = next(layers)
    return first if isinstance(first, (nn.Embedding, nn.EmbeddingBag)) else None


def as_token_ids(X: Tensor, n_tokens: int) -> Tensor:
    """Return ``X`` as integers from 0 to ``n_tokens`` − 1, or raise, naming a bad entry."""
    wrong = ~((X >= 0) & (n_tokens > X) & (X.round() == X))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"X[{row}, {column}]={X[row, column].item():g} is not a token id: the module begins "
            f"with an embedding of {n_tokens} tokens, so X must hold integers from 0 to "
            f"{n_tokens - 1}."
        )
    return X.long()
