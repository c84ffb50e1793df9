"""SelectionDisplay: the best cell, those not told from it, and the overruling border."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.inspection import SelectionDisplay

RATIOS, TEMPERATURES = [0.3, 0.6, 1.0], [1.0, 4.0]
MEAN = np.array([[0.90, 0.93, 0.80], [0.94, 0.95, 0.80]])


def made(**changes):
    arrays = {
        "soft_ratios": RATIOS,
        "temperatures": TEMPERATURES,
        "mean": MEAN,
        "standard_error": np.full((2, 3), 0.015),
        "in_best_set": np.array([[False, False, False], [True, True, False]]),
        "best": (1, 1),
    }
    return SelectionDisplay(**arrays | changes).plot()


def test_cells_of_the_best_set_are_framed():
    display = made()
    corners = {(round(f.get_y() + 0.46), round(f.get_x() + 0.47)) for f in display.frames_}
    assert corners == {(1, 0), (1, 1)}
    assert display.best_.get_xdata()[0] == 1
    np.testing.assert_array_equal(display.image_.get_array(), MEAN)
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["0.3", "0.6", "1"]
    assert display.ax_.get_xlabel() == "soft ratio ρ"


@pytest.mark.parametrize(
    ("scaling", "columns"),
    # ρ ≤ T/(1 + T) is ρ ≤ .5 and .8; ρ ≤ 1/(1 + T) is ρ ≤ .5 and .2
    [("none", [1, 2]), ("squared", [1, 0])],
)
def test_border_of_the_cells_that_overrule_every_error(scaling, columns):
    x = made(temperature_scaling=scaling).line_.get_xdata()
    np.testing.assert_array_equal(x, np.repeat(np.array(columns) - 0.5, 2))


def test_candidates_that_a_search_left_out_stay_empty():
    mean = MEAN.copy()
    mean[0, 0] = np.nan
    assert len(made(mean=mean).ax_.texts) == 5


@pytest.mark.parametrize("how", ["CV", "grid", "pipeline"])
def test_from_estimator(cancer, how):
    X, y, _, _, teacher = cancer
    grid = {"soft_ratio": RATIOS[::-1], "temperature": TEMPERATURES}
    if how == "CV":
        search = LinearizedKDStudentCV(
            teacher, soft_ratios=RATIOS[::-1], temperatures=TEMPERATURES, ridges=[0, 1], cv=3
        )
    elif how == "grid":
        search = GridSearchCV(LinearizedKDStudent(teacher), grid | {"ridge": [0.0, 1.0]}, cv=3)
    else:
        student = make_pipeline(StandardScaler(), LinearizedKDStudent(teacher))
        grid = {f"linearizedkdstudent__{name}": values for name, values in grid.items()}
        search = GridSearchCV(student, grid, cv=3)
    display = SelectionDisplay.from_estimator(search.fit(X, y))
    assert display.mean.shape == (2, 3)
    assert display.mean[display.best] == search.best_score_
    results, index = search.cv_results_, search.best_index_
    splits = [results[f"split{i}_test_score"][index] for i in range(3)]
    assert display.standard_error[display.best] == pytest.approx(np.std(splits, ddof=1) / 3**0.5)
    prefix = "linearizedkdstudent__" if how == "pipeline" else ""
    for params, value in zip(results["params"], results["mean_test_score"], strict=True):
        row = TEMPERATURES.index(params[f"{prefix}temperature"])
        column = RATIOS.index(params[f"{prefix}soft_ratio"])
        if params.get("ridge") == search.best_params_.get("ridge"):
            assert display.mean[row, column] == value
    assert display.in_best_set[display.best]
    if how == "CV":
        shown = [p["ridge"] == search.best_params_["ridge"] for p in results["params"]]
        assert display.in_best_set.sum() == results["in_best_set"][shown].sum()


def test_the_best_set_of_another_search_is_by_fold(cancer):
    X, y, *_, teacher = cancer
    grid = {"soft_ratio": [0.9], "temperature": [1.0, 100.0]}
    search = GridSearchCV(LinearizedKDStudent(teacher), grid, cv=5, scoring="neg_log_loss")
    search.fit(X, y)
    splits = [search.cv_results_[f"split{k}_test_score"] for k in range(5)]
    better = np.ptp(splits, axis=1) * np.sign(np.diff(np.mean(splits, axis=0)))
    assert ttest_1samp(np.abs(better), 0).pvalue < 0.2  # two-sided
    assert SelectionDisplay.from_estimator(search).in_best_set.sum() == 1
    for k in range(5):  # a difference that changes its sign
        search.cv_results_[f"split{k}_test_score"] = np.array([(-1) ** k, 0.0])
    search.cv_results_["mean_test_score"] = np.array([0.2, 0.0])
    assert SelectionDisplay.from_estimator(search).in_best_set.all()


@pytest.mark.parametrize("refit", [True, False])
def test_parameters_set_after_the_fit_change_nothing(cancer, refit):
    X, y, *_, teacher = cancer
    grid = {"soft_ratio": [0.5, 0.9], "temperature": [1.0, 4.0]}
    search = GridSearchCV(LinearizedKDStudent(teacher), grid, cv=2, refit=refit).fit(X, y)
    before = SelectionDisplay.from_estimator(search)
    search.set_params(refit="accuracy")
    if refit:
        search.set_params(estimator__temperature_scaling="squared")
    after = SelectionDisplay.from_estimator(search)
    assert after.temperature_scaling == before.temperature_scaling == "none"
    np.testing.assert_array_equal(after.mean, before.mean)


def test_errors(cancer):
    X, y, _, _, teacher = cancer
    search = LinearizedKDStudentCV(teacher, scoring=["accuracy", "neg_log_loss"], refit="accuracy")
    search.fit(X, y)
    assert SelectionDisplay.from_estimator(search, score="neg_log_loss").mean.max() < 0
    with pytest.raises(ValueError, match=r"score='f1'.*accuracy.*neg_log_loss"):
        SelectionDisplay.from_estimator(search, score="f1")
    narrow = GridSearchCV(LinearizedKDStudent(teacher), {"soft_ratio": RATIOS}, cv=3).fit(X, y)
    with pytest.raises(ValueError, match="did not vary 'temperature'"):
        SelectionDisplay.from_estimator(narrow)
