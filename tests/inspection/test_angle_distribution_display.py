"""AngleDistributionDisplay: p(β), and Theorem 1's bound read off it."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.inspection import AngleDistributionDisplay
from sklearn_kd.kernels import NTK


def step_value(line, beta):
    """Value at ``beta`` of a curve that jumps after each of its points."""
    x, y = line.get_data()
    return y[np.searchsorted(x, beta, side="right") - 1]


def test_the_curve_is_the_share_of_larger_angles():
    angles = np.random.default_rng(0).uniform(0.5, 1.5, size=50)
    display = AngleDistributionDisplay(feature_angles=angles).plot()
    assert display.line_.get_drawstyle() == "steps-post"
    for beta in [0.0, 0.7, *angles[:5], 1.2, np.pi / 2]:
        assert step_value(display.line_, beta) == pytest.approx(np.mean(angles > beta))


def test_marks_read_the_bound_off_the_curve():
    angles = np.linspace(1.0, 1.5, 20)
    display = AngleDistributionDisplay(
        feature_angles=angles, sizes=[10, 100], weight_change_angles=[0.5, 0.2]
    ).plot()
    for mark, alpha, bound in zip(display.marks_, [0.5, 0.2], display.bounds_, strict=True):
        assert mark.get_xydata().tolist() == [[np.pi / 2 - alpha, bound]]
        assert bound == pytest.approx(np.mean(angles > np.pi / 2 - alpha))
        assert bound == pytest.approx(step_value(display.line_, np.pi / 2 - alpha))
    assert display.marks_[0].get_label() == f"n = 10: Theorem 1 says R ≤ {display.bounds_[0]:.2g}"
    ax = display.ax_
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "π/8", "π/4", "3π/8", "π/2"]
    assert ax.get_xlim()[0] == 0
    assert "angle β" in ax.get_xlabel()
    assert "p(β)" in ax.get_ylabel()


def test_from_predictions_takes_the_angles_from_norms():
    z, squared = np.array([1.0, -0.5, 2.0]), np.array([1.0, 1.0, 2.0])
    display = AngleDistributionDisplay.from_predictions(
        z, squared, 4.0, sizes=[5, 10], weight_change_norms=[2.0, 3.9]
    )
    np.testing.assert_allclose(display.feature_angles, np.arccos(np.abs(z) / 4 / np.sqrt(squared)))
    np.testing.assert_allclose(np.cos(display.weight_change_angles), [0.5, 0.975])


def test_from_estimator_takes_the_training_rows_as_the_pool(student):
    display = AngleDistributionDisplay.from_estimator(student, sizes=[20, 60])
    K, z = NTK()(student.X_fit_), student.effective_logits_
    norm = np.sqrt(z @ np.linalg.solve(K, z))
    np.testing.assert_allclose(
        np.cos(display.feature_angles), np.abs(z) / norm / np.sqrt(np.diag(K)), rtol=1e-8
    )
    norms = [np.sqrt(z[:n] @ np.linalg.solve(K[:n, :n], z[:n])) for n in (20, 60)]
    np.testing.assert_allclose(np.cos(display.weight_change_angles), norms / norm, rtol=1e-8)
    assert display.ax_.get_legend().get_title().get_text() == "ρ = 0.8, T = 2"


def test_by_default_fractions_of_the_rows_are_marked(student):
    assert AngleDistributionDisplay.from_estimator(student).sizes == [7, 15, 30, 60]


def test_a_ridge_lengthens_the_features_too(cancer):
    X, y, _, _, teacher = cancer
    student = LinearizedKDStudent(teacher, ridge=0.5).fit(X, y)
    display = AngleDistributionDisplay.from_estimator(student)
    K, z = NTK()(X) + 0.5 * np.eye(len(X)), student.effective_logits_
    norm = np.sqrt(z @ np.linalg.solve(K, z))
    np.testing.assert_allclose(
        np.cos(display.feature_angles), np.abs(z) / norm / np.sqrt(np.diag(K)), rtol=1e-8
    )


def test_what_is_refused():
    X, y = load_iris(return_X_y=True)
    student = LinearizedKDStudent(
        LinearDiscriminantAnalysis(), teacher_method="decision_function"
    ).fit(X, y)
    with pytest.raises(ValueError, match="two classes, but this one has 3"):
        AngleDistributionDisplay.from_estimator(student)
    draw = AngleDistributionDisplay.from_predictions
    with pytest.raises(ValueError, match=r"weight_change_norms has shape \(1,\) for 2 sizes"):
        draw([1.0], [1.0], 4.0, sizes=[1, 2], weight_change_norms=[1.0])
    with pytest.raises(ValueError, match=r"oracle_norm=4\.0 is below weight_change_norms"):
        draw([1.0], [1.0], 4.0, sizes=[1], weight_change_norms=[5.0])
    with pytest.raises(ValueError, match="effective_logits"):
        draw([5.0], [1.0], 4.0)
