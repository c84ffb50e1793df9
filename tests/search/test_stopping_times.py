"""The stopping time as an axis of the search: explicit fits of students that stop, by fold."""

import numpy as np
import pytest
import torch
from recorder import Recorder
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer, make_scorer
from sklearn.model_selection import GridSearchCV, ShuffleSplit, StratifiedKFold
from torch import nn

import sklearn_kd.search._flows as flows_module
from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.exceptions import LongFitWarning, MemoryBudgetError
from sklearn_kd.inspection import SelectionDisplay
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg import _forecast
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.search._flows import MOST_COLUMNS, Flows, with_noise
from sklearn_kd.search._grid import Grid

RNG = np.random.default_rng(0)
N = 45
X, X_NEW = RNG.normal(size=(N, 3)), RNG.normal(size=(20, 3))
TIMES = [100.0, 5.0, 2000.0, None]  # in no order
GRID = {"soft_ratios": [0.4, 1.0], "temperatures": [1.0, 3.0], "stopping_times": TIMES}


def scores_of(rows, n_classes):
    return np.stack([2 * rows[:, 0], rows[:, 1] ** 2, -rows[:, 2]], axis=1)[:, :n_classes]


def labels(rows, n_classes):
    z = scores_of(rows, n_classes)
    return (z + RNG.gumbel(size=z.shape)).argmax(axis=1)


def logits(rows, n_classes):
    z = scores_of(rows, n_classes) + RNG.normal(size=(len(rows), n_classes))
    return z[:, 1] - z[:, 0] if n_classes == 2 else z - z.mean(axis=1, keepdims=True)


Y, Y_NEW = ({k: labels(rows, k) for k in (2, 3)} for rows in (X, X_NEW))
Z = {k: logits(X, k) for k in (2, 3)}
TEACHERS = {
    k: [
        FrozenEstimator(LogisticRegression(C=c).fit(RNG.normal(size=(60, 3)), np.arange(60) % k))
        for c in (0.1, 10.0)
    ]
    for k in (2, 3)
}
FOLDS = list(StratifiedKFold(3).split(X, Y[2]))


def probe(y, f, sample_weight=None):
    """Return a number that hangs on every logit, of the size of one of them."""
    f = np.asarray(f).reshape(len(y), -1)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], f.shape)
    return float((signs * f).sum())


SCORING = {
    "probe": make_scorer(probe, response_method="decision_function"),
    "accuracy": get_scorer("accuracy"),
    "log_loss": get_scorer("neg_log_loss"),
}
# The flow's tolerance, times the rows that a probe adds up.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def check(search, X, y, splits, weights=None, **options):
    """Fit a search, and compare it with students fitted to each fold; ``options`` are by row."""
    search = clone(search).set_params(cv=splits, scoring=SCORING, refit=False)
    search.fit(X, y, weights, **options)
    results = search.cv_results_
    base = LinearizedKDStudent(search.teacher, init=search.init, kernel=search.kernel)
    for index, params in enumerate(results["params"]):
        losses, accuracies = [], []
        for k, (train, test) in enumerate(splits):
            student = clone(base).set_params(**params)
            own = {name: values[train] for name, values in options.items()}
            weight = None if weights is None else weights[train]
            student.fit(X[train], y[train], weight, **own)
            scored = test[np.asarray(y)[test] != -1]
            weight = {} if weights is None else {"sample_weight": weights[scored]}
            for name, scorer in SCORING.items():
                expected = scorer(student, X[scored], y[scored], **weight)
                found = results[f"split{k}_test_{name}"][index]
                np.testing.assert_allclose(found, expected, err_msg=f"{params} {name}", **CLOSE)
            if params["stopping_time"] is not None:
                losses.append(student.fit_report_.training_loss[0])
                accuracies.append(student.fit_report_.training_accuracy[0])
        expected = [np.mean(values) if values else np.nan for values in (losses, accuracies)]
        found = [results[f"mean_train_{name}"][index] for name in ("loss", "accuracy")]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    return search


