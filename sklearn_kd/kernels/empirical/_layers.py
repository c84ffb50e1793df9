"""The layers that a forward pass calls, and per-row gradients from their inputs and outputs.

The gradient of an output f_k(x) with respect to the weight of a linear layer is the outer product
of the layer's input A and the gradient G of f_k with respect to the layer's output, summed over
the positions s at which the layer is used (Eq. 2 of Goodfellow 2015, arXiv 1510.01799, for S = 1):

    ∂f_k/∂W = Σ_s G_s A_sᵀ,    ∂f_k/∂b = Σ_s G_s.

Convolutions are linear in the patches of their input, embeddings in one-hot inputs, normalisations
scale and shift normalised inputs, and a PReLU scales the negative parts of its input. A layer that
is called several times only has more positions, and so has a weight that several layers share.
The same holds for a layer whose batch holds several entries for each row, such as the tokens of
all rows one after the other. All of these are exact. Parameters used in any other way are left to
`_jacobian`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from sklearn_kd.kernels.empirical._features import Dense, Feature, Lookup, Outer, dense
from sklearn_kd.kernels.empirical._rules import RULES


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
        """The properties that must be the same in every batch."""
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
        """Call ``func``, and record whether it uses a parameter."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        used = [self._names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._names]
        if used and any(tensor.requires_grad for tensor in _tensors(output)):
            call = self._call(func, output, args, kwargs) if func in RULES else None
            roles = [] if call is None else [call.weight, call.bias]
            if call is not None and sorted(used) == sorted(filter(None, roles)):
                self.calls.append(call)
            else:
                self.loose.update(used)
        return output

    def _call(self, func: Callable, output: Tensor, args: Any, kwargs: Any) -> Call | None:
        rule = RULES[func](*args, **kwargs)
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
        """The properties that must be the same in every batch for comparable features."""
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


def _by_row(values: Tensor, n_rows: int) -> Tensor:
    """Return (n q, ..., S, i), with q entries of a batch for each row, as (n, ..., q S, i)."""
    if len(values) == n_rows:
        return values
    return values.unflatten(0, (n_rows, -1)).movedim(1, -3).flatten(-3, -2)


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
        # by output, then by call; a second call of a layer only adds positions
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
