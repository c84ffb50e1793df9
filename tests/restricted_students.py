"""A small problem, its restricted student, and its rows from every source of a stream."""

import numpy as np
import pytest
import torch

from sklearn_kd.kernels import NTK
from sklearn_kd.rows._streams import as_row_stream
from sklearn_kd.solvers._pass import LandmarkChoice, PassOptions, nystrom_student
from sklearn_kd.solvers._rows_and_targets import StreamedRows

KERNEL = NTK(depth=2)


def problem(n=300, d=8, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, torch.as_tensor(np.sin(X[:, :3, None] * [1.0, 2.0]))


def student(
    X, targets, *, seed=0, n_landmarks=60, landmarks="rpcholesky", weights=None, ridge=0.0,
    checkpoint=None, kernel=KERNEL, dtype=torch.float64,
):  # fmt: skip
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows], weights)
    return nystrom_student(
        kernel.to_torch(),
        rows,
        LandmarkChoice(n_landmarks, landmarks, seed),
        ridge=ridge,
        dtype=dtype,
        options=PassOptions(checkpoint=checkpoint),
    )


def folder(path, X, suffix):
    for i, part in enumerate(np.split(X, [64, 65, 200])):
        name = path / f"{i}{suffix}"
        np.save(name, part) if suffix == ".npy" else np.savez(name, X=part)
    return path


def memory_map(path, X, mode="w+"):
    out = np.memmap(path / "rows", dtype=X.dtype, mode=mode, shape=X.shape)
    out[:] = X
    return out


SOURCES = {
    "memmap": memory_map,
    "npy": lambda path, X: folder(path, X, ".npy"),
    "npz": lambda path, X: folder(path, X, ".npz"),
    "dask": lambda path, X: pytest.importorskip("dask.array").from_array(X, chunks=(70, 3)),
}