@pytest.mark.parametrize("ridges", [[0.0], [0.3, 2.0]], ids=["no ridge", "ridges"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_are_those_of_explicit_fits(n_classes, ridges):
    search = LinearizedKDStudentCV(**GRID, ridges=ridges)
    check(search, X, Y[n_classes], FOLDS, teacher_logits=Z[n_classes])


def test_folds_that_overlap_or_leave_rows_to_none():
    splits = list(ShuffleSplit(3, test_size=0.2, train_size=0.5, random_state=0).split(X))
    search = LinearizedKDStudentCV(**GRID | {"stopping_times": [10.0, None]}, ridges=[0.5])
    check(search, X, Y[2], splits, teacher_logits=Z[2])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_search_of_scikit_learn_agrees(n_classes):
    teacher = TEACHERS[n_classes][1]
    search = LinearizedKDStudentCV(teacher, **GRID, ridges=[0.1], cv=4).fit(X, Y[n_classes])
    theirs = GridSearchCV(
        LinearizedKDStudent(teacher, ridge=0.1),
        {"stopping_time": TIMES, "soft_ratio": [0.4, 1.0], "temperature": [1.0, 3.0]},
        cv=4,
    ).fit(X, Y[n_classes])
    keys = ("stopping_time", "soft_ratio", "temperature")
    expected = {
        tuple(params[key] for key in keys): score
        for params, score in zip(
            theirs.cv_results_["params"], theirs.cv_results_["mean_test_score"], strict=True
        )
    }
    for params, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        assert score == pytest.approx(expected[tuple(params[key] for key in keys)])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_copies_weights_trust_and_rows_without_a_label(n_classes):
    # Copies of a row in several folds, with other labels, weights and logits.
    rows, y = np.vstack([X, X[:12]]), np.r_[Y[n_classes], Y[n_classes][1:13]]
    z_t = np.concatenate([Z[n_classes], Z[n_classes][2:14]])
    weights, trust = RNG.uniform(0.2, 2, len(y)), RNG.uniform(0.5, 1, len(y))
    unlabelled = y.copy()
    unlabelled[[3, 20, 50]] = -1
    splits = list(StratifiedKFold(3, shuffle=True, random_state=0).split(rows, y))
    options = {"teacher_logits": z_t, "teacher_trust": trust}
    if n_classes == 3:
        y = unlabelled
    search = LinearizedKDStudentCV(**GRID, ridges=[0.0, 0.4])
    check(search, rows, y, splits, weights=weights, **options)


@pytest.mark.parametrize("with_copies", [False, True], ids=["distinct", "copies"])
def test_noise_is_no_part_of_predictions(with_copies):
    rows, y, z_t, weights = X, Y[2], Z[2], None
    if with_copies:
        rows, y, z_t = np.vstack([X, X[:12]]), np.r_[y, y[1:13]], np.r_[z_t, z_t[:12]]
        weights = RNG.uniform(0.5, 2, len(y))
    kernel = RBF(1.5) + WhiteKernel(0.3)
    splits = list(StratifiedKFold(3, shuffle=True, random_state=0).split(rows, y))
    search = LinearizedKDStudentCV(**GRID, ridges=[0.1], kernel=kernel)
    check(search, rows, y, splits, weights=weights, teacher_logits=z_t)


def test_several_kernels_and_teachers():
    search = LinearizedKDStudentCV(
        TEACHERS[3],
        **GRID | {"stopping_times": [20.0, None]},
        teacher_weights=[[1, 1], [1, 4]],
        kernel=[NTK(depth=1), NTK(depth=2)],
        ridges=[0.1],
    )
    check(search, X, Y[3], FOLDS)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_training_starts_from_the_network(n_classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, n_classes)).double()
    search = LinearizedKDStudentCV(
        **GRID | {"stopping_times": [5.0, 50.0]}, kernel=EmpiricalNTK(module), init="network"
    )
    check(search, X, Y[n_classes], FOLDS, teacher_logits=Z[n_classes])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_hard_labels_alone(n_classes):
    grid = {"soft_ratios": [0.0, 0.5], "temperatures": [1.0, 3.0], "stopping_times": [5.0, 100.0]}
    search = check(LinearizedKDStudentCV(TEACHERS[n_classes][0], **grid), X, Y[n_classes], FOLDS)
    accuracy = search.cv_results_["mean_test_accuracy"].reshape(2, 2, 2)
    assert (accuracy[:, 0, 0] == accuracy[:, 0, 1]).all()  # at any temperature
    search.set_params(scoring=neg_transfer_risk_scorer, soft_ratios=[0.0], refit=True)
    best = search.fit(X, Y[n_classes]).best_estimator_
    assert best.effective_logits_ is None
    assert "T = " not in search.verdict_


@pytest.mark.parametrize("n_splits", [3, 2], ids=["by pairs of folds", "by inner folds"])
def test_an_unfitted_teacher_is_nested_in_the_folds(n_splits):
    y, teacher = Y[2], LogisticRegression()
    splits = list(StratifiedKFold(n_splits).split(X, y))
    grid = GRID | {"stopping_times": [30.0, None]}
    search = LinearizedKDStudentCV(
        teacher, **grid, ridges=[0.1], cv=splits, scoring=SCORING, refit=False
    )
    if n_splits == 2:
        search.set_params(teacher_cv=4)
    search.fit(X, y)
    for index, params in enumerate(search.cv_results_["params"]):
        for k, (train, test) in enumerate(splits):
            if n_splits == 2:
                student = LinearizedKDStudent(teacher, cv=4, **params).fit(X[train], y[train])
            else:
                z_t = np.full(N, np.nan)
                for _, other in splits:
                    if other is not test:
                        neither = np.setdiff1d(train, other)
                        z_t[other] = (
                            clone(teacher).fit(X[neither], y[neither]).decision_function(X[other])
                        )
                student = LinearizedKDStudent(**params)
                student.fit(X[train], y[train], teacher_logits=z_t[train])
            for name, scorer in SCORING.items():
                expected = scorer(student, X[test], y[test])
                found = search.cv_results_[f"split{k}_test_{name}"][index]
                np.testing.assert_allclose(found, expected, err_msg=f"{params} {name}", **CLOSE)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("with_noise", [False, True], ids=["", "noise and copies"])
def test_validation_rows(n_classes, with_noise):
    rows, y, weights = X, Y[n_classes], RNG.uniform(0.5, 2, N)
    if with_noise:
        rows, y, weights = np.vstack([X, X[:9]]), np.r_[y, y[1:10]], np.r_[weights, weights[:9]]
    kernel = RBF(1.5) + WhiteKernel(0.3) if with_noise else None
    new = np.vstack([X_NEW, rows[:2]]), np.r_[Y_NEW[n_classes], y[:2]]
    teacher = TEACHERS[n_classes][1]
    search = LinearizedKDStudentCV(
        teacher, **GRID, ridges=[0.0, 0.2], kernel=kernel, scoring=SCORING, refit=False
    )
    search.fit(rows, y, weights, X_val=new[0], y_val=new[1])
    results = search.cv_results_
    for index, params in enumerate(results["params"]):
        student = LinearizedKDStudent(teacher, kernel=kernel, **params).fit(rows, y, weights)
        for name, scorer in SCORING.items():
            found = results[f"mean_test_{name}"][index]
            np.testing.assert_allclose(found, scorer(student, *new), **CLOSE)
        if params["stopping_time"] is not None:
            (loss,), (accuracy,) = (
                student.fit_report_[f"training_{name}"] for name in ("loss", "accuracy")
            )
            assert results["mean_train_loss"][index] == pytest.approx(loss, abs=1e-4)
            assert results["mean_train_accuracy"][index] == pytest.approx(accuracy)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kernel", [None, [NTK(depth=2), RBF(2.0) + WhiteKernel(0.2)]])
def test_the_best_student_is_that_of_a_fit_alone(n_classes, kernel):
    search = LinearizedKDStudentCV(
        soft_ratios=[0.5], temperatures=[2.0], ridges=[0.3], stopping_times=[7.0, 70.0],
        kernel=kernel, scoring="neg_log_loss",
    ).fit(X, Y[n_classes], teacher_logits=Z[n_classes])  # fmt: skip
    assert list(search.best_params_) == [
        "ridge", *(["kernel"] if kernel else []), "stopping_time", "soft_ratio", "temperature",
    ]  # fmt: skip
    best, params = search.best_estimator_, {"kernel": kernel} | search.best_params_
    alone = LinearizedKDStudent(**params).fit(X, Y[n_classes], teacher_logits=Z[n_classes])
    assert best.stopping_time == search.best_params_["stopping_time"]
    assert best.get_params()["ridge"] == 0.3
    np.testing.assert_allclose(best.dual_coef_, alone.dual_coef_, atol=1e-9)
    np.testing.assert_allclose(best.staged_dual_coef_, alone.staged_dual_coef_, atol=1e-9)
    np.testing.assert_allclose(search.decision_function(X_NEW), alone.decision_function(X_NEW))
    np.testing.assert_allclose(best.effective_logits_, alone.effective_logits_)
    assert best.fit_report_.stopping_time == [best.stopping_time]
    assert best.fit_report_.training_loss == pytest.approx(alone.fit_report_.training_loss)
    assert clone(best).stopping_time == best.stopping_time


def test_without_stopping_times_nothing_is_new():
    search = LinearizedKDStudentCV(TEACHERS[2][0], soft_ratios=[0.5, 1.0]).fit(X, Y[2])
    assert not [name for name in search.cv_results_ if "train" in name or "stopping" in name]
    assert "stopping_time" not in search.best_params_
    assert search.best_estimator_.stopping_time is None
    # The converged student alone is the same search, by folds or by rows.
    named = clone(search).set_params(stopping_times=[None]).fit(X, Y[2])
    for name, values in search.cv_results_.items():
        if name != "params":
            np.testing.assert_array_equal(named.cv_results_[name], values)
    assert named.best_params_ == search.best_params_ | {"stopping_time": None}
    assert np.isnan(named.cv_results_["mean_train_loss"]).all()


def test_the_order_of_candidates_and_ties():
    grid = Grid.of(
        soft_ratios=[0.5, 1.0], temperatures=[1.0], ridges=[0.0, 1.0], kernel=None,
        temperature_scaling="none", stopping_times=[None, 10, 5],
    )  # fmt: skip
    keys = ("ridge", "stopping_time", "soft_ratio")
    found = [tuple(params[key] for key in keys) for params in grid.params]
    assert found[:6] == [
        (0.0, None, 0.5), (0.0, None, 1.0), (0.0, 10.0, 0.5), (0.0, 10.0, 1.0), (0.0, 5.0, 0.5),
        (0.0, 5.0, 1.0),
    ]  # fmt: skip
    order = sorted(range(len(found)), key=grid.preference().__getitem__)
    assert [found[index] for index in order][:4] == [
        (1.0, 5.0, 1.0), (1.0, 10.0, 1.0), (1.0, None, 1.0), (0.0, 5.0, 1.0),
    ]  # fmt: skip


def test_leave_one_out_is_five_folds():
    search = LinearizedKDStudentCV(stopping_times=[10.0], soft_ratios=[0.5, 1.0])
    by_default = search.fit(X, Y[2], teacher_logits=Z[2]).cv_results_
    by_five = clone(search).set_params(cv=5).fit(X, Y[2], teacher_logits=Z[2]).cv_results_
    assert search.n_splits_ == 5
    np.testing.assert_array_equal(by_default["mean_test_score"], by_five["mean_test_score"])


@pytest.mark.parametrize("n_together", [1, 3])
@pytest.mark.parametrize("kernel", [NTK(), RBF(1.5) + WhiteKernel(0.3)], ids=["", "noise"])
def test_groups_that_fit_the_memory_change_nothing(n_together, kernel, monkeypatch):
    rows, y, z_t = np.vstack([X, X[:5]]), np.r_[Y[3], Y[3][:5]], np.r_[Z[3], Z[3][:5]]
    search = LinearizedKDStudentCV(
        soft_ratios=[0.4, 1.0], temperatures=[2.0], stopping_times=[5.0, 100.0], cv=3,
        kernel=kernel, scoring=SCORING["probe"],
    )  # fmt: skip
    sizes = []

    def counting(self, runs, *others):
        sizes.append(len(runs))
        return train_group(self, runs, *others)

    train_group = Flows._train_group
    monkeypatch.setattr(Flows, "_train_group", counting)
    together = search.fit(rows, y, teacher_logits=z_t).cv_results_
    assert sizes == ([6] if isinstance(kernel, NTK) else [2, 2, 2])  # copies share their noise
    monkeypatch.setattr(flows_module, "MOST_COLUMNS", 3 * n_together)
    sizes.clear()
    apart = clone(search).fit(rows, y, teacher_logits=z_t).cv_results_
    assert max(sizes) <= n_together
    for name in ("mean_test_score", "mean_train_loss"):
        np.testing.assert_allclose(apart[name], together[name], **CLOSE)
    assert 3 * n_together < MOST_COLUMNS


class Counting(LogisticRegression):
    """Counts its fits."""

    n_fits = 0

    def fit(self, X, y):
        Counting.n_fits += 1
        return super().fit(X, y)


def test_memory_is_planned_before_anything_is_fitted():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    y = (rows[:, 0] > 0).astype(int)
    search = LinearizedKDStudentCV(
        Counting(), stopping_times=[10.0], soft_ratios=[0.5, 1.0], refit=False
    )
    Counting.n_fits = 0
    with pytest.raises(MemoryBudgetError, match=r"LinearizedKDStudentCV.*memory_limit=1000000"):
        search.set_params(memory_limit=1_000_000).fit(rows, y)
    assert Counting.n_fits == 0
    # Where a single run fits, groups are as small as that.
    n_runs = []

    def counting(self, runs, *others):
        n_runs.append(len(runs))
        return train_group(self, runs, *others)

    train_group = Flows._train_group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flows, "_train_group", counting)
        search.set_params(memory_limit=1.6e7, teacher_cv=3).fit(rows, y)
        assert 1 <= max(n_runs) < 5
        n_runs.clear()
        search.set_params(memory_limit="auto").fit(rows, y)
        assert n_runs == [30]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stopping_times": []}, r"stopping_times=\[\] must be"),
        ({"stopping_times": [1.0, 1]}, r"stopping_times=.* must be a sequence of distinct"),
        ({"stopping_times": [None, None]}, "distinct"),
        ({"stopping_times": [0.0]}, "positive"),
        ({"stopping_times": [np.inf]}, "finite"),
        ({"stopping_times": [np.nan]}, "finite"),
        ({"stopping_times": ["late"]}, "numbers"),
        ({"stopping_times": [[1.0, 2.0]]}, "sequence"),
        ({"stopping_times": [1.0, None], "soft_ratios": [0.0, 1.0]}, "holds 0, .* holds None"),
        ({"soft_ratios": [0.0, 1.0]}, r"soft_ratios=.*\(0, 1\]"),
        ({"stopping_times": [1.0], "soft_ratios": [-0.1]}, r"\[0, 1\]"),
        ({"stopping_times": [1.0], "solver": "pcg"}, r"stopping_times=\[1.0\].*solver='pcg'"),
        ({"stopping_times": [None, 1.0], "solver": "nystrom"}, "solver='nystrom'.*solver='auto'"),
    ],
)
def test_bad_settings(parameters, message):
    Counting.n_fits = 0
    with pytest.raises(ValueError, match=message):
        LinearizedKDStudentCV(Counting(), **parameters).fit(X, Y[2])
    assert Counting.n_fits == 0


