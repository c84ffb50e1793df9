"""What the displays share: the missing library, the names of candidates, the shapes."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, inspection
from sklearn_kd.inspection import (
    AngleDistributionDisplay,
    DataInefficiencyDisplay,
    EffectiveLogitsDisplay,
    HardLabelEffectDisplay,
    TransferRiskDisplay,
    soft_ratio_color,
)
from sklearn_kd.inspection._plotting import (
    candidate_label,
    candidate_styles,
    over_candidates,
    plain_log_ticks,
    short_ratio,
)

DISPLAYS = [getattr(inspection, name) for name in inspection.__all__ if name.endswith("Display")]

# What each constructor needs at least.
ARRAYS = {
    "AngleDistributionDisplay": {"feature_angles": [1.0, 1.5]},
    "DataInefficiencyDisplay": {
        "sizes": [10, 20],
        "data_inefficiency": [0.4, 0.2],
        "smoothed_data_inefficiency": [0.4, 0.2],
        "smoothed_data_inefficiency_std": [0.0, 0.0],
        "window": 2.0,
    },
    "EffectiveLogitsDisplay": {
        "teacher_logits": np.array([-1.0, 1.0]),
        "effective_logits": np.array([[[-0.5, 1.5]]]),
        "params": [{"soft_ratio": 0.9, "temperature": 2.0}],
        "margins": [0.5],
    },
    "HardLabelEffectDisplay": {
        "effect": 0.1,
        "interval": (0.05, 0.2),
        "soft_ratios": [0.5, 1.0],
        "error": [0.1, 0.2],
        "n_rows": 100,
    },
    "SelectionDisplay": {
        "soft_ratios": [0.5, 1.0],
        "temperatures": [1.0, 2.0],
        "mean": [[0.8, 0.7], [0.9, 0.7]],
        "standard_error": [[0.1, 0.1], [0.1, 0.1]],
        "in_best_set": [[False, False], [True, False]],
        "best": (1, 0),
    },
    "TransferRiskDisplay": {"sizes": [10, 20], "transfer_risk": [[0.2, 0.1]], "n_rows": 50},
}


# from_estimator(student), and the held-out rows and labels where it needs them.
NOTHING = {
    "AngleDistributionDisplay": [None],
    "DataInefficiencyDisplay": [None],
    "EffectiveLogitsDisplay": [None],
    "HardLabelEffectDisplay": [None, None, None],
    "SelectionDisplay": [None],
    "TransferRiskDisplay": [None, None],
}


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: d.__name__)
def test_the_constructor_stores_and_plot_returns_the_display(display):
    arguments = ARRAYS[display.__name__]
    shown = display(**arguments)
    for name, value in arguments.items():
        assert getattr(shown, name) is value
    assert not hasattr(shown, "figure_")
    assert shown.plot() is shown
    assert shown.figure_ in map(plt.figure, plt.get_fignums())


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: d.__name__)
def test_plot_draws_where_it_is_told(display):
    two = display.__name__ == "HardLabelEffectDisplay"
    figure, ax = plt.subplots(1, 2 if two else 1)
    shown = display(**ARRAYS[display.__name__]).plot(ax)
    assert shown.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    if not two:
        assert shown.ax_ is ax


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: d.__name__)
def test_axes_are_labelled(display):
    shown = display(**ARRAYS[display.__name__]).plot()
    for ax in shown.figure_.axes:
        assert ax.get_xlabel() or ax.get_label() == "<colorbar>"
        assert ax.get_ylabel()


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: d.__name__)
def test_without_matplotlib_the_error_names_the_remedy(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = rf"{display.__name__} needs matplotlib.*pip install 'sklearn_kd\[plot\]'"
    with pytest.raises(ImportError, match=message):
        display(**ARRAYS[display.__name__]).plot()
    with pytest.raises(ImportError, match=message):  # before anything is computed
        display.from_estimator(*NOTHING[display.__name__])


GRIDS = {
    "names only": [{"ridge": r} for r in range(21)],
    "one ratio": [{"soft_ratio": 0.5, "temperature": t} for t in range(1, 22)],
    "grid": [
        {"soft_ratio": r, "temperature": t}
        for r in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1)
        for t in (1, 2, 5)
    ],
}


@pytest.mark.parametrize("params", GRIDS.values(), ids=GRIDS)
def test_twenty_one_candidates_look_different(params):
    styles = {tuple(map(str, style.values())) for style in candidate_styles(params)}
    assert len(styles) == 21


def test_a_soft_ratio_has_one_colour_whatever_stands_beside_it():
    grid = candidate_styles(GRIDS["grid"])
    alone = candidate_styles([{"soft_ratio": 0.9, "temperature": 3.0}])
    assert {style["color"] for style in grid[12:15]} == {alone[0]["color"], soft_ratio_color(0.9)}


@pytest.mark.parametrize(
    ("ratio", "short"),
    [
        (0.993103, "0.993"),
        (0.9999, "0.9999"),
        (1 / 3, "0.33"),
        (0.5, "0.5"),
        (1, "1"),
        (0.0, "0"),
        (1e-4, "0.0001"),
    ],
)
def test_soft_ratios_are_rounded_but_never_to_an_end(ratio, short):
    assert short_ratio(ratio) == short


@pytest.mark.parametrize(
    ("limits", "labels"),
    [
        ((30, 110), ["50", "100"]),
        ((20, 5000), ["100", "1000"]),
        ((0.02, 0.3), ["0.02", "0.05", "0.1", "0.2"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(limits, labels):
    figure, ax = plt.subplots()
    ax.set(xscale="log", xlim=limits)
    plain_log_ticks(ax.xaxis)
    figure.canvas.draw()
    ticks = [*ax.get_xticklabels(), *ax.get_xticklabels(minor=True)]
    at = {tick.get_text(): tick.get_position()[0] for tick in ticks if tick.get_text()}
    shown = [text for text, x in at.items() if limits[0] <= x <= limits[1]]
    assert sorted(shown, key=float) == labels


@pytest.mark.parametrize(
    ("params", "label"),
    [
        ({"soft_ratio": 0.9, "temperature": 2.0}, "ρ = 0.9, T = 2"),
        ({"temperature": 2.5}, "T = 2.5"),
        (
            {"soft_ratio": 1, "temperature": 4, "temperature_scaling": "squared"},
            "ρ = 1, T = 4, soft term × T²",
        ),
        (None, "student"),
    ],
)
def test_candidates_are_named_by_soft_ratio_and_temperature(params, label):
    assert candidate_label(params) == label


def test_arrays_gain_an_axis_of_candidates():
    one, params = over_candidates([[1, 2]], None, 2, "risk")
    assert one.shape == (1, 1, 2)
    assert params == [None]
    two, params = over_candidates(np.zeros((2, 3)), [{"soft_ratio": 0.5}, {}], 1, "risk")
    assert two.shape == (2, 3)
    assert len(params) == 2


@pytest.mark.parametrize(("shape", "params"), [((2, 3), None), ((3,), [{}]), ((2, 3), [{}])])
def test_arrays_that_do_not_fit_their_candidates_are_refused(shape, params):
    with pytest.raises(ValueError, match=r"risk has shape .* does not fit params"):
        over_candidates(np.zeros(shape), params, 1, "risk")


def searches():
    X, y = make_classification(n_samples=60, n_features=4, random_state=0)
    student = LinearizedKDStudent(LogisticRegression())
    grid = {"linearizedkdstudent__soft_ratio": [0.5]}
    pipeline = make_pipeline(StandardScaler(), student)
    return (
        X,
        y,
        {
            "search": LinearizedKDStudentCV(LogisticRegression(), cv=3).fit(X, y),
            "grid search": GridSearchCV(student, {"soft_ratio": [0.5]}, cv=2).fit(X, y),
            "pipeline": pipeline.fit(X, y),
            "grid search of a pipeline": GridSearchCV(pipeline, grid, cv=2).fit(X, y),
        },
    )


@pytest.mark.parametrize(
    "display",
    [
        EffectiveLogitsDisplay,
        DataInefficiencyDisplay,
        TransferRiskDisplay,
        HardLabelEffectDisplay,
        AngleDistributionDisplay,
    ],
)
def test_displays_find_the_student_in_searches_and_pipelines(display):
    X, y, estimators = searches()
    X_new = X + 0.1  # the students have seen the labels of X
    arguments = {TransferRiskDisplay: (X,), HardLabelEffectDisplay: (X_new, y)}.get(display, ())
    for estimator in estimators.values():
        drawn = display.from_estimator(estimator, *arguments)
        assert isinstance(drawn, display)
    with pytest.raises(TypeError, match=r"LogisticRegression is not a LinearizedKDStudent"):
        display.from_estimator(LogisticRegression().fit(X, y), *arguments)
