"""Training rows that need not fit into memory: one small stream of blocks for every source.

A source is a numpy array or anything array-like, a `numpy.memmap`, a folder of ``.npy`` or
``.npz`` files, or a dask array. All become a `RowStream`: parts that are read one at a time, and
always in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd.rows._files import shape_and_dtype
from sklearn_kd.rows._parts import NO_ROWS, ArrayPart, DaskPart, FilePart, Part

_SUFFIXES = (".npy", ".npz")

# The default size of a block: 16 MiB of float64, but at most this many rows.
_BLOCK_BYTES, _MOST_BLOCK_ROWS = 16 * 2**20, 65_536


class RowStream:
    """Rows in parts, of which one is in memory at a time.

    Parameters
    ----------
    parts : sequence of Part
        The parts, in order.
    n_features : int
        Number of columns.
    """

    def __init__(self, parts: Sequence[Part], n_features: int) -> None:
        self.n_features = n_features
        self._parts = parts
        sizes = [part.n_rows for part in parts]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._digests: dict[torch.dtype, bytes] = {}

    @property
    def n_rows(self) -> int:
        """Number of rows of all parts."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        return self.n_rows

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return self.n_rows, self.n_features

    def between(self, start: int, stop: int) -> RowStream:
        """Return the rows from ``start`` on, before ``stop``, as a stream of their own."""
        cuts = np.clip(self._starts, start, stop)
        parts = [
            self._parts[i].between(*(cuts[i : i + 2] - self._starts[i]).tolist())
            for i in np.flatnonzero(np.diff(cuts)).tolist()
        ]
        return RowStream(parts, self.n_features)

    def only(self, numbers: np.ndarray) -> RowStream:
        """Return the rows with these increasing numbers as a stream of their own."""
        if len(numbers) == self.n_rows:
            return self
        cuts = np.searchsorted(numbers, self._starts)
        parts = [
            self._parts[i].only(numbers[cuts[i] : cuts[i + 1]] - self._starts[i])
            for i in np.flatnonzero(np.diff(cuts)).tolist()
        ]
        stream = RowStream(parts, self.n_features)
        chosen = np.ascontiguousarray(numbers, dtype=np.int64).tobytes()
        stream._digests = {
            dtype: hashlib.sha256(digest + chosen).digest()
            for dtype, digest in self._digests.items()
        }
        return stream

    def digest(self, dtype: torch.dtype) -> bytes:
        """Return a checksum of all rows, rounded to ``dtype``.

        Reads every row, unless `digested_blocks` has already read them all.
        """
        if dtype not in self._digests:
            for _ in self.digested_blocks(dtype):
                pass
        return self._digests[dtype]

    def digested_blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield `blocks`, and store the checksum of all rows after the last block."""
        checksum = hashlib.sha256(str((self.shape, dtype)).encode())
        for rows, X in self.blocks(dtype=dtype):
            checksum.update(np.ascontiguousarray(to_numpy(X)).data)
            yield rows, X
        self._digests[dtype] = checksum.digest()

    def blocks(
        self,
        n_block_rows: int | None = None,
        start: int = 0,
        *,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, X) for consecutive blocks of at most ``n_block_rows`` rows.

        None means as many as 16 MiB hold, but at most 65536. A block does not cross the edge of a
        part. ``start`` must be the first row of a block, and does not change the blocks after it.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity, or the shape of a part is not as announced.
        """
        if n_block_rows is None:
            n_block_rows = min(_MOST_BLOCK_ROWS, max(1, _BLOCK_BYTES // (8 * self.n_features)))
        for part in range(len(self._parts)):
            first, last = int(self._starts[part]), int(self._starts[part + 1])
            if last <= start:
                continue
            values = self._part(part)
            for offset in range(max(start, first), last, n_block_rows):
                rows = slice(offset, min(offset + n_block_rows, last))
                X = to_tensor(
                    values[rows.start - first : rows.stop - first], dtype=dtype, device=device
                )
                _require_finite(X, rows.start)
                yield rows, X

    def take(self, numbers: np.ndarray, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the rows with these increasing numbers, shape (m, d), reading only their parts."""
        out = torch.empty((len(numbers), self.n_features), dtype=dtype, device="cpu")
        part_of = np.searchsorted(self._starts, numbers, side="right") - 1
        for part in np.unique(part_of):
            wanted = np.flatnonzero(part_of == part)
            values = self._part(int(part))[numbers[wanted] - self._starts[part]]
            out[torch.from_numpy(wanted)] = to_tensor(values, dtype=dtype)
        _require_finite(out, numbers)
        return out

    def _part(self, part: int) -> Any:
        values = self._parts[part].load()
        expected = (int(self._starts[part + 1] - self._starts[part]), self.n_features)
        if tuple(values.shape) != expected:
            raise ValueError(
                f"Part {part} of X has the shape {tuple(values.shape)} where {expected} was "
                "announced; its files must not change during a fit."
            )
        return values


def _require_finite(X: Tensor, numbers: int | np.ndarray) -> None:
    bad = (~X.isfinite().all(dim=1)).nonzero()[:, 0]
    if len(bad):
        shown = bad[:10].numpy(force=True)
        rows = shown + numbers if isinstance(numbers, int) else numbers[shown]
        raise ValueError(
            f"X holds NaN, infinity or values too large for {X.dtype} in rows {rows.tolist()}; "
            "remove or impute them."
        )


def is_streamed(X: Any) -> bool:
    """Whether ``X`` is a source of rows that need not be in memory: folder, memory map, dask."""
    return isinstance(X, str | Path | np.memmap) or _is_dask(X)


def _is_dask(X: Any) -> bool:
    return hasattr(X, "dask") and hasattr(X, "blocks")


def as_row_stream(X: Any) -> RowStream:
    """Return the rows of ``X`` as a stream.

    Parameters
    ----------
    X : array-like, numpy.memmap, dask array, or path of a folder
        Rows of shape (n, d). The files of a folder, ``.npy`` or ``.npz`` with an array ``X``,
        hold consecutive rows in the order of their names; ``.npy`` files are memory-mapped.
        Hidden files, whose names begin with a dot, are left out.
        A dask array is computed one block of rows at a time.

    Raises
    ------
    ValueError
        If ``X`` is not a table of numbers, a dask array of unknown shape, or a folder whose files
        are damaged or do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_kd.rows._streams import as_row_stream
    >>> stream = as_row_stream(np.arange(10.0).reshape(5, 2))
    >>> [(rows.start, rows.stop) for rows, _ in stream.blocks(2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    if isinstance(X, str | Path):
        return _folder_stream(Path(X))
    if _is_dask(X):
        return _dask_stream(X)
    array = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X)
    _require_table(array.shape, array.dtype, "X")
    return RowStream([ArrayPart(array)], array.shape[1])


def _folder_stream(folder: Path) -> RowStream:
    if not folder.is_dir():
        raise ValueError(
            f"X={str(folder)!r} is not a folder; pass one that holds .npy or .npz files."
        )
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(f"X={str(folder)!r} holds no .npy or .npz files.")
    shapes = []
    for path in files:
        shape, dtype = shape_and_dtype(path, "X", what=NO_ROWS)
        _require_table(shape, dtype, f"{path.name} in X={str(folder)!r}")
        shapes.append(shape)
        if shape[1] != shapes[0][1]:
            raise ValueError(
                f"{path.name} in X={str(folder)!r} has {shape[1]} columns, but {files[0].name} has "
                f"{shapes[0][1]}; all files must have the same."
            )
    parts = [FilePart(path, n) for path, (n, _) in zip(files, shapes, strict=True)]
    return RowStream(parts, shapes[0][1])


def _dask_stream(X: Any) -> RowStream:
    if any(np.isnan(size) for size in X.shape):
        raise ValueError(
            "X is a dask array whose shape is not known; call X.compute_chunk_sizes() first."
        )
    _require_table(X.shape, X.dtype, "X")
    parts = [DaskPart(X.blocks[i], n_rows) for i, n_rows in enumerate(X.chunks[0])]
    return RowStream(parts, X.shape[1])


def _require_table(shape: tuple[int, ...], dtype: Any, name: str) -> None:
    kind = str(getattr(dtype, "name", dtype)).rpartition(".")[2]  # ">f8" is named "float64"
    is_number = kind.startswith(("float", "bfloat", "int", "uint", "bool"))
    if len(shape) != 2 or shape[1] == 0 or not is_number:
        raise ValueError(
            f"{name} has shape {tuple(shape)} and dtype {dtype}; it must be a table of real "
            "numbers, of shape (n_samples, n_features)."
        )
