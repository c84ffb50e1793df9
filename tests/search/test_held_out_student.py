"""What scorers of one's own are given by LinearizedKDStudentCV: whole students, and their rows."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4))
Y = (X[:, 0] + 0.5 * RNG.normal(size=120) > 0).astype(int)
TEACHER = FrozenEstimator(LogisticRegression().fit(X[:40], Y[:40]))
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0]}
SOLVERS = {"factor": ("auto", 4), "iteration": (PCG(tol=1e-10), 4), "leave-one-out": ("auto", None)}


def cost(estimator, X, y):
    """Errors cost what column 1 says."""
    return -np.mean((estimator.predict(X) != y) * np.abs(X[:, 1]))


@pytest.mark.parametrize("name", ["factor", "iteration"])
def test_a_score_that_reads_the_rows_is_that_of_grid_search(name):
    solver, cv = SOLVERS[name]
    student = LinearizedKDStudent(TEACHER, temperature=1.0, solver=solver)
    grid = {"soft_ratio": GRID["soft_ratios"]}
    expected = GridSearchCV(student, grid, scoring=cost, cv=cv).fit(X, Y)
    found = LinearizedKDStudentCV(TEACHER, scoring=cost, cv=cv, solver=solver, **GRID).fit(X, Y)
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-12
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_labels_and_answers_belong_together(name):
    solver, cv = SOLVERS[name]
    seen = []

    def record(estimator, X, y):
        seen.append((X, y, estimator.decision_function(X)))
        return 0.0

    LinearizedKDStudentCV(TEACHER, scoring=record, cv=cv, solver=solver, **GRID).fit(X, Y)
    label_of = {tuple(row): label for row, label in zip(X, Y, strict=True)}
    for rows, labels, logits in seen:
        assert rows.shape == (len(labels), 4)
        assert logits.shape == labels.shape
        assert [label_of[tuple(row)] for row in rows] == labels.tolist()


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_that_were_not_held_out_are_refused(name):
    solver, cv = SOLVERS[name]

    def robustness(estimator, X, y):
        return np.mean(estimator.predict(X) == estimator.predict(X + 0.5))

    search = LinearizedKDStudentCV(TEACHER, scoring=robustness, cv=cv, solver=solver, **GRID)
    with pytest.raises(ValueError, match=r"predict about rows other .* use GridSearchCV"):
        search.fit(X, Y)


def test_what_scorers_get_is_a_whole_estimator():
    students = []

    def record(estimator, X, y):
        students.append((estimator, X))
        return 0.0

    LinearizedKDStudentCV(TEACHER, scoring=record, cv=3, **GRID).fit(X, Y)
    student, rows = students[0]
    assert "40 held-out rows" in repr(student)
    assert student.get_params(deep=False)["n_rows"] == 80
    np.testing.assert_array_equal(clone(student).predict(rows), student.predict(rows))
    assert student.classes_.tolist() == [0, 1]
    assert student.predict_proba(rows).shape == (40, 2)
    assert student.teacher_decision_function(rows).shape == (40,)


def test_rows_that_are_not_in_memory_are_not_given(tmp_path):
    np.save(tmp_path / "rows.npy", X)
    shapes = []

    def record(estimator, X, y):
        shapes.append((X.shape, len(y), len(estimator.predict(X))))
        return 0.0

    search = LinearizedKDStudentCV(
        scoring=record, solver=Nystrom(20, random_state=0), refit=False, **GRID
    )
    search.fit(tmp_path, Y, teacher_logits=X[:, 0])
    assert shapes
    assert all(shape == (n_labels, 0) and n_labels == n for shape, n_labels, n in shapes)
