"""The tangent features of a network: which parameter takes which path, checked on all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_kd.kernels.empirical._checks import (
    Weighted,
    call_gradients,
    fits,
    mixture,
    require_equal,
    require_registered,
    tolerance,
    two_rows,
    weighted_gradients,
)
from sklearn_kd.kernels.empirical._features import Feature, Outer, dense
from sklearn_kd.kernels.empirical._jacobian import looped_gradients, mapped_gradients
from sklearn_kd.kernels.empirical._layers import LayerCalls, LayerUnit, layer_units
from sklearn_kd.kernels.empirical._network import Network

# Rows on which to check that each layer sees them in their order.
_PROBED = 8


@dataclass(frozen=True)
class GenericUnit:
    """A parameter whose gradients are computed row by row, however it is used."""

    names: tuple[str, ...]

    def change(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return a change of the parameter as what features are applied to."""
        return changes[self.names[0]]


Unit = LayerUnit | GenericUnit


class Tangents:
    """Features J(x) of a network, parameter by parameter.

    Two rows decide which rule gives a parameter's gradients. Each rule is compared there with the
    gradients that autograd computes for one row at a time. If they differ, or if there is no rule,
    the parameter takes the path that assumes nothing. So does a parameter of a layer whose batch
    does not hold one or several entries for each row, in the order of the rows; a few more rows
    decide on that. Gradients may vanish on these rows, and then any rule agrees there. So each
    feature is checked again wherever it is computed, by a backward pass of all rows.

    Parameters
    ----------
    network : Network
    X : Tensor of shape (n, d)
        Rows, of which a few are used.

    Attributes
    ----------
    n_outputs : int
    n_probed : int
        Different rows among the two on which the rules were checked.
    units : list of LayerUnit or GenericUnit
        Every trainable parameter is in exactly one.
    looped : set of str
        Parameters that torch.func cannot map over rows, or maps wrongly.
    activation_bytes : float
        Bytes of a forward and backward pass for one row, beside the features.
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
        inputs = network.inputs(two_rows(X))
        self.n_probed = 1 + int(not torch.equal(inputs[0], inputs[1]))
        if network.is_random(inputs):
            raise ValueError(
                "module: its forward pass draws random numbers although it is in evaluation mode, "
                "so that the outputs for a row are no function of that row. A dropout that is "
                "called as a function must be given training=self.training."
            )
        layers, outputs = self._forward(inputs)
        self.n_outputs = outputs.shape[1]
        self._signature = layers.signature
        mix = mixture(self.n_outputs, outputs)
        expected = self._one_by_one(inputs, outputs, mix)

        # entries that each call sees for a row
        self._entries = {
            index: len(call.input) // len(inputs) for index, call in enumerate(layers.calls)
        }
        by_rows = self._calls_by_rows(layers, outputs, mix)
        batches = [inputs]
        if len(X) > len(inputs):
            batches.append(network.inputs(X[:: max(1, len(X) // _PROBED)][:_PROBED]))
            more_layers, more_outputs = self._forward(batches[1])
            require_equal(outputs[0], more_outputs[0])
            by_rows &= self._calls_by_rows(more_layers, more_outputs, mix)
        candidates = [] if layers.overwritten() else network.parameters.keys() - layers.loose
        in_order = [name for name in network.parameters if name in candidates]
        self.units: list[Unit] = []
        self.units += self._right_units(
            layer_units(layers.calls, in_order, by_rows), batches, mix, expected
        )
        covered = {name for unit in self.units for name in unit.names}
        self.looped: set[str] = set()
        for name in network.parameters:
            if name not in covered:
                unit = GenericUnit((name,))
                self.units.append(unit)
                self._of_batch(inputs, mix[None], [unit], full=False)  # whether it can be mapped

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
        found = call_gradients(layers.calls, indices, outputs, mix.expand_as(outputs))
        weighted = weighted_gradients(layers.calls, indices, {}, outputs, mix[None])
        return set(indices) - weighted.strays(layers.calls, [found], self._entries)

    def _right_units(
        self,
        units: Sequence[LayerUnit],
        batches: Sequence[Tensor],
        mix: Tensor,
        expected: list[dict[str, Tensor]],
    ) -> list[LayerUnit]:
        """Return the units whose rules hold on some batches, each in its cheaper form.

        The ``expected`` gradients are those of the rows of the first batch.
        """
        if not units:
            return []
        found, *_ = self._layer_features(batches[0], mix[None], units, full=False)
        right = [unit for unit in units if self._agrees(unit, found[unit], expected)]
        for inputs in batches[1:]:
            _, _, wrong = self._layer_features(inputs, mix[None], right, full=False)
            right = [unit for unit in right if unit not in wrong]
        return [form for unit in right for form in self._cheaper_form(unit, found[unit])]

    def _measure(self, layers: LayerCalls, n_rows: int) -> None:
        """Compute the cost of a forward and backward pass from the shapes of the layers."""
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
        """Return the bytes of the features of ``units`` for one row and this many outputs."""
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
        """Return the gradients of u · f for each row by itself, and check the outputs too."""
        parameters = self.network.parameters
        per_row = []
        for row, batched in zip(inputs, outputs, strict=True):
            with torch.enable_grad():
                alone = self.network(row[None])[0]
            require_equal(alone, batched)
            require_registered(alone, parameters)
            gradients = torch.autograd.grad(
                alone, list(parameters.values()), mix, allow_unused=True, materialize_grads=True
            )
            per_row.append(dict(zip(parameters, gradients, strict=True)))
        return per_row

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
        # A parameter without effect, such as a bias before a normalisation, leaves only rounding.
        allowed = tolerance(gram) * gram.diagonal().max() + tolerance(gram) ** 2 * total.max()
        return bool(difference <= allowed)

    def _cheaper_form(self, unit: LayerUnit, feature: Feature) -> list[LayerUnit]:
        """Return the unit with products of factors, or of gradients, whichever is cheaper."""
        if type(feature) is not Outer:
            return [unit]
        (_, n_positions, n_in), n_out = feature.left.shape, feature.right.shape[-1] * self.n_outputs
        is_dense = n_in * n_out < n_positions**2 * (n_in + n_out)
        return unit.as_dense() if is_dense else [unit]

    def features(
        self,
        X: Tensor,
        cotangents: Tensor,
        units: Sequence[Unit],
        *,
        full: bool,
        batch_rows: int,
    ) -> list[Feature]:
        """Return the features of rows, one for each unit.

        Parameters
        ----------
        X : Tensor of shape (n, d)
        cotangents : Tensor of shape (k, K)
            The combinations u of the outputs to differentiate.
        units : sequence of LayerUnit or GenericUnit
        full : bool
            Whether the combinations keep rows of their own; otherwise they are summed over.
        batch_rows : int
            Rows of one forward and backward pass.

        Raises
        ------
        ValueError
            If what was found on the first rows does not hold for all rows.
        """
        features: list[Feature] = []
        start = 0
        for rows in X.split(batch_rows):
            inputs = self.network.inputs(rows)
            parts = self._of_batch(inputs, cotangents, units, full=full)
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
        self, inputs: Tensor, cotangents: Tensor, units: Sequence[Unit], *, full: bool
    ) -> list[Feature]:
        layered = [unit for unit in units if isinstance(unit, LayerUnit)]
        found, weighted, wrong = self._layer_features(inputs, cotangents, layered, full=full)
        if wrong:
            raise ValueError(
                f"module: for some rows, the gradients of {' and '.join(wrong[0].names)} are not "
                "those of a layer, so that something else uses the parameter too, which those "
                "rows did not show that the kernel looked at first. Let the first row be one "
                "of those."
            )
        generic = [unit for unit in units if isinstance(unit, GenericUnit)]
        found.update(self._generic_features(inputs, cotangents, generic, weighted, full=full))
        return [found[unit] for unit in units]

    def _layer_features(
        self, inputs: Tensor, cotangents: Tensor, units: Sequence[LayerUnit], *, full: bool
    ) -> tuple[dict[Unit, Feature], Weighted, list[LayerUnit]]:
        """Return the features of layers, the gradients for their checks, and the wrong ones."""
        indices = sorted({index for unit in units for index in unit.indices})
        layers, outputs = self._forward(inputs)
        if indices and layers.signature != self._signature:
            raise ValueError(
                "module: the forward pass calls other layers, or layers on other shapes, for "
                "some rows than for others, which the kernel does not support. Compute rows of "
                "each kind apart."
            )
        calls = layers.calls
        gradients = [
            call_gradients(calls, indices, outputs, cotangent.expand_as(outputs))
            for cotangent in cotangents
        ]
        weighted = weighted_gradients(calls, indices, self.network.parameters, outputs, cotangents)
        in_place = all(fits(calls[i], len(inputs) * self._entries[i]) for i in indices)
        found: dict[Unit, Feature] = {}
        if in_place:
            found.update((u, u.feature(calls, gradients, len(inputs), full)) for u in units)
        wrong = [u for u in units if in_place and not _is_complete(u, found[u], weighted)]
        # Gradients that cancel are rounding, in no order: only wrong features are examined.
        if not in_place or (wrong and weighted.strays(calls, gradients, self._entries)):
            raise ValueError(
                "module: which rows a layer sees, or in which order, depends on what is in them, "
                "which those rows did not show that the kernel looked at first. It does not "
                "support that; send all rows through the layer, in their order."
            )
        return found, weighted, wrong

    def _generic_features(
        self,
        inputs: Tensor,
        cotangents: Tensor,
        units: Sequence[GenericUnit],
        weighted: Weighted,
        *,
        full: bool,
    ) -> dict[Unit, Feature]:
        """Return the features of the other parameters: mapped if possible, else row by row."""
        found: dict[Unit, Feature] = {}
        mapped = [unit for unit in units if unit.names[0] not in self.looped]
        try:
            gradients = self._gradients_by(mapped_gradients, mapped, inputs, cotangents)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # torch.func has no rule for something in the module, such as a recurrent layer.
            gradients = {}
        for unit, gradient in gradients.items():
            feature = dense(gradient, full)
            size = len(inputs) * len(cotangents) * unit.change(self.network.parameters).numel()
            if gradient.numel() == size and _is_complete(unit, feature, weighted):
                found[unit] = feature
        looped = [unit for unit in units if unit not in found]
        self.looped.update(unit.names[0] for unit in looped)
        gradients = self._gradients_by(looped_gradients, looped, inputs, cotangents)
        return found | {unit: dense(gradient, full) for unit, gradient in gradients.items()}

    def _gradients_by(
        self,
        function: Callable[..., list[Tensor]],
        units: Sequence[GenericUnit],
        inputs: Tensor,
        cotangents: Tensor,
    ) -> dict[GenericUnit, Tensor]:
        if not units:
            return {}
        names = [unit.names[0] for unit in units]
        return dict(zip(units, function(self.network, names, inputs, cotangents), strict=True))


def _is_complete(unit: Unit, feature: Feature, weighted: Weighted) -> bool:
    """Whether the gradients of the rows add up to those of the batch."""
    expected = unit.change(weighted.by_name)
    return weighted.has_sum(feature.pull_back(weighted.weights, expected), expected)
