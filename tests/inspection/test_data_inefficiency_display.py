"""DataInefficiencyDisplay: smoothed lines, raw points, spread."""

import numpy as np
import pytest

from sklearn_kd.inspection import DataInefficiencyDisplay

CURVES = {
    "sizes": [10, 100, 1000],
    "data_inefficiency": [0.1, 3.0, 0.2],
    "smoothed_data_inefficiency": [0.4, 0.3, 0.2],
    "smoothed_data_inefficiency_std": [0.1, 0.1, 0.05],
    "window": 4.0,
}


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_points_and_labels():
    display = DataInefficiencyDisplay(**CURVES).plot()
    assert display.lines_[0].get_ydata().tolist() == [0.4, 0.3, 0.2]
    assert display.raw_[0].get_ydata().tolist() == [0.1, 3.0, 0.2]
    assert display.raw_[0].get_linestyle() == "None"
    assert display.bands_ == []
    ax = display.ax_
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.get_xlabel() == "training rows n"
    assert "$\\mathcal{I}(n)$\nover sizes from n/2 to 2n" in ax.get_ylabel()
    assert "one order" in ax.get_legend().get_title().get_text()


def test_steps_beyond_the_axis_are_counted():
    display = DataInefficiencyDisplay(**CURVES).plot()
    assert display.ax_.get_ylim()[1] < 3.0
    assert labels_of(display.ax_) == ["student", "points: single steps, 1 beyond the axis"]


def test_spread_is_drawn_for_two_permutations_or_more():
    display = DataInefficiencyDisplay(**CURVES, n_permutations=5).plot()
    edges = display.bands_[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(0.5)
    assert edges.min() == pytest.approx(0.15)
    assert "± std over 5 orders" in display.ax_.get_legend().get_title().get_text()


def test_from_estimator_draws_the_prefix_path(student):
    options = {
        "sizes": range(5, 121),
        "n_permutations": 4,
        "param_grid": {"soft_ratio": [0.5, 1.0], "temperature": [3.0]},
        "window": 3.0,
        "random_state": 0,
    }
    display = DataInefficiencyDisplay.from_estimator(student, **options)
    path = student.prefix_path(**options)
    for c, line in enumerate(display.lines_):
        np.testing.assert_array_equal(line.get_xdata(), path.sizes)
        np.testing.assert_array_equal(line.get_ydata(), path.smoothed_data_inefficiency[c])
        np.testing.assert_array_equal(display.raw_[c].get_ydata(), path.data_inefficiency[c])
    np.testing.assert_array_equal(
        display.smoothed_data_inefficiency_std, path.smoothed_data_inefficiency_std
    )
    assert labels_of(display.ax_)[:2] == ["ρ = 0.5, T = 3", "ρ = 1, T = 3"]


def test_by_default_the_first_rows_are_left_out(student):
    display = DataInefficiencyDisplay.from_estimator(student, init="random", random_state=0)
    assert (display.sizes[0], display.sizes[-1]) == (10, 120)
    assert labels_of(display.ax_)[0] == "ρ = 0.8, T = 2"
