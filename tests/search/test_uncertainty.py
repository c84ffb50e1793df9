"""Paired errors, the best set and the verdict of a search, against explicit refits and by hand."""

import numpy as np
import pytest
from scipy.stats import t as student_t
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import KFold, RepeatedKFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import neg_transfer_risk_scorer
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._uncertainty import parts_by_fold, uncertainty
from sklearn_kd.search._verdict import verdict
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Z = np.stack([2 * X[:, 0] + X[:, 1], X[:, 1] ** 2, -X[:, 2]], axis=1)
LABELS = {
    "two": (X[:, 0] + RNG.logistic(size=60) > 0).astype(int),
    "three": (Z + RNG.gumbel(size=Z.shape)).argmax(axis=1),
}
GRID = {"soft_ratios": [0.2, 0.8, 1.0], "temperatures": [1.0, 4.0], "ridges": [0.1]}
KERNEL = NTK(depth=2)
SCORING = {
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "brier": "neg_brier_score",
    "risk": neg_transfer_risk_scorer,
}


def of_row(name, student, x, y, z):
    """Return a score of one row, by hand."""
    p = student.predict_proba(x[None])[0]
    predicted = p.argmax()
    if name == "accuracy":
        return float(predicted == y)
    if name == "log_loss":
        return np.log(p[y])
    if name == "risk":
        return -float(predicted != (z.argmax() if z.ndim else z > 0))
    errors = p - np.eye(len(p))[y]
    return -np.sum(errors**2) / (2 if len(p) == 2 else 1)


def by_hand(name, params, splits, rows, y, z_t, weight):
    """Return [(row, share of the mean, score)] of every row in every split, by refits."""
    found = []
    for train, test in splits:
        student = LinearizedKDStudent(kernel=KERNEL, **params)
        student.fit(rows[train], y[train], sample_weight=weight[train], teacher_logits=z_t[train])
        for i in test[weight[test] > 0]:
            share = weight[i] / weight[test].sum() / len(splits)
            found.append((i, share, of_row(name, student, rows[i], y[i], z_t[i])))
    return found


def paired_error(first, second, groups):
    """Return the standard error of the difference of two means, rows of a group being one draw."""
    mean = sum(u * (a - b) for (_, u, a), (_, _, b) in zip(first, second, strict=True))
    added = {}
    for (i, u, a), (_, _, b) in zip(first, second, strict=True):
        added[groups[i]] = added.get(groups[i], 0.0) + u * (a - b - mean)
    n = len(added)
    return mean, np.sqrt(n / (n - 1) * sum(v**2 for v in added.values()))


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("kind", ["folds", "repeats", "weights and copies"])
def test_paired_errors_are_by_row(y, kind):
    rows, z_t, weight, groups = X, (Z if y.max() > 1 else Z[:, 0]), np.ones(60), np.arange(60)
    cv = KFold(4, shuffle=True, random_state=1)
    if kind == "repeats":
        cv = RepeatedKFold(n_splits=3, n_repeats=2, random_state=0)
    if kind == "weights and copies":
        groups = np.r_[np.arange(60), np.arange(12)]
        rows, z_t, y = X[groups], z_t[groups], np.r_[y, y[1:13]]
        weight = RNG.integers(0, 3, size=72).astype(float)
        scoring = {name: SCORING[name] for name in ("accuracy", "log_loss")}
    else:
        scoring = SCORING if y.max() == 1 else {k: SCORING[k] for k in SCORING if k != "brier"}
    splits = list(cv.split(rows))
    search = LinearizedKDStudentCV(
        **GRID, kernel=KERNEL, cv=splits, scoring=scoring, refit="log_loss"
    ).fit(rows, y, sample_weight=weight, teacher_logits=z_t)
    results = search.cv_results_
    for name in scoring:
        best = results[f"mean_test_{name}"].argmax()
        cells = {
            j: by_hand(name, results["params"][j], splits, rows, y, z_t, weight)
            for j in {0, 3, best}
        }
        for j, cell in cells.items():
            mean, error = paired_error(cell, cells[best], groups)
            assert results[f"diff_test_{name}"][j] == pytest.approx(mean, abs=1e-9)
            assert results[f"stderr_diff_test_{name}"][j] == pytest.approx(error, abs=1e-9)
    assert results["in_best_set"] is results["in_best_set_log_loss"]
    assert results["in_best_set"][search.best_index_]


