"""HardLabelEffectDisplay: Eq. 12 beside the measured error, which decides."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.base import clone

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.inspection import HardLabelEffectDisplay
from sklearn_kd.metrics import hard_label_effect

RATIOS = [0.5, 0.9, 1.0]


def display_of(error, interval, **arguments):
    effect = sum(interval) / 2
    return HardLabelEffectDisplay(
        effect=effect,
        interval=interval,
        soft_ratios=RATIOS,
        error=error,
        n_rows=1000,
        **arguments,
    ).plot()


def verdict(display):
    return display.axes_[1].get_title()


def test_panels_show_the_effect_and_the_error_with_bars():
    error = np.array([0.03, 0.02, 0.07])
    display = display_of(error, (0.1, 0.3))
    left, right = display.axes_
    (point,), bars = display.effect_.lines[0].get_ydata(), display.effect_.lines[2][0]
    assert point == pytest.approx(0.2)
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.1, 0.3])
    np.testing.assert_allclose(display.error_.lines[0].get_ydata(), error)
    heights = [np.ptp(s[:, 1]) for s in display.error_.lines[2][0].get_segments()]
    np.testing.assert_allclose(heights, 2 * np.sqrt(error * (1 - error) / 1000))
    assert [t.get_text() for t in right.get_xticklabels()] == ["0.5", "0.9", "1"]
    assert display.best_.get_xydata().tolist() == [[1, 0.02]]
    words = [text.get_text().replace("\n", " ") for text in left.texts]
    assert words == [
        "hard labels turn the weights towards the truth",
        "hard labels turn the weights away from it",
    ]
    assert left.texts[0].get_position()[1] > 0 > left.texts[1].get_position()[1]
    assert left.get_title() == "Eq. 12: an angle, not the error"
    assert "labels ±1" in left.get_xlabel()


@pytest.mark.parametrize(
    ("error", "interval", "best", "disagree", "words"),
    [
        ([0.03, 0.02, 0.07], (0.1, 0.3), 0.9, False, "decides: hard labels help"),
        ([0.03, 0.02, 0.07], (-0.3, -0.1), 0.9, True, "hard labels help\nEq. 12 disagrees"),
        ([0.07, 0.03, 0.02], (-0.3, -0.1), 1.0, False, "hard labels do not help"),
        ([0.07, 0.03, 0.02], (0.1, 0.3), 1.0, True, "do not help\nEq. 12 disagrees"),
        ([0.07, 0.03, 0.02], (-0.1, 0.3), 1.0, False, "Eq. 12 has no say: its interval holds 0"),
        ([0.072, 0.069, 0.07], (-0.3, -0.1), 0.9, False, "within one standard error of ρ = 1"),
        ([0.02, 0.02, 0.02], (0.1, 0.3), 1.0, False, "within one standard error of ρ = 1"),
    ],
)
def test_the_measured_error_decides(error, interval, best, disagree, words):
    display = display_of(error, interval)
    assert display.best_soft_ratio_ == best
    assert display.disagree_ is disagree
    assert verdict(display).startswith("The measured error decides")
    assert words in verdict(display)


def test_soft_ratios_may_come_in_any_order():
    display = HardLabelEffectDisplay(
        effect=0.2, interval=(0.1, 0.3), soft_ratios=[1.0, 0.5], error=[0.2, 0.1], n_rows=100
    ).plot()
    assert display.error_.lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert display.best_soft_ratio_ == 0.5


def test_an_effect_of_zero_still_has_axes():
    low, high = display_of([0.1, 0.1, 0.1], (0.0, 0.0)).axes_[0].get_ylim()
    assert low < 0 < high


def test_from_estimator_computes_both_panels(student, cancer):
    X_fit, y_fit, X, y, _ = cancer
    display = HardLabelEffectDisplay.from_estimator(
        student, X, y, soft_ratios=RATIOS, n_bootstraps=50, random_state=0
    )
    expected = hard_label_effect(
        student.tangent_frame(),
        student.teacher_logits_,
        y_fit,
        temperature=2.0,
        n_bootstraps=50,
        random_state=0,
    )
    assert display.effect == pytest.approx(expected.value)
    assert display.interval == pytest.approx(tuple(map(float, expected.interval)))
    assert display.is_proxy
    for ratio, error in zip(RATIOS, display.error, strict=True):
        refitted = clone(student).set_params(soft_ratio=ratio).fit(X_fit, y_fit)
        assert error == pytest.approx(1 - refitted.score(X, y))


def test_from_estimator_takes_ground_truth_logits_of_the_rows_it_was_fitted_on(cancer):
    X_fit, y_fit, X, y, teacher = cancer
    truth = np.random.default_rng(0).normal(size=len(y_fit)) + 3 * y_fit
    repeated = np.concatenate([np.arange(len(y_fit)), [3, 7]])
    student = LinearizedKDStudent(teacher).fit(X_fit[repeated], y_fit[repeated])
    display = HardLabelEffectDisplay.from_estimator(
        student, X, y, ground_truth_logits=truth[repeated], soft_ratios=RATIOS, random_state=0
    )
    expected = hard_label_effect(
        student.tangent_frame(),
        teacher.decision_function(X_fit),
        y_fit,
        temperature=2.0,
        ground_truth_logits=truth,
        random_state=0,
    )
    assert not display.is_proxy
    assert display.effect == pytest.approx(expected.value)
    with pytest.raises(ValueError, match="ground_truth_logits has shape"):
        HardLabelEffectDisplay.from_estimator(student, X, y, ground_truth_logits=truth)


def test_scaling_the_soft_term_scales_the_slope(student, cancer):
    X_fit, y_fit, X, y, _ = cancer
    squared = clone(student).set_params(temperature_scaling="squared").fit(X_fit, y_fit)
    options = {"soft_ratios": RATIOS, "n_bootstraps": 20, "random_state": 0}
    plain = HardLabelEffectDisplay.from_estimator(student, X, y, **options)
    scaled = HardLabelEffectDisplay.from_estimator(squared, X, y, **options)
    assert scaled.effect == pytest.approx(plain.effect / 4)


def test_what_is_refused(student, cancer):
    _, _, X, y, _ = cancer
    with pytest.raises(ValueError, match="must contain 1"):
        HardLabelEffectDisplay.from_estimator(student, X, y, soft_ratios=[0.5, 0.9])
    with pytest.raises(ValueError, match="ax must be two axes, left and right panel; got 1"):
        HardLabelEffectDisplay.from_estimator(student, X, y, ax=plt.subplots()[1])
