"""Checks of the features, wherever they are computed.

One backward pass of c = Σ_i Σ_k w_i m_k u_k · f(x_i), with generic weights w_i of the rows and m_k
of the combinations u_k, tells both whether a layer sees the rows in their order and whether the
gradients J_k(x_i) of a parameter are complete:

    ∂c/∂θ = Σ_i Σ_k w_i m_k J_k(x_i).

Gradients that vanish on a few rows say nothing about other rows, so all rows are checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_kd.kernels.empirical._layers import Call

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Weighted:
    """The gradients of c with respect to calls of layers and to parameters."""

    row_weights: Tensor  # (n,)
    mix: Tensor  # (k,)
    by_call: Mapping[int, Tensor]
    by_name: Mapping[str, Tensor]

    @property
    def weights(self) -> Tensor:
        """Return w_i m_k, (n, k)."""
        return torch.outer(self.row_weights, self.mix)

    def strays(
        self,
        calls: Sequence[Call],
        gradients: Sequence[Mapping[int, Tensor]],
        entries: Mapping[int, int],
    ) -> set[int]:
        """Return those calls whose batches do not hold the rows in their order.

        If entry j belongs to row i alone, multiplying the outputs for row i by wᵢ multiplies the
        gradient at j by wᵢ. ``gradients`` are those of each combination by itself. ``entries`` is
        the number of entries that each call sees for a row.
        """
        n_rows = len(self.row_weights)
        strays = set()
        for index, found in self.by_call.items():
            n_entries = n_rows * entries[index]
            if not fits(calls[index], n_entries):
                strays.add(index)
                continue
            pairs = zip(self.mix, gradients, strict=True)
            total = sum(c * per_call[index] for c, per_call in pairs)
            expected = total.reshape(n_rows, -1) * self.row_weights[:, None]
            difference = (expected - found.reshape(n_rows, -1)).abs().max()
            if difference > tolerance(found) * found.abs().max():
                strays.add(index)
        return strays

    def has_sum(self, found: Tensor, expected: Tensor) -> bool:
        """Whether weighted gradients of rows add up to the expected entries of ∂c/∂θ."""
        # A parameter adds the square of its share to Θ. Shares below the tolerance are rounding,
        # such as those of a bias before a normalisation.
        sizes = [gradient.abs().max() for gradient in self.by_name.values() if gradient.numel()]
        allowed = tolerance(found) * max(sizes) + torch.finfo(found.dtype).tiny
        return not found.numel() or bool((found - expected).abs().max() <= allowed)


def fits(call: Call, n_entries: int) -> bool:
    """Whether the batches that a layer sees and returns both have ``n_entries`` > 0 entries."""
    return 0 < n_entries == len(call.input) == call.output_shape[0]


def weighted_gradients(
    calls: Sequence[Call],
    indices: Iterable[int],
    parameters: Mapping[str, Tensor],
    outputs: Tensor,
    cotangents: Tensor,
) -> Weighted:
    """Return the gradients of c, and free the graph of these outputs.

    Raises
    ------
    ValueError
        If they are not finite.
    """
    indices = list(indices)
    # multiples of the golden ratio modulo 1: all differ, neighbours clearly
    numbers = torch.arange(len(outputs), dtype=torch.float64, device=outputs.device)
    row_weights = (1 + numbers * _GOLDEN % 1).to(outputs)
    mix = mixture(len(cotangents), outputs)
    cotangent = torch.outer(row_weights, mix @ cotangents)
    found = _backward(
        outputs,
        [*(calls[index].edge for index in indices), *parameters.values()],
        [
            *(calls[index].output_shape for index in indices),
            *(p.shape for p in parameters.values()),
        ],
        cotangent,
        last=True,
    )
    if not all(gradient.isfinite().all() for gradient in found):
        raise ValueError(
            "module: the gradients of its outputs are not finite for some rows, as those "
            "of a square root or of a norm are not at 0. Give it a derivative everywhere."
        )
    by_call = dict(zip(indices, found, strict=False))
    by_name = dict(zip(parameters, found[len(indices) :], strict=True))
    return Weighted(row_weights, mix, by_call, by_name)


def mixture(n: int, like: Tensor) -> Tensor:
    """Return the coefficients of one combination of ``n`` outputs, all of which count."""
    return torch.arange(1, n + 1, device=like.device).to(like).cos()


def call_gradients(
    calls: Sequence[Call], indices: Iterable[int], outputs: Tensor, cotangent: Tensor
) -> dict[int, Tensor]:
    """Return the gradients of Σ_i cotangent_i · f(x_i) with respect to the outputs of calls."""
    indices = list(indices)
    edges = [calls[index].edge for index in indices]
    shapes = [calls[index].output_shape for index in indices]
    found = _backward(outputs, edges, shapes, cotangent, last=False)
    return dict(zip(indices, found, strict=True))


def _backward(
    outputs: Tensor,
    inputs: list[Any],  # tensors and edges of the graph
    shapes: Sequence[torch.Size],
    cotangent: Tensor,
    *,
    last: bool,
) -> list[Tensor]:
    """Return the gradients of Σ_i cotangent_i · f(x_i); the ``last`` of several frees the graph."""
    if not inputs:
        return []
    found = torch.autograd.grad(
        outputs, inputs, cotangent, retain_graph=not last, allow_unused=True
    )
    return [
        outputs.new_zeros(shape) if gradient is None else gradient.to_dense()
        for gradient, shape in zip(found, shapes, strict=True)
    ]


def require_equal(outputs: Tensor, others: Tensor) -> None:
    """Raise unless these are the outputs for a row, in two batches."""
    scale = torch.maximum(outputs.abs().max(), others.abs().max())
    if (outputs - others).abs().max() > tolerance(outputs) * scale:
        raise ValueError(
            "module: the outputs for a row by itself and in a batch differ, or in two batches, "
            f"{outputs[:3].tolist()} and {others[:3].tolist()}: they depend on the other rows. "
            "Each row must be treated by itself, and the first dimension of the batch must be that "
            "of the rows (batch_first=True)."
        )


def two_rows(X: Tensor) -> Tensor:
    """Return the first row and the first one that differs from it, or the first twice."""
    others = (X[0] != X).any(dim=1).nonzero().ravel()
    return X[[0, int(others[0]) if len(others) else 0]]


def tolerance(values: Tensor) -> float:
    """Return the relative difference above which two results are not the same."""
    return math.sqrt(torch.finfo(values.dtype).eps)


def require_registered(outputs: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Raise unless the outputs depend on trainable parameters of the module, and on no others.

    If the ``forward`` of a copied module still used the original, the kernel would be 0.
    """
    known = {id(parameter) for parameter in parameters.values()}
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