@pytest.mark.parametrize("solver", ["auto", Nystrom(60), Nystrom(20, random_state=0)])
def test_paired_errors_of_leave_one_out(solver):
    y, z_t = LABELS["two"], Z[:, 0]
    recorded = []

    def record(student, rows, labels):
        if len(labels) == 60:
            recorded.append(student.predict(rows) == labels)
        return accuracy_score(labels, student.predict(rows))

    search = LinearizedKDStudentCV(**GRID, kernel=KERNEL, solver=solver).fit(
        X, y, teacher_logits=z_t
    )
    results = search.cv_results_
    best = np.argmax(results["diff_test_score"])
    search.set_params(scoring=record).fit(X, y, teacher_logits=z_t)
    d = np.array(recorded, float) - recorded[best]
    np.testing.assert_allclose(results["diff_test_score"], d.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(
        results["stderr_diff_test_score"], d.std(axis=1, ddof=1) / np.sqrt(60), atol=1e-12
    )
    # What is known only as a number has the errors of the groups.
    splits = np.array([search.cv_results_[f"split{k}_test_score"] for k in range(10)])
    d = splits - splits[:, [search.best_index_]]
    np.testing.assert_allclose(
        search.cv_results_["stderr_diff_test_score"], d.std(axis=0, ddof=1) / 10**0.5, atol=1e-12
    )


def test_a_row_twice_is_a_row_of_weight_two():
    y, z_t = LABELS["two"], Z[:, 0]
    again = np.r_[np.arange(60), np.arange(20)]
    weight = 1.0 + (np.arange(60) < 20)
    search = LinearizedKDStudentCV(**GRID, kernel=KERNEL)
    twice = search.fit(X[again], y[again], teacher_logits=z_t[again]).cv_results_
    weighted = search.fit(X, y, sample_weight=weight, teacher_logits=z_t).cv_results_
    for name in ("diff_test_score", "stderr_diff_test_score", "in_best_set"):
        np.testing.assert_allclose(twice[name], weighted[name], atol=1e-12)


def test_the_same_by_conjugate_gradients():
    y, z_t = LABELS["three"], Z
    fits = [
        LinearizedKDStudentCV(**GRID, kernel=KERNEL, cv=4, solver=solver).fit(
            X, y, teacher_logits=z_t
        )
        for solver in ("auto", PCG(tol=1e-10, random_state=0))
    ]
    for name in ("diff_test_score", "stderr_diff_test_score", "in_best_set"):
        np.testing.assert_allclose(*[fit.cv_results_[name] for fit in fits], atol=1e-12)
    assert fits[0].verdict_ == fits[1].verdict_


def test_a_sum_is_no_mean():
    y, z_t = LABELS["two"], Z[:, 0]
    total = make_scorer(accuracy_score, normalize=False)
    search = LinearizedKDStudentCV(**GRID, kernel=KERNEL, cv=KFold(5), scoring=total)
    results = search.fit(X, y, teacher_logits=z_t).cv_results_
    splits = np.array([results[f"split{k}_test_score"] for k in range(5)])
    d = splits - splits[:, [search.best_index_]]
    np.testing.assert_allclose(
        results["stderr_diff_test_score"], d.std(axis=0, ddof=1) / 5**0.5, atol=1e-12
    )


def test_where_no_score_decides():
    y, z_t = LABELS["two"], Z[:, 0]
    search = LinearizedKDStudentCV(**GRID, kernel=KERNEL, cv=3, refit=False)
    search.fit(X, y, teacher_logits=z_t)
    assert "cells are as good" in search.verdict_
    several = search.set_params(scoring=["accuracy", "neg_log_loss"])
    several.fit(X, y, teacher_logits=z_t)
    assert not hasattr(several, "verdict_")
    assert "in_best_set" not in several.cv_results_
    assert several.cv_results_["in_best_set_accuracy"].any()


def test_a_score_that_is_nan_for_some_cells():
    y, z_t = LABELS["two"], Z[:, 0]
    seen = []

    def sometimes(student, rows, labels):
        seen.append(1)
        return np.nan if len(seen) % 6 == 1 else accuracy_score(labels, student.predict(rows))

    search = LinearizedKDStudentCV(
        **GRID, kernel=KERNEL, cv=3, scoring={"a": sometimes, "b": "accuracy"}, refit="b"
    )
    results = search.fit(X, y, teacher_logits=z_t).cv_results_
    assert np.isnan(results["diff_test_a"]).tolist() == [True] + [False] * 5
    assert not results["in_best_set_a"][0]
    assert results["in_best_set_a"].any()


def test_one_split_tells_nothing():
    y, z_t = LABELS["two"], Z[:, 0]
    cv = [(np.arange(40), np.arange(40, 60))]
    search = LinearizedKDStudentCV(**GRID, kernel=KERNEL, cv=cv, scoring="roc_auc")
    results = search.fit(X, y, teacher_logits=z_t).cv_results_
    assert np.isnan(results["stderr_diff_test_score"]).all()
    assert results["in_best_set"].all()
    assert search.verdict_.count("nan") == 0
    by_row = search.set_params(scoring=None).fit(X, y, teacher_logits=z_t).cv_results_
    assert np.isfinite(by_row["stderr_diff_test_score"]).all()


def test_one_paired_standard_error():
    # The best score is noisy, the differences are not: all rows prefer a small ρ by a little.
    y = LABELS["two"]
    z_t = 8 * X[:, 2]
    settings = {"soft_ratios": [0.05, 0.5, 0.9, 1.0], "temperatures": [1.0], "ridges": [1.0]}
    search = LinearizedKDStudentCV(**settings, scoring="neg_log_loss", one_standard_error=True)
    results = search.fit(X, y, teacher_logits=z_t).cv_results_
    within = results["diff_test_score"] >= -results["stderr_diff_test_score"]
    assert search.best_index_ == np.flatnonzero(within).max()
    unpaired = results["diff_test_score"] >= -results["stderr_test_score"].max()
    assert np.flatnonzero(unpaired).max() > search.best_index_


# The procedure itself


def scores_of(n, means, rng, common=3.0):
    """Return scores of rows that the cells share the noise of, and what the rows add to means."""
    noise = common * rng.normal(size=(n, 1)) + rng.normal(size=(n, len(means)))
    scores = noise + np.asarray(means)
    return scores.mean(axis=0), (scores - scores.mean(axis=0)) / n


def test_two_cells_are_a_paired_t_test():
    rng, outcomes = np.random.default_rng(0), []
    for _ in range(50):
        mean, parts = scores_of(30, [0.0, 0.3], rng)
        best = int(mean.argmax())
        d = 30 * (parts[:, best] - parts[:, 1 - best]) + mean[best] - mean[1 - best]
        ratio = d.mean() / (d.std(ddof=1) / np.sqrt(30))
        limit = student_t.ppf(0.9, 29)
        for many_units in (True, False):
            # The limit of draws is known to a few per cent.
            if many_units and abs(ratio / limit - 1) < 0.1:
                continue
            found = uncertainty(mean, parts, best, many_units=many_units).in_best_set
            assert found[best]
            outcomes.append(found[1 - best])
            level = 0.9 if many_units else 1 - 0.1 / 1
            assert outcomes[-1] == (ratio <= student_t.ppf(level, 29))
    assert 0 < np.mean(outcomes) < 1


@pytest.mark.parametrize(("n", "many_units"), [(200, True), (15, True), (5, False)])
def test_the_best_of_equal_cells_is_kept_in_nine_cases_of_ten(n, many_units):
    rng, kept, n_cases = np.random.default_rng(1), 0, 300
    for _ in range(n_cases):
        mean, parts = scores_of(n, np.zeros(8), rng)
        found = uncertainty(mean, parts, int(mean.argmax()), many_units=many_units)
        kept += found.in_best_set[0]
    error = np.sqrt(0.9 * 0.1 / n_cases)
    assert kept / n_cases > 0.9 - 2.5 * error
    if n == 200:
        assert kept / n_cases < 0.9 + 2.5 * error  # of equal cells exactly 90 %


def test_cells_that_are_the_same_and_cells_that_always_differ():
    scores = np.random.default_rng(0).normal(size=(40, 1)) + np.array([0.0, 0.0, -1e-3, 1e-17])
    parts = (scores - scores.mean(axis=0)) / 40
    found = uncertainty(scores.mean(axis=0), parts, 0, many_units=True)
    assert found.in_best_set.tolist() == [True, True, False, True]


def test_overlapping_folds_count_for_fewer():
    scores = np.random.default_rng(0).normal(size=(6, 3))
    plain, overlapping = (parts_by_fold(scores, overlap) for overlap in (0.0, 0.25))
    np.testing.assert_allclose(overlapping, plain * np.sqrt(1 + 6 * 0.25))


# The sentence


def told(grid, mean, in_set, error=0.01, chosen=None, **options):
    grid = Grid.of(kernel=None, temperature_scaling="none", **grid)
    mean = np.asarray(mean, float)
    results = {
        "mean_test_score": mean,
        "diff_test_score": mean - mean.max(),
        "stderr_diff_test_score": np.full(len(mean), error),
        "in_best_set_score": np.asarray(in_set, bool),
    }
    best = int(mean.argmax())
    chosen = best if chosen is None else chosen
    return verdict(grid, results, "score", chosen, best, **{"is_accuracy": True} | options)


THREE = {"soft_ratios": [0.3, 0.7, 1.0], "temperatures": [1.0, 2.0, 4.0], "ridges": [0.0]}


def test_the_sentence():
    mean = [0.80, 0.81, 0.80, 0.85, 0.88, 0.86, 0.83, 0.83, 0.83]
    best = [0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert told(THREE, mean, best) == (
        "ρ = 0.7, T = 2; 2 of 9 cells are as good; ρ = 1 is worse by 5.0 ± 1.0 points"
    )
    assert "; the best of 9 cells;" in told(THREE, mean, np.arange(9) == 4)
    assert "; inconclusive: 9 of 9 cells are as good; ρ = 1 cannot be told from it, 5.0" in told(
        THREE, mean, np.ones(9)
    )
    chosen = told(THREE, mean, best, chosen=5)
    assert chosen.startswith("ρ = 0.7, T = 4 (within one standard error of ρ = 0.7, T = 2); 2 of")
    assert "worse by 0.05 ± 0.01" in told(THREE, mean, best, is_accuracy=False)


def test_edges_of_the_grid():
    at = np.eye(9)
    assert "ρ = 0.3 is the smallest, add smaller soft_ratios such as 0.15" in told(
        THREE, at[1], at[1]
    )
    corner = told(THREE, at[2], at[2])
    assert "T = 4 is the largest, add larger temperatures such as 8" in corner
    assert "add smaller soft_ratios" in corner
    assert "edge" not in told(THREE, at[6], at[6])  # ρ = 1, where T does not matter
    assert told(THREE, at[6], at[6]).startswith("ρ = 1; the best of 9 cells; ρ = 0.3 is worse")
    inner = {"soft_ratios": [0.3, 0.7], "temperatures": [2.0], "ridges": [0.0, 0.1, 1.0]}
    assert "ρ = 0.7 is the largest, add larger soft_ratios such as 0.85" in told(
        inner, np.eye(6)[1], np.eye(6)[1]
    )
    assert "ridge = 1 is the largest, add larger ridges such as 10" in told(
        inner, np.eye(6)[5], np.eye(6)[5]
    )
    assert "ridges" not in told(inner, np.eye(6)[0], np.eye(6)[0])
    only = {"soft_ratios": [0.3], "temperatures": [2.0], "ridges": [0.1]}
    assert told(only, [0.9], [1]) == "ρ = 0.3, T = 2; the only cell"


def test_the_stopping_time_in_the_sentence():
    grid = {"soft_ratios": [0.0, 1.0], "temperatures": [1.0, 2.0], "ridges": [0.0]}
    ten = grid | {"stopping_times": [10.0, 100.0]}
    # A row of cells for each time: ρ = 0 at either T, then ρ = 1.
    first, last = (np.eye(8)[cell] for cell in (0, 7))
    assert told(ten, first, first).startswith("ρ = 0, t = 10; the best of 8 cells")  # no T
    assert "t = 10 is the smallest, add smaller stopping_times such as 1" in told(ten, first, first)
    # On the way to the teacher's logits T sets the pace.
    assert told(ten, last, last).startswith("ρ = 1, T = 2, t = 100;")
    assert "t = 100 is the largest, add larger stopping_times such as 1000" in told(ten, last, last)
    # Beyond all times there is the converged student, and nothing beyond that.
    ends = grid | {"soft_ratios": [0.5, 1.0], "stopping_times": [100.0, None, 10.0]}
    for cell, name in ((2, "ρ = 1, T = 1, t = 100;"), (6, "ρ = 1, converged;")):
        mean = np.eye(12)[cell]
        sentence = told(ends, mean, mean)
        assert sentence.startswith(name)
        assert "stopping_times" not in sentence
