"""Factors of a search's last fit, for the next one: labels enter no factor.

Corrected labels change the targets only, so a second fit on the same rows, weights, kernels and
ridges solves with the factors of the first. They belong to the search, and go with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd._memory import available_bytes
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.rows._training_rows import DistinctRows
from sklearn_kd.solvers._frame_cache import AUTO_SHARE, size_of


class _Kept(NamedTuple):
    function: KernelFunction
    train: Tensor | None  # (m,) the rows of a fold; None: all rows
    frame: TangentFrame


class KeptFactors:
    """Frames of all rows and of folds, and kernel matrices, on the same distinct rows.

    Only `NTK` kernels are compared by value; what belongs to other kernels is not kept.

    Parameters
    ----------
    distinct : DistinctRows
        The rows.
    limit : int
        Bytes that may be kept.
    last : KeptFactors or None
        Those of the fit before, on the same rows: what is found there is kept again.
    """

    def __init__(self, distinct: DistinctRows, limit: int, last: KeptFactors | None) -> None:
        self._X, self._weights = distinct.X, distinct.weights
        self._limit = limit
        self._last = last
        self._frames: list[_Kept] = []
        self._matrices: list[tuple[KernelFunction, Tensor]] = []
        self._of_best: weakref.ref[TangentFrame] | None = None

    def serve(self, distinct: DistinctRows) -> bool:
        """Whether these are the factors of the same rows and weights, bit for bit."""
        X, weights = distinct.X, distinct.weights
        return (
            (self._X.dtype, self._X.device) == (X.dtype, X.device)
            and torch.equal(self._X, X)
            and torch.equal(self._weights, weights)
        )

    def clear(self) -> None:
        """Drop everything."""
        self._frames, self._matrices, self._of_best = [], [], None

    @property
    def continues(self) -> bool:
        """Whether anything is kept of the fit before."""
        return self._last is not None and self._last.n_bytes > 0

    @property
    def n_bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(size_of(kept.frame) for kept in self._frames) + sum(
            bytes_of(matrix) for _, matrix in self._matrices
        )

    def frame(
        self, function: KernelFunction, ridge: float, build: Callable[[], TangentFrame]
    ) -> TangentFrame:
        """Return the frame of all rows with this ridge: a kept one, or that of ``build``."""
        frame = self._found(function, ridge)
        if frame is None and self._last is not None:
            frame = self._last._found(function, ridge)
        is_new = frame is None
        return self._kept(_Kept(function, None, build() if frame is None else frame), is_new=is_new)

    def fold_frame(
        self,
        function: KernelFunction,
        ridge: float,
        train: Tensor,
        weights: Tensor,
        build: Callable[[], TangentFrame],
    ) -> TangentFrame:
        """Return the frame of the rows ``train`` likewise; their weights are their own."""
        every = [] if self._last is None else self._last._frames
        for kept in every:
            if (
                kept.function == function
                and kept.frame.ridge == ridge
                and kept.train is not None
                and torch.equal(kept.train, train)
                and torch.equal(kept.frame.weights, weights)
            ):
                return self._kept(kept, is_new=False)
        return self._kept(_Kept(function, train, build()), is_new=True)

    def matrix(self, function: KernelFunction) -> Tensor | None:
        """Return the kernel matrix of all rows, if it is kept."""
        every = self._matrices + ([] if self._last is None else self._last._matrices)
        return next((matrix for kept, matrix in every if kept == function), None)

    def keep_matrix(self, function: KernelFunction, matrix: Tensor) -> None:
        """Keep the kernel matrix of all rows, if there is room."""
        is_new = all(kept != function for kept, _ in self._matrices)
        if is_new and isinstance(function, InfiniteKernel) and self._has_room(bytes_of(matrix)):
            self._matrices.append((function, matrix))

    def close(self, of_best: TangentFrame | None) -> None:
        """End the fit; the frame of the best student is known as long as that lives."""
        self._last = None
        if of_best is not None and isinstance(of_best.kernel, InfiniteKernel):
            self._of_best = weakref.ref(of_best)

    def _found(self, function: KernelFunction, ridge: float) -> TangentFrame | None:
        for kept in self._frames:
            if kept.function == function and kept.frame.ridge == ridge and kept.train is None:
                return kept.frame
        best = None if self._of_best is None else self._of_best()
        if best is not None and best.kernel == function and best.ridge == ridge:
            return best
        return None

    def _kept(self, kept: _Kept, *, is_new: bool) -> TangentFrame:
        if not is_new:
            kept.frame.warn_if_ill_conditioned()
        if (
            isinstance(kept.function, InfiniteKernel)
            and all(kept.frame is not other.frame for other in self._frames)
            # The frame of a fold holds the matrix of all rows.
            and (kept.train is None or any(kept.function == f for f, _ in self._matrices))
            and self._has_room(size_of(kept.frame))
        ):
            self._frames.append(kept)
        return kept.frame

    def _has_room(self, n_bytes: int) -> bool:
        return self.n_bytes + n_bytes <= self._limit


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's entries."""
    return tensor.numel() * tensor.element_size()


def limit_of(cache_size: float | str, device: torch.device, held: int) -> int:
    """Return the bytes that ``cache_size`` allows; "auto" is a share of free and ``held`` bytes."""
    if cache_size == "auto":
        return int(AUTO_SHARE * (available_bytes(device) + held))
    return int(cache_size)
