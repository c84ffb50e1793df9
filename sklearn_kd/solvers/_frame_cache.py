"""Tangent frames of earlier fits, for fits on the same rows: they make plain searches cheap.

A search fits a student per candidate and fold, which predicts the rows left out. ρ and T enter
neither the frame nor the kernel entries between training and test rows, so all candidates of a
fold share them. They are kept here, in this process, within a bounded share of memory. The least
recently used are dropped first. Each is kept only from the second request on, so that single fits
leave nothing behind.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd._memory import available_bytes
from sklearn_kd.kernels._tiles import Block, stream
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg import TangentFrame

# The share of the free memory that "auto" allows for everything that is kept.
AUTO_SHARE = 0.2

# Number of first requests to remember, a few bytes each.
_N_REMEMBERED = 1000


class CrossBlocks(NamedTuple):
    """Θ(X, X_fit), X_fit the rows of a kept frame, in the blocks in which it was computed."""

    # Weak: a frame that is no longer kept must not live on here.
    frame: weakref.ref[TangentFrame]
    X: Tensor
    blocks: list[Block]


class FrameCache:
    """The frames and cross blocks kept in this process; safe with threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, TangentFrame | CrossBlocks] = OrderedDict()
        self._asked_once: OrderedDict[Hashable, None] = OrderedDict()

    def frame(
        self,
        kernel: Any,
        X: Tensor,
        *,
        ridge: float,
        weights: Tensor,
        memory_limit: float | str,
        cache_size: float | str,
    ) -> TangentFrame:
        """Return the frame of these rows, kernel, ridge and weights: a kept one, or a new one.

        Only `NTK` kernels are compared by value; frames of other kernels are always new.
        """
        if cache_size == 0 or not isinstance(kernel, InfiniteKernel):
            return TangentFrame(kernel, X, ridge=ridge, weights=weights, memory_limit=memory_limit)
        key = (kernel, ridge, X.dtype, X.device, X.shape, _checksum(X), _checksum(weights))
        kept = self._find(key)
        # Equal checksums are not yet equal rows.
        if (
            isinstance(kept, TangentFrame)
            and torch.equal(kept.X, X)
            and torch.equal(kept.weights, weights)
        ):
            kept.warn_if_ill_conditioned()
            return kept
        frame = TangentFrame(kernel, X, ridge=ridge, weights=weights, memory_limit=memory_limit)
        if self._is_asked_again(key):
            self._keep(key, frame, self.limit(cache_size, X.device))
        return frame

    def cross_blocks(
        self, frame: TangentFrame | None, X: Tensor, *, cache_size: float | str
    ) -> list[Block] | None:
        """Return Θ(X, X_fit) if ``frame`` is a kept one and this was asked for before."""
        if cache_size == 0 or frame is None or not self._keeps(frame):
            return None
        key = (id(frame), X.shape, _checksum(X))
        kept = self._find(key)
        # A new frame may have the id of an earlier one.
        if isinstance(kept, CrossBlocks) and kept.frame() is frame and torch.equal(kept.X, X):
            return kept.blocks
        limit = self.limit(cache_size, X.device)
        entries = len(X) * (frame.n_rows + X.shape[1])
        if entries * X.element_size() > limit or not self._is_asked_again(key):
            return None
        blocks = list(stream(frame.kernel.block, X, frame.X))
        self._keep(key, CrossBlocks(weakref.ref(frame), X.clone(), blocks), limit)
        return blocks

    def _find(self, key: Hashable) -> TangentFrame | CrossBlocks | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keeps(self, frame: TangentFrame) -> bool:
        with self._lock:
            return any(kept is frame for kept in self._kept.values())

    def _is_asked_again(self, key: Hashable) -> bool:
        with self._lock:
            if key in self._asked_once:
                return True
            self._asked_once[key] = None
            if len(self._asked_once) > _N_REMEMBERED:
                self._asked_once.popitem(last=False)
            return False

    def _keep(self, key: Hashable, kept: TangentFrame | CrossBlocks, limit: int) -> None:
        if size_of(kept) > limit:
            return
        with self._lock:
            self._kept[key] = kept
            while sum(map(size_of, self._kept.values())) > limit:
                self._kept.popitem(last=False)

    def limit(self, cache_size: float | str, device: torch.device) -> int:
        """Return the bytes that all kept objects may take together."""
        if cache_size != "auto":
            return int(cache_size)
        # The bytes of kept objects were free before.
        with self._lock:
            held = sum(size_of(kept) for kept in self._kept.values() if kept.X.device == device)
        return int(AUTO_SHARE * (available_bytes(device) + held))

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._kept.clear()
            self._asked_once.clear()

    @property
    def n_frames(self) -> int:
        """The number of frames kept."""
        return sum(isinstance(kept, TangentFrame) for kept in self._kept.values())


def size_of(kept: TangentFrame | CrossBlocks) -> int:
    """Return the bytes that a frame, or cross blocks, hold."""
    if isinstance(kept, TangentFrame):
        tensors = [kept.lower, kept.X, kept.weights]
    else:
        tensors = [kept.X, *(block for _, _, block in kept.blocks)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _checksum(values: Tensor) -> int:
    return zlib.crc32(to_numpy(values.contiguous()).data)


frames = FrameCache()
