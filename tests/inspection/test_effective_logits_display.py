"""EffectiveLogitsDisplay: the curves of Eq. 3, the rows on them, and what is overruled."""

import numpy as np
import oracles
import pytest
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import correction_margin
from sklearn_kd.inspection import EffectiveLogitsDisplay


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def roots(z_t, y, soft_ratio, temperature):
    """Roots of Eq. 3 by the slow oracle, for binary logits (n,) and labels (n,)."""
    soft = oracles.soft_labels(z_t, temperature)
    return oracles.stationary_logits(soft, oracles.one_hot(y, 2), soft_ratio, temperature)


def test_curves_are_the_roots_of_equation_3():
    display = EffectiveLogitsDisplay.from_parameters([0.5, 0.9], [2.0, 5.0], y=[1, 0])
    assert [(p["soft_ratio"], p["temperature"]) for p in display.params] == [
        (0.5, 2.0),
        (0.5, 5.0),
        (0.9, 2.0),
        (0.9, 5.0),
    ]
    assert len(display.lines_) == 8
    at = slice(None, None, 40)
    lines = iter(display.lines_)
    for params in display.params:
        for label in (1, 0):
            z_t, z_eff = next(lines).get_data()
            labels = np.full(len(z_t[at]), label)
            expected = roots(z_t[at], labels, params["soft_ratio"], params["temperature"])
            np.testing.assert_allclose(z_eff[at], expected, rtol=1e-8, atol=1e-8)


def test_soft_labels_alone_are_the_diagonal():
    display = EffectiveLogitsDisplay.from_parameters(1.0, 3.0)
    z_t, z_eff = display.lines_[0].get_data()
    np.testing.assert_array_equal(z_t, z_eff)
    np.testing.assert_array_equal(*display.identity_.get_data())


def test_legend_says_soft_ratio_temperature_and_what_is_overruled():
    ratios = [0.5, 0.8, 1.0]
    display = EffectiveLogitsDisplay.from_parameters(ratios, 2.0)
    np.testing.assert_array_equal(display.margins, correction_margin(ratios, 2.0))
    assert labels_of(display.ax_) == [
        "ρ = 0.5, T = 2 (overrules every wrong teacher)",
        "ρ = 0.8, T = 2 (overrules |$z_t$| < 2.2)",
        "ρ = 1, T = 2 (overrules none)",
        "soft labels only, ρ = 1",
    ]
    assert display.ax_.get_xlabel() == "teacher's logit $z_t$"
    assert "hard label y = 1" in display.ax_.get_ylabel()


def test_the_margin_is_marked_where_the_curve_crosses_zero():
    display = EffectiveLogitsDisplay.from_parameters(0.8, 2.0, y=[1, 0])
    margin = correction_margin(0.8, 2.0)
    marks = [tuple(line.get_xydata()[0]) for line in display.ax_.lines if line.get_marker() == "o"]
    assert marks == [(-margin, 0), (margin, 0)]
    z_t, z_eff = display.lines_[0].get_data()
    assert np.interp(-margin, z_t, z_eff) == pytest.approx(0, abs=1e-3)


def test_scaling_the_soft_term_is_said_and_applied():
    squared = EffectiveLogitsDisplay.from_parameters(0.5, 2.0, temperature_scaling="squared")
    same = EffectiveLogitsDisplay.from_parameters(0.8, 2.0)  # 0.5 · 4 / (0.5 · 4 + 0.5)
    np.testing.assert_allclose(squared.effective_logits, same.effective_logits, rtol=1e-12)
    assert "soft term × T²" in squared.ax_.get_legend().get_title().get_text()


def test_rows_lie_on_the_curves_and_wrong_ones_are_counted():
    z_t = np.array([-4.0, -1.0, 0.5, 3.0, 1.0, -2.0])
    y = np.array([1, 1, 1, 1, 0, 0])
    display = EffectiveLogitsDisplay.from_predictions(z_t, y, soft_ratio=0.8, temperature=2.0)
    ones, zeros = (np.asarray(points.get_offsets()) for points in display.points_)
    np.testing.assert_allclose(ones[:, 0], z_t[y == 1])
    np.testing.assert_allclose(zeros[:, 0], z_t[y == 0])
    np.testing.assert_allclose(ones[:, 1], roots(z_t[:4], y[:4], 0.8, 2.0), atol=1e-8)
    # wrong: −4 and −1 for class 1, 1 for class 0; the margin is 2.2
    assert display.ax_.get_title() == "teacher wrong on 3 of 6 rows, 2 of them overruled"
    assert "row, y = 1 (4)" in labels_of(display.ax_)