def test_scores_that_have_no_meaning_for_them():
    search = LinearizedKDStudentCV(
        TEACHERS[2][0],
        stopping_times=[1.0],
        soft_ratios=[0.0],
        scoring=neg_data_inefficiency_scorer,
    )
    with pytest.raises(AttributeError, match=r"that stopped do not have; .*stopping_times=None"):
        search.fit(X, Y[2])
    search.set_params(scoring=lambda student, X, y: student.effective_decision_function(X, y)[0])
    with pytest.raises(AttributeError, match="soft_ratio=0"):
        search.fit(X, Y[2])
    search.set_params(soft_ratios=[0.5]).fit(X, Y[2])


def test_steps_reach_the_callbacks():
    grid = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0]}
    for times, n_last in (([5.0, 50.0], 101), ([5.0, None], 0)):
        recorder = Recorder(max_propagation_depth=0)
        search = LinearizedKDStudentCV(TEACHERS[2][0], **grid, stopping_times=times, cv=3)
        search.set_callbacks(recorder).fit(X, Y[2])
        tasks = [task for _, task in recorder.begun()]
        scored = ["score-fold"] * 6
        flow = ["kernel", *["gradient-flow"] * 100]
        expected = ["fit", "logits-of-teacher", *flow, *scored, "refit", *flow[:n_last]]
        assert tasks == expected
        assert recorder.n_announced == len(tasks) - 1


