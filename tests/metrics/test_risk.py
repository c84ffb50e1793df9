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
