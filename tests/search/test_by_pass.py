"""The search with solver="nystrom": leave-one-out and folds by refits, streams, copies."""

import functools

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, KFold

import sklearn_kd.search._by_pass
import sklearn_kd.solvers._choice
import sklearn_kd.solvers._pass
from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.distillation import effective_logits
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg._landmarks import RowSums
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import Nystrom
from sklearn_kd.solvers._checkpoint import Checkpoint

KERNEL = NTK(depth=2)
GRID = {"soft_ratios": [0.3, 0.9], "temperatures": [1.0, 4.0]}
SCORING = {"accuracy": "accuracy", "log_loss": "neg_log_loss"}
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(80, 3)), RNG.normal(size=(40, 3))
Z_T = 3 * np.sin(X).sum(axis=1)
Y = (Z_T + RNG.logistic(size=80) > 0).astype(int)


def search(n_landmarks=20, checkpoint=None, **options):
    options = {"kernel": KERNEL, "ridges": [0.01, 0.3], "refit": "log_loss"} | options
    return LinearizedKDStudentCV(
        solver=Nystrom(n_landmarks, random_state=0, checkpoint=checkpoint),
        scoring=options.pop("scoring", SCORING),
        **GRID,
        **options,
    )


def assert_same_scores(first, second, rtol=1e-8):
    names = [name for name in first.cv_results_ if "test" in name and "rank" not in name]
    assert len(names) > 5
    for name in names:
        np.testing.assert_allclose(
            first.cv_results_[name], second.cv_results_[name], rtol=rtol, atol=1e-12, err_msg=name
        )


def refitted_logits(X, z_eff, weights, Z, ridge):
    """Each distinct row's prediction by the student of all others with the same landmarks."""
    features, penalty = KERNEL(X, Z), ridge * KERNEL(Z)
    out = np.empty(len(X))
    for i in range(len(X)):
        kept = np.arange(len(X)) != i
        A = features[kept].T * weights[kept]
        b = np.linalg.solve(A @ features[kept] + penalty, A @ z_eff[kept])
        out[i] = features[i] @ b
    return out


