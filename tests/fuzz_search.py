"""Fuzz checks of the closed-form search: its held-out students against students fitted anew.

Each case draws a problem, a grid, a splitter and scores. Whatever the search says of a few of its
candidates is compared with a `LinearizedKDStudent` that was fitted on the training rows alone, in
float64, within what the condition number of the kernel matrix leaves; every score is computed anew
from the held-out logits.
"""

import fuzz_cases as fuzz
import fuzz_checks as checks
import hypothesis.strategies as st
import numpy as np
import scipy.special
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, check_cv
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.solvers import Cholesky

SCORERS = {
    "accuracy": get_scorer("accuracy"),
    "log_loss": get_scorer("neg_log_loss"),
    "risk": neg_transfer_risk_scorer,
    "inefficiency": neg_data_inefficiency_scorer,
}
RANGES = {"accuracy": (0, 1), "log_loss": (-np.inf, 0), "risk": (-1, 0)}
RANGES["inefficiency"] = (-np.inf, 0)
CV = st.sampled_from(
    [None, None, 2, 3, KFold(2), StratifiedKFold(2), ShuffleSplit(3, random_state=0)]
)


class Recorder:
    """A scorer that remembers what it was asked, and what the held-out students said."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.calls = []

    def __call__(self, student, X, y, sample_weight=None):
        score = self.scorer(student, X, y, sample_weight=sample_weight)
        self.calls.append((student.decision_function(X), y, sample_weight, score))
        return score

    def _accept_sample_weight(self):
        return True


def unique_lists(values, max_size):
    return st.lists(values, min_size=1, max_size=max_size, unique=True)


def search_of(draw):
    return LinearizedKDStudentCV(
        soft_ratios=draw(unique_lists(fuzz.SOFT_RATIOS, 3)),
        temperatures=draw(unique_lists(fuzz.TEMPERATURES, 2)),
        ridges=draw(unique_lists(fuzz.ALPHAS, 2)),
        kernel=draw(st.one_of(fuzz.kernels(), st.lists(fuzz.ntks(), min_size=1, max_size=2))),
        temperature_scaling=draw(st.sampled_from(["none", "squared"])),
        cv=draw(CV),
        one_standard_error=draw(st.booleans()),
        dtype=draw(fuzz.DTYPES),
    )


def check_search(draw):
    """One score, of held-out students that are compared with refits."""
    problem, search = draw(fuzz.problems(max_rows=20)), search_of(draw)
    name = draw(st.sampled_from(sorted(SCORERS)))
    recorder = Recorder(SCORERS[name])
    search.set_params(scoring=recorder)
    with fuzz.nothing_half_fitted(search):
        search.fit(**problem.training_set)
    check_results(search, {name: "score"})
    check_scores(search, recorder.calls, name)
    compare_with_refits(problem, search, recorder.calls, name, draw(st.integers(0, 2**16)))
    compare_the_best(problem, search)


def check_search_of_several_scores(draw):
    """Scores by name, with scikit-learn's multi-metric table; the teacher a frozen tree."""
    problem, search = draw(fuzz.problems(max_rows=20)), search_of(draw)
    names = sorted(draw(st.sets(st.sampled_from(sorted(SCORERS)), min_size=1)))
    refit = draw(st.sampled_from([False, *names]))
    search.set_params(scoring={name: SCORERS[name] for name in names}, refit=refit)
    if np.abs(problem.X).max() < 1e30 and draw(st.booleans()):  # beyond, a tree has no thresholds
        tree = DecisionTreeClassifier(max_depth=draw(st.sampled_from([1, None])), random_state=0)
        if draw(st.booleans()):
            tree = FrozenEstimator(tree.fit(problem.X, problem.y))
        search.set_params(teacher=tree, teacher_cv=2)
        problem = problem._replace(teacher_logits=None)
    with fuzz.nothing_half_fitted(search):
        search.fit(**problem.training_set)
    check_results(search, {name: name for name in names})
    if refit and not is_plain(search.kernel):
        checks.check_classifier(search, problem.X_new)


def is_plain(kernel):
    """Whether a kernel is a function without a name, which does not pickle."""
    return isinstance(kernel, type(lambda: 0))