def test_it_says_how_long_it_will_take(monkeypatch):
    monkeypatch.setattr(_forecast, "LONG_SECONDS", 1e-4)
    search = LinearizedKDStudentCV(stopping_times=[1.0, 100.0], soft_ratios=[0.5], refit=False)
    with pytest.warns(LongFitWarning, match="stopping times: 2, folds: 5.*half of the rows"):
        search.fit(X, Y[2], teacher_logits=Z[2])


def test_a_second_fit_takes_over_the_kernel_matrix(monkeypatch):
    n_grams, gram = [], InfiniteKernel.gram

    def counting(self, rows, **options):
        n_grams.append(len(rows))
        return gram(self, rows, **options)

    monkeypatch.setattr(InfiniteKernel, "gram", counting)
    search = LinearizedKDStudentCV(soft_ratios=[0.5, 1.0], stopping_times=[1.0, 30.0])
    search.fit(X, Y[2], teacher_logits=Z[2])
    assert n_grams == [N]  # the refit too takes it over
    first = search.cv_results_["mean_train_loss"]
    other = Y[2].copy()
    other[:4] = 1 - other[:4]
    search.fit(X, other, teacher_logits=Z[2])
    assert n_grams == [N]
    assert not np.allclose(search.cv_results_["mean_train_loss"], first)
    search.fit(X, Y[2], teacher_logits=Z[2])
    np.testing.assert_array_equal(search.cv_results_["mean_train_loss"], first)


