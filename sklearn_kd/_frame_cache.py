"""Tangent frames of earlier fits, for fits on the same rows: what makes plain searches cheap.

A search fits a student per candidate and fold. ρ and T do not enter the frame, so all candidates
of a fold have the same one. It is kept here, in this process, within a bounded share of memory,
the least recently used one going first. A frame is kept only when it is asked for a second time,
so that single fits leave nothing behind.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd.kernels._infinite import InfiniteKernel
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._memory import available_bytes

# The share of the memory that is free that "auto" lets all kept frames take together.
AUTO_SHARE = 0.2

# Of frames asked for once only a few bytes are remembered; of no more than this many.
_N_REMEMBERED = 1000


class FrameCache:
    """The frames kept in this process; safe with threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[Hashable, TangentFrame] = OrderedDict()
        self._asked_once: OrderedDict[Hashable, None] = OrderedDict()

    def frame(
        self,
        kernel: Any,
        X: Tensor,
        *,
        alpha: float,
        weights: Tensor,
        memory_limit: float | str,
        cache_size: float | str,
    ) -> TangentFrame:
        """Return the frame of these rows, kernel, ridge and weights: a kept one, or a new one.

        Only `NTK` kernels are compared by value; frames of other kernels are always new.
        """
        if cache_size == 0 or not isinstance(kernel, InfiniteKernel):
            return TangentFrame(kernel, X, alpha=alpha, weights=weights, memory_limit=memory_limit)
        key = (kernel, alpha, X.dtype, X.device, X.shape, _checksum(X), _checksum(weights))
        with self._lock:
            kept = self._frames.get(key)
            if kept is not None:
                self._frames.move_to_end(key)
        # Equal checksums are not yet equal rows.
        if kept is not None and torch.equal(kept.X, X) and torch.equal(kept.weights, weights):
            kept.warn_if_ill_conditioned()
            return kept
        frame = TangentFrame(kernel, X, alpha=alpha, weights=weights, memory_limit=memory_limit)
        with self._lock:
            self._keep(key, frame, cache_size)
        return frame

    def _keep(self, key: Hashable, frame: TangentFrame, cache_size: float | str) -> None:
        if key not in self._asked_once:
            self._asked_once[key] = None
            if len(self._asked_once) > _N_REMEMBERED:
                self._asked_once.popitem(last=False)
            return
        limit = self.limit(cache_size, frame.X.device)
        if frame_size(frame) > limit:
            return
        self._frames[key] = frame
        while sum(map(frame_size, self._frames.values())) > limit:
            self._frames.popitem(last=False)

    def limit(self, cache_size: float | str, device: torch.device) -> int:
        """Return the bytes that all kept frames may take together."""
        if cache_size != "auto":
            return int(cache_size)
        # What the kept frames hold was free before.
        held = sum(frame_size(f) for f in self._frames.values() if f.X.device == device)
        return int(AUTO_SHARE * (available_bytes(device) + held))

    def clear(self) -> None:
        """Let go of all kept frames."""
        with self._lock:
            self._frames.clear()
            self._asked_once.clear()

    def __len__(self) -> int:
        return len(self._frames)


def frame_size(frame: TangentFrame) -> int:
    """Return the bytes that a frame holds."""
    return sum(t.numel() * t.element_size() for t in (frame.lower, frame.X, frame.weights))


def _checksum(values: Tensor) -> int:
    return zlib.crc32(to_numpy(values.contiguous()).data)


frames = FrameCache()
