"""Validation rows of one's own: scores of explicit fits on X, and nothing trained on X_val."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, get_scorer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X, X_VAL = RNG.normal(size=(50, 3)), RNG.normal(size=(40, 3))


def labels(rows, n_classes):
    z = np.stack([2 * rows[:, 0], rows[:, 1] ** 2, -rows[:, 2]], axis=1)[:, :n_classes]
    return (z + RNG.gumbel(size=z.shape)).argmax(axis=1)


Y, Y_VAL = ({k: labels(rows, k) for k in (2, 3)} for rows in (X, X_VAL))
TEACHERS = {
    k: FrozenEstimator(LogisticRegression().fit(RNG.normal(size=(60, 3)), np.arange(60) % k))
    for k in (2, 3)
}
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0, 4.0]}
SCORING = {
    "accuracy": get_scorer("accuracy"),
    "log_loss": get_scorer("neg_log_loss"),
    "auc": get_scorer("roc_auc_ovr"),
    "risk": neg_transfer_risk_scorer,
}
INEFFICIENCY = {"inefficiency": neg_data_inefficiency_scorer}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "solver", ["auto", PCG(tol=1e-12, random_state=0), Nystrom(20, random_state=0), Nystrom(50)]
)
def test_scores_are_those_of_fits_on_all_rows(n_classes, solver):
    y, y_val, teacher = Y[n_classes], Y_VAL[n_classes], TEACHERS[n_classes]
    scoring = SCORING | (INEFFICIENCY if solver == "auto" else {})
    kernels = [NTK(depth=1), NTK(depth=2)]
    search = LinearizedKDStudentCV(
        teacher,
        **GRID,
        ridges=[0.1, 1.0],
        kernel=kernels,
        scoring=scoring,
        refit="log_loss",
        solver=solver,
    ).fit(X, y, X_val=X_VAL, y_val=y_val)
    results = search.cv_results_
    for index, params in enumerate(results["params"]):
        student = LinearizedKDStudent(teacher, solver=solver, **params).fit(X, y)
        for name, scorer in scoring.items():
            expected = scorer(student, X_VAL, y_val)
            np.testing.assert_allclose(results[f"mean_test_{name}"][index], expected, **CLOSE)
        right = student.predict(X_VAL) == y_val
        if index == 0:
            first = right
    best = results["mean_test_accuracy"].argmax()
    student = LinearizedKDStudent(teacher, solver=solver, **results["params"][best]).fit(X, y)
    d = first.astype(float) - (student.predict(X_VAL) == y_val)
    error = results["stderr_diff_test_accuracy"][0]
    assert error == pytest.approx(d.std(ddof=1) / np.sqrt(40), abs=1e-12)
    best = LinearizedKDStudent(teacher, solver=solver, **search.best_params_).fit(X, y)
    np.testing.assert_allclose(search.decision_function(X), best.decision_function(X), **CLOSE)
    assert len(search.best_estimator_.teacher_logits_) == 50
    assert 1 < search.n_splits_ <= 10


class Remembering(KNeighborsClassifier):
    """Remembers the rows of every fit."""

    seen: ClassVar[list] = []

    def fit(self, X, y):
        Remembering.seen.append(np.asarray(X))
        return super().fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
def test_an_unfitted_teacher_sees_nothing_of_them():
    Remembering.seen.clear()
    search = LinearizedKDStudentCV(
        Remembering(7), **GRID, ridges=[0.1], scoring=SCORING, refit="risk"
    )
    search.fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    assert [len(rows) for rows in Remembering.seen] == [40] * 5 + [50]
    assert all(np.isin(rows, X).all() for rows in Remembering.seen)
    for index, params in enumerate(search.cv_results_["params"]):
        student = LinearizedKDStudent(Remembering(7), **params).fit(X, Y[2])
        for name, scorer in SCORING.items():
            expected = scorer(student, X_VAL, Y_VAL[2])
            found = search.cv_results_[f"mean_test_{name}"][index]
            assert found == pytest.approx(expected, rel=1e-9)


def test_weights_copies_and_rows_without_a_label():
    # Copies among X, weights on both sides, an unlabelled row and one of weight 0 among X_val.
    rows, y = np.vstack([X, X[:8]]), np.r_[Y[3], Y[3][1:9]]
    weight, weight_val = RNG.random(58), RNG.random(40)
    y_val = Y_VAL[3].copy()
    y_val[0], weight_val[1] = -1, 0
    search = LinearizedKDStudentCV(TEACHERS[3], **GRID, ridges=[0.2])
    search.fit(rows, y, weight, X_val=X_VAL, y_val=y_val, sample_weight_val=weight_val)
    for index, params in enumerate(search.cv_results_["params"]):
        student = LinearizedKDStudent(TEACHERS[3], **params).fit(rows, y, weight)
        expected = student.score(X_VAL[2:], y_val[2:], weight_val[2:])
        assert search.cv_results_["mean_test_score"][index] == pytest.approx(expected, rel=1e-9)


def test_given_logits():
    z_t, z_val = (TEACHERS[2].decision_function(rows) for rows in (X, X_VAL))
    search = LinearizedKDStudentCV(**GRID, ridges=[0.1])
    fitted = {"X_val": X_VAL, "y_val": Y_VAL[2], "teacher_logits": z_t}
    with_teacher = clone(search).set_params(teacher=TEACHERS[2], scoring=SCORING, refit="risk")
    with_teacher.fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    for name in ("accuracy", "risk"):
        search.set_params(scoring={name: SCORING[name]}, refit=name)
        search.fit(X, Y[2], **fitted, teacher_logits_val=z_val)
        np.testing.assert_allclose(
            search.cv_results_[f"mean_test_{name}"],
            with_teacher.cv_results_[f"mean_test_{name}"],
            **CLOSE,
        )
    search.set_params(scoring=None, refit=True).fit(X, Y[2], **fitted)  # needs no teacher there
    with pytest.raises(AttributeError, match="teacher_logits_val"):
        search.set_params(scoring=neg_transfer_risk_scorer).fit(X, Y[2], **fitted)


def test_frames_and_strings_and_one_network():
    names = np.array(["no", "yes"])
    frame, frame_val = (pd.DataFrame(rows, columns=list("abc")) for rows in (X, X_VAL))
    search = LinearizedKDStudentCV(LogisticRegression(), **GRID, ridges=[0.1])
    search.fit(frame, names[Y[2]], X_val=frame_val, y_val=names[Y_VAL[2]])
    plain = clone(search).fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    with pytest.raises(ValueError, match="feature names"):
        search.fit(frame, Y[2], X_val=frame_val[["b", "a", "c"]], y_val=Y_VAL[2])


def test_a_network_that_does_not_start_at_zero():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 30), torch.nn.GELU(), torch.nn.Linear(30, 1))
    options = {"kernel": EmpiricalNTK(net.double()), "init": "network"}
    search = LinearizedKDStudentCV(TEACHERS[2], **GRID, ridges=[0.1], **options)
    search.fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    for index, params in enumerate(search.cv_results_["params"]):
        student = LinearizedKDStudent(TEACHERS[2], **params, **options).fit(X, Y[2])
        expected = student.score(X_VAL, Y_VAL[2])
        assert search.cv_results_["mean_test_score"][index] == expected


def test_in_a_pipeline():
    pipeline = make_pipeline(
        StandardScaler(), LinearizedKDStudentCV(TEACHERS[2], **GRID), transform_input=["X_val"]
    )
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline[-1].set_fit_request(X_val=True, y_val=True)
        pipeline.fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    scaler = StandardScaler().fit(X)
    plain = LinearizedKDStudentCV(TEACHERS[2], **GRID)
    plain.fit(scaler.transform(X), Y[2], X_val=scaler.transform(X_VAL), y_val=Y_VAL[2])
    np.testing.assert_array_equal(
        pipeline[-1].cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_own_scores_get_the_validation_rows():
    seen = []

    def record(student, rows, y):
        seen.append((rows, y))
        return accuracy_score(y, student.predict(rows))

    search = LinearizedKDStudentCV(TEACHERS[2], **GRID, scoring=record)
    search.fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    rows, y = max(seen, key=lambda pair: len(pair[1]))
    np.testing.assert_array_equal(rows, X_VAL)
    np.testing.assert_array_equal(y, Y_VAL[2])


def test_corrected_labels_are_those_of_x():
    search = LinearizedKDStudentCV(TEACHERS[2], **GRID).fit(X, Y[2], X_val=X_VAL, y_val=Y_VAL[2])
    assert "cells" in search.verdict_
    with pytest.raises(AttributeError, match="add rows to X_val"):
        search.rows_to_check(3)
    assert len(search.fit(X, Y[2]).rows_to_check(3)) > 0


@pytest.mark.parametrize("solver", ["cholesky", PCG(tol=1e-12, random_state=0)])
def test_more_validation_rows_than_rows(solver):
    few = slice(0, 20)
    search = LinearizedKDStudentCV(TEACHERS[2], **GRID, solver=solver)
    found = search.fit(X[few], Y[2][few], X_val=X_VAL, y_val=Y_VAL[2])
    for index, params in enumerate(found.cv_results_["params"]):
        student = LinearizedKDStudent(TEACHERS[2], **params).fit(X[few], Y[2][few])
        assert found.cv_results_["mean_test_score"][index] == student.score(X_VAL, Y_VAL[2])


VALID = {"X_val": X_VAL, "y_val": Y_VAL[2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"X_val": X_VAL}, "X_val was passed to fit without y_val"),
        ({"y_val": Y_VAL[2]}, "y_val was passed to fit without X_val"),
        ({"sample_weight_val": np.ones(40)}, "sample_weight_val was passed to fit without X_val"),
        (VALID | {"X_val": X_VAL[:, :2]}, "2 features"),
        (VALID | {"X_val": X_VAL[:30]}, "X_val has 30 rows, but y_val has 40"),
        (VALID | {"y_val": Y_VAL[2] + 1}, r"y_val holds the label \[2\]"),
        (VALID | {"sample_weight_val": np.zeros(40)}, "non-zero"),
        (VALID | {"sample_weight_val": np.ones(30)}, "sample_weight"),
        (VALID | {"teacher_logits_val": np.ones(30)}, "teacher_logits_val has shape"),
        (VALID | {"X_val": np.full((40, 3), np.nan)}, "NaN"),
    ],
)
def test_what_is_refused(options, message):
    search = LinearizedKDStudentCV(TEACHERS[2], **GRID)
    with pytest.raises(ValueError, match=message):
        search.fit(X, Y[2], **options)
    assert not hasattr(search, "classes_")


def test_folds_and_validation_rows_exclude_each_other():
    search = LinearizedKDStudentCV(TEACHERS[2], **GRID, cv=5)
    with pytest.raises(ValueError, match=r"cv=5 asks for folds of X; set cv=None"):
        search.fit(X, Y[2], **VALID)
