"""Unscaled features: one warning, with the column and the remedy."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine, make_classification
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.exceptions import UnscaledFeaturesWarning

X, Y = make_classification(n_samples=40, n_features=4, random_state=0)
UNSCALED = X * [1, 1, 1000, 1]
MODELS = {
    "student": LinearizedKDStudent,
    "search": lambda: LinearizedKDStudentCV(cv=2),
    "kernels": lambda: LinearizedKDStudentCV(kernel=[RBF([1.0] * 4), None], cv=2),
    "NTKTeacher": NTKTeacher,
}


def caught(fit):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit()
    return [one for one in found if issubclass(one.category, UnscaledFeaturesWarning)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("frame", [False, True])
def test_warns_once_with_the_column_and_the_remedy(model, frame):
    rows = pd.DataFrame(UNSCALED, columns=list("abcd")) if frame else UNSCALED
    (found,) = caught(lambda: MODELS[model]().fit(rows, Y))
    column = "'c'" if frame else "2"
    assert f"Column {column} of X varies over 300 times" in str(found.message)
    assert "make_pipeline(StandardScaler(), " in str(found.message)
    assert found.filename == __file__


def test_the_folds_of_a_search_warn_in_the_same_words():
    search = GridSearchCV(LinearizedKDStudent(LogisticRegression()), {"soft_ratio": [0.5]}, cv=3)
    found = caught(lambda: search.fit(UNSCALED, Y))
    assert len({(str(one.message), one.filename, one.lineno) for one in found}) == 1


def test_raw_measurements():
    rows, y = load_wine(return_X_y=True)  # proline is in the hundreds, hue below two
    assert caught(lambda: NTKTeacher().fit(rows, y))


@pytest.mark.parametrize("model", MODELS)
def test_scaled_features_do_not(model):
    model = MODELS[model]()
    assert not caught(lambda: make_pipeline(StandardScaler(), model).fit(UNSCALED, Y))


def test_a_length_scale_for_each_column_scales_them():
    student = LinearizedKDStudent(kernel=RBF(np.array([1.0, 1.0, 1000.0, 1.0])))
    assert not caught(lambda: student.fit(UNSCALED, Y, teacher_logits=2.0 * Y - 1))
