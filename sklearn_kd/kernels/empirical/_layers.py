"""The layers that a forward pass calls, and per-row gradients from their inputs and outputs.

The gradient of an output f_k(x) with respect to the weight of a linear layer is the outer product
of the layer's input A and the gradient G of f_k with respect to the layer's output, summed over
the positions s at which the layer is used (Eq. 2 of Goodfellow 2015, arXiv 1510.01799, for S = 1):

    ∂f_k/∂W = Σ_s G_s A_sᵀ,    ∂f_k/∂b = Σ_s G_s.

Convolutions are linear in the patches of their input, embeddings in one-hot inputs, and
normalisations scale and shift normalised inputs. A layer that is called several times, or a weight
that several layers share, only has more positions, so both are exact; and so does a layer whose
batch holds several entries for each row, such as the tokens of all rows one after the other. What
is used in any other way is left to `_jacobian`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sklearn_kd.kernels.empirical._features import Dense, Feature, Lookup, Outer, dense


@dataclass(frozen=True)
class Call:
    """One call of a layer: its input, its parameters, and where its output's gradient appears."""

    kind: str  # "linear", "grouped", "embedding" or "norm"
    input: Tensor
    weight: str | None  # names of its trainable parameters
    bias: str | None
    edge: GradientEdge
    output_shape: torch.Size
    version: int  # of the input, which must not be overwritten afterwards
    left: Callable[[Tensor], Tensor]  # (n q, S, i) from the input; grouped: (n q, groups, S, i)
    right: Callable[[Tensor], Tensor]  # (n q, S, o) from the output's gradient; likewise

    @property
    def signature(self) -> tuple:
        """What must be the same in every batch."""
        return self.kind, self.weight, self.bias, self.input.shape[1:]


