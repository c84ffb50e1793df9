import mpmath
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from sklearn_kd.distillation import (
    correction_logits,
    correction_margin,
    effective_logits,
    equivalent_soft_ratio,
    toolkit_weight,
)

properties = settings(deadline=None, derandomize=True, max_examples=200)


# Correction logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("y", [0, 1, 0.3])
def test_correction_logit_is_the_derivative_of_the_effective_logit(y, temperature):
    z_t = np.array([-300.0, -20.0, -1.0, 0.0, 0.5, 30.0])
    step = mpmath.mpf("1e-15")
    correction = correction_logits(z_t, y, temperature=temperature)
    for a, b in zip(z_t, correction, strict=True):
        exact = oracles.correction_logit(a, y, temperature)
        assert abs(b - exact) <= 1e-12 * abs(exact)
        if abs(exact) < 1e4:
            with mpmath.workdps(60):
                z_eff = oracles.effective_logit(a, y, 1 - step, temperature)
                slope = (z_eff - mpmath.mpf(a)) / step
            assert abs(slope - exact) <= 1e-8 * abs(exact) + 1e-12


def test_multiclass_correction_is_the_derivative_of_the_effective_logits():
    rng = np.random.default_rng(0)
    z_t = rng.normal(size=(50, 4)) * 3
    z_t -= z_t.mean(axis=1, keepdims=True)
    for y in (rng.integers(0, 4, 50), rng.dirichlet(np.ones(4), 50)):
        correction = correction_logits(z_t, y, temperature=3.0)
        step = 1e-7
        z_eff = effective_logits(z_t, y, soft_ratio=1 - step, temperature=3.0)
        np.testing.assert_allclose((z_eff - z_t) / step, correction, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(correction.sum(axis=1), 0, atol=1e-10)


def test_two_class_correction_is_the_binary_one():
    rng = np.random.default_rng(1)
    z_t, y = rng.normal(size=(50, 2)) * 10, rng.integers(0, 2, 50)
    binary = correction_logits(z_t[:, 1] - z_t[:, 0], y, temperature=2.0)
    pair = correction_logits(z_t, y, temperature=2.0)
    np.testing.assert_allclose(pair[:, 1] - pair[:, 0], binary, rtol=1e-12, atol=1e-14)


def test_correction_that_overflows_is_an_error():
    with pytest.raises(ValueError, match=r"correction_logits overflow .* at index 1"):
        correction_logits([2.0, -700.0], [1, 1], temperature=0.05)


@pytest.mark.parametrize("temperature", [1e-100, 1e-3, 1e6, 1e100, 1e150])
def test_correction_logits_at_any_temperature(temperature):
    z_t = np.array([-2.0, 0.1, 3.0]) * min(1.0, temperature)
    exact = [oracles.correction_logit(a, 1, temperature) for a in z_t]
    correction = correction_logits(z_t, 1, temperature=temperature)
    for a, b in zip(correction, exact, strict=True):
        assert abs(mpmath.mpf(a) / b - 1) < 1e-12
    rows = np.stack((0 * z_t, z_t, z_t), axis=1)
    assert np.isfinite(correction_logits(rows, [0, 1, 2], temperature=temperature)).all()


# Correction margin


@properties
@given(st.floats(0.01, 0.999), st.floats(0.05, 100))
def test_effective_logit_changes_sign_at_the_margin(soft_ratio, temperature):
    margin = correction_margin(soft_ratio, temperature)
    if np.isinf(margin):
        assert soft_ratio * (1 + temperature) <= temperature * (1 + 1e-15)
        return
    z_t = -margin * np.array([1 - 1e-6, 1 + 1e-6])
    inside, outside = effective_logits(z_t, [1, 1], soft_ratio=soft_ratio, temperature=temperature)
    assert inside > 0 > outside


@pytest.mark.parametrize("scaling", ["none", "squared"])
def test_margin_is_infinite_up_to_the_threshold(scaling):
    temperature = np.array([0.5, 1.0, 2.0, 10.0])
    threshold = (temperature if scaling == "none" else 1) / (1 + temperature)
    below = correction_margin(threshold * 0.999, temperature, temperature_scaling=scaling)
    above = correction_margin(threshold * 1.001, temperature, temperature_scaling=scaling)
    assert np.isinf(below).all()
    assert np.isfinite(above).all()
    z_t = np.stack((-above * 0.9999, -above * 1.0001))
    z_eff = effective_logits(
        z_t[..., None],
        1,
        soft_ratio=(threshold * 1.001)[:, None],
        temperature=temperature[:, None],
        temperature_scaling=scaling,
    )
    assert (z_eff[0] > 0).all()
    assert (z_eff[1] < 0).all()
    assert correction_margin(1.0, 2.0, temperature_scaling=scaling) == 0


# Toolkit recipes


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_toolkit_loss_has_the_same_minimiser(scaling, reduction, weight):
    n_classes, T = 4, 3.0
    z_t, y = np.random.default_rng(2).normal(size=n_classes) * 3, 2
    p = softmax(z_t / T)

    def loss(z):
        soft = -(p @ log_softmax(z / T)) / (n_classes if reduction == "mean" else 1)
        soft *= T**2 if scaling == "squared" else 1
        return weight * soft - (1 - weight) * log_softmax(z)[y] + 1e-3 * z.sum() ** 2

    found = minimize(loss, np.zeros(n_classes), method="BFGS", options={"gtol": 1e-7}).x
    rho = equivalent_soft_ratio(
        weight, T, temperature_scaling=scaling, reduction=reduction, n_classes=n_classes
    )
    z = effective_logits(z_t[None], [y], soft_ratio=rho, temperature=T)[0]
    np.testing.assert_allclose(found, z, atol=1e-4)


@properties
@given(st.floats(1e-6, 1), st.floats(0.05, 100))
def test_squared_scaling_agrees_with_the_effective_logits_option(soft_ratio, temperature):
    rho = equivalent_soft_ratio(soft_ratio, temperature, temperature_scaling="squared")
    squared = effective_logits(
        [-2.0, 2.0],
        1,
        soft_ratio=soft_ratio,
        temperature=temperature,
        temperature_scaling="squared",
    )
    plain = effective_logits([-2.0, 2.0], 1, soft_ratio=rho, temperature=temperature)
    # 1 - rho is known to 1e-16 only, which decides the last digits as rho -> 1.
    np.testing.assert_allclose(squared, plain, rtol=1e-9, atol=1e-9)


def test_recipes_answer_in_kind_and_broadcast():
    weight = torch.tensor([[0.2], [1.0]], dtype=torch.float64)
    rho = equivalent_soft_ratio(weight, torch.tensor([1.0, 4.0]), temperature_scaling="squared")
    assert isinstance(rho, torch.Tensor)
    assert rho.shape == (2, 2)
    assert rho[0, 0].item() == 0.2
    assert (rho[1] == 1).all()
    margin = correction_margin(weight.float() * 0.9 + 0.1, 1)
    assert margin.dtype == torch.float32
    assert np.isscalar(correction_margin(0.9, 1))
    assert isinstance(correction_logits([1.0], [1], temperature=1), np.ndarray)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correction_margin(0.0, 1.0), "soft_ratio must be in"),
        (lambda: correction_margin(0.5, -1.0), "temperature must be positive"),
        (lambda: correction_margin([0.5, 0.6], [1.0, 2.0, 3.0]), "do not broadcast"),
        (lambda: correction_logits([np.nan], [1], temperature=1.0), "teacher_logits must be"),
        (lambda: correction_logits([0.0], [2], temperature=1.0), "y must be in"),
        (lambda: equivalent_soft_ratio(0.0, 1.0, temperature_scaling="none"), "weight must be"),
        (lambda: equivalent_soft_ratio(0.5, 1.0, temperature_scaling=True), "temperature_scaling"),
        (
            lambda: equivalent_soft_ratio(0.5, 1.0, temperature_scaling="none", reduction="sum"),
            "reduction must be one of",
        ),
        (
            lambda: equivalent_soft_ratio(0.5, 1.0, temperature_scaling="none", reduction="mean"),
            "n_classes must be the number of classes",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("weight", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("temperature", [1e-100, 1.0, 1e100, 1e155, 1e300])
def test_equivalent_soft_ratio_at_any_temperature(weight, scaling, temperature):
    options = {"temperature_scaling": scaling, "reduction": "mean", "n_classes": 10}
    a, factor = mpmath.mpf(weight), mpmath.mpf(temperature) ** 2 if scaling == "squared" else 1
    exact = a * factor / 10 / (a * factor / 10 + (1 - a))
    ratio = equivalent_soft_ratio(weight, temperature, **options)
    assert abs(mpmath.mpf(float(ratio)) / exact - 1) < 1e-14


def test_equivalent_soft_ratio_below_any_float_is_an_error():
    with pytest.raises(ValueError, match=r"soft ratio must be positive; .*raise weight or temp"):
        equivalent_soft_ratio(0.5, 1e-300, temperature_scaling="squared")


# And back: the weight of a toolkit


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@properties
@given(soft_ratio=st.floats(1e-6, 1), temperature=st.floats(0.05, 100))
def test_toolkit_weight_is_the_inverse(soft_ratio, temperature, scaling, reduction):
    options = {"temperature_scaling": scaling, "reduction": reduction, "n_classes": 10}
    weight = toolkit_weight(soft_ratio, temperature, **options)
    assert 0 < weight <= 1
    # ρ next to 1 or a next to 1: the digits of 1 - ρ and 1 - a are those that are left.
    ratio = equivalent_soft_ratio(weight, temperature, **options)
    assert ratio == pytest.approx(soft_ratio, rel=1e-12, abs=0)


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("soft_ratio", [0.0, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1e-300, 1e-100, 1e-3, 1.0, 1e100, 1e300])
def test_toolkit_weight_at_any_temperature(soft_ratio, temperature, scaling, reduction):
    options = {"temperature_scaling": scaling, "reduction": reduction, "n_classes": 10}
    rho, factor = mpmath.mpf(soft_ratio), mpmath.mpf(1)
    if scaling == "squared":
        factor = mpmath.mpf(temperature) ** 2
    if reduction == "mean":
        factor /= 10
    exact = rho / (rho + (1 - rho) * factor)
    if soft_ratio == 0 or exact > 1e-300:
        weight = toolkit_weight(soft_ratio, temperature, **options)
        assert abs(mpmath.mpf(float(weight)) - exact) <= 1e-14 * exact
    else:
        with pytest.raises(
            ValueError, match=r"toolkit's weight must be positive; .*raise soft_ratio"
        ):
            toolkit_weight(soft_ratio, temperature, **options)


def test_toolkit_weights_answer_in_kind_and_broadcast():
    ratios = torch.tensor([[0.0], [0.2], [1.0]], dtype=torch.float64)
    weights = toolkit_weight(ratios, torch.tensor([1.0, 4.0]), temperature_scaling="squared")
    assert isinstance(weights, torch.Tensor)
    assert weights.shape == (3, 2)
    assert weights[:, 0].tolist() == [0.0, 0.2, 1.0]
    assert weights[1, 1].item() == pytest.approx((0.2 / 16) / (0.2 / 16 + 0.8), rel=1e-15)
    assert toolkit_weight(ratios.float(), 2.0, temperature_scaling="none").dtype == torch.float32
    assert np.isscalar(toolkit_weight(0.9, 1, temperature_scaling="none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"soft_ratio": -0.1}, r"soft_ratio must be in \[0, 1\]; got -0.1"),
        ({"soft_ratio": [0.5, 1.1]}, r"soft_ratio must be in \[0, 1\]; got 1.1 at index 1"),
        ({"soft_ratio": np.nan}, r"soft_ratio must be in \[0, 1\]; got nan"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature_scaling": "T2"}, "temperature_scaling must be one of"),
        ({"reduction": "sum"}, "reduction must be one of"),
        ({"reduction": "mean"}, "n_classes must be the number of classes"),
        ({"n_classes": 1}, "n_classes, the number of classes, must be an integer"),
        ({"soft_ratio": [0.5, 0.6], "temperature": [1.0, 2.0, 3.0]}, "do not broadcast"),
    ],
    ids=str,
)
def test_bad_input_of_toolkit_weight_is_named(arguments, message):
    good = {"soft_ratio": 0.5, "temperature": 2.0, "temperature_scaling": "squared"}
    with pytest.raises(ValueError, match=message):
        toolkit_weight(**good | arguments)
