"""Rows without a label, and rows whose teacher is trusted less: Eq. 2 with a soft ratio a row."""

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.inspection import EffectiveLogitsDisplay, HardLabelEffectDisplay
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import PCG, Nystrom

N, N_DISTINCT = 36, 24


def problem(n_classes, seed=0):
    """Return rows of which some are copies, labels of which some are -1, logits, trust, weights."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N_DISTINCT, 3))
    X = np.vstack([X, X[: N - N_DISTINCT]])
    y = rng.integers(n_classes, size=N)
    y[rng.permutation(N)[:10]] = -1
    y[[0, N_DISTINCT]] = -1  # both copies of a row
    y[1], y[N_DISTINCT + 1] = -1, 1  # one of two
    z_t = rng.normal(size=(N,) if n_classes == 2 else (N, n_classes)) * 2
    return X, y, z_t, rng.uniform(0.05, 1, N), rng.uniform(0.2, 3, N)


def columns(z):
    return np.stack([np.zeros_like(z), z], axis=-1) if z.ndim == 1 else z


def summed_losses(X, y, z_t, ratios, weights, T, squared):
    """Return for each distinct row the sum of its copies' losses (Eq. 2) as a function of z."""
    soft = softmax(columns(z_t) / T, axis=1)
    factor = T**2 if squared else 1.0

    def loss(z, copies):
        z = z if len(z) > 1 else np.r_[0, z]
        total = 0.0
        for i in copies:
            total -= weights[i] * ratios[i] * factor * (soft[i] @ log_softmax(z / T))
            if y[i] >= 0:
                total -= weights[i] * (1 - ratios[i]) * log_softmax(z)[y[i]]
        return total

    _, first = np.unique(X, axis=0, return_index=True)
    for i in np.sort(first):
        copies = np.flatnonzero((X[i] == X).all(axis=1))
        yield lambda z, copies=copies: loss(z, copies)


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("rho", [0.4, 1.0])
@pytest.mark.parametrize("trusted", [True, False], ids=["full trust", "trust"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_effective_logits_minimise_the_sum_of_the_copies_losses(n_classes, trusted, rho, scaling):
    X, y, z_t, trust, weights = problem(n_classes)
    T = 1.7
    student = LinearizedKDStudent(soft_ratio=rho, temperature=T, temperature_scaling=scaling)
    options = {} if trusted else {"teacher_trust": trust}
    student.fit(X, y, weights, teacher_logits=z_t, **options)
    ratios = np.where(y < 0, 1.0, rho * (1 if trusted else trust))
    losses = summed_losses(X, y, z_t, ratios, weights, T, scaling == "squared")
    assert len(student.effective_logits_) == N_DISTINCT
    for z_eff, loss in zip(student.effective_logits_, losses, strict=True):
        z_eff = np.atleast_1d(z_eff)
        found = minimize(loss, np.zeros_like(z_eff), method="BFGS", options={"gtol": 1e-9}).x
        found = found - found.mean() if len(z_eff) > 1 else found
        np.testing.assert_allclose(z_eff, found, atol=1e-5)
        step = 1e-5 * np.eye(len(z_eff))
        slope = [loss(z_eff + s) - loss(z_eff - s) for s in step]
        np.testing.assert_allclose(slope, 0, atol=1e-13)
    report = student.fit_report_
    assert report.n_unlabelled_rows == (y < 0).sum() > 9
    assert report.n_distinct_rows == N_DISTINCT


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_student_that_stops_descends_on_the_same_losses(rho):
    X, y, z_t, trust, weights = problem(2)
    T, time, K = 1.7, 5.0, NTK()(X)
    student = LinearizedKDStudent(soft_ratio=rho, temperature=T, stopping_time=time)
    student.fit(X, y, weights, teacher_logits=z_t, teacher_trust=trust)
    ratios, hard = np.where(y < 0, 1.0, rho * trust), np.maximum(y, 0)

    def descent(_, a):
        f = K @ a
        soft = ratios / T * (expit(f / T) - expit(z_t / T))
        return -weights / weights.sum() * (soft + (1 - ratios) * (expit(f) - hard))

    a = solve_ivp(descent, (0, time), np.zeros(N), method="LSODA", rtol=1e-9, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(student.decision_function(X), K @ a, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_only_the_teacher_speaks_for_rows_without_a_label(n_classes):
    X, y, z_t, *_ = problem(n_classes)
    X[N_DISTINCT:] += 0.1  # no copies
    student = LinearizedKDStudent(soft_ratio=0.3, temperature=3.0).fit(X, y, teacher_logits=z_t)
    expected = student.teacher_logits_[y < 0]
    np.testing.assert_array_equal(student.effective_logits_[y < 0], expected)
    assert (student.effective_logits_ != student.teacher_logits_)[y >= 0].any()
    np.testing.assert_array_equal(student.classes_, np.arange(n_classes))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("source", ["array", "memory map", "folder"])
def test_solvers_and_streams_learn_the_same_targets(n_classes, source, tmp_path):
    X, y, z_t, trust, weights = problem(n_classes)
    options = {"teacher_logits": z_t, "teacher_trust": trust}
    student = LinearizedKDStudent(soft_ratio=0.5, ridge=0.1)
    exact = student.fit(X, y, weights, **options)
    if source == "array":
        solvers = PCG(tol=1e-13, max_iter=500, random_state=0), Nystrom(N, random_state=0)
    else:
        solvers = (Nystrom(N, random_state=0),)
        np.save(tmp_path / "rows.npy", X)
    rows = {
        "array": lambda: X,
        "memory map": lambda: np.load(tmp_path / "rows.npy", mmap_mode="r"),
        "folder": lambda: tmp_path,
    }[source]()
    for solver in solvers:
        other = clone(student).set_params(solver=solver).fit(rows, y, weights, **options)
        expected = exact.decision_function(X[:5])
        np.testing.assert_allclose(other.decision_function(X[:5]), expected, atol=1e-7)
        assert other.fit_report_.n_unlabelled_rows == (y < 0).sum()


HALF = [0, 1] * 4


@pytest.mark.parametrize(
    ("y", "classes", "n_unlabelled"),
    [
        ([0, 1, -1, 0, 1, -1, 0, 1], [0, 1], 2),
        ([0.0, 1.0, -1.0, 0.0, 1.0, 2.0, 0.0, 1.0], [0, 1, 2], 1),
        ([-1, 1] * 4, [-1, 1], 0),
        ([-1, 0] * 4, [-1, 0], 0),
        (np.array([0, 1, -1, 0, 1, -1, 0, 1], dtype=np.int8), [0, 1], 2),
        ([-2, -1, 3, -2, -2, 3, 3, -2], [-2, 3], 1),
        (["a", "b", None, "a", "b", "a", "b", None], ["a", "b"], 2),
        (["a", "b", np.nan, "a", "b", "a", "b", None], ["a", "b"], 2),
        (["-1", "b", "c", "b", "b", "c", "c", "-1"], ["-1", "b", "c"], 0),
        (np.array([0, 1, None, 0, 1, 0, 1, pd.NA], dtype=object), [0, 1], 2),
        ([True, False, None, True, True, False, True, None], [False, True], 2),
        (pd.Series(["a", "b", pd.NA, "a", "b", "a", "b", "b"], dtype="string"), ["a", "b"], 1),
        (pd.Series([0, 1, None, 0, 1, 0, 1, 1], dtype="Int64"), [0, 1], 1),
        (pd.Series([0, 1, None, 0, 1, 0, -1, 1], dtype="Int64"), [0, 1], 2),
        (pd.Series(["a", "b", None, "a", "b", "a", "b", "b"], dtype="category"), ["a", "b"], 1),
    ],
)
def test_what_is_no_label(y, classes, n_unlabelled):
    X = np.random.default_rng(0).normal(size=(8, 2))
    z_t = X[:, 0] if len(classes) == 2 else np.c_[X, X[:, 0]]
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    assert student.classes_.tolist() == classes
    assert student.fit_report_.n_unlabelled_rows == n_unlabelled
    assert 0 <= student.score(X, y) <= 1


def test_minus_one_is_a_class_where_the_teacher_knows_it():
    X, y, *_ = problem(2)
    teacher = LogisticRegression().fit(X, y)
    for frozen in (
        LinearizedKDStudent(FrozenEstimator(teacher)).fit(X, y),
        LinearizedKDStudent(teacher, cv="prefit").fit(X, y),
        LinearizedKDStudent().fit(X, y, teacher_logits=teacher.decision_function(X)),
        LinearizedKDStudent().fit(X, y, teacher_logits=teacher.decision_function(X).tolist()),
    ):
        assert frozen.classes_.tolist() == [-1, 0, 1]
        assert frozen.score(X, y) == np.mean(frozen.predict(X) == y)
    two = LogisticRegression().fit(X[y >= 0], y[y >= 0])
    assert LinearizedKDStudent(FrozenEstimator(two)).fit(X, y).classes_.tolist() == [0, 1]


@pytest.mark.parametrize("cv", [3, StratifiedKFold(3)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_an_unfitted_teacher_sees_labelled_rows_only(n_classes, cv):
    X, y, _, _, weights = problem(n_classes)
    known = y >= 0
    teacher = LogisticRegression()
    student = LinearizedKDStudent(teacher, cv=cv).fit(X, y, weights)
    whole = clone(teacher).fit(X[known], y[known], weights[known])
    logits = student.teacher_logits_
    expected = whole.decision_function(X[~known])
    expected = expected - (0 if n_classes == 2 else expected.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(logits[~known], expected, atol=1e-12)
    if cv == 3:
        alone = LinearizedKDStudent(teacher, cv=cv).fit(X[known], y[known], weights[known])
        np.testing.assert_array_equal(logits[known], alone.teacher_logits_)
    assert student.teacher_.classes_.tolist() == list(range(n_classes))
    np.testing.assert_array_equal(student.teacher_.coef_, whole.coef_)


def test_folds_that_are_given_are_of_all_rows_and_need_cover_labelled_ones_only():
    X, y, *_ = problem(2)
    known = np.flatnonzero(y >= 0)
    folds = [(np.setdiff1d(np.arange(N), test), test) for test in np.array_split(known, 3)]
    student = LinearizedKDStudent(LogisticRegression(), cv=folds).fit(X, y)
    for _, test in folds:
        train = np.setdiff1d(known, test)
        expected = LogisticRegression().fit(X[train], y[train]).decision_function(X[test])
        np.testing.assert_allclose(student.teacher_logits_[test], expected, atol=1e-12)
    with pytest.raises(ValueError, match=f"leaves row {known[0]} in no test fold"):
        LinearizedKDStudent(LogisticRegression(), cv=folds[1:]).fit(X, y)


def test_an_unfitted_teacher_needs_labels_of_positive_weight():
    X, y, z_t, *_ = problem(2)
    unlabelled = (y < 0).astype(float)
    with pytest.raises(ValueError, match="no row of positive weight has a label to fit it to"):
        LinearizedKDStudent(LogisticRegression()).fit(X, y, unlabelled)
    student = LinearizedKDStudent().fit(X, y, unlabelled, teacher_logits=z_t)
    assert student.fit_report_.n_distinct_rows == len(np.unique(X[y < 0], axis=0))


def test_scores_count_labelled_rows_only():
    X, y, z_t, _, weights = problem(2)
    student = LinearizedKDStudent(soft_ratio=0.2).fit(X, y, teacher_logits=z_t)
    known = y >= 0
    hits = (student.predict(X) == y)[known]
    assert student.score(X, y) == hits.mean()
    assert np.isclose(student.score(X, y, weights), np.average(hits, weights=weights[known]))
    path = student.prefix_path(X, teacher_logits=z_t, y=y, sizes=[N_DISTINCT])
    assert np.isclose(path.error[0, 0], 1 - hits.mean())
    pipeline = make_pipeline(StandardScaler(), clone(student))
    pipeline.fit(X, y, linearizedkdstudent__teacher_logits=z_t)
    assert pipeline.score(X, y) == pipeline.score(X[known], y[known])
    with pytest.raises(ValueError, match=r"y holds no label, only \[-1\]"):
        student.score(X, np.full(N, -1))


def test_effective_logits_of_new_rows_take_missing_labels_and_trust():
    X, y, z_t, trust, _ = problem(3)
    X = X + 0.01 * np.arange(N)[:, None]  # no copies
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t, teacher_trust=trust)
    again = student.effective_decision_function(X, y, z_t, trust)
    np.testing.assert_allclose(again, student.effective_logits_, atol=1e-12)


def test_prefix_path_trains_each_size_as_a_fit_would():
    X, y, z_t, trust, _ = problem(2)
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t, teacher_trust=trust)
    grid = {"soft_ratio": [0.3, 1.0], "temperature": [1.0, 4.0]}
    path = student.prefix_path(sizes=[N_DISTINCT], param_grid=grid)
    for index, params in enumerate(path.params):
        other = clone(student).set_params(**params)
        other.fit(X, y, teacher_logits=z_t, teacher_trust=trust)
        found = path.weight_change_norm[index, 0, 0]
        assert np.isclose(found, other.weight_change_norm_, rtol=1e-9)


def test_displays_show_labelled_rows():
    X, y, z_t, *_ = problem(2)
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    display = EffectiveLogitsDisplay.from_estimator(student)
    distinct = np.unique(X[y >= 0], axis=0)
    assert len(display.row_labels) == len(distinct)
    with pytest.raises(ValueError, match="11 training rows have no label"):
        HardLabelEffectDisplay.from_estimator(student, X, y, teacher_logits=z_t)


BAD = {
    "all missing": ({"y": np.full(N, None)}, "y holds no label: the values of all rows"),
    "NaN": ({"y": np.where(np.arange(N) == 7, np.nan, 1.0)}, r"y holds NaN in row 7; .* is -1"),
    "one class": (
        {"y": np.array(["a", None] * (N // 2), dtype=object)},
        r"only one class, \['a'\], beside 18 rows without a label",
    ),
    "numbers and strings": (
        {"y": np.array([None, 1, "a"] * (N // 3), dtype=object)},
        "convert them to one type|Unknown label type",
    ),
    "trust of 0": (
        {"teacher_trust": np.where(np.arange(N) == 5, 0.0, 1.0)},
        r"teacher_trust must be in \(0, 1\], but row 5 holds 0.0",
    ),
    "trust above 1": ({"teacher_trust": np.full(N, 1.5)}, "row 0 holds 1.5"),
    "NaN trust": ({"teacher_trust": np.full(N, np.nan)}, "row 0 holds nan"),
    "trust of other rows": ({"teacher_trust": np.ones(3)}, r"shape \(3,\), but X has 36 rows"),
    "trust as a number": ({"teacher_trust": 0.5}, r"shape \(\), but X has 36 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_rows_and_leave_nothing(case):
    options, message = BAD[case]
    X, y, z_t, *_ = problem(2)
    student = LinearizedKDStudent()
    with pytest.raises(ValueError, match=message):
        student.fit(X, **{"y": y, "teacher_logits": z_t} | options)
    assert not hasattr(student, "classes_")
