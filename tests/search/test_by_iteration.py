"""The search with solver="pcg": scores and best student of the exact search, or a refusal."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(150, 3)), RNG.normal(size=(40, 3))
Z_T = 3 * np.sin(X).sum(axis=1)
Y = (Z_T + RNG.logistic(size=150) > 0).astype(int)
Z_3 = np.stack([Z_T, 3 * X[:, 0], X[:, 1]], axis=1)
SCORING = {
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "risk": neg_transfer_risk_scorer,
}


def search(solver="pcg", tol=1e-10, max_iter=500, **options):
    if solver == "pcg":
        solver = PCG(tol=tol, max_iter=max_iter, random_state=0)
    options = {
        "cv": 3,
        "kernel": NTK(depth=2),
        "soft_ratios": [0.3, 0.9, 1.0],
        "temperatures": [1.0, 4.0],
        "scoring": SCORING,
        "refit": "log_loss",
    } | options
    return LinearizedKDStudentCV(solver=solver, **options)


def assert_same_search(found, exact):
    names = [name for name in exact.cv_results_ if "test" in name and "rank" not in name]
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(
            found.cv_results_[name], exact.cv_results_[name], rtol=1e-7, atol=1e-9, err_msg=name
        )
    assert found.best_params_ == exact.best_params_
    np.testing.assert_allclose(
        found.decision_function(X_NEW), exact.decision_function(X_NEW), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("y", "z_t"), [(Y, Z_T), (Z_3.argmax(axis=1), Z_3)], ids=["two", "three"])
@pytest.mark.parametrize("ridges", [[0.0], [0.01, 0.5]])
def test_the_scores_are_those_of_the_exact_search(y, z_t, ridges):
    found = search(ridges=ridges).fit(X, y, teacher_logits=z_t)
    exact = search("auto", ridges=ridges).fit(X, y, teacher_logits=z_t)
    assert_same_search(found, exact)
    assert found.best_estimator_.fit_report_.solver == "pcg"
    assert found.best_estimator_.fit_report_.residual <= 1e-10


def test_copies_weights_and_several_kernels():
    rows = np.concatenate([X, X[:30]])  # copies fall into other folds, some with other labels
    y, z_t = np.concatenate([Y, 1 - Y[:30]]), np.concatenate([Z_T, 2 * Z_T[:30]])
    weight = np.linspace(0, 2, 180)
    scoring = {"accuracy": "accuracy", "log_loss": "neg_log_loss"}
    options = {"kernel": [NTK(depth=1), NTK(depth=2)], "ridges": [0.0, 0.1], "scoring": scoring}
    fits = [
        search(solver, **options).fit(rows, y, teacher_logits=z_t, sample_weight=weight)
        for solver in ("pcg", "auto")
    ]
    assert_same_search(*fits)


def test_the_teacher_is_cross_fitted_by_the_folds():
    fits = [search(solver, teacher=LogisticRegression()).fit(X, Y) for solver in ("pcg", "auto")]
    assert_same_search(*fits)


def test_the_best_student_is_that_of_a_fit():
    found = search().fit(X, Y, teacher_logits=Z_T)
    student = LinearizedKDStudent(
        kernel=NTK(depth=2), solver=PCG(tol=1e-10, random_state=0), **found.best_params_
    ).fit(X, Y, teacher_logits=Z_T)
    expected = student.get_params() | {"solver": found.best_estimator_.solver}
    assert found.best_estimator_.get_params() == expected
    np.testing.assert_array_equal(found.dual_coef_, student.dual_coef_)


def test_grid_search_finds_the_same():
    kernel = NTK(depth=2)
    found = search(kernel=kernel, scoring="neg_log_loss", refit=True)
    found.fit(X, Y, teacher_logits=Z_T)
    student = LinearizedKDStudent(kernel=kernel, solver=PCG(tol=1e-10, random_state=0))
    grid = {"soft_ratio": [0.3, 0.9, 1.0], "temperature": [1.0, 4.0]}
    one_by_one = GridSearchCV(student, grid, cv=3, scoring="neg_log_loss")
    one_by_one.fit(X, Y, teacher_logits=Z_T)
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"], one_by_one.cv_results_["mean_test_score"], rtol=1e-7
    )


def test_single_precision():
    exact = search("auto").fit(X, Y, teacher_logits=Z_T)
    found = search(dtype="float32", tol=1e-5).fit(X, Y, teacher_logits=Z_T)
    assert found.dual_coef_.dtype == np.float32
    np.testing.assert_allclose(
        found.cv_results_["mean_test_log_loss"], exact.cv_results_["mean_test_log_loss"], rtol=1e-3
    )


def test_what_it_cannot_do_is_refused_by_name():
    with pytest.raises(ValueError, match=r"cv=None .*solver='pcg'.* cv=5"):
        search(cv=None).fit(X, Y, teacher_logits=Z_T)
    needs_frame = search(scoring={"log_loss": "neg_log_loss", "data": neg_data_inefficiency_scorer})
    with pytest.raises(AttributeError, match=r"data inefficiency .*solver='pcg'"):
        needs_frame.fit(X, Y, teacher_logits=Z_T)
    assert not hasattr(needs_frame, "cv_results_")
    with pytest.raises(MemoryBudgetError, match=r"n=150 .*solver='pcg' needs .* MiB .*nystrom"):
        search(memory_limit=1e6).fit(X, Y, teacher_logits=Z_T)


def test_what_does_not_converge_says_so():
    with pytest.warns(ConvergenceWarning, match=r"residual of .* after 1 iterations, not tol"):
        search(max_iter=1, kernel=NTK(depth=4)).fit(X, Y, teacher_logits=Z_T)


@pytest.mark.parametrize("solver", [PCG(random_state=0), Nystrom(3, random_state=0), "auto"])
def test_forecasts_count_the_distinct_rows_of_folds(solver):
    # A fold tests more samples than there are distinct rows.
    rows = np.repeat(np.random.default_rng(0).normal(size=(6, 2)), 9, axis=0)
    y = np.tile([0, 1, 1], 18)
    search = LinearizedKDStudentCV(cv=2, ridges=[0.1], solver=solver)
    search.fit(rows, y, teacher_logits=rows[:, 0])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