def check_results(search, names):
    """The table is finite, consistent, and says what was selected."""
    results = search.cv_results_
    n_candidates = len(results["params"])
    for name, column in names.items():
        splits = np.array([results[f"split{i}_test_{column}"] for i in range(search.n_splits_)])
        assert splits.shape == (search.n_splits_, n_candidates)
        mean = results[f"mean_test_{column}"]
        for kind in ("mean", "std", "stderr", "rank"):
            fuzz.require_finite(**{kind: results[f"{kind}_test_{column}"]})
        fuzz.require_finite(splits=splits)
        fuzz.require_range(mean, *RANGES[name], f"mean of {name}")
        fuzz.require_range(splits, *RANGES[name], f"splits of {name}")
        size = 1 + np.abs(splits).max()
        if search.cv is not None:
            fuzz.require_close(mean, splits.mean(axis=0), 1e-12 * size, "mean")
        assert (results[f"rank_test_{column}"][mean == mean.max()] == 1).all()
    if not search.refit:
        return
    deciding = "score" if "score" in names.values() else search.refit
    mean = results[f"mean_test_{deciding}"]
    within = 0.0
    if search.one_standard_error:
        within = results[f"stderr_test_{deciding}"][mean.argmax()]
    eligible = mean >= mean.max() - within
    assert eligible[search.best_index_]
    assert search.best_score_ == mean[search.best_index_]
    rhos = np.array([params["soft_ratio"] for params in results["params"]])
    assert rhos[search.best_index_] == rhos[eligible].max()
    assert search.best_params_ == results["params"][search.best_index_]


def check_scores(search, calls, name):
    """Each score, computed anew from the logits that it was given for."""
    for logits, y, weights, score in calls:
        fuzz.require_finite(logits=logits)
        if name == "accuracy":
            best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
            expected = np.average(search.classes_[best] == y, weights=weights)
            fuzz.require_close(score, expected, 1e-12, "accuracy")
        elif name == "log_loss":
            labels = np.searchsorted(search.classes_, y)
            logs = scipy.special.log_softmax(
                np.stack([0 * logits, logits], axis=1) if logits.ndim == 1 else logits, axis=1
            )
            # scikit-learn rounds probabilities, and clips them at ε.
            p, eps = np.exp(logs[np.arange(len(y)), labels]), np.finfo(float).eps
            least, most = (
                np.average(np.log(bound), weights=weights)
                for bound in ((p - 2 * eps).clip(eps), (p + 2 * eps).clip(eps))
            )
            fuzz.require_range(score, least - 1e-9, most + 1e-9, "log loss")


def merged_kinds(search, problem):
    """The rows of positive weight as the search sees them, in float64: numbers and values."""
    dtype = np.float32 if search.dtype == "float32" else np.float64
    weights = problem.sample_weight
    kept = np.arange(len(problem.X)) if weights is None else np.flatnonzero(weights > 0)
    return kept, problem.X.astype(dtype).astype(float)


def folds_of(search, problem, kept):
    """(train, test) of each fold, as numbers of rows of positive weight."""
    labels = np.unique(problem.y, return_inverse=True)[1]
    splitter = check_cv(search.cv, labels, classifier=True)
    return [
        (np.intersect1d(train, kept), [row for row in test if row in set(kept)])
        for train, test in splitter.split(np.zeros((len(labels), 1)), labels)
    ]


