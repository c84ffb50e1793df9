"""Draws of the initial network."""

import numpy as np
import torch

from sklearn_kd._logits import centred
from sklearn_kd.kernels import NTK
from sklearn_kd.students._prior import GaussianPrior


def test_covariance_is_that_of_the_kernel():
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.normal(size=(6, 2)))
    prior = GaussianPrior(NTK(kind="nngp").to_torch(), X)
    exact = prior.transform(torch.eye(6).double())
    np.testing.assert_allclose(exact @ exact.T, NTK(kind="nngp")(X), rtol=1e-12)
    draws = prior.transform(torch.as_tensor(rng.normal(size=(6, 20_000))))
    np.testing.assert_allclose(np.cov(draws), NTK(kind="nngp")(X), rtol=0.05)


def test_equal_rows_have_equal_values():
    X = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]).double()
    prior = GaussianPrior(NTK(kind="nngp").to_torch(), X)
    z = prior.transform(torch.tensor([0.3, -1.0]).double())
    assert prior.n_distinct == 2
    assert z.shape == (3,)
    assert z[0] == z[2] != z[1]


def test_gauge():
    z = torch.tensor([[1.0, 2.0, 6.0]])
    assert centred(z).tolist() == [[-2.0, -1.0, 3.0]]
    assert centred(z[0]).tolist() == [1.0, 2.0, 6.0]