@pytest.mark.parametrize("copied", [False, True])
def test_the_scores_are_those_of_refits(copied):
    rows, y, z_t, weights = X, Y, Z_T, np.ones(80)
    if copied:  # rows 60…79 repeat rows 0…19, with the same labels
        rows, y, z_t = (np.concatenate([a[:60], a[:20]]) for a in (X, Y, Z_T))
        weights = np.array([2.0] * 20 + [1.0] * 40)
    n = len(weights)
    found = search().fit(rows, y, teacher_logits=z_t)
    Z = found.X_fit_
    assert len(Z) == 20
    for index, params in enumerate(found.cv_results_["params"]):
        z_eff = effective_logits(
            z_t[:n], y[:n], soft_ratio=params["soft_ratio"], temperature=params["temperature"]
        )
        logits = refitted_logits(rows[:n], z_eff, weights, Z, params["ridge"])
        if copied:
            logits = np.concatenate([logits, logits[:20]])
        results = {name: column[index] for name, column in found.cv_results_.items()}
        assert results["mean_test_accuracy"] == accuracy_score(y, logits > 0)
        probabilities = 1 / (1 + np.exp(-logits))
        expected = -log_loss(y, probabilities)
        assert results["mean_test_log_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_best_student_is_that_of_a_fit():
    found = search().fit(X, Y, teacher_logits=Z_T)
    best = found.best_estimator_
    expected = LinearizedKDStudent(
        kernel=KERNEL, solver=Nystrom(n_landmarks=20, random_state=0), **found.best_params_
    ).fit(X, Y, teacher_logits=Z_T)
    assert best.fit_report_.solver == "nystrom"
    assert best.get_params() == expected.get_params() | {"solver": best.solver}
    assert best.weight_change_norm_ == pytest.approx(expected.weight_change_norm_)
    np.testing.assert_allclose(best.dual_coef_, expected.dual_coef_, rtol=1e-8)
    np.testing.assert_allclose(best.fit_report_.fit_gap, expected.fit_report_.fit_gap)
    np.testing.assert_allclose(
        found.decision_function(X_NEW), expected.decision_function(X_NEW), rtol=1e-8
    )


def test_all_rows_as_landmarks_is_the_exact_search():
    found = search(n_landmarks=80).fit(X, Y, teacher_logits=Z_T)
    exact = search().set_params(solver="auto").fit(X, Y, teacher_logits=Z_T)
    assert_same_scores(found, exact, rtol=0)
    np.testing.assert_array_equal(found.dual_coef_, exact.dual_coef_)


def test_more_classes_several_kernels_and_weights():
    z_t = np.stack([Z_T, 3 * X[:, 0], X[:, 1]], axis=1)
    weights = np.linspace(0, 2, 80)
    both = search(kernel=[KERNEL, NTK(depth=1)], refit=False)
    both.fit(X, z_t.argmax(axis=1), teacher_logits=z_t, sample_weight=weights)
    for index, kernel in enumerate([KERNEL, NTK(depth=1)]):
        alone = search(kernel=kernel, refit=False)
        alone.fit(X, z_t.argmax(axis=1), teacher_logits=z_t, sample_weight=weights)
        for name in ("mean_test_accuracy", "mean_test_log_loss"):
            expected = alone.cv_results_[name]
            np.testing.assert_allclose(both.cv_results_[name][8 * index :][:8], expected, rtol=1e-9)


@pytest.mark.parametrize("n_landmarks", [20, 100])
def test_streams_are_searched_as_arrays_are(tmp_path, n_landmarks):
    rows = np.concatenate([X, X[:30]])
    y, z_t = np.concatenate([Y, 1 - Y[:30]]), np.concatenate([Z_T, 2 * Z_T[:30]])
    expected = search(n_landmarks).fit(rows, y, teacher_logits=z_t)
    for i, part in enumerate(np.split(rows, [30, 31, 77])):
        np.save(tmp_path / f"{i}.npy", part)
    found = search(n_landmarks).fit(tmp_path, y, teacher_logits=z_t)
    assert_same_scores(found, expected)
    assert found.best_params_ == expected.best_params_
    np.testing.assert_allclose(found.dual_coef_, expected.dual_coef_, rtol=1e-8)
    assert found.predict(tmp_path).shape == (110,)


def test_a_teacher_and_its_score():
    teacher = FrozenEstimator(LogisticRegression().fit(X, Y))
    scoring = {"risk": neg_transfer_risk_scorer, **SCORING}
    found = search(scoring=scoring, teacher=teacher).fit(X, Y)
    given = search().fit(X, Y, teacher_logits=teacher.decision_function(X))
    np.testing.assert_allclose(
        found.cv_results_["mean_test_log_loss"], given.cv_results_["mean_test_log_loss"]
    )
    assert (found.cv_results_["mean_test_risk"] <= 0).all()


def test_an_interrupted_search_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 16)
    at_every_block = functools.partial(Checkpoint, seconds=0)
    monkeypatch.setattr(sklearn_kd.solvers._nystrom, "Checkpoint", at_every_block)
    options = {"kernel": [KERNEL, NTK(depth=1)]}
    expected = search(**options).fit(X, Y, teacher_logits=Z_T)
    fit = search(**options, checkpoint=str(tmp_path / "pass"))
    add, calls = RowSums.add, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 8:  # in the pass of the second kernel
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(RowSums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(X, Y, teacher_logits=Z_T)
    assert len(list(tmp_path.glob("pass-*"))) == 2  # a file for each kernel's pass
    assert_same_scores(fit.fit(X, Y, teacher_logits=Z_T), expected)
    # Five blocks: that of the first kernel is not passed over again, nor is any for the refit.
    assert len(calls) == 7 + 1 + 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("refit", ["log_loss", False])
def test_a_search_interrupted_in_its_second_pass_keeps_its_sums(tmp_path, monkeypatch, refit):
    expected = search(refit=refit).fit(X, Y, teacher_logits=Z_T)
    fit = search(checkpoint=tmp_path / "pass.npz", refit=refit)
    second_pass = sklearn_kd.search._by_pass.leave_one_out_blocks

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sklearn_kd.search._by_pass, "leave_one_out_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(X, Y, teacher_logits=Z_T)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(sklearn_kd.search._by_pass, "leave_one_out_blocks", second_pass)
    monkeypatch.setattr(RowSums, "add", interrupted)  # no row is added again
    assert_same_scores(fit.fit(X, Y, teacher_logits=Z_T), expected)
    if refit:
        assert fit.best_estimator_.fit_report_.resumed_at_row == len(X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_folds_are_those_of_grid_search(copied, n_classes):
    # Copies stand side by side: then the draw of landmarks finds rows in the same order.
    rows = X[np.sort(np.r_[:80, :30])] if copied else X
    cv = KFold(4, shuffle=True, random_state=0)
    y = np.digitize(3 * rows[:, 0] + RNG.normal(size=len(rows)), [-1, 1][: n_classes - 1])
    teacher = FrozenEstimator(LogisticRegression(C=5).fit(X_NEW, np.arange(40) % n_classes))
    scoring = {"risk": neg_transfer_risk_scorer, **SCORING}
    found = search(cv=cv, teacher=teacher, scoring=scoring, refit="risk").fit(rows, y)
    solver = Nystrom(20, random_state=0)
    grid = {"ridge": [0.01, 0.3], "soft_ratio": [0.3, 0.9], "temperature": [1.0, 4.0]}
    student = LinearizedKDStudent(teacher, kernel=KERNEL, solver=solver)
    expected = GridSearchCV(student, grid, cv=cv, scoring=scoring, refit="risk").fit(rows, y)
    for index, params in enumerate(expected.cv_results_["params"]):
        ours = found.cv_results_["params"].index(params)
        for name in [name for name in expected.cv_results_ if name.startswith("split")]:
            score = expected.cv_results_[name][index]
            assert found.cv_results_[name][ours] == pytest.approx(score, rel=1e-9)
    best = student.set_params(**found.best_params_).fit(rows, y)
    np.testing.assert_allclose(found.dual_coef_, best.dual_coef_, rtol=1e-8)


@pytest.mark.parametrize("n_landmarks", [20, 100])
def test_folds_of_streams(tmp_path, monkeypatch, n_landmarks):
    rows, y = np.concatenate([X, X[:30]]), np.concatenate([Y, 1 - Y[:30]])
    z_t = np.concatenate([Z_T, 2 * Z_T[:30]])
    expected = search(n_landmarks, cv=3, ridges=[0.1]).fit(rows, y, teacher_logits=z_t)
    for i, part in enumerate(np.split(rows, [30, 31, 77])):
        np.save(tmp_path / f"{i}.npy", part)
    monkeypatch.setattr(sklearn_kd.search._by_pass, "block_rows", lambda n_landmarks: 16)
    found = search(n_landmarks, cv=3, ridges=[0.1]).fit(tmp_path, y, teacher_logits=z_t)
    assert_same_scores(found, expected)
    np.testing.assert_allclose(found.dual_coef_, expected.dual_coef_, rtol=1e-8)


def test_folds_with_all_rows_as_landmarks_are_those_of_the_exact_search():
    found = search(n_landmarks=80, cv=4).fit(X, Y, teacher_logits=Z_T)
    exact = search(cv=4).set_params(solver="auto").fit(X, Y, teacher_logits=Z_T)
    assert_same_scores(found, exact, rtol=0)
    # 60 landmarks are all rows of each training fold.
    found = search(n_landmarks=60, cv=4).fit(X, Y, teacher_logits=Z_T)
    assert_same_scores(found, exact)


def test_a_teacher_is_cross_fitted_on_a_memory_map_and_not_on_a_folder(tmp_path):
    np.save(tmp_path / "rows.npy", X)
    options = {"teacher": LogisticRegression(), "cv": 3}
    found = search(**options).fit(np.load(tmp_path / "rows.npy", mmap_mode="r"), Y)
    assert_same_scores(found, search(**options).fit(X, Y))
    with pytest.raises(ValueError, match="cannot be cross-fitted on rows that are read block by"):
        search(**options).fit(tmp_path, Y)


def test_an_interrupted_search_of_folds_goes_on_where_it_was(tmp_path, monkeypatch):
    expected = search(cv=4).fit(X, Y, teacher_logits=Z_T)
    fit, add, calls = search(cv=4, checkpoint=tmp_path / "pass.npz"), RowSums.add, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:  # in the pass of the third fold
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(RowSums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(X, Y, teacher_logits=Z_T)
    assert len(list(tmp_path.iterdir())) == 2
    assert_same_scores(fit.fit(X, Y, teacher_logits=Z_T), expected)
    assert len(calls) == 3 + 2 + 1  # two folds that were left, and all rows
    assert not list(tmp_path.iterdir())


def test_what_it_refuses():
    with pytest.raises(AttributeError, match="data inefficiency needs the tangent frame"):
        search(scoring={"log_loss": neg_data_inefficiency_scorer}).fit(X, Y, teacher_logits=Z_T)
    with pytest.raises(MemoryBudgetError, match=r"CV\.fit on n=80 distinct rows with solver='ny"):
        search(memory_limit=1e6).fit(X, Y, teacher_logits=Z_T)


@pytest.mark.parametrize("best_is", ["first", "last"])
def test_the_fitted_student_is_the_one_that_was_scored(monkeypatch, best_is):
    # random_state=None: one draw of landmarks for each kernel, whichever kernel is the best
    drawn = {}
    pass_over = Nystrom.pass_over

    def recording(self, kernel, *arguments, **options):
        done = pass_over(self, kernel, *arguments, **options)
        drawn.setdefault(kernel, []).append(done.basis.landmarks.numpy())
        return done

    monkeypatch.setattr(Nystrom, "pass_over", recording)
    good, bad = KERNEL, NTK(depth=1, bias_std=0.0, weight_std=1e-4)  # hardly moves
    kernels = [good, bad] if best_is == "first" else [bad, good]
    fit = search(kernel=kernels, ridges=[0.01])
    fit.solver.random_state = None
    fit.fit(X, Y, teacher_logits=Z_T)
    assert fit.best_params_["kernel"] is good
    draws = drawn[good.to_torch()]
    assert len(draws) == (2 if best_is == "first" else 1)
    for landmarks in draws:
        np.testing.assert_array_equal(fit.best_estimator_.X_fit_, landmarks)
