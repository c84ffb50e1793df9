"""Rules for torch functions that are linear in their parameters.

A rule says how the input and the output's gradient of one call become the factors of `_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Rule(NamedTuple):
    """What a function does with its parameters; see `Call`."""

    kind: str
    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    left: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor]


def _rows_of_vectors(values: Tensor) -> Tensor:
    """Return (n, ..., i) as (n, S, i)."""
    return values.flatten(1, -2) if values.ndim > 2 else values[:, None]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule | None:
    if input.ndim < 2 or weight.ndim != 2:
        return None
    return Rule("linear", input, weight, bias, _rows_of_vectors, _rows_of_vectors)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Rule | None:
    n_dims = weight.ndim - 2
    if input.ndim != n_dims + 2:
        return None  # a single image, without the dimension of the rows
    kernel = tuple(weight.shape[2:])
    strides, dilations = _per_dimension(stride, n_dims), _per_dimension(dilation, n_dims)
    spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if padding == "valid":
        padding = 0
    if padding == "same":
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        sides = [(p, p) for p in _per_dimension(padding, n_dims)]
    # F.pad counts dimensions from the last; one-dimensional images become one row high.
    pads = [side for pair in reversed(sides) for side in pair]
    one = (1,) * (2 - n_dims)
    kernel, strides, dilations = one + kernel, one + strides, one + dilations

    def patches(images: Tensor) -> Tensor:
        images = F.pad(images, pads)
        if n_dims == 1:
            images = images[:, :, None]
        columns = F.unfold(images, kernel, dilation=dilations, stride=strides)
        return _split_groups(columns, groups)

    def positions(gradient: Tensor) -> Tensor:
        return _split_groups(gradient.flatten(2), groups)

    kind = "linear" if groups == 1 else "grouped"
    return Rule(kind, input, weight, bias, patches, positions)


def _per_dimension(value: Any, n_dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n_dims if len(values) == 1 else values


def _split_groups(columns: Tensor, groups: int) -> Tensor:
    """Return (n, groups · c, S) as (n, S, c), or (n, groups, S, c) of several groups."""
    if groups == 1:
        return columns.mT
    return columns.unflatten(1, (groups, -1)).mT


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Rule | None:
    if max_norm is not None or scale_grad_by_freq or input.ndim < 1:
        return None
    ids = input.flatten(1) if input.ndim > 1 else input[:, None]

    def right(gradient: Tensor) -> Tensor:
        gradient = _rows_of_vectors(gradient)
        if padding_idx is None:
            return gradient
        padding = padding_idx % len(weight)
        return gradient.masked_fill((ids == padding)[:, :, None], 0)

    return Rule("embedding", input, weight, None, lambda _: ids[:, :, None], right)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Rule | None:
    if input.ndim <= len(normalized_shape):
        return None

    def positions(values: Tensor) -> Tensor:
        return _rows_of_vectors(values.flatten(-len(normalized_shape)))

    def normalised(values: Tensor) -> Tensor:
        return positions(F.layer_norm(values, normalized_shape, eps=eps))

    return Rule("norm", input, weight, bias, normalised, positions)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Rule | None:
    if input.ndim <= len(normalized_shape):
        return None

    def positions(values: Tensor) -> Tensor:
        return _rows_of_vectors(values.flatten(-len(normalized_shape)))

    def normalised(values: Tensor) -> Tensor:
        return positions(F.rms_norm(values, normalized_shape, eps=eps))

    return Rule("norm", input, weight, None, normalised, positions)


def _positions_of_channels(values: Tensor) -> Tensor:
    """Return (n, C, ...) as (n, S, C)."""
    return values.flatten(2).mT if values.ndim > 2 else values[:, None]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Rule | None:
    if training:
        return None

    def normalised(values: Tensor) -> Tensor:
        return _positions_of_channels(F.batch_norm(values, running_mean, running_var, eps=eps))

    return Rule("norm", input, weight, bias, normalised, _positions_of_channels)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Rule | None:
    def normalised(values: Tensor) -> Tensor:
        return _positions_of_channels(F.group_norm(values, num_groups, eps=eps))

    return Rule("norm", input, weight, bias, normalised, _positions_of_channels)


def _prelu(input: Tensor, weight: Tensor) -> Rule | None:
    if input.ndim < 2:
        return None

    def positions(values: Tensor) -> Tensor:
        if weight.numel() > 1:
            return _positions_of_channels(values)
        return values.flatten(1)[:, :, None]  # all channels share the slope

    def negative_parts(values: Tensor) -> Tensor:
        return positions(values.clamp(max=0))

    return Rule("norm", input, weight, None, negative_parts, positions)


RULES: dict[Callable, Callable[..., Rule | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.prelu: _prelu,
}
