"""Kernel matrices of layer recursions, tile by tile."""

from __future__ import annotations

import itertools
import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._tiles import in_parallel, ordinary, tile_size


class Recursion(Protocol):
    """A layer recursion on prepared rows, which are opaque here but can be sliced."""

    @property
    def buffers(self) -> int:
        """Return how many arrays of a tile's size `tile` works in."""

    def rows(self, X: Tensor, like: Any = None) -> Any:
        """Prepare rows of shape (n, d); both sides of a block need the same ``like``."""

    def variances(self, X: Tensor) -> Tensor:
        """Return the variances of the pre-activations of rows, shape (L + 1, n)."""

    def diagonal(self, variances: Tensor) -> Tensor:
        """Return K(x, x) for rows with these variances, shape (n,)."""

    def tile(self, x: Any, y: Any, out: Tensor, work: list[Tensor], *, same: bool) -> None:
        """Write K(x, y) into ``out``; the diagonal is left open if x and y are the same rows."""

    def gradient(self, x: Any, y: Any) -> Tensor:
        """Return the derivatives of K(x, y) in log σ_w and log σ_b, shape (2, n, m)."""


def fill_block(recursion: Recursion, X: Tensor, y_rows: Any, out: Tensor) -> Tensor:
    """Write K(X, Y), Y given by prepared rows, into ``out`` of shape (n, m), tile by tile."""
    if out.numel() == 0:
        return out
    size = tile_size(X.device)
    # As many entries as in a square tile: of few rows, a tile is wide.
    height = min(size, len(out))
    width = min(size**2 // height, out.shape[1])
    with full_precision():
        x_parts = _split(recursion.rows(X, like=y_rows), height)
        y_parts = _split(y_rows, width)
        workspace = _Workspace(recursion, out, height * width)

        def fill(i: int, j: int) -> None:
            target = out[i * height : (i + 1) * height, j * width : (j + 1) * width]
            recursion.tile(x_parts[i], y_parts[j], target, workspace.buffers, same=False)

        in_parallel(fill, list(itertools.product(range(len(x_parts)), range(len(y_parts)))), out)
    return out


def fill_gram(recursion: Recursion, X: Tensor, out: Tensor, *, symmetrize: bool) -> Tensor:
    """Write K(X, X) into ``out`` of shape (n, n): its upper triangle, mirrored if asked."""
    if out.numel() == 0:
        return out
    size = tile_size(X.device)
    with full_precision():
        rows = recursion.rows(X)
        # The tiles on the diagonal are halved, as half of such a tile is not needed. They come
        # last, because small tiles even out the work of the cores.
        half = size // 2
        parts = {side: _split(rows, side) for side in (size, half)}
        n_tiles, n_halves = len(parts[size]), len(parts[half])
        tiles = [(size, i, j) for i in range(n_tiles) for j in range(i + 1, n_tiles)]
        tiles += [
            (half, i, j) for i in range(n_halves) for j in range(i, min(i | 1, n_halves - 1) + 1)
        ]
        diagonal = recursion.diagonal(rows.variances).split(half)
        workspace = _Workspace(recursion, out, min(size, len(out)) ** 2)

        def fill(side: int, i: int, j: int) -> None:
            x, y = parts[side][i], parts[side][j]
            target = out[i * side : (i + 1) * side, j * side : (j + 1) * side]
            if i < j:
                recursion.tile(x, y, target, workspace.buffers, same=False)
                if symmetrize:
                    out[j * side : (j + 1) * side, i * side : (i + 1) * side] = target.T
                return
            # on the diagonal: keep what lies below it unless asked to mirror
            corner = torch.empty_like(target)
            recursion.tile(x, x, corner, workspace.buffers, same=True)
            corner.diagonal().copy_(diagonal[i])
            corner.triu_()
            if symmetrize:
                target.copy_(corner).add_(corner.triu(1).T)
            else:
                target.tril_(-1).add_(corner)

        in_parallel(fill, tiles, out)
    return out


@torch.inference_mode(False)
def fill_gradient(recursion: Recursion, X: Tensor, out: Tensor) -> Tensor:
    """Write the derivatives of K(X, X) into ``out`` of shape (n, n, 2), by blocks of rows.

    Raises
    ------
    ValueError
        If a derivative leaves the range of float64, as it may for rows of extreme size.
    """
    X, out = ordinary(X), ordinary(out)
    size = tile_size(X.device)
    with full_precision():
        rows = recursion.rows(X)
        parts = _split(rows, size)

        def fill(i: int) -> None:
            block = recursion.gradient(parts[i], rows)
            out[i * size : (i + 1) * size] = block.permute(1, 2, 0)

        in_parallel(fill, [(i,) for i in range(len(parts))], out)
    bad = torch.nonzero(~out.isfinite().all(dim=2).all(dim=1)).ravel()
    if len(bad):
        raise ValueError(
            f"The gradient of the kernel of rows {bad[:10].tolist()} is not finite in {out.dtype}: "
            "rescale these rows, or choose weight_std and bias_std closer to 1."
        )
    return out


def _split(rows: Any, size: int) -> list[Any]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Workspace(threading.local):
    """Buffers of a tile's size, with separate ones for each thread."""

    def __init__(self, recursion: Recursion, like: Tensor, area: int):
        self.buffers = [like.new_empty(area) for _ in range(recursion.buffers)]
