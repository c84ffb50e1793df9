"""The tangent kernel of a network as a function on tensors, within a budget of memory.

    Θ(x, x′) = Σ_k J_k(x) J_k(x′)ᵀ / K,    J_k(x) = ∂f_k(x)/∂θ,

or one kernel for every pair of outputs. Rows are taken in chunks, and parameters and outputs in
bundles, so that the features held at a time fit the budget; every bundle adds its share to Θ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_kd._logits import logits
from sklearn_kd._memory import CPU
from sklearn_kd._modules import on_device
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels._tiles import in_parallel, ordinary
from sklearn_kd.kernels.empirical._features import Feature
from sklearn_kd.kernels.empirical._jacobian import adjoint
from sklearn_kd.kernels.empirical._network import Network, copied, require_evaluable
from sklearn_kd.kernels.empirical._tangents import Tangents, Unit

# Bytes that features, activations and patches may take beside the kernel matrix.
WORKSPACE_BYTES = 2**30
# Share of these bytes for the features held at a time.
_FEATURE_SHARE = 0.8
# Chunks of fewer rows than this are not used; outputs and parameters are split instead.
_FEW_ROWS = 512
# Rows and columns of a tile: small enough for the caches, and to give every core some work.
_TILE = 256


class Bundle(NamedTuple):
    """Parameters and combinations of outputs whose features are held at the same time."""

    units: Sequence[Unit]
    cotangents: Tensor  # (k, K)
    rows: int  # of a chunk


class EmpiricalKernel(KernelFunction):
    """Tangent kernel of a torch module at its current weights, and its outputs there.

    The module is copied: training it afterwards changes nothing here.

    Parameters
    ----------
    module : nn.Module
    input_shape : tuple of ints, default=None
        Shape of one input; a row of that many numbers is reshaped to it. None: rows unchanged.
    full : bool, default=False
        Whether there are rows and columns for every output, (n K, m K), those of one input next to
        each other. Otherwise the mean of the kernels of the K outputs or, for two outputs, the
        kernel of their difference f₁ − f₀.
    batch_size : int, default=None
        Rows evaluated at a time. None: as many as fit ``workspace_bytes``.
    workspace_bytes : int, default=1 GiB
        Bytes that may be held at a time beside the results. One row is always held.
    device, dtype : default=None
        Where and in what precision the module is evaluated. None: those of the rows.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels.empirical._kernel import EmpiricalKernel
    >>> X = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    >>> EmpiricalKernel(torch.nn.Linear(2, 1)).gram(X)
    tensor([[2., 3.],
            [3., 6.]])
    """

    has_own_product = True

    @torch.inference_mode(False)
    def __init__(
        self,
        module: nn.Module,
        *,
        input_shape: tuple[int, ...] | None = None,
        full: bool = False,
        batch_size: int | None = None,
        workspace_bytes: int = WORKSPACE_BYTES,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_evaluable(module)
        self.module = copied(module)
        self.input_shape = input_shape
        self.full = full
        self.batch_size = batch_size
        self.workspace_bytes = workspace_bytes
        self.device = device
        self.dtype = dtype
        self._tangents: dict[tuple[torch.device, torch.dtype], Tangents] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state on the CPU, without the results of the first call: it loads anywhere."""
        return vars(self) | {"_tangents": {}, "module": on_device(self.module, CPU)}

    @torch.inference_mode(False)
    @full_precision()
    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return Θ(X, Y), shape (n, m), or (n K, m K) of all outputs."""
        if not len(X) or not len(Y):
            return X.new_zeros(len(X), len(Y))
        tangents = self._prepare(X, Y)
        R = self._rows_per_input(tangents)
        out = X.new_zeros(len(X) * R, len(Y) * R)
        left, right = self._move(X), self._move(Y)
        for bundle in self._bundles(tangents, max(len(X), len(Y)), sides=2):
            for i, x in self._chunks(tangents, bundle, left):
                for j, y in self._chunks(tangents, bundle, right):
                    corner = out[i * R : (i + bundle.rows) * R, j * R : (j + bundle.rows) * R]
                    self._add(x, y, corner, tangents, same=False)
        return out

    @torch.inference_mode(False)
    @full_precision()
    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return Θ(X, X), shape (n, n), or (n K, n K) of all outputs.

        Parameters
        ----------
        X : Tensor of shape (n, d)
        out : Tensor, optional
            Storage for the result, of the dtype and device of ``X``.
        symmetrize : bool, default=True
            Whether to fill the lower triangle too. Otherwise the entries of ``out`` strictly
            below the diagonal keep their values (zeros if ``out`` is not given).
        """
        if not len(X):
            return X.new_zeros(0, 0) if out is None else out
        tangents = self._prepare(X)
        R = self._rows_per_input(tangents)
        n = len(X) * R
        if out is None:
            out = X.new_zeros(n, n)
        else:
            _clear_upper(out)
        rows = self._move(X)
        for bundle in self._bundles(tangents, len(X), sides=1):
            step = bundle.rows
            for i, x in self._chunks(tangents, bundle, rows):
                corner = out[i * R : (i + step) * R, i * R : (i + step) * R]
                self._add(x, x, corner, tangents, same=True)
                for j, y in self._chunks(tangents, bundle, rows[i + step :]):
                    start = i + step + j
                    corner = out[i * R : (i + step) * R, start * R : (start + step) * R]
                    self._add(x, y, corner, tangents, same=False)
        if symmetrize:
            _mirror_upper(out)
        return out

    @torch.inference_mode(False)
    @full_precision()
    def diag(self, X: Tensor) -> Tensor:
        """Return Θ(x, x) for each row of ``X``, shape (n,), or (n K,) of all outputs."""
        if not len(X):
            return X.new_zeros(0)
        tangents = self._prepare(X)
        R = self._rows_per_input(tangents)
        out = X.new_zeros(len(X), R)
        for bundle in self._bundles(tangents, len(X), sides=1):
            for i, features in self._chunks(tangents, bundle, self._move(X)):
                for feature in features:
                    out[i : i + bundle.rows] += feature.squared_norms().to(out)
        return out.ravel() * self._scale(tangents)

    @torch.inference_mode(False)
    def n_outputs(self, X: Tensor) -> int:
        """Return the number of outputs, K, found on the rows of ``X``; 1 if there are none."""
        return self._prepare(X).n_outputs if len(X) else 1

    @torch.inference_mode(False)
    @full_precision()
    def outputs(self, X: Tensor) -> Tensor:
        """Return z₀ = f(X) as logits: (n,) for one or two outputs, else (n, K) with sum zero."""
        if not len(X):
            return X.new_zeros(0)
        tangents = self._prepare(X)
        network = tangents.network
        with torch.no_grad():
            parts = self._move(X).split(self._batch_rows(tangents))
            return torch.cat([logits(network(network.inputs(rows))) for rows in parts]).to(X)

    @torch.inference_mode(False)
    @full_precision()
    def matmat(self, X: Tensor, Y: Tensor, V: Tensor) -> Tensor:
        """Return Θ(X, Y) V of shape (n, c) for V of shape (m, c), or (n K, c) for (m K, c).

        Where it is cheaper, Θ is not formed: J(X) w with the weight change w = J(Y)ᵀ V.
        """
        if not len(X) or not len(Y):
            return V.new_zeros(len(X) * (self.n_outputs(X) if self.full else 1), V.shape[1])
        tangents = self._prepare(Y, X)
        # the product by entries handles only one row of Θ per input
        if not self.full and not self._is_product_cheaper(tangents, len(X), len(Y), V.shape[1]):
            return super().matmat(X, Y, V)
        R = self._rows_per_input(tangents)
        result = V.new_zeros(len(X), R, V.shape[1])
        cotangents = self._cotangents(tangents)
        # All outputs of the full kernel share a weight change; in the trace each has its own.
        for part in [cotangents] if self.full else cotangents.split(1):
            changes = [self.pull_back(Y, column.reshape(len(Y), R), part) for column in V.T]
            for bundle in self._bundles(tangents, len(X), sides=1, cotangents=part):
                for i, features in self._chunks(tangents, bundle, self._move(X)):
                    for c, change in enumerate(changes):
                        for unit, feature in zip(bundle.units, features, strict=True):
                            values = feature.apply(unit.change(change))
                            result[i : i + bundle.rows, :, c] += values.to(result)
        return result.flatten(0, 1) * self._scale(tangents)

    @torch.inference_mode(False)
    @full_precision()
    def pull_back(self, X: Tensor, V: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        """Return the weight change Σ_i Σ_k V_ik ∂(u_k · f(x_i))/∂θ, by parameter.

        Parameters
        ----------
        X : Tensor of shape (n, d)
        V : Tensor of shape (n, k)
        cotangents : Tensor of shape (k, K)
            The combinations u of the outputs.
        """
        tangents = self._prepare(X)
        network = tangents.network
        total = {name: torch.zeros_like(p.data) for name, p in network.parameters.items()}
        step = self._batch_rows(tangents)
        weights = self._move(V) @ cotangents
        for rows, parts in zip(self._move(X).split(step), weights.split(step), strict=True):
            gradients = adjoint(network, network.inputs(rows), parts)
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += gradient
        return total

    def _prepare(self, X: Tensor, *others: Tensor) -> Tangents:
        """Return the features of the module on the device and in the dtype of the computation.

        A single row shows little, so then the rows on the other side are examined too.
        """
        rows = self._move(X)
        key = (rows.device, rows.dtype)
        if key not in self._tangents:
            tangents = Tangents(Network(self.module, self.input_shape, *key), rows)
            if tangents.n_probed == 1:
                # other rows may still show more
                return self._prepare(torch.cat([X[:1], *others])) if others else tangents
            self._tangents[key] = tangents
        return self._tangents[key]

    def _move(self, X: Tensor) -> Tensor:
        X = ordinary(X.detach())
        return X.to(device=self.device or X.device, dtype=self.dtype or X.dtype)

    def _rows_per_input(self, tangents: Tangents) -> int:
        return tangents.n_outputs if self.full else 1

    def _cotangents(self, tangents: Tangents) -> Tensor:
        """Return the combinations (k, K) of outputs whose kernels are summed or kept apart."""
        like = next(iter(tangents.network.parameters.values())).detach()
        if tangents.n_outputs == 2 and not self.full:
            return like.new_tensor([[-1.0, 1.0]])
        return torch.eye(tangents.n_outputs, dtype=like.dtype, device=like.device)

    def _scale(self, tangents: Tangents) -> float:
        return 1.0 if self.full or tangents.n_outputs == 2 else 1 / tangents.n_outputs

    def _batch_rows(self, tangents: Tangents) -> int:
        if self.batch_size is not None:
            return self.batch_size
        budget = (1 - _FEATURE_SHARE) * self.workspace_bytes
        return max(1, int(budget / tangents.activation_bytes))

    def _bundles(
        self, tangents: Tangents, n_rows: int, *, sides: int, cotangents: Tensor | None = None
    ) -> Iterator[Bundle]:
        """Yield the bundles held at a time for chunks of ``n_rows``, on one or both sides of Θ."""
        if cotangents is None:
            cotangents = self._cotangents(tangents)
        budget = int(_FEATURE_SHARE * self.workspace_bytes) // sides
        per_row = budget // min(n_rows, self.batch_size or _FEW_ROWS)
        k = len(cotangents)
        # Outputs first: each needs a backward pass of its own anyway.
        while not self.full and k > 1 and tangents.row_bytes(tangents.units, k) > per_row:
            k = (k + 1) // 2
        for part in cotangents.split(k):
            for units in _split(tangents, k, per_row):
                rows = budget // tangents.row_bytes(units, k)
                if sides == 1 and rows < n_rows:
                    rows //= 2  # a second chunk stands beside the first
                rows = self.batch_size or max(1, rows)
                yield Bundle(units, part, min(rows, n_rows))

    def _chunks(
        self, tangents: Tangents, bundle: Bundle, X: Tensor
    ) -> Iterator[tuple[int, list[Feature]]]:
        """Yield the features of chunks of rows, and where each starts."""
        for start in range(0, len(X), bundle.rows):
            rows = X[start : start + bundle.rows]
            yield (
                start,
                tangents.features(
                    rows,
                    bundle.cotangents,
                    bundle.units,
                    full=self.full,
                    batch_rows=self._batch_rows(tangents),
                ),
            )

    def _add(
        self,
        x: list[Feature],
        y: list[Feature],
        out: Tensor,
        tangents: Tangents,
        *,
        same: bool,
    ) -> None:
        """Add the share of these features to a block of Θ; if both are the same, its upper half."""
        R, scale = self._rows_per_input(tangents), self._scale(tangents)
        side = max(1, _TILE // R)

        def fill(i: int, j: int) -> None:
            rows, columns = slice(i, i + side), slice(j, j + side)
            with _writing_to(out):
                target = out[i * R : (i + side) * R, j * R : (j + side) * R]
                tile = x[0].tensors[0].new_zeros(target.shape, dtype=self.dtype or out.dtype)
                for left, right in zip(x, y, strict=True):
                    left[rows].add_gram(right[columns], tile)
                if same and i == j:
                    tile.triu_()
                target.add_(tile.to(target), alpha=scale)

        n, m = len(out) // R, out.shape[1] // R
        starts = [(i, j) for i in range(0, n, side) for j in range(i if same else 0, m, side)]
        in_parallel(fill, starts, out)

    def _is_product_cheaper(
        self, tangents: Tangents, n_rows: int, n_fitted: int, n_columns: int
    ) -> bool:
        """Whether passes for the weight changes cost less than the entries of Θ."""
        k = len(self._cotangents(tangents))
        by_weights = (n_fitted * n_columns + n_rows * (1 + n_columns)) * k * tangents.pass_cost
        by_entries = (n_fitted + n_rows) * k * tangents.pass_cost
        by_entries += n_fitted * n_rows * tangents.pair_cost(k)
        return by_weights < by_entries


def _writing_to(out: Tensor) -> torch.inference_mode:
    """Return the mode in which ``out`` can be written: it may be a tensor of inference mode."""
    return torch.inference_mode(out.is_inference())


def _clear_upper(out: Tensor) -> None:
    """Set the upper triangle of ``out`` (n, n), with the diagonal, to zero."""
    with _writing_to(out):
        for start in range(0, len(out), _TILE):
            rows = out[start : start + _TILE]
            rows[:, start + _TILE :] = 0
            rows[:, start : start + _TILE].tril_(-1)


def _mirror_upper(out: Tensor) -> None:
    """Copy the upper triangle of ``out`` (n, n) into the lower one."""
    with _writing_to(out):
        for start in range(0, len(out), _TILE):
            stop = start + _TILE
            corner = out[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).T)
            out[stop:, start:stop] = out[start:stop, stop:].T


def _split(tangents: Tangents, n_outputs: int, per_row: int) -> Iterator[list[Unit]]:
    """Yield parts of at least one unit, whose features take at most ``per_row`` bytes."""
    part: list[Unit] = []
    for unit in tangents.units:
        if part and tangents.row_bytes([*part, unit], n_outputs) > per_row:
            yield part
            part = []
        part.append(unit)
    yield part
