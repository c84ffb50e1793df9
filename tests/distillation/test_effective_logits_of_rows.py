"""Copies act as one row whose soft label is the mean of theirs."""

import mpmath
import numpy as np
import oracles
import pytest
import torch
from scipy.special import expit, softmax

from sklearn_kd.distillation import effective_logits
from sklearn_kd.distillation._effective_logits_of_rows import merge_soft_labels


@pytest.mark.parametrize("scale", [0.1, 30.0, 3000.0])
def test_merged_binary_soft_labels_are_weighted_means(scale):
    rng = np.random.default_rng(12)
    z_t, weights = rng.normal(size=60) * scale, rng.uniform(0.1, 3, 60)
    index, T = np.r_[np.arange(20), rng.integers(0, 20, 40)], 1.7
    merged = merge_soft_labels(*map(torch.tensor, (z_t, weights, index)), 20, T)
    for j in range(20):
        members = index == j
        exact = oracles.mean_soft_label_logit(z_t[members], weights[members], T)
        assert abs(merged[j].item() - exact) < 1e-13 * max(1, abs(exact))


def test_merged_multiclass_soft_labels_are_weighted_means():
    rng = np.random.default_rng(13)
    z_t, weights = rng.normal(size=(60, 4)) * 20, rng.uniform(0.1, 3, 60)
    index, T = np.r_[np.arange(20), rng.integers(0, 20, 40)], 1.7
    merged = merge_soft_labels(*map(torch.tensor, (z_t, weights, index)), 20, T).numpy()
    labels = softmax(z_t / T, axis=1)
    for j in range(20):
        members = index == j
        mean = np.average(labels[members], axis=0, weights=weights[members])
        np.testing.assert_allclose(softmax(merged[j] / T), mean, rtol=1e-12)
        if members.sum() > 1:
            assert abs(merged[j].sum()) < 1e-12 * abs(merged[j]).max()


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_members_that_agree_keep_their_logits_bit_for_bit(shape):
    z_t = torch.tensor(np.random.default_rng(14).normal(size=shape) * 800)
    alone = merge_soft_labels(z_t, torch.ones(5), torch.arange(5), 5, 0.3)
    assert torch.equal(alone, z_t)
    twice = merge_soft_labels(
        torch.cat((z_t, z_t)), torch.arange(1.0, 11.0), torch.arange(10) % 5, 5, 0.3
    )
    assert torch.equal(twice, z_t)


def test_merged_row_minimises_the_sum_of_its_members_losses():
    z_t, y, weights = np.array([-3.0, 0.5, 2.0]), np.array([1, 0, 1]), np.array([1.0, 2.0, 0.5])
    rho, T = 0.8, 2.5
    merged = merge_soft_labels(
        torch.tensor(z_t), torch.tensor(weights), torch.zeros(3, dtype=torch.long), 1, T
    ).numpy()
    z = effective_logits(
        merged, np.average(y, weights=weights), soft_ratio=rho, temperature=T
    ).item()
    gradient = rho / T * (expit(z / T) - expit(z_t / T)) + (1 - rho) * (expit(z) - y)
    assert abs(gradient @ weights) < 1e-14


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3, 1e6, 1e12, 1e100, 1e300])
def test_merged_logits_keep_their_digits_at_any_temperature(n_classes, temperature):
    rng = np.random.default_rng(15)
    spread = 5 * min(1.0, temperature)
    z_t = rng.normal(size=(4,) if n_classes == 2 else (4, n_classes)) * spread
    weights = rng.uniform(0.1, 3, 4)
    index = torch.zeros(4, dtype=torch.long)
    merged = merge_soft_labels(torch.tensor(z_t), torch.tensor(weights), index, 1, temperature)
    columns = np.stack((0 * z_t, z_t), axis=1) if n_classes == 2 else z_t
    exact = oracles.mean_soft_label_logits(columns, weights, temperature)
    exact = [exact[1] - exact[0]] if n_classes == 2 else exact
    error = max(
        abs(mpmath.mpf(a) - b) for a, b in zip(merged[0].view(-1).tolist(), exact, strict=True)
    )
    assert error <= 1e-13 * max(map(abs, exact))
