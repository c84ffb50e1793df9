"""Parts of a stream of rows: where some consecutive rows are, and how to get at them.

A part knows how many rows it has, loads them when asked, and can be narrowed to some of them. It
is picklable, and holds no more than it needs, so that it can be sent to another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class Part(ABC):
    """Consecutive rows."""

    n_rows: int

    @abstractmethod
    def load(self) -> Any:
        """Return the rows: what has a shape, and can be indexed by a slice or row numbers."""

    def between(self, start: int, stop: int) -> Part:
        """Return the rows from ``start`` on, before ``stop``."""
        return RangePart(self, start, stop)

    def only(self, numbers: np.ndarray) -> Part:
        """Return the rows with these increasing numbers."""
        return SelectedPart(self, numbers)


@dataclass(frozen=True)
class ArrayPart(Part):
    """Rows of an array, or of a memory map, of which a pickle holds the rows themselves."""

    array: Any

    @property
    def n_rows(self) -> int:  # type: ignore[override]  # read-only, as all of a part
        """Number of rows."""
        return self.array.shape[0]

    def load(self) -> Any:
        """Return the array."""
        return self.array

    def between(self, start: int, stop: int) -> Part:
        """Return a view."""
        return ArrayPart(self.array[start:stop])


@dataclass(frozen=True)
class FilePart(Part):
    """Rows of a .npy file, which is memory-mapped, or of the array ``X`` of a .npz file."""

    path: Path
    n_rows: int

    def load(self) -> np.ndarray:
        """Return the array."""
        if self.path.suffix == ".npy":
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        with np.load(self.path, allow_pickle=False) as file:
            return file["X"]


@dataclass(frozen=True)
class DaskPart(Part):
    """Rows of a dask array, computed together."""

    array: Any
    n_rows: int

    def load(self) -> Any:
        """Compute the rows."""
        return self.array.compute()

    def __getstate__(self) -> dict:
        """Return the state without the tasks of other parts."""
        import dask

        (array,) = dask.optimize(self.array)
        return {"array": array, "n_rows": self.n_rows}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)


@dataclass(frozen=True)
class RangePart(Part):
    """Some consecutive rows of a part."""

    part: Part
    start: int
    stop: int

    @property
    def n_rows(self) -> int:  # type: ignore[override]  # read-only, as all of a part
        """Number of rows."""
        return self.stop - self.start

    def load(self) -> Any:
        """Return the rows; a view where the part itself is a memory map."""
        return self.part.load()[self.start : self.stop]

    def between(self, start: int, stop: int) -> Part:
        """Return a narrower range."""
        return RangePart(self.part, self.start + start, self.start + stop)


@dataclass(frozen=True)
class SelectedPart(Part):
    """The rows of a part with increasing ``numbers``."""

    part: Part
    numbers: np.ndarray

    @property
    def n_rows(self) -> int:  # type: ignore[override]  # read-only, as all of a part
        """Number of rows."""
        return len(self.numbers)

    def load(self) -> Selection:
        """Return the rows, still to be read."""
        return Selection(self.part.load(), self.numbers)

    def between(self, start: int, stop: int) -> Part:
        """Return some of the rows, of no more than the part that holds them."""
        numbers = self.numbers[start:stop]
        first = int(numbers[0])
        return SelectedPart(self.part.between(first, int(numbers[-1]) + 1), numbers - first)


@dataclass(frozen=True)
class Selection:
    """Rows ``numbers`` of ``values``, of which those that are asked for are read."""

    values: Any
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_selected, d)."""
        return len(self.numbers), self.values.shape[1]

    def __getitem__(self, rows: Any) -> Any:
        return self.values[self.numbers[rows]]
