"""The one meaning of "logit": gauge, shapes, labels, and what is refused."""

import numpy as np
import pytest
import torch

from sklearn_kd._logits import (
    canonical_logits,
    centred,
    class_indices,
    class_probabilities,
    hard_labels,
    logits,
    n_logits,
)


def test_centred_rows_sum_to_zero_and_keep_their_differences():
    z = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 5, 3)))
    torch.testing.assert_close(centred(z).sum(dim=-1), torch.zeros(2, 5).double())
    torch.testing.assert_close(centred(z)[..., 1:] - centred(z)[..., :1], z[..., 1:] - z[..., :1])
    assert torch.equal(centred(z[0, :, 0]), z[0, :, 0])


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_canonical_logits_have_the_probabilities_of_what_was_given(n_classes):
    given = np.random.default_rng(0).normal(size=(20, n_classes)) + 5
    canonical = canonical_logits(given, 20, n_classes, name="z")
    assert canonical.shape == ((20,) if n_classes == 2 else (20, n_classes))
    torch.testing.assert_close(canonical, logits(torch.as_tensor(given)))
    expected = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_probabilities(canonical), expected, rtol=1e-12)
    np.testing.assert_array_equal(class_indices(canonical), given.argmax(axis=1))


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_hard_labels_have_the_shape_of_logits(n_classes):
    y = torch.arange(12) % n_classes
    labels = hard_labels(y, n_logits(n_classes))
    expected = y if n_classes == 2 else torch.eye(n_classes, dtype=torch.long)[y]
    assert torch.equal(labels, expected)


def test_infinite_logits_are_refused_with_advice_that_helps():
    with pytest.raises(ValueError, match=r"z must be finite, but row 1 .* calibrate .* 0\.001"):
        canonical_logits([0.0, -np.inf], 2, 2, name="z")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"z has shape \(2, 3\), but 2 rows of 2 classes need"):
        canonical_logits(np.zeros((2, 3)), 2, 2, name="z")
