"""Transfer risk."""

import numpy as np
import pytest
import torch

from sklearn_kd.metrics import transfer_risk


def test_share_of_rows_on_which_the_classes_differ():
    rng = np.random.default_rng(0)
    z_t, z_s = rng.normal(size=(2, 50))
    expected = sum(t * s < 0 for t, s in zip(z_t, z_s, strict=True)) / 50
    assert transfer_risk(z_t, z_s) == expected
    assert transfer_risk(torch.as_tensor(z_t), torch.as_tensor(z_s)).item() == expected
    wide_t, wide_s = rng.normal(size=(2, 50, 4))
    expected = sum(t.argmax() != s.argmax() for t, s in zip(wide_t, wide_s, strict=True)) / 50
    assert transfer_risk(wide_t, wide_s) == expected


def test_tiny_logits_still_have_a_sign():
    assert transfer_risk([1e-200], [-1e-200]) == 1


def test_zero_disagrees_with_nothing():
    assert transfer_risk([0.0, 0.0], [1.0, -1.0]) == 0


def test_weights_are_repetitions():
    z_t, z_s = np.array([1.0, -1.0, 2.0]), np.array([1.0, 1.0, -2.0])
    weighted = transfer_risk(z_t, z_s, sample_weight=np.array([3.0, 2.0, 0.0]))
    assert weighted == pytest.approx(2 / 5)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"shape \(3,\), but student_logits has shape \(2,\)"):
        transfer_risk(np.zeros(3), np.zeros(2))


LABELS = np.array([0, 1, 1, 0, 1])
DIGITS = np.arange(10)


@pytest.mark.parametrize(
    ("z_t", "z_s"),
    [
        (LABELS, 1 - LABELS),
        (LABELS.astype(float), np.linspace(-1, 1, 5)),
        (np.linspace(-1, 1, 10), DIGITS),
        (DIGITS, DIGITS[::-1]),
        (np.array([0.9, 0.2, 0.7]), np.array([0.1, 0.8, 0.3])),
        (np.linspace(0.1, 0.9, 12), np.linspace(-1, 1, 12)),
        (np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[-1.0, 1.0], [2.0, 0.5]])),
        (np.eye(3)[[0, 1, 2]], np.eye(3)[[1, 2, 0]]),
    ],
)
def test_labels_and_probabilities_have_no_signs_to_compare(z_t, z_s):
    with pytest.raises(ValueError, match=r"_logits (holds|and student_logits are all in)"):
        transfer_risk(z_t, z_s)


def test_weak_logits_of_one_class_are_not_refused_with_those_of_another():
    assert transfer_risk([0.3, 0.6, 0.2], [-0.3, 0.6, 0.2]) == pytest.approx(1 / 3)
