"""The same 100 rows from every source that a stream can be made of."""

import numpy as np
import pytest
import torch

X = np.random.default_rng(0).normal(size=(100, 3))


def folder(path, suffix, values=X, cuts=(30, 31, 77)):
    for i, part in enumerate(np.split(values, cuts)):
        if suffix == ".npy":
            np.save(path / f"{i:03}.npy", part)
        else:
            np.savez_compressed(path / f"{i:03}.npz", X=part, other=np.zeros(2))
    (path / "notes.txt").write_text("not rows")
    return path


def memory_map(path):
    np.save(path / "rows.npy", X)
    return np.load(path / "rows.npy", mmap_mode="r")


def dask_array(path):
    return pytest.importorskip("dask.array").from_array(X, chunks=(40, 2))


SOURCES = {
    "array": lambda path: X,
    "list": lambda path: X.tolist(),
    "fortran": lambda path: np.asfortranarray(X),
    "tensor": lambda path: torch.as_tensor(X),
    "memmap": memory_map,
    "npy": lambda path: folder(path, ".npy"),
    "npz": lambda path: str(folder(path, ".npz")),
    "dask": dask_array,
}
