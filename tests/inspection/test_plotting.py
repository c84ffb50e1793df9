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
)
from sklearn_kd.inspection._plotting import candidate_label, candidate_style, over_candidates

DISPLAYS = [getattr(inspection, name) for name in inspection.__all__]

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


def test_twenty_one_candidates_look_different():
    styles = {tuple(map(str, candidate_style(i).values())) for i in range(21)}
    assert len(styles) == 21


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
