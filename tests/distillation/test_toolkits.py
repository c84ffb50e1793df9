"""`toolkit_weight` is the inverse of `equivalent_soft_ratio`, and gives the gradients it claims."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from sklearn_kd.distillation import DistillationLoss, equivalent_soft_ratio, toolkit_weight

HOW = st.sampled_from(
    [
        {"temperature_scaling": "none"},
        {"temperature_scaling": "squared"},
        {"temperature_scaling": "squared", "reduction": "mean", "n_classes": 7},
        {"temperature_scaling": "none", "reduction": "mean", "n_classes": 3},
    ]
)


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(0.01, 100.0), HOW)
def test_there_and_back(weight, temperature, how):
    ratio = equivalent_soft_ratio(weight, temperature, **how)
    # ρ next to 1 has lost the digits of the hard weight.
    lost = 4e-16 * (1 + ratio / max(1 - ratio, 1e-300)) if weight < 1 else 0
    if lost < 1e-3:
        back = toolkit_weight(ratio, temperature, **how)
        assert back == pytest.approx(weight, rel=1e-12 + lost)


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(0.01, 100.0), HOW)
def test_back_and_there(ratio, temperature, how):
    weight = toolkit_weight(ratio, temperature, **how)
    lost = 4e-16 * (1 + weight / max(1 - weight, 1e-300)) if ratio < 1 else 0
    if lost < 1e-3:
        back = equivalent_soft_ratio(weight, temperature, **how)
        assert back == pytest.approx(ratio, rel=1e-12 + lost)


def test_gradients_of_the_common_loss():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    z_t = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (6,), generator=generator)
    rho, T = 0.4, 3.0
    a = toolkit_weight(rho, T, temperature_scaling="squared", reduction="mean", n_classes=4)
    soft = kl_div(torch.log_softmax(z / T, 1), torch.softmax(z_t / T, 1), reduction="sum")
    toolkit = a * T**2 * soft / z.numel() + (1 - a) * cross_entropy(z, y)
    own = DistillationLoss(rho, T)(z, z_t, y)
    (first,), (second,) = torch.autograd.grad(toolkit, z), torch.autograd.grad(own, z)
    torch.testing.assert_close(first / first.norm(), second / second.norm())


def test_arrays_tensors_and_large_temperatures():
    assert isinstance(toolkit_weight(0.5, 2.0, temperature_scaling="none"), float | np.floating)
    found = toolkit_weight(
        torch.tensor([0.5]), torch.tensor([2.0, 4.0]), temperature_scaling="squared"
    )
    torch.testing.assert_close(found, torch.tensor([0.2, 1 / 17]), check_dtype=False)
    assert 0 <= toolkit_weight(0.5, 1e200, temperature_scaling="squared") < 1e-300
    assert toolkit_weight(1.0, 1e200, temperature_scaling="squared") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"soft_ratio": 0.0}, "soft_ratio"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature_scaling": "cubed"}, "temperature_scaling"),
        ({"reduction": "sum"}, "reduction"),
        ({"reduction": "mean"}, "n_classes"),
        ({"reduction": "mean", "n_classes": 1}, "n_classes"),
        ({"soft_ratio": [0.5, 0.6], "temperature": [1.0, 2.0, 3.0]}, "broadcast|shape"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    given_ = {"soft_ratio": 0.5, "temperature": 2.0, "temperature_scaling": "none", **arguments}
    with pytest.raises(ValueError, match=message):
        toolkit_weight(given_.pop("soft_ratio"), given_.pop("temperature"), **given_)
