"""TransferRiskDisplay: measured risk, its spread, and the bounds, on one pair of axes."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.inspection import TransferRiskDisplay
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import binomial_upper_bound, transfer_risk

RISK = np.array([[[0.4, 0.2, 0.1], [0.2, 0.1, 0.1]], [[0.3, 0.3, 0.3], [0.1, 0.1, 0.3]]])
PARAMS = [{"soft_ratio": r, "temperature": 2.0} for r in (0.5, 1.0)]
SIZES = [10, 100, 1000]


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_mean_and_spread_over_permutations_for_each_candidate():
    display = TransferRiskDisplay(sizes=SIZES, transfer_risk=RISK, n_rows=50, params=PARAMS).plot()
    for c, (line, band) in enumerate(zip(display.lines_, display.bands_, strict=True)):
        x, y = line.get_data()
        np.testing.assert_array_equal(x, SIZES)
        np.testing.assert_allclose(y, RISK[c].mean(axis=0))
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.max() == pytest.approx((RISK[c].mean(0) + RISK[c].std(0)).max())
        assert edges.min() == pytest.approx((RISK[c].mean(0) - RISK[c].std(0)).min())
    assert labels_of(display.ax_) == ["ρ = 0.5, T = 2", "ρ = 1, T = 2"]
    assert "2 orders" in display.ax_.get_legend().get_title().get_text()
    assert display.ax_.get_xlabel() == "training rows n"
    assert display.ax_.get_ylabel() == "transfer risk R(n)"
    assert (display.ax_.get_xscale(), display.ax_.get_yscale()) == ("log", "log")


def test_a_risk_of_zero_is_drawn_and_explained():
    display = TransferRiskDisplay(sizes=SIZES, transfer_risk=[[0.4, 0.05, 0.0]], n_rows=200).plot()
    assert display.ax_.get_yscale() == "symlog"
    assert display.ax_.yaxis.get_transform().linthresh == 1 / 200
    assert display.ax_.get_ylim()[0] == 0
    assert display.lines_[0].get_ydata()[-1] == 0
    assert display.ax_.texts[0].get_text() == "below 1 of 200 rows: linear, down to R = 0"
    assert [t.get_text() for t in display.ax_.get_yticklabels()][:2] == ["0", "0.01"]


def test_one_row_is_enough_for_a_logarithmic_axis():
    risk = np.array([[0.4, 0.1, 0.02]], dtype=np.float32)
    display = TransferRiskDisplay(sizes=SIZES, transfer_risk=risk, n_rows=50).plot()
    assert display.ax_.get_yscale() == "log"


def test_one_order_of_the_rows_has_no_spread():
    display = TransferRiskDisplay(sizes=SIZES, transfer_risk=RISK[0, :1], n_rows=50).plot()
    assert display.bands_ == []
    assert display.ax_.get_legend().get_title().get_text() == ""


def test_error_and_bounds_join_the_risk():
    display = TransferRiskDisplay(
        sizes=SIZES,
        transfer_risk=RISK[0],
        n_rows=50,
        error=2 * RISK[0],
        upper_bound=0.15,
        confidence_level=0.9,
        power_function_bound=[1.0, 0.7, 0.4],
        theorem_bound=[1.0, 1.0, 0.9],
    ).plot()
    np.testing.assert_allclose(display.error_lines_[0].get_ydata(), 2 * RISK[0].mean(axis=0))
    assert display.upper_bounds_[0].get_xydata().tolist() == [[1000, 0.15]]
    power, theorem = display.bound_lines_
    assert power.get_ydata().tolist() == [1.0, 0.7, 0.4]
    assert theorem.get_ydata().tolist() == [1.0, 1.0, 0.9]
    assert display.ax_.get_ylabel() == "transfer risk R(n), error, bound"
    assert 0 < display.ax_.get_ylim()[0] < 0.1 < 1 < display.ax_.get_ylim()[1] < 2
    assert labels_of(display.ax_) == [
        "student",
        "error (dotted)",
        "90% upper bound at n = 1000",
        "power-function bound",
        "bound of Theorem 1",
    ]


def test_from_estimator_draws_the_prefix_path(student, cancer):
    _, _, X, y, _ = cancer
    options = {
        "sizes": [10, 40, 120],
        "n_permutations": 3,
        "param_grid": {"soft_ratio": [0.5, 1.0]},
        "random_state": 0,
    }
    display = TransferRiskDisplay.from_estimator(student, X, y=y, **options)
    path = student.prefix_path(X, y=y, **options)
    np.testing.assert_array_equal(display.transfer_risk, path.transfer_risk)
    np.testing.assert_array_equal(display.error, path.error)
    assert display.n_rows == len(X)
    expected = binomial_upper_bound(np.round(path.transfer_risk[:, 0, -1] * len(X)), len(X))
    np.testing.assert_allclose(display.upper_bound, expected)


def test_the_last_point_is_the_fitted_student(student, cancer):
    _, _, X, _, teacher = cancer
    display = TransferRiskDisplay.from_estimator(student, X)
    risk = transfer_risk(teacher.decision_function(X), student.decision_function(X))
    assert display.lines_[0].get_ydata()[-1] == pytest.approx(risk)
    assert len(display.sizes) == len(student.X_fit_)


def test_no_upper_bound_below_the_full_size_or_when_not_wanted(student, cancer):
    X = cancer[2]
    assert TransferRiskDisplay.from_estimator(student, X, sizes=[10, 50]).upper_bounds_ == []
    shown = TransferRiskDisplay.from_estimator(student, X, sizes=[120], confidence_level=None)
    assert shown.upper_bounds_ == []


def bounds_by_refitting(K_fit, K_cross, diagonal, z_fit, z_new, norm, sizes):
    """Both bounds from a solve per size, on Gram matrices."""
    power, theorem = [], []
    for n in sizes:
        inverse = np.linalg.inv(K_fit[:n, :n])
        squared = z_fit[:n] @ inverse @ z_fit[:n]
        v = diagonal - np.sum((K_cross[:, :n] @ inverse) * K_cross[:, :n], axis=1)
        power.append(np.mean(np.abs(z_new) <= np.sqrt(norm**2 - squared) * np.sqrt(v)))
        angles = np.arccos(np.abs(z_new) / (norm * np.sqrt(diagonal)))
        theorem.append(np.mean(angles > np.pi / 2 - np.arccos(np.sqrt(squared) / norm)))
    return power, theorem


def test_certificates_hold_and_match_refits(soft_student, cancer):
    X_fit, _, X, y, teacher = cancer
    # The teacher's norm on training and held-out rows is that of an oracle for exactly those.
    pool = clone(soft_student).fit(np.concatenate([X_fit, X]), np.concatenate([cancer[1], y]))
    norm, sizes = pool.weight_change_norm_, [5, 20, 60, 120]
    display = TransferRiskDisplay.from_estimator(soft_student, X, sizes=sizes, oracle_norm=norm)
    kernel = NTK()
    power, theorem = bounds_by_refitting(
        kernel(X_fit),
        kernel(X, X_fit),
        kernel.diag(X),
        teacher.decision_function(X_fit),
        teacher.decision_function(X),
        norm,
        sizes,
    )
    np.testing.assert_allclose(display.power_function_bound, power, atol=1e-12)
    np.testing.assert_allclose(display.theorem_bound, theorem, atol=1e-12)
    risk = display.transfer_risk[0, 0]
    assert (risk <= display.power_function_bound).all()
    assert (display.power_function_bound <= display.theorem_bound).all()
    assert len(display.bound_lines_) == 2


def test_three_classes_have_a_power_function_bound_only():
    X, y = load_iris(return_X_y=True)
    student = LinearizedKDStudent(
        LinearDiscriminantAnalysis(), teacher_method="decision_function", soft_ratio=1.0
    ).fit(X[::2], y[::2])
    display = TransferRiskDisplay.from_estimator(
        student, X[1::2], oracle_norm=10 * student.weight_change_norm_
    )
    assert display.theorem_bound is None
    assert len(display.bound_lines_) == 1
    assert (display.transfer_risk[0, 0] <= display.power_function_bound).all()


def test_bounds_are_refused_where_they_do_not_hold(student, soft_student, cancer):
    X = cancer[2]
    with pytest.raises(ValueError, match=r"soft_ratio=1; got soft_ratio=0\.8"):
        TransferRiskDisplay.from_estimator(student, X, oracle_norm=10.0)
    with pytest.raises(ValueError, match="n_permutations and param_grid at None"):
        TransferRiskDisplay.from_estimator(soft_student, X, oracle_norm=10.0, n_permutations=2)
    with pytest.raises(ValueError, match="oracle_norm"):
        TransferRiskDisplay.from_estimator(soft_student, X, oracle_norm=1e-3)
    ridge = clone(soft_student).set_params(ridge=0.5).fit(cancer[0], cancer[1])
    with pytest.raises(ValueError, match=r"ridge=0\.5"):
        TransferRiskDisplay.from_estimator(ridge, X, oracle_norm=10.0)