def compare_with_refits(problem, search, calls, name, seed):
    """Compare one candidate's logits, and scores, with students fitted on the training rows."""
    kept, X = merged_kinds(search, problem)
    n_recipes = len(search.soft_ratios) * len(search.temperatures)
    per_cell = len(calls) // (len(search.cv_results_["params"]) // n_recipes)
    candidate = seed % len(search.cv_results_["params"])
    cell, recipe = divmod(candidate, n_recipes)
    calls = calls[cell * per_cell : (cell + 1) * per_cell]
    params = search.cv_results_["params"][candidate]
    settings = {
        "temperature_scaling": search.temperature_scaling,
        "kernel": search.kernel,
        **params,
    }
    if search.cv is None:
        logits, y, *_ = calls[recipe]
        assert (y == problem.y[kept]).all()
        for position in np.unique([0, len(kept) // 2, len(kept) - 1]):
            copies = (X[kept] == X[kept[position]]).all(axis=1)
            expected, tolerance = refitted(
                problem, search, settings, kept[~copies], kept[[position]], kept
            )
            if expected is not None:
                fuzz.require_close(
                    logits[[position]], expected, tolerance, f"leave-one-out of row {position}"
                )
        return
    for index, (train, test) in enumerate(folds_of(search, problem, kept)):
        logits, y, weights, score = calls[index * n_recipes + recipe]
        assert (y == problem.y[test]).all()
        expected, tolerance = refitted(problem, search, settings, train, test, train)
        if expected is None:
            continue
        fuzz.require_close(logits, expected, tolerance, f"logits of fold {index}")
        if name == "inefficiency" and tolerance < 1e-9:
            student = fitted(problem, settings, X, train, "float64")
            together = dense(fitted(problem, settings, X, np.union1d(train, test), "float64"))
            expected = neg_data_inefficiency_scorer(
                student,
                X[test],
                y,
                teacher_logits=problem.teacher_logits[test],
                sample_weight=weights,
            )
            if checks.condition(together) < 1e5:
                tolerance = 1e-5 * (1 + abs(expected))
                fuzz.require_close(score, expected, tolerance, f"inefficiency of fold {index}")


def refitted(problem, search, settings, train, test, factored):
    """Logits on ``test`` of a student fitted on ``train`` in float64, and how far they are known.

    None where no digits are determined, or the training rows lack a class. ``factored`` are the
    rows whose kernel matrix the closed form solves with.
    """
    _, X = merged_kinds(search, problem)
    if len(set(problem.y[train])) < len(set(problem.y)):
        return None, None
    try:
        student = fitted(problem, settings, X, train, "float64")
        whole = fitted(problem, settings, X, factored, "float64")
        same = fitted(problem, settings, X, train, search.dtype)  # for targets in that precision
    except fuzz.ERRORS:
        return None, None
    if student.jitter_ > 0 or whole.jitter_ > 0 or same.jitter_ > 0:
        return None, None
    A, small = dense(whole), dense(student)
    resolution = kernel_resolution(student.kernel_, X, checks.resolution(search))
    if not checks.is_decided(A, resolution):
        return None, None
    K = student.kernel_(X[test], student.X_fit_)
    scale = np.abs(A).max()
    z, a = student.effective_logits_, student.dual_coef_
    reach = np.linalg.norm(K / scale, axis=1) * checks.norm(a * scale)
    reach = reach.max() + checks.norm(z) + checks.norm(whole.effective_logits_)
    moved = np.abs(same.effective_logits_ - z).max()
    gains = np.abs(K / scale @ np.linalg.inv(small / scale)).sum(axis=1).max()
    tolerance = 1e3 * len(A) * resolution * checks.condition(A) * reach + 2 * gains * moved
    return student.decision_function(X[test]), tolerance + 1e-300


def fitted(problem, settings, X, rows, dtype):
    student = LinearizedKDStudent(**settings, dtype=dtype, solver=Cholesky(cache_size=0))
    weights = None if problem.sample_weight is None else problem.sample_weight[rows]
    return student.fit(
        X[rows], problem.y[rows], teacher_logits=problem.teacher_logits[rows], sample_weight=weights
    )


def dense(student):
    return checks.dense_matrix(student, student._distinct.weights.numpy(), student.ridge)


def kernel_resolution(kernel, X, eps):
    """Relative error of kernel values, of two evaluations of the same rows too."""
    if not isinstance(kernel, NTK):
        return eps
    if kernel.activation in ("erf", "gelu"):
        return max(eps, checks.smooth_resolution(kernel, X))
    return np.sqrt(eps) if checks.are_opposite(X).any() else eps * kernel.depth


def compare_the_best(problem, search):
    """The refitted student is the one that a fit with the best parameters gives."""
    if not is_plain(search.kernel):
        checks.check_classifier(search, problem.X_new)
    params = {"kernel": search.kernel, **search.best_params_}
    student = LinearizedKDStudent(
        **params, temperature_scaling=search.temperature_scaling, dtype=search.dtype
    )
    student.fit(**problem.training_set)
    ours = search.best_estimator_
    assert ours.jitter_ == student.jitter_
    A = dense(student)
    eps = checks.resolution(student)
    if checks.is_decided(A, eps):  # the logits are centred once more than there
        a = student.dual_coef_.astype(float)
        slack = 1e3 * len(A) * eps * checks.condition(A) * checks.norm(a)
        fuzz.require_close(ours.dual_coef_, a, slack + 1e-300, "dual_coef_ of the best")


CHECKS = {
    "search": check_search,
    "search_of_several_scores": check_search_of_several_scores,
}