class LayerCalls(TorchFunctionMode):
    """Records the layers called while it is active, and which parameters have other uses.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The trainable parameters to look for.

    Attributes
    ----------
    calls : list of Call
    loose : set of str
        Parameters used in a way that no rule covers.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.calls: list[Call] = []
        self.loose: set[str] = set()

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``, and take note if it makes use of a parameter."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        used = [self._names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._names]
        if used and any(tensor.requires_grad for tensor in _tensors(output)):
            call = self._call(func, output, args, kwargs) if func in _RULES else None
            roles = [] if call is None else [call.weight, call.bias]
            if call is not None and sorted(used) == sorted(filter(None, roles)):
                self.calls.append(call)
            else:
                self.loose.update(used)
        return output

    def _call(self, func: Callable, output: Tensor, args: Any, kwargs: Any) -> Call | None:
        rule = _RULES[func](*args, **kwargs)
        if rule is None:
            return None
        return Call(
            rule.kind,
            rule.input.detach(),
            self._names.get(id(rule.weight)),
            self._names.get(id(rule.bias)),
            get_gradient_edge(output),
            output.shape,
            rule.input._version,
            rule.left,
            rule.right,
        )

    @property
    def signature(self) -> tuple:
        """What must be the same in every batch for its features to be comparable."""
        return tuple(call.signature for call in self.calls), frozenset(self.loose)

    def overwritten(self) -> bool:
        """Whether an input was changed in place after its layer was called."""
        return any(call.input._version != call.version for call in self.calls)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _tensors(item)


class _Rule(NamedTuple):
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


def _by_row(values: Tensor, n_rows: int) -> Tensor:
    """Return (n q, ..., S, i), with q entries of a batch for each row, as (n, ..., q S, i)."""
    if len(values) == n_rows:
        return values
    return values.unflatten(0, (n_rows, -1)).movedim(1, -3).flatten(-3, -2)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Rule | None:
    if input.ndim < 2 or weight.ndim != 2:
        return None
    return _Rule("linear", input, weight, bias, _rows_of_vectors, _rows_of_vectors)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Rule | None:
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
    return _Rule(kind, input, weight, bias, patches, positions)


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
) -> _Rule | None:
    if max_norm is not None or scale_grad_by_freq or input.ndim < 1:
        return None
    ids = input.flatten(1) if input.ndim > 1 else input[:, None]

    def right(gradient: Tensor) -> Tensor:
        gradient = _rows_of_vectors(gradient)
        if padding_idx is None:
            return gradient
        padding = padding_idx % len(weight)
        return gradient.masked_fill((ids == padding)[:, :, None], 0)

    return _Rule("embedding", input, weight, None, lambda _: ids[:, :, None], right)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Rule | None:
    if input.ndim <= len(normalized_shape):
        return None

    def positions(values: Tensor) -> Tensor:
        return _rows_of_vectors(values.flatten(-len(normalized_shape)))

    def normalised(values: Tensor) -> Tensor:
        return positions(F.layer_norm(values, normalized_shape, eps=eps))

    return _Rule("norm", input, weight, bias, normalised, positions)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> _Rule | None:
    if input.ndim <= len(normalized_shape):
        return None

    def positions(values: Tensor) -> Tensor:
        return _rows_of_vectors(values.flatten(-len(normalized_shape)))

    def normalised(values: Tensor) -> Tensor:
        return positions(F.rms_norm(values, normalized_shape, eps=eps))

    return _Rule("norm", input, weight, None, normalised, positions)


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
) -> _Rule | None:
    if training:
        return None

    def normalised(values: Tensor) -> Tensor:
        return _positions_of_channels(F.batch_norm(values, running_mean, running_var, eps=eps))

    return _Rule("norm", input, weight, bias, normalised, _positions_of_channels)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Rule | None:
    def normalised(values: Tensor) -> Tensor:
        return _positions_of_channels(F.group_norm(values, num_groups, eps=eps))

    return _Rule("norm", input, weight, bias, normalised, _positions_of_channels)


_RULES: dict[Callable, Callable[..., _Rule | None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
}


@dataclass(frozen=True)
class LayerUnit:
    """Parameters whose gradients are computed together, from the calls that use them.

    The part of a layer is its ``"weight"``, its ``"bias"`` or, in one matrix with the bias as the
    last column, ``"both"``.
    """

    names: tuple[str, ...]
    part: str
    indices: tuple[int, ...]  # of the calls
    dense: bool  # whether the gradients themselves are cheaper than their factors

    def as_dense(self) -> list[LayerUnit]:
        """Return the same parameters, each by itself, with the gradients themselves."""
        parts = ("weight", "bias") if self.part == "both" else (self.part,)
        return [
            LayerUnit((name,), part, self.indices, dense=True)
            for name, part in zip(self.names, parts, strict=True)
        ]

    def feature(
        self,
        calls: Sequence[Call],
        gradients: Sequence[Mapping[int, Tensor]],
        n_rows: int,
        full: bool,
    ) -> Feature:
        """Return the feature of a batch.

        Parameters
        ----------
        calls : sequence of Call
        gradients : sequence over outputs of mappings from indices of calls to Tensors
            Gradients of the outputs with respect to the outputs of the calls.
        n_rows : int
            Rows of the batch.
        full : bool
            Whether outputs keep rows of their own.
        """
        mine = [calls[index] for index in self.indices]
        kind = mine[0].kind
        # by output, then by call; a second call of a layer is nothing but more positions
        rights = [
            [_by_row(calls[index].right(found[index]), n_rows) for index in self.indices]
            for found in gradients
        ]
        if self.part == "bias":
            return _dense([_total(right.sum(dim=-2) for right in found) for found in rights], full)
        lefts = [_by_row(call.left(call.input), n_rows) for call in mine]
        if kind == "norm":
            values = [
                _total(
                    torch.linalg.vecdot(*pair, dim=-2) for pair in zip(lefts, found, strict=True)
                )
                for found in rights
            ]
            return _dense(values, full)
        if self.dense:
            values = [
                _total(right.mT @ left for left, right in zip(lefts, found, strict=True))
                for found in rights
            ]
            return _dense(values, full)
        joined = [_joined(found, dim=1) for found in rights]  # K times (n, S, o)
        right = torch.stack(joined, dim=1) if full else _joined(joined, dim=2)[:, None]
        left = _joined(lefts, dim=1)
        if kind == "embedding":
            return Lookup(left.squeeze(-1), right)
        if self.part == "both":
            left = torch.cat([left, left.new_ones(*left.shape[:-1], 1)], dim=-1)
        return Outer(left, right)

    def change(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return a change of these parameters as the matrix that features are applied to."""
        weight = changes[self.names[0]]
        if self.part != "both":
            return weight if weight.ndim < 2 else weight.flatten(1)
        return torch.cat([weight.flatten(1), changes[self.names[1]][:, None]], dim=1)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    # `torch.cat` copies even a single tensor
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _dense(values: Sequence[Tensor], full: bool) -> Dense:
    """Return the gradients (n, ...) of several outputs as a feature."""
    stacked = values[0][:, None] if len(values) == 1 else torch.stack(list(values), dim=1)
    return dense(stacked, full)


def layer_units(
    calls: Sequence[Call], candidates: Iterable[str], by_rows: set[int]
) -> list[LayerUnit]:
    """Return the units for those of the ``candidates`` that the calls cover entirely.

    ``by_rows`` are the indices of the calls whose batches hold the rows in their order.
    """
    uses: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, call in enumerate(calls):
        for name, role in ((call.weight, "weight"), (call.bias, "bias")):
            if name is not None:
                uses[name].append((index, role))
    units, joined = [], set()
    for name in candidates:
        indices = tuple(index for index, _ in uses[name])
        roles = {role for _, role in uses[name]}
        kinds = {calls[index].kind for index in indices}
        if len(kinds) != 1 or len(roles) != 1 or not by_rows.issuperset(indices):
            continue
        (kind,), (part,) = kinds, roles
        names: tuple[str, ...] = (name,)
        if part == "weight" and kind == "linear":
            biases = {calls[index].bias for index in indices}
            (bias,) = biases if len(biases) == 1 else (None,)
            if bias is not None and [index for index, _ in uses[bias]] == list(indices):
                names, part = (name, bias), "both"
                joined.add(bias)
        units.append(LayerUnit(names, part, indices, dense=kind == "grouped"))
    return [unit for unit in units if unit.names[0] not in joined]
