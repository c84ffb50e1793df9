"""Parts of a stream of rows: where some consecutive rows are, and how to load them.

A part knows how many rows it has, loads them when asked, and can be narrowed to some of them. It
is picklable, and holds no more than it needs, so that it can be sent to another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_kd.rows._files import map_array, read_archive

NO_ROWS = "no array of rows"


class Part(ABC):
    """Consecutive rows."""

    n_rows: int

    @abstractmethod
    def load(self) -> Any:
        """Return the rows, with a shape and indexing by a slice or by row numbers."""

    def between(self, start: int, stop: int) -> Part:
        """Return the rows from ``start`` on, before ``stop``."""
        return RangePart(self, start, stop)

    def only(self, numbers: np.ndarray) -> Part:
        """Return the rows with these increasing numbers."""
        return SelectedPart(self, numbers)


@dataclass(frozen=True)
class ArrayPart(Part):
    """Rows of an array or a memory map; a pickle holds the rows themselves."""

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


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file does: its size and the time it was written, in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class FilePart(Part):
    """Rows of a .npy file, which is memory-mapped, or of the array ``X`` of a .npz file."""

    path: Path
    n_rows: int
    stamp: tuple[int, int | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamp", _stamp(self.path))

    def require_unchanged(self) -> None:
        """Raise if the file has changed.

        Reading a memory map of a file that has been cut short would end the process.

        Raises
        ------
        ValueError
            If the file has changed; the error names it.
        """
        try:
            size, written = _stamp(self.path)
        except OSError as error:
            raise ValueError(f"{str(self.path)!r} cannot be read any more ({error}).") from error
        if size != self.stamp[0] or self.stamp[1] not in (None, written):
            raise ValueError(
                f"{str(self.path)!r} has changed since the fit began; the files of X must not "
                "change during a fit."
            )

    def load(self) -> Any:
        """Return the rows."""
        self.require_unchanged()
        if self.path.suffix == ".npy":
            return MappedRows(self, map_array(self.path, what=NO_ROWS))
        return read_archive(self.path, ["X"], what=NO_ROWS)["X"]

    def __getstate__(self) -> dict:
        """Return the state without the time: another machine may have a copy of the file."""
        return vars(self) | {"stamp": (self.stamp[0], None)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)


@dataclass(frozen=True)
class MappedRows:
    """Rows of a memory-mapped file, which is checked for changes before each read."""

    part: FilePart
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return self.array.shape

    def __getitem__(self, rows: Any) -> MappedRows:
        self.part.require_unchanged()
        return MappedRows(self.part, self.array[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.part.require_unchanged()
        return np.array(self.array, dtype=dtype, copy=copy)


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
        """Return some of the rows, from only that range of the part that holds them."""
        numbers = self.numbers[start:stop]
        first = int(numbers[0])
        return SelectedPart(self.part.between(first, int(numbers[-1]) + 1), numbers - first)


@dataclass(frozen=True)
class Selection:
    """Rows ``numbers`` of ``values``; only those indexed are read."""

    values: Any
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_selected, d)."""
        return len(self.numbers), self.values.shape[1]

    def __getitem__(self, rows: Any) -> Any:
        return self.values[self.numbers[rows]]
