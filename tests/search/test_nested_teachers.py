"""No label reaches a score through an unfitted teacher: explicit nested refits, random labels."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
from recorder import Recorder
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    StratifiedKFold,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

import sklearn_kd.search._by_factor
import sklearn_kd.search._by_iteration
import sklearn_kd.search._by_pass
import sklearn_kd.search._problem
from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import PCG, Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3))
Z = np.stack([np.sin(3 * X[:, 0]) + X[:, 1], 2 * X[:, 0], X[:, 2]], axis=1)
LABELS = {
    "two": np.where(Z[:, 0] + RNG.logistic(size=90) > 0, "yes", "no"),
    "three": (Z + RNG.gumbel(size=Z.shape)).argmax(axis=1),
}
TEACHER = LogisticRegression(C=3.0)
GRID = {"soft_ratios": [0.4, 1.0], "temperatures": [1.0, 3.0], "ridges": [0.1, 1.0]}
SCORING = {
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "risk": neg_transfer_risk_scorer,
    "inefficiency": neg_data_inefficiency_scorer,
}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
PASS = Nystrom(25, random_state=0)
ITERATION = PCG(tol=1e-13, max_iter=2000, random_state=0)


def refit_by_hand(teacher, X, y, splits, params, scorer, weights=None, solver="auto"):
    """Return the scores of each fold by a student and teachers fitted for it alone."""

    def fit(model, rows, **options):
        weight = None if weights is None else weights[rows]
        return clone(model).fit(X[rows], y[rows], sample_weight=weight, **options)

    scores = []
    for train, test in splits:
        shape = (len(y),) if len(np.unique(y)) == 2 else (len(y), len(np.unique(y)))
        z_t = np.full(shape, np.nan)
        for _, other in splits:
            if other is not test:
                neither = np.setdiff1d(train, other)
                z_t[other] = fit(teacher, neither).decision_function(X[other])
        frozen = FrozenEstimator(fit(teacher, train))
        student = LinearizedKDStudent(frozen, **params, solver=solver)
        student = fit(student, train, teacher_logits=z_t[train])
        weight = {} if weights is None else {"sample_weight": weights[test]}
        scores.append(scorer(student, X[test], y[test], **weight))
    return scores


def check_against_refits(search, X, y, splits, weights=None):
    search.fit(X, y, sample_weight=weights)
    scorer = check_scoring(LinearizedKDStudent(), scoring=search.scoring)
    for index, params in enumerate(search.cv_results_["params"]):
        solver = search.solver if isinstance(search.solver, Nystrom) else "auto"
        expected = refit_by_hand(search.teacher, X, y, splits, params, scorer, weights, solver)
        for (k, of_fold), name in itertools.product(enumerate(expected), search.scoring):
            found = search.cv_results_[f"split{k}_test_{name}"][index]
            np.testing.assert_allclose(found, of_fold[name], err_msg=f"{params} {name}", **CLOSE)


@pytest.mark.parametrize("n_folds", [3, 6], ids=["factor per fold", "one factor"])
@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_scores_equal_nested_refits(y, n_folds):
    splits = list(StratifiedKFold(n_folds).split(X, y))
    search = LinearizedKDStudentCV(TEACHER, **GRID, cv=n_folds, scoring=SCORING, refit=False)
    check_against_refits(search, X, y, splits)


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("solver", [ITERATION, PASS], ids=["iteration", "pass"])
def test_scores_without_a_factor_equal_nested_refits(y, solver):
    splits = list(StratifiedKFold(4).split(X, y))
    scoring = {name: SCORING[name] for name in ("accuracy", "log_loss", "risk")}
    search = LinearizedKDStudentCV(
        TEACHER, **GRID, cv=4, scoring=scoring, solver=solver, refit=False
    )
    check_against_refits(search, X, y, splits)


@pytest.mark.parametrize("solver", ["auto", ITERATION, PASS], ids=["factor", "iteration", "pass"])
def test_copies_in_other_folds_and_weights(solver):
    # Copies stand side by side: then the draw of landmarks finds rows in the same order.
    order = np.argsort(np.r_[:90, :20], kind="stable")
    rows = np.vstack([X, X[:20]])[order]
    y = np.hstack([LABELS["two"], LABELS["two"][:10], LABELS["two"][30:40]])[order]
    weights = np.random.default_rng(1).uniform(0.3, 2, len(y))
    splits = list(KFold(4, shuffle=True, random_state=0).split(rows))
    scoring = {"accuracy": "accuracy", "log_loss": "neg_log_loss"}
    search = LinearizedKDStudentCV(
        TEACHER, **GRID, cv=splits, scoring=scoring, solver=solver, refit=False
    )
    check_against_refits(search, rows, y, splits, weights)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_one_factor_of_all_rows_serves_every_fold(ridge, monkeypatch):
    n_grams, gram = [], InfiniteKernel.gram

    def counting(self, rows, **options):
        n_grams.append(len(rows))
        return gram(self, rows, **options)

    search = LinearizedKDStudentCV(TEACHER, ridges=[ridge], cv=6)
    with monkeypatch.context() as patch:
        patch.setattr(InfiniteKernel, "gram", counting)
        search.fit(X, LABELS["two"])
    assert n_grams == [90]


@pytest.mark.parametrize(
    "cv",
    [
        StratifiedKFold(3),
        KFold(2),
        RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0),
        ShuffleSplit(4, test_size=0.2, train_size=0.6, random_state=0),
    ],
    ids=["3", "2", "repeated", "random"],
)
@pytest.mark.parametrize("teacher_cv", [3, KFold(4), None], ids=["int", "splitter", "default"])
@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_inner_folds_equal_grid_search(y, cv, teacher_cv):
    if teacher_cv is None and cv.get_n_splits() == 3:
        teacher_cv = 5
    scoring = {name: SCORING[name] for name in ("accuracy", "log_loss", "risk")}
    search = LinearizedKDStudentCV(
        TEACHER, **GRID, cv=cv, teacher_cv=teacher_cv, scoring=scoring, refit=False
    ).fit(X, y)
    grid = {"ridge": [0.1, 1.0], "soft_ratio": [0.4, 1.0], "temperature": [1.0, 3.0]}
    student = LinearizedKDStudent(TEACHER, cv=teacher_cv or 5)
    reference = GridSearchCV(student, grid, cv=cv, scoring=scoring, refit=False).fit(X, y)
    for index, params in enumerate(reference.cv_results_["params"]):
        ours = search.cv_results_["params"].index(params)
        for name in [key for key in reference.cv_results_ if key.startswith("split")]:
            np.testing.assert_allclose(
                search.cv_results_[name][ours], reference.cv_results_[name][index], **CLOSE
            )


@pytest.mark.parametrize("as_iterator", [False, True])
def test_a_list_of_inner_folds_is_of_all_rows(as_iterator):
    # So it may keep groups together, and serves the student of all rows too.
    y, groups = LABELS["three"], np.arange(90) % 30
    splits = list(KFold(4, shuffle=True, random_state=0).split(X))
    inner = list(GroupKFold(6).split(X, y, groups))
    scoring = {name: SCORING[name] for name in ("accuracy", "log_loss", "risk")}
    search = LinearizedKDStudentCV(
        TEACHER,
        **GRID,
        cv=splits,
        teacher_cv=iter(inner) if as_iterator else inner,
        scoring=scoring,
        refit="accuracy",
    ).fit(X, y)
    for k, (train, test) in enumerate(splits):
        z_t = np.full((90, 3), np.nan)
        for _, left_out in inner:
            seen = np.setdiff1d(train, left_out)
            z_t[left_out] = clone(TEACHER).fit(X[seen], y[seen]).decision_function(X[left_out])
        teacher = FrozenEstimator(clone(TEACHER).fit(X[train], y[train]))
        for index, params in enumerate(search.cv_results_["params"]):
            student = LinearizedKDStudent(teacher, **params)
            student.fit(X[train], y[train], teacher_logits=z_t[train])
            expected = neg_transfer_risk_scorer(student, X[test], y[test])
            assert search.cv_results_[f"split{k}_test_risk"][index] == pytest.approx(expected)
            expected = student.score(X[test], y[test])
            assert search.cv_results_[f"split{k}_test_accuracy"][index] == pytest.approx(expected)
    student = LinearizedKDStudent(TEACHER, cv=inner, **search.best_params_).fit(X, y)
    np.testing.assert_allclose(search.decision_function(X), student.decision_function(X), **CLOSE)


class RememberingTeacher(LogisticRegression):
    """Remembers the rows of every fit."""

    fits: ClassVar[list] = []

    def fit(self, X, y, sample_weight=None):
        RememberingTeacher.fits.append(X[:, 0])
        return super().fit(X, y, sample_weight)


def test_a_teacher_for_each_pair_of_folds():
    rows, y = np.arange(40.0)[:, None], np.arange(40) % 2
    RememberingTeacher.fits.clear()
    search = LinearizedKDStudentCV(RememberingTeacher(), cv=KFold(4)).fit(rows, y)
    folds = np.split(np.arange(40.0), 4)
    left_out = [pair for n in (2, 1) for pair in itertools.combinations(folds, n)]
    expected = [np.setdiff1d(rows, np.concatenate(some)) for some in left_out] + [rows[:, 0]]
    assert len(RememberingTeacher.fits) == len(expected) == 6 + 4 + 1
    for found, these in zip(RememberingTeacher.fits, expected, strict=True):
        np.testing.assert_array_equal(found, these)
    student = LinearizedKDStudent(RememberingTeacher(), cv=KFold(4)).fit(rows, y)
    np.testing.assert_array_equal(search.best_estimator_.teacher_logits_, student.teacher_logits_)


@pytest.mark.parametrize("solver", ["auto", "pcg", PASS])
def test_leave_one_out_of_an_unfitted_teacher_is_five_folds(solver):
    if solver == "pcg":
        solver = PCG(random_state=0)
    settings = {"teacher": TEACHER, **GRID, "solver": solver}
    found = LinearizedKDStudentCV(**settings).fit(X, LABELS["three"])
    folds = LinearizedKDStudentCV(**settings, cv=5).fit(X, LABELS["three"])
    assert found.n_splits_ == 5
    assert found.cv is None
    for name in [name for name in folds.cv_results_ if "test" in name]:
        np.testing.assert_array_equal(found.cv_results_[name], folds.cv_results_[name])


def test_a_class_of_two_folds_is_refused_by_name():
    y = np.r_[0, 1, 0, 1, np.zeros(26, int)]
    search = LinearizedKDStudentCV(TEACHER, cv=list(KFold(15).split(y)))
    with pytest.raises(ValueError, match=r"folds 0 and 1 .* class 1; give each class .*teacher_cv"):
        search.fit(X[:30], y)


def test_targets_of_a_fold_are_found_once_for_all_cells(monkeypatch):
    solved, find = [], sklearn_kd.search._problem.merged_effective_logits_of_grid

    def counting(*arguments):
        solved.append(1)
        return find(*arguments)

    monkeypatch.setattr(sklearn_kd.search._problem, "merged_effective_logits_of_grid", counting)
    kernels = [NTK(depth=1), NTK(depth=2)]
    LinearizedKDStudentCV(TEACHER, **GRID, kernel=kernels, cv=6).fit(X, LABELS["two"])
    assert len(solved) == 6


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("solver", ["auto", "pcg", Nystrom(20)])
def test_targets_of_every_fold_are_planned(y, solver, monkeypatch):
    planned = []

    def recording(n_bytes, *arguments, **options):
        planned.append(n_bytes)

    search = sklearn_kd.search
    for module in (search._by_factor, search._by_iteration, search._by_pass):
        monkeypatch.setattr(module, "require", recording)
    frozen = FrozenEstimator(clone(TEACHER).fit(X, y))
    for teacher in (frozen, TEACHER):
        # A limit, so that both plans leave out the kernel matrix or both hold it.
        LinearizedKDStudentCV(teacher, **GRID, cv=6, solver=solver, memory_limit=1e9).fit(X, y)
    n_columns = 4 * (1 if len(np.unique(y)) == 2 else 3)
    assert planned[1] - planned[0] == 6 * len(X) * n_columns * (8 + 8)


@pytest.mark.parametrize("teacher_cv", [None, 2])
def test_the_fits_of_the_teacher_reach_the_callbacks(teacher_cv):
    recorder = Recorder(max_propagation_depth=0)
    search = LinearizedKDStudentCV(TEACHER, cv=3, teacher_cv=teacher_cv, refit=False)
    search.set_callbacks(recorder).fit(X, LABELS["two"])
    n_nested = {None: 6, 2: 3 * (2 + 1) + 2}[teacher_cv]
    tasks = ["fit", *["fit-teacher"] * (n_nested + 1), *["score-fold"] * 3]
    assert recorder.begun() == [("LinearizedKDStudentCV", task) for task in tasks]


TEACHERS = {
    "nearest neighbour": KNeighborsClassifier(1),
    "forest": ExtraTreesClassifier(10, random_state=0),
    "logistic": LogisticRegression(),
    "tree": DecisionTreeClassifier(random_state=0),
    "naive Bayes": GaussianNB(),
}
N_SEEDS = 4


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"cv": 5},
        {"cv": 5, "solver": PCG(tol=1e-6, random_state=0)},
        {"cv": 5, "solver": Nystrom(50, random_state=0)},
        {},
        {"cv": 5, "teacher_cv": 3},
    ],
    ids=["factor", "iteration", "pass", "leave-one-out", "inner folds"],
)
@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
def test_random_labels_cannot_be_learnt(teacher, options):
    # By logits that were cross-fitted once on all rows, the nearest neighbour scores 64 %.
    accuracies = []
    for seed in range(N_SEEDS):
        rng = np.random.default_rng(seed)
        rows, y = rng.normal(size=(300, 3)), rng.integers(2, size=300)
        search = LinearizedKDStudentCV(
            teacher,
            soft_ratios=[1.0],
            temperatures=[1.0],
            ridges=[0.1],
            kernel=NTK(depth=2),
            refit=False,
            **options,
        ).fit(rows, y)
        accuracies.append(search.best_score_)
    error = 0.5 / np.sqrt(300 * N_SEEDS)
    assert abs(np.mean(accuracies) - 0.5) < 2.5 * error