def test_merged_rows_whose_labels_disagree_have_a_colour_of_their_own():
    display = EffectiveLogitsDisplay.from_predictions(
        [1.0, -1.0, 0.5], [1, 0, 0.5], soft_ratio=0.8, temperature=2.0
    )
    assert [p.get_label() for p in display.points_] == [
        "row, y = 1 (1)",
        "row, y = 0 (1)",
        "merged row, labels disagree (1)",
    ]
    assert display.ax_.get_title() == "teacher wrong on 0 of 3 rows, nothing to overrule"


def test_margins_of_the_true_class_for_three_classes():
    z_t = np.array([[2.0, 0.0, -2.0], [0.2, 0.5, -0.7], [-3.0, 0.0, 3.0]])
    y = np.array([0, 0, 1])
    display = EffectiveLogitsDisplay.from_predictions(z_t, y, soft_ratio=0.7, temperature=2.0)
    offsets = np.asarray(display.points_[0].get_offsets())
    np.testing.assert_allclose(offsets[:, 0], [2.0, -0.3, -3.0])
    soft = oracles.soft_labels(z_t, 2.0)
    z_eff = oracles.stationary_logits(soft, oracles.one_hot(y, 3), 0.7, 2.0)
    expected = [z[k] - np.delete(z, k).max() for z, k in zip(z_eff, y, strict=True)]
    np.testing.assert_allclose(offsets[:, 1], expected, atol=1e-8)
    assert display.lines_ == []
    assert "margin for the true class" in display.ax_.get_xlabel()
    assert display.ax_.get_legend().get_title().get_text() == "ρ = 0.7, T = 2"


def test_two_columns_show_the_same_margins_as_one_logit():
    z_t, y = np.array([1.0, -2.0, 0.5]), np.array([1, 1, 0])
    columns = np.stack([-z_t / 2, z_t / 2], axis=1)
    recipe = {"soft_ratio": 0.7, "temperature": 2.0}
    one = EffectiveLogitsDisplay.from_predictions(z_t, y, **recipe)
    two = EffectiveLogitsDisplay.from_predictions(columns, y, **recipe)
    side = 2 * y - 1
    np.testing.assert_allclose(two.row_teacher_logits, side * one.row_teacher_logits)
    np.testing.assert_allclose(two.row_effective_logits, side * one.row_effective_logits)
    assert two.ax_.get_title() == one.ax_.get_title()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_from_estimator_shows_the_rows_the_student_was_fitted_to(n_classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < n_classes], np.array(["oak", "ash", "elm"])[y[y < n_classes]]
    X, y = np.concatenate([X, X[:3]]), np.concatenate([y, y[-3:]])  # copies with other labels
    student = LinearizedKDStudent(
        LinearDiscriminantAnalysis(), teacher_method="decision_function", soft_ratio=0.6
    ).fit(X, y)
    display = EffectiveLogitsDisplay.from_estimator(student)
    assert len(display.row_teacher_logits) == len(student.X_fit_)
    if n_classes == 2:
        np.testing.assert_allclose(
            display.row_effective_logits, student.effective_logits_, rtol=1e-12
        )
        assert "merged row, labels disagree (3)" in labels_of(display.ax_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"soft_ratio": 0.0, "temperature": 2.0}, "soft_ratio"),
        ({"soft_ratio": 0.5, "temperature": -1.0}, "temperature"),
        ({"soft_ratio": 0.5, "temperature": 2.0, "y": 2}, "y=2 must be 0, 1, or both"),
        ({"soft_ratio": 0.5, "temperature": 2.0, "limits": (1.0, -1.0)}, "limits"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        EffectiveLogitsDisplay.from_parameters(**arguments)
