"""The state of a pass over the rows, on disk: an interrupted pass resumes where it stopped."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._memory import format_bytes
from sklearn_kd._warnings import warn
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._landmarks import LandmarkBasis, RowSums
from sklearn_kd.rows._copies import mixed
from sklearn_kd.rows._files import read_archive
from sklearn_kd.solvers._rows_and_targets import Probes

# Two evaluations of the same numbers may differ by rounding, such as with other thread counts.
# Passes that differ by less than the first tolerance are the same. Those that differ by more than
# the second have another file. Those in between are refused.
_TOLERANCE = {torch.float64: (1e-9, 1e-6), torch.float32: (1e-5, 1e-4)}

_SUMS = ("gram", "moments", "trace", "captured")
_ARRAYS = ("landmarks", *_SUMS, "next_row", "probe_numbers")


@dataclass
class PassState:
    """A pass that has seen the rows before ``next_row``."""

    basis: LandmarkBasis
    sums: RowSums
    probes: Probes
    next_row: int


def sketch(blocks: Iterable[tuple[slice, Tensor]]) -> np.ndarray:
    """Return two numbers of each column v of a long array given in blocks (b, C): (2, C).

    ‖v‖ and Σᵢ sᵢ vᵢ with factors sᵢ in [−1, 1] that look random but depend on i alone. A change
    of v by δ changes the second by about ‖δ‖; rounding errors of v change it by at most their norm.
    """
    squares: Any = 0.0
    sums: Any = 0.0
    for rows, values in blocks:
        column = to_numpy(values.double().reshape(len(values), -1))
        numbers = np.arange(rows.start + 1, rows.start + 1 + len(column), dtype=np.uint64)
        factors = mixed(numbers).astype(np.float64) * 2.0**-63 - 1
        squares = squares + np.square(column).sum(axis=0)
        sums = sums + factors @ column
    return np.stack([np.sqrt(squares), sums])


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a pass depends on.

    Parameters
    ----------
    facts : dict
        Values that must be exactly the same, by their names in errors.
    sketches : dict
        Values known up to rounding, as returned by `sketch`.
    dtype : torch.dtype
        Of the rows, the targets and the kernel's entries.
    """

    facts: dict[str, str]
    sketches: dict[str, np.ndarray]
    dtype: torch.dtype

    def digits(self) -> str:
        """Return 8 hexadecimal digits, the same for passes that differ by rounding."""
        grid = _TOLERANCE[self.dtype][1]
        checksum = hashlib.sha256(repr(sorted(self.facts.items())).encode())
        for name, (norm, total) in sorted(self.sketches.items()):
            scale = np.maximum(norm, np.finfo(float).tiny)
            rounded = np.rint(np.stack([np.log(scale), total / scale]) / grid) + 0.0
            checksum.update(name.encode() + rounded.tobytes())
        return checksum.hexdigest()[:8]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file."""
        facts = {f"fact {name}": np.array(value) for name, value in self.facts.items()}
        return facts | {f"sketch {name}": value for name, value in self.sketches.items()}

    def difference(self, saved: dict[str, np.ndarray]) -> str | None:
        """Return the name of a value that differs from the saved one; None if there is none."""
        tolerance = _TOLERANCE[self.dtype][0]
        for name, fact in self.facts.items():
            if str(saved[f"fact {name}"]) != fact:
                return name
        for name, now in self.sketches.items():
            before = saved[f"sketch {name}"]
            if before.shape != now.shape or (abs(before - now) > tolerance * now[0]).any():
                return name
        return None


class Checkpoint:
    """The files to which passes are written, and the seconds between two writes.

    Each pass has a file of its own beside ``path``, so that simultaneous fits do not interfere. For
    ``path="pass.npz"`` it is ``pass-1f3a9c02.npz``, with digits that follow from everything that
    the pass depends on. The file holds the landmarks, the sums and the `Fingerprint`.

    Parameters
    ----------
    path : Path
        Gives the folder of the files, and how their names begin and end.
    seconds : float, default=60.0
        Time between two writes of the file.
    """

    def __init__(self, path: Path, seconds: float = 60.0) -> None:
        self.path = path
        self.seconds = seconds
        self._files: set[Path] = set()
        self._has_warned = False

    def require_writable(self, n_bytes: int = 0) -> None:
        """Raise if a file of this many bytes cannot be written.

        Raises
        ------
        ValueError
            It names ``checkpoint`` and states the cause.
        """
        folder, start = self.path.parent, f"checkpoint={str(self.path)!r} cannot be written: "
        if self.path.is_dir():
            example = str(self.path / "pass.npz")
            raise ValueError(start + f"it is a folder; name a file in it, such as {example!r}.")
        if not folder.is_dir():
            raise ValueError(start + f"there is no folder {str(folder)!r}; create it.")
        trial = self._unfinished(self.path)
        try:
            with self._removed_at_the_end(trial):
                self._write(trial, {"trial": np.zeros(1)})
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise ValueError(start + f"{error.strerror or error}; name another file.") from error
        if free < n_bytes:
            raise ValueError(
                start + f"it takes {format_bytes(n_bytes)}, but {format_bytes(free)} are free in "
                f"{str(folder.resolve())!r}; name a file elsewhere, or use a smaller n_landmarks."
            )

    def file_of(self, fingerprint: Fingerprint) -> Path:
        """Return the file of a pass."""
        return self.path.with_name(f"{self.path.stem}-{fingerprint.digits()}{self.path.suffix}")

    def save(self, fingerprint: Fingerprint, state: PassState) -> None:
        """Write the state; at any time the file is either the old one or the new one.

        Warns
        -----
        RuntimeWarning
            Once, if the file cannot be written; the pass goes on without it.
        """
        sums = {name: to_numpy(getattr(state.sums, name)) for name in _SUMS}
        arrays = sums | {
            "landmarks": to_numpy(state.basis.landmarks),
            "next_row": np.array(state.next_row),
            "probe_numbers": state.probes.numbers,
        }
        file = self.file_of(fingerprint)
        self._files.add(file)
        unfinished = self._unfinished(file)
        try:
            with self._removed_at_the_end(unfinished):
                self._write(unfinished, arrays | fingerprint.arrays())
                # If it is gone, another fit with the same pass has ended and removed it.
                with contextlib.suppress(FileNotFoundError):
                    unfinished.replace(file)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warn(
                    f"checkpoint={str(self.path)!r} could not be written ({error}). The pass goes "
                    "on; if it is interrupted, it will have to start from what was written last.",
                    RuntimeWarning,
                )

    def load(
        self,
        fingerprint: Fingerprint,
        kernel: KernelFunction,
        take: Callable[[np.ndarray, torch.dtype, torch.device], Probes],
        device: torch.device,
    ) -> PassState | None:
        """Return the state on disk, if there is one.

        Raises
        ------
        ValueError
            If the file is damaged, or was written by another pass.
        """
        file = self.file_of(fingerprint)
        names = [*_ARRAYS, *fingerprint.arrays()]
        try:
            saved = read_archive(file, names, what="no checkpoint of a pass")
        except FileNotFoundError:
            return None
        self._files.add(file)
        difference = fingerprint.difference(saved)
        if difference is not None:
            raise ValueError(
                f"checkpoint={str(file)!r} was written by a pass with another {difference}; delete "
                "it to start anew, or name another file."
            )
        landmarks = to_tensor(saved["landmarks"], device=device, dtype=fingerprint.dtype)
        sums = RowSums(*(to_tensor(saved[name], device=device) for name in _SUMS))
        probes = take(saved["probe_numbers"], fingerprint.dtype, device)
        basis = LandmarkBasis(kernel, landmarks)
        return PassState(basis, sums, probes, int(saved["next_row"]))

    def remove(self) -> None:
        """Remove the files of the passes that were written or read, at the end of a fit.

        Warns
        -----
        RuntimeWarning
            If a file cannot be removed.
        """
        for file in (*self._files, self.path):
            # A process killed while it writes leaves an unfinished file, or the trial of one.
            left = list(file.parent.glob(glob.escape(file.name) + ".*.part"))
            try:
                for path in (file, *left) if file in self._files else left:
                    path.unlink(missing_ok=True)
            except OSError as error:
                warn(f"{str(file)!r} is of no use any more; delete it ({error}).", RuntimeWarning)
        self._files.clear()

    @staticmethod
    def _unfinished(file: Path) -> Path:
        """Return a name that no other process or thread writes to."""
        return file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.part")

    @staticmethod
    def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    @contextlib.contextmanager
    def _removed_at_the_end(path: Path) -> Iterator[None]:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
