"""How far a pass over the rows is, on disk: an interrupted pass goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._landmarks import LandmarkBasis, RowSums

# Two evaluations of the same numbers may differ by rounding, such as with other thread counts.
_RTOL, _ATOL = 1e-9, 1e-12


class Probes(NamedTuple):
    """A few training rows: their numbers, rows (m, d), targets (m, C) and weights (m,)."""

    numbers: np.ndarray
    X: Tensor
    targets: Tensor
    weights: Tensor | None


@dataclass
class PassState:
    """A pass that has seen the rows before ``next_row``."""

    basis: LandmarkBasis
    sums: RowSums
    probes: Probes
    next_row: int


@dataclass(frozen=True)
class Checkpoint:
    """The file to which a pass is written, and the seconds between two times.

    The file holds the landmarks, the sums, and a fingerprint: the shape of the problem, kernel
    values, and the rows, targets and weights of the probes.
    """

    path: Path
    seconds: float = 60.0

    def save(self, state: PassState, n_rows: int, n_landmarks: int) -> None:
        """Write the state; the file is at all times either the former or the new one."""
        sums, probes = state.sums, state.probes
        weights = torch.ones(0) if probes.weights is None else probes.weights
        tensors = {
            "landmarks": state.basis.landmarks,
            "gram": sums.gram,
            "moments": sums.moments,
            "trace": sums.trace,
            "captured": sums.captured,
            "kernel": state.basis.lower.diagonal(),
            "probe_X": probes.X,
            "probe_targets": probes.targets,
            "probe_weights": weights,
        }
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()} | {
            "shape": np.array([n_rows, n_landmarks]),
            "next_row": np.array(state.next_row),
            "probe_numbers": probes.numbers,
        }
        unfinished = self.path.with_name(self.path.name + ".part")
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)

    def load(
        self,
        kernel: KernelFunction,
        take: Callable[[np.ndarray, torch.dtype, torch.device], Probes],
        n_rows: int,
        n_landmarks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PassState:
        """Return the state on disk.

        Raises
        ------
        ValueError
            If it was written by a pass over other rows or targets, or with other options.
        """
        with np.load(self.path, allow_pickle=False) as file:
            saved = {name: file[name] for name in file.files}
        self._require_same("number of rows or n_landmarks", saved["shape"], [n_rows, n_landmarks])
        probes = take(saved["probe_numbers"], dtype, device)
        weights = np.ones(0) if probes.weights is None else to_numpy(probes.weights)
        self._require_same("rows", saved["probe_X"], to_numpy(probes.X))
        self._require_same("targets", saved["probe_targets"], to_numpy(probes.targets))
        self._require_same("sample weights", saved["probe_weights"], weights)

        def tensor(name: str) -> Tensor:
            return to_tensor(saved[name], device=device)

        basis = LandmarkBasis(kernel, tensor("landmarks").to(dtype))
        self._require_same("kernel", saved["kernel"], to_numpy(basis.lower.diagonal()))
        sums = RowSums(*map(tensor, ("gram", "moments", "trace", "captured")))
        return PassState(basis, sums, probes, int(saved["next_row"]))

    def _require_same(self, what: str, saved: np.ndarray, now: np.ndarray | list[int]) -> None:
        same_shape = np.shape(saved) == np.shape(now)
        if not same_shape or not np.allclose(saved, now, rtol=_RTOL, atol=_ATOL):
            raise ValueError(
                f"checkpoint={str(self.path)!r} was written by a pass with another {what}; delete "
                "it to start anew, or name another file."
            )
