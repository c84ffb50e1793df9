"""Every warning of the package points at the line of the user's call."""

import contextlib
import warnings

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher, _warnings
from sklearn_kd.exceptions import (
    IllConditionedWarning,
    SaturatedTeacherWarning,
)
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import PCG

X, y = make_classification(n_samples=60, random_state=0)
TREE = DecisionTreeClassifier(random_state=0)
# Close rows on a line: rounding decides.
LINE = np.linspace(-1, 1, 300)[:, None]
ERF = NTK(activation="erf")
TEACHER_LOGITS = np.sin(9 * LINE[:, 0])


def student_in_a_search():
    grid = {"soft_ratio": [0.5]}
    GridSearchCV(LinearizedKDStudent(TREE), grid, cv=2, refit=False).fit(X, y)


CALLS = {
    "saturated teacher": (SaturatedTeacherWarning, lambda: LinearizedKDStudent(TREE).fit(X, y)),
    "in a pipeline": (
        SaturatedTeacherWarning,
        lambda: make_pipeline(FunctionTransformer(), LinearizedKDStudent(TREE)).fit(X, y),
    ),
    "in a search of scikit-learn": (SaturatedTeacherWarning, student_in_a_search),
    "in a search": (SaturatedTeacherWarning, lambda: LinearizedKDStudentCV(TREE, cv=3).fit(X, y)),
    "in threads": (
        SaturatedTeacherWarning,
        lambda: Parallel(1, "threading")([delayed(LinearizedKDStudent(TREE).fit)(X, y)]),
    ),
    "ill-conditioned": (
        IllConditionedWarning,
        lambda: LinearizedKDStudent(kernel=ERF).fit(
            LINE, LINE[:, 0] > 0, teacher_logits=TEACHER_LOGITS
        ),
    ),
    "not converged": (
        ConvergenceWarning,
        lambda: LinearizedKDStudent(kernel=ERF, solver=PCG(tol=1e-10)).fit(
            LINE, LINE[:, 0] > 0, teacher_logits=TEACHER_LOGITS
        ),
    ),
    "gradient flow": (
        IllConditionedWarning,
        lambda: NTKTeacher(stopping_time=1e6, dtype="float32").fit(1e-6 * X, y),
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_points_at_the_users_line(case):
    category, call = CALLS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    ours = [one for one in caught if issubclass(one.category, category)]
    assert ours
    assert {one.filename for one in ours} == {__file__}


def test_from_below_every_user(monkeypatch):
    # such as in a worker process, where no line of the user's is on the stack
    monkeypatch.setattr(_warnings, "_BETWEEN", ("",))
    with contextlib.nullcontext(), pytest.warns(UserWarning, match="nobody"):
        _warnings.warn("nobody", UserWarning)
