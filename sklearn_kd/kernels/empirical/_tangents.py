"""The tangent features of a network: which parameter takes which path, checked on two rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_kd.kernels.empirical._features import Feature, Outer, dense
from sklearn_kd.kernels.empirical._jacobian import looped_gradients, mapped_gradients
from sklearn_kd.kernels.empirical._layers import Call, LayerCalls, LayerUnit, layer_units
from sklearn_kd.kernels.empirical._network import Network

# Rows on which to check that each layer sees them in their order.
_PROBED = 8
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class GenericUnit:
    """A parameter whose gradients are computed row by row, however it is used."""

    names: tuple[str, ...]
    mapped: bool  # whether torch.func can map the module over rows

    def change(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return a change of the parameter as what features are applied to."""
        return changes[self.names[0]]


Unit = LayerUnit | GenericUnit


class Tangents:
    """Features J(x) of a network, parameter by parameter.

    Which rule gives a parameter's gradients is decided on two rows: each rule is compared there
    with the gradients that autograd computes for one row at a time, and a parameter for which they
    differ, or for which there is no rule, takes the path that assumes nothing. So does a parameter
    of a layer that sees other entries than one or several for each row, in the order of the rows;
    a few more rows decide on that.

    Parameters
    ----------
    network : Network
    X : Tensor of shape (n, d)
        Rows, of which a few are used.

    Attributes
    ----------
    n_outputs : int
    n_probed : int
        Rows on which the rules were checked: one if there are no two that differ, else two.
    units : list of LayerUnit or GenericUnit
        Every trainable parameter is in exactly one.
    activation_bytes : float
        What a forward and backward pass takes for one row, beside the features.
    pass_cost : float
        Multiplications of one forward and backward pass for one row.

    Raises
    ------
    ValueError
        If the outputs for a row are random, or depend on the other rows of a batch, or on no
        trainable parameter, or if gradients are not finite.
    """

    def __init__(self, network: Network, X: Tensor) -> None:
        self.network = network
        inputs = network.inputs(_two_rows(X))
        self.n_probed = len(inputs)
        if network.is_random(inputs):
            raise ValueError(
                "module: its forward pass draws random numbers although it is in evaluation mode, "
                "so that the outputs for a row are no function of that row. A dropout that is "
                "called as a function must be given training=self.training."
            )
        layers, outputs = self._forward(inputs)
        self.n_outputs = outputs.shape[1]
        self._signature = layers.signature
        # one combination of the outputs, in which all of them count
        mix = torch.arange(1, self.n_outputs + 1, device=outputs.device).to(outputs).cos()
        expected = self._one_by_one(inputs, outputs, mix)
        self.units: list[Unit] = []

        # entries that each call sees for a row
        self._entries = {
            index: len(call.input) // len(inputs) for index, call in enumerate(layers.calls)
        }
        by_rows = self._calls_by_rows(layers, outputs, mix)
        if len(X) > len(inputs):
            some = X[:: max(1, len(X) // _PROBED)][:_PROBED]
            more_layers, more_outputs = self._forward(network.inputs(some))
            _require_equal(outputs[0], more_outputs[0])
            by_rows &= self._calls_by_rows(more_layers, more_outputs, mix)
        candidates = [] if layers.overwritten() else network.parameters.keys() - layers.loose
        in_order = [name for name in network.parameters if name in candidates]
        for unit in layer_units(layers.calls, in_order, by_rows):
            (feature,) = self._of_batch(inputs, mix[None], [unit], full=False)
            if self._agrees(unit, feature, expected):
                self.units += self._cheaper_form(unit, feature)
        covered = {name for unit in self.units for name in unit.names}
        for name in network.parameters:
            if name not in covered:
                self.units.append(self._generic(name, inputs, mix, expected))

        self._shapes = {
            unit: [tensor.shape[1:] for tensor in feature.tensors]
            for unit, feature in zip(
                self.units, self._of_batch(inputs, mix[None], self.units, full=False), strict=True
            )
        }
        self._element_size = outputs.element_size()
        self._measure(layers, len(inputs))

    def _calls_by_rows(self, layers: LayerCalls, outputs: Tensor, mix: Tensor) -> set[int]:
        """Return the calls whose batches hold the rows in their order."""
        if layers.signature != self._signature:
            return set()
        indices = range(len(layers.calls))
        found = _gradients(layers.calls, indices, outputs, mix.expand_as(outputs))
        return set(indices) - self._strays(layers.calls, outputs, [found], mix[None])

    def _strays(
        self,
        calls: Sequence[Call],
        outputs: Tensor,
        gradients: Sequence[Mapping[int, Tensor]],
        cotangents: Tensor,
    ) -> set[int]:
        """Return those calls whose batches do not hold the rows in their order.

        Where entry j belongs to row i, and to no other, the gradient there is wᵢ times as large if
        the outputs for row i are multiplied by wᵢ. The ``gradients`` are those of the
        ``cotangents``, (k, K).
        """
        n_rows = len(outputs)
        # multiples of the golden ratio modulo 1: neighbours differ, and all others
        numbers = torch.arange(n_rows, dtype=torch.float64, device=outputs.device)
        weights = (1 + numbers * _GOLDEN % 1).to(outputs)
        mix = torch.arange(1, len(cotangents) + 1, device=outputs.device).to(outputs).cos()
        cotangent = weights[:, None] * (mix @ cotangents)
        weighted = _gradients(calls, gradients[0].keys(), outputs, cotangent, last=True)
        strays = set()
        for index, found in weighted.items():
            n_entries = n_rows * self._entries[index]
            if not n_entries or not len(found) == len(calls[index].input) == n_entries:
                strays.add(index)
                continue
            total = sum(c * per_call[index] for c, per_call in zip(mix, gradients, strict=True))
            expected = total.reshape(n_rows, -1) * weights[:, None]
            difference = (expected - found.reshape(n_rows, -1)).abs().max()
            size = found.abs().max()
            if not size.isfinite():
                raise ValueError(
                    "module: the gradients of its outputs are not finite for some rows, as those "
                    "of a square root or of a norm are not at 0. Give it a derivative everywhere."
                )
            if difference > _tolerance(found) * size:
                strays.add(index)
        return strays

    def _measure(self, layers: LayerCalls, n_rows: int) -> None:
        """Work out what a forward and backward pass takes, from the shapes of the layers."""
        entries = multiplications = largest = 0
        for call in layers.calls:
            n_out, left = call.output_shape.numel(), call.left(call.input)
            entries += 2 * call.input.numel() + 4 * n_out
            largest = max(largest, 4 * left.numel())
            is_product = call.kind in ("linear", "grouped")
            multiplications += n_out * left.shape[-1] if is_product else n_out
        for unit in self.units:
            if isinstance(unit, GenericUnit):
                size = self.network.parameters[unit.names[0]].numel()
                entries += 4 * size * n_rows
                multiplications += size * n_rows
        self.activation_bytes = (entries + largest) * self._element_size / n_rows
        self.pass_cost = 3 * multiplications / n_rows

    def row_bytes(self, units: Sequence[Unit], n_outputs: int) -> int:
        """Return what the features of ``units`` take for one row and so many outputs."""
        entries = 0
        for unit in units:
            *shared, own = self._shapes[unit]
            entries += sum(shape.numel() for shape in shared) + n_outputs * own.numel()
        return entries * self._element_size

    def pair_cost(self, n_outputs: int) -> int:
        """Return the multiplications for one pair of rows, the outputs summed over."""
        total = 0
        for unit in self.units:
            *left, right = self._shapes[unit]
            if not left:
                total += n_outputs * right.numel()
                continue
            _, n_positions, n_out = right
            n_in = left[0][1] if len(left[0]) == 2 else 1
            total += n_positions**2 * (n_in + n_outputs * n_out)
        return total

    def _forward(self, inputs: Tensor) -> tuple[LayerCalls, Tensor]:
        with torch.enable_grad(), LayerCalls(self.network.parameters) as layers:
            outputs = self.network(inputs)
        return layers, outputs

    def _one_by_one(self, inputs: Tensor, outputs: Tensor, mix: Tensor) -> list[dict[str, Tensor]]:
        """Return the gradients of u · f for each row by itself, and check the outputs meanwhile."""
        parameters = self.network.parameters
        per_row = []
        for row, batched in zip(inputs, outputs, strict=True):
            with torch.enable_grad():
                alone = self.network(row[None])[0]
            _require_equal(alone, batched)
            self._require_registered(alone)
            gradients = torch.autograd.grad(
                alone, list(parameters.values()), mix, allow_unused=True, materialize_grads=True
            )
            per_row.append(dict(zip(parameters, gradients, strict=True)))
        return per_row

    def _require_registered(self, outputs: Tensor) -> None:
        """Raise unless the outputs depend on trainable parameters of the module, and on no others.

        The copy of a module whose ``forward`` holds on to the original would give a kernel of 0.
        """
        known = {id(parameter) for parameter in self.network.parameters.values()}
        used = list(_trainable_leaves(outputs))
        strangers = [leaf for leaf in used if id(leaf) not in known]
        if strangers:
            raise ValueError(
                f"module: its outputs depend on a tensor of shape {tuple(strangers[0].shape)} with "
                "requires_grad=True that is not among module.parameters(), or not of a copy of the "
                "module. Register it as a parameter, or detach it, and refer to it as an attribute "
                "of self."
            )
        if not used:
            raise ValueError(
                "module: its outputs depend on no parameter with requires_grad=True, so its "
                "tangent kernel is zero."
            )

    def _agrees(self, unit: Unit, feature: Feature, expected: list[dict[str, Tensor]]) -> bool:
        """Whether the unit's kernel of two rows is that of the expected gradients."""
        J = torch.stack([torch.cat([row[n].ravel() for n in unit.names]) for row in expected])
        gram = J @ J.T
        found = torch.zeros_like(gram)
        feature.add_gram(feature, found)
        difference = (found - gram).abs().max()
        total = torch.stack(
            [torch.stack([g.square().sum() for g in row.values()]).sum() for row in expected]
        )
        # Of a parameter without effect, such as a bias before a normalisation, rounding is all.
        allowed = _tolerance(gram) * gram.diagonal().max() + _tolerance(gram) ** 2 * total.max()
        return bool(difference <= allowed)

    def _cheaper_form(self, unit: LayerUnit, feature: Feature) -> list[LayerUnit]:
        """Return the unit with products of factors, or of gradients, whichever is cheaper."""
        if type(feature) is not Outer:
            return [unit]
        (_, n_positions, n_in), n_out = feature.left.shape, feature.right.shape[-1] * self.n_outputs
        is_dense = n_in * n_out < n_positions**2 * (n_in + n_out)
        return unit.as_dense() if is_dense else [unit]

    def _generic(
        self, name: str, inputs: Tensor, mix: Tensor, expected: list[dict[str, Tensor]]
    ) -> GenericUnit:
        unit = GenericUnit((name,), mapped=True)
        try:
            (feature,) = self._of_batch(inputs, mix[None], [unit], full=False)
        except RuntimeError:
            # torch.func has no rule for something in the module, such as a recurrent layer.
            return GenericUnit((name,), mapped=False)
        return dataclasses.replace(unit, mapped=self._agrees(unit, feature, expected))

    def features(
        self,
        X: Tensor,
        cotangents: Tensor,
        units: Sequence[Unit],
        *,
        full: bool,
        batch_rows: int,
        checked: bool,
    ) -> list[Feature]:
        """Return the features of rows, one for each unit.

        Parameters
        ----------
        X : Tensor of shape (n, d)
        cotangents : Tensor of shape (k, K)
            The combinations u of the outputs whose gradients are asked for.
        units : sequence of LayerUnit or GenericUnit
        full : bool
            Whether the combinations keep rows of their own; otherwise they are summed over.
        batch_rows : int
            Rows of one forward and backward pass.
        checked : bool
            Whether to check that all layers see these rows in their order: needed once.
        """
        features: list[Feature] = []
        start = 0
        for rows in X.split(batch_rows):
            inputs = self.network.inputs(rows)
            parts = self._of_batch(inputs, cotangents, units, full=full, checked=checked)
            if len(rows) == len(X):
                return parts
            if not features:
                features = [
                    type(part)(*(t.new_empty(len(X), *t.shape[1:]) for t in part.tensors))
                    for part in parts
                ]
            stop = start + len(rows)
            for feature, part in zip(features, parts, strict=True):
                for storage, values in zip(feature.tensors, part.tensors, strict=True):
                    storage[start:stop] = values
            start = stop
        return features

    def _of_batch(
        self,
        inputs: Tensor,
        cotangents: Tensor,
        units: Sequence[Unit],
        *,
        full: bool,
        checked: bool = False,
    ) -> list[Feature]:
        found: dict[Unit, Feature] = {}
        layered = [unit for unit in units if isinstance(unit, LayerUnit)]
        if layered or checked:
            found.update(self._layer_features(inputs, cotangents, layered, full, checked))
        for mapped, gradients_of in ((True, mapped_gradients), (False, looped_gradients)):
            generic = [u for u in units if isinstance(u, GenericUnit) and u.mapped == mapped]
            if generic:
                names = [unit.names[0] for unit in generic]
                gradients = gradients_of(self.network, names, inputs, cotangents)
                for unit, gradient in zip(generic, gradients, strict=True):
                    found[unit] = dense(gradient, full)
        return [found[unit] for unit in units]

    def _layer_features(
        self,
        inputs: Tensor,
        cotangents: Tensor,
        units: Sequence[LayerUnit],
        full: bool,
        checked: bool,
    ) -> dict[Unit, Feature]:
        needed = self.units if checked else units
        indices = sorted({i for u in needed if isinstance(u, LayerUnit) for i in u.indices})
        if not indices:
            return {}
        layers, outputs = self._forward(inputs)
        if layers.signature != self._signature:
            raise ValueError(
                "module: the forward pass calls other layers, or layers on other shapes, for "
                "some rows than for others, which the kernel does not support. Compute rows of "
                "each kind apart."
            )
        calls = layers.calls
        gradients = [
            _gradients(calls, indices, outputs, cotangent.expand_as(outputs))
            for cotangent in cotangents
        ]
        if checked and self._strays(calls, outputs, gradients, cotangents):
            raise ValueError(
                "module: which rows a layer sees, or in which order, depends on what is in them, "
                "which those rows did not show that the kernel looked at first. It does not "
                "support that; send all rows through the layer, in their order."
            )
        return {unit: unit.feature(calls, gradients, len(inputs), full) for unit in units}


def _gradients(
    calls: Sequence[Call],
    indices: Iterable[int],
    outputs: Tensor,
    cotangent: Tensor,
    *,
    last: bool = False,
) -> dict[int, Tensor]:
    """Return the gradients of Σ_i cotangent_i · f(x_i) with respect to the outputs of calls.

    The ``last`` of several frees what they share.
    """
    indices = list(indices)
    if not indices:
        return {}
    found = torch.autograd.grad(
        outputs,
        [calls[index].edge for index in indices],
        cotangent,
        retain_graph=not last,
        allow_unused=True,
    )
    return {
        index: outputs.new_zeros(calls[index].output_shape) if gradient is None else gradient
        for index, gradient in zip(indices, found, strict=True)
    }


def _require_equal(outputs: Tensor, others: Tensor) -> None:
    """Raise unless these are the outputs for a row, in two batches."""
    scale = torch.maximum(outputs.abs().max(), others.abs().max())
    if (outputs - others).abs().max() > _tolerance(outputs) * scale:
        raise ValueError(
            "module: the outputs for a row by itself and in a batch differ, or in two batches, "
            f"{outputs[:3].tolist()} and {others[:3].tolist()}: they depend on the other rows. "
            "Each row must be treated by itself, and the first dimension of the batch must be that "
            "of the rows (batch_first=True)."
        )


def _two_rows(X: Tensor) -> Tensor:
    """Return the first row and the first one that differs from it, or the first alone."""
    others = (X[0] != X).any(dim=1).nonzero().ravel()
    return torch.cat([X[:1], X[others[:1]]])


def _tolerance(values: Tensor) -> float:
    """Return the relative difference above which two results are not the same."""
    return math.sqrt(torch.finfo(values.dtype).eps)


def _trainable_leaves(outputs: Tensor) -> Iterator[Tensor]:
    """Yield the tensors on which the outputs depend and whose gradients autograd would keep."""
    seen, pending = set(), [outputs.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        pending.extend(parent for parent, _ in node.next_functions)
