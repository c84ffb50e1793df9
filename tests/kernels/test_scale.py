"""Columns out of scale, and kernels to which that matters."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF, Matern, WhiteKernel
from sklearn.metrics.pairwise import rbf_kernel

from sklearn_kd.kernels import NTK, EmpiricalNTK, _scale
from sklearn_kd.kernels._scale import out_of_scale, weighs_columns_by_scale

RNG = np.random.default_rng(0)
SCALED = RNG.normal(size=(200, 5))
RARE = (RNG.permutation(200)[:, None] == np.arange(3)).astype(float)  # one row of each category


def columns(*scales):
    return torch.from_numpy(SCALED * np.array(scales))


@pytest.mark.parametrize("entries", [2**20, 400, 1])
def test_the_column_that_hides_the_others(entries, monkeypatch):
    monkeypatch.setattr(_scale, "_ENTRIES", entries)
    assert out_of_scale(columns(1, 1, 1000, 1, 1)) == 2
    assert out_of_scale(columns(1e-3, 1, 1, 1, 1)) is not None
    assert out_of_scale(columns(1, 1, 1e9, 1e3, 1).float()) == 2


@pytest.mark.parametrize(
    "X",
    [
        columns(1, 1, 100, 1, 1),
        columns(1e-200, 1e-200, 1e-200, 1e-200, 1e-200),
        columns(1e200, 1e200, 1e200, 1e200, 1e200),
        torch.from_numpy(np.c_[SCALED, np.full(200, 1e6)]),
        torch.from_numpy(np.c_[SCALED, 5 + 1e-8 * SCALED[:, 0]]),
        torch.from_numpy(np.c_[30 * SCALED, RARE]),
        torch.from_numpy(np.c_[SCALED, np.where(np.arange(200) == 7, 20.0, 0.0)]),
        columns(1, 1, 1, 1, 1)[:, :1] * 1e9,
        torch.ones(4, 3),
    ],
    ids=[
        "100",
        "tiny",
        "huge",
        "constant",
        "rounding",
        "rare",
        "outlier",
        "alone",
        "constant alone",
    ],
)
def test_what_is_in_scale(X):
    assert out_of_scale(X) is None


@pytest.mark.parametrize("kernel", [None, NTK(), RBF(), NTK() + WhiteKernel(), Matern() ** 2])
def test_kernels_that_weigh_columns_by_scale(kernel):
    assert weighs_columns_by_scale(kernel)


@pytest.mark.parametrize(
    "kernel",
    [
        RBF([1.0, 1000.0]),
        2.0 * (Matern([1.0, 1000.0]) + WhiteKernel()) ** 2,
        EmpiricalNTK(torch.nn.Linear(2, 1)),
        rbf_kernel,
    ],
)
def test_kernels_that_may_not(kernel):
    assert not weighs_columns_by_scale(kernel)