def test_single_precision():
    search = LinearizedKDStudentCV(
        stopping_times=[5.0, 50.0], soft_ratios=[0.5], ridges=[0.1], scoring="neg_log_loss"
    )
    double = search.fit(X, Y[3], teacher_logits=Z[3]).cv_results_
    single = clone(search).set_params(dtype="float32").fit(X, Y[3], teacher_logits=Z[3])
    for name in ("mean_test_score", "mean_train_loss"):
        np.testing.assert_allclose(single.cv_results_[name], double[name], atol=1e-3)
    assert single.best_estimator_.fit_report_.dtype == "float32"


def test_the_diagonal_comes_back_bit_for_bit():
    matrix = torch.rand(5, 5)
    before = matrix.clone()

    def interrupted():
        with with_noise(matrix, torch.full((5,), 0.1)):
            torch.testing.assert_close(matrix, before + 0.1 * torch.eye(5))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(matrix, before)


def test_what_is_said_of_the_choice():
    """Labels of which one in four is wrong are unlearnt by stopping, and learnt in the end."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(160, 4))
    y = (rows[:, 0] > 0).astype(int)
    wrong = np.where(rng.random(160) < 0.25, 1 - y, y)
    search = LinearizedKDStudentCV(
        soft_ratios=[0.1, 0.2], temperatures=[1.0, 3.0], stopping_times=[3.0, 30.0, 3000.0, None]
    ).fit(rows, wrong, teacher_logits=rng.normal(size=160))
    results = search.cv_results_
    best_of_time = results["mean_test_score"].reshape(4, -1).max(axis=1)
    assert best_of_time[:2].max() > best_of_time[2:].max() + 0.03
    time = search.best_params_["stopping_time"]
    assert time in (3.0, 30.0)
    assert f"t = {time:g}" in search.verdict_
    assert ("t = 3 is the smallest, add smaller stopping_times" in search.verdict_) == (time == 3)
    assert results["in_best_set"][search.best_index_]
    assert not results["in_best_set"].all()
    assert len(search.rows_to_check(3)) == 3
    loss = results["mean_train_loss"].reshape(4, -1)
    assert (np.diff(loss[:3], axis=0) < 0).all()
    assert np.isnan(loss[3]).all()
    display = SelectionDisplay.from_estimator(search)
    assert display.stopping_time == time
    assert f"stopped at t = {time:g}" in display.ax_.get_title()
    of_time = results["mean_test_score"][results["param_stopping_time"] == time]
    np.testing.assert_array_equal(display.mean.T.ravel(), of_time)
