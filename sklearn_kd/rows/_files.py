"""Untrusted files of arrays: a damaged file raises a ValueError that names it.

Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Errors of numpy and zipfile on bytes that are no array, and of the system on unreadable files.
_DAMAGED = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_archive(path: Path, names: Iterable[str], *, what: str) -> dict[str, np.ndarray]:
    """Return the arrays ``names`` of a ``.npz`` file; ``what`` says what the file is.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or lacks one of the arrays.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return {name: _read_member(archive, name) for name in names}
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, what, error) from error


def map_array(path: Path, *, what: str) -> np.memmap:
    """Return the array of a ``.npy`` file, memory-mapped.

    Raises
    ------
    ValueError
        If the file is damaged or cannot be read.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except _DAMAGED as error:
        raise _damaged(path, what, error) from error


def shape_and_dtype(path: Path, name: str, *, what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return both for a ``.npy`` file or the array ``name`` of a ``.npz`` file, without its data.

    Raises
    ------
    ValueError
        If the file is damaged, cannot be read or lacks that array.
    """
    if path.suffix == ".npy":
        array = map_array(path, what=what)
        return array.shape, array.dtype
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_header(archive, name)[:2]
    except _DAMAGED as error:
        raise _damaged(path, what, error) from error


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    _read_header(archive, name)
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, dtype and bytes of an array in an archive that is long enough to hold it."""
    member_name = f"{name}.npy"
    if member_name not in archive.namelist():
        raise ValueError(f"it holds no array named {name!r}")
    with archive.open(member_name) as member:
        version = np.lib.format.read_magic(member)
        if version not in _READ_HEADER:
            raise ValueError(f"its format {version} is unknown")
        shape, _, dtype = _READ_HEADER[version](member)
        size = member.tell() + dtype.itemsize * math.prod(shape)
    # Otherwise a damaged header could request any amount of memory.
    if not dtype.hasobject and archive.getinfo(member_name).file_size != size:
        raise ValueError(f"its array {name!r} is not of the announced length")
    return shape, dtype, size


def _damaged(path: Path, what: str, error: Exception) -> ValueError:
    # numpy's advice on pickles is to load them unsafely.
    reason = "it holds Python objects" if "pickle" in str(error) else str(error)
    return ValueError(
        f"{str(path)!r} is damaged or {what} ({reason or type(error).__name__}); write it anew, "
        "or delete it."
    )
