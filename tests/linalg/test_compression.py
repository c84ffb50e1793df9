import numpy as np
import pytest
import torch

from sklearn_kd.distillation import effective_logits
from sklearn_kd.linalg._compression import compress


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def relative_errors(compressed, targets):
    """Return ‖t_j − (B C D)_j‖ / ‖t_j‖ as it is written."""
    left = targets - compressed.basis @ compressed.mixing @ compressed.norms.diag()
    norms = targets.norm(dim=0)
    return torch.where(norms > 0, left.norm(dim=0) / norms, 0.0)


def grid(n_rows=500):
    z_t = 3 * normal(n_rows).numpy()
    y = (z_t + normal(n_rows, seed=1).numpy() > 0).astype(int)
    return torch.as_tensor(
        np.stack(
            [
                effective_logits(z_t, y, soft_ratio=rho, temperature=T)
                for rho in np.linspace(0.3, 1, 8)
                for T in (1, 2, 4, 8)
            ],
            axis=1,
        )
    )


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-10])
def test_no_column_loses_more_than_asked(tol):
    targets = grid() * 10.0 ** torch.linspace(-8, 8, 32)
    compressed = compress(targets, tol)
    assert compressed.truncation.max() <= tol + 1e-14
    torch.testing.assert_close(
        compressed.truncation, relative_errors(compressed, targets), rtol=1e-6, atol=1e-13
    )


def test_basis_is_the_smallest():
    # one column less, of the best that there is, and some column would lose too much
    targets = grid()
    tol = 1e-6
    compressed = compress(targets, tol)
    U, _, _ = torch.linalg.svd(targets / targets.norm(dim=0), full_matrices=False)
    U = U[:, : compressed.basis.shape[1] - 1]
    left = targets - U @ (U.T @ targets)
    assert (left.norm(dim=0) / targets.norm(dim=0)).max() > tol


def test_a_grid_of_32_cells_is_of_low_rank():
    assert compress(grid(), 1e-6).basis.shape[1] <= 16


def test_basis_is_orthogonal_and_falls():
    compressed = compress(normal(40, 10), 1e-8)
    gram = compressed.basis.T @ compressed.basis
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-12)
    assert (gram.diagonal().diff() <= 0).all()
    identity = compressed.mixing @ compressed.mixing.T
    torch.testing.assert_close(identity, torch.eye(10).double(), rtol=0, atol=1e-12)


def test_expand_undoes_compression():
    targets = normal(30, 7) @ torch.diag(10.0 ** torch.arange(-3, 4).double())
    compressed = compress(targets, 1e-14)
    torch.testing.assert_close(compressed.expand(compressed.basis), targets, rtol=1e-12, atol=1e-15)


def test_zero_and_equal_columns():
    t = normal(20, 1)
    compressed = compress(torch.cat([0 * t, t, t, -2 * t, 0 * t], dim=1), 1e-10)
    assert compressed.basis.shape == (20, 1)
    assert compressed.norms[[0, 4]].tolist() == [0, 0]
    assert compressed.truncation[[0, 4]].tolist() == [0, 0]


def test_only_zero_columns():
    compressed = compress(torch.zeros(5, 3).double(), 1e-10)
    assert compressed.basis.shape == (5, 0)
    assert torch.equal(compressed.expand(compressed.basis), torch.zeros(5, 3).double())


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_columns_whose_squares_leave_the_range(scale):
    t = normal(20, 2)
    compressed = compress(scale * t, 1e-10)
    torch.testing.assert_close(compressed.norms / scale, t.norm(dim=0))
    assert compressed.basis.shape == (20, 2)


def test_more_columns_than_rows():
    targets = normal(3, 8)
    compressed = compress(targets, 1e-12)
    assert compressed.basis.shape == (3, 3)
    torch.testing.assert_close(compressed.expand(compressed.basis), targets)


def test_small_columns_count_as_much_as_large_ones():
    targets = normal(30, 2) * torch.tensor([1.0, 1e-12])
    assert compress(targets, 1e-3).basis.shape == (30, 2)


def test_targets_stay_as_they_are():
    targets = normal(10, 3)
    kept = targets.clone()
    compress(targets, 1e-3)
    assert torch.equal(targets, kept)
