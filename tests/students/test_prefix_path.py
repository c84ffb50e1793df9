"""LinearizedKDStudent.prefix_path against explicit refits on every prefix."""

import re

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import effective_logits
from sklearn_kd.exceptions import MemoryBudgetError, SeenLabelsWarning
from sklearn_kd.kernels import NTK

CLOSE = {"rtol": 1e-8, "atol": 1e-8}
N, SIZES = 40, [1, 2, 7, 25, 39, 40]
GRID = {"soft_ratio": [0.3, 1.0], "temperature": [1.0, 4.0]}
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2, size=N)


@pytest.fixture(params=[2, 3], ids=["binary", "3 classes"])
def problem(request):
    """Return training and new rows with labels, and a teacher that is often wrong."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N + 60, 3))
    y = np.digitize(X[:, 0] + 0.7 * rng.normal(size=len(X)), [0.0, 0.8][: request.param - 1])
    teacher = LogisticRegression().fit(X[:50], np.arange(50) % request.param)
    teacher.coef_ = 3 * rng.normal(size=teacher.coef_.shape)
    return X[:N], y[:N], X[N:], y[N:], FrozenEstimator(teacher)


@pytest.fixture(params=[0.0, 0.3], ids=["ridge=0", "ridge=0.3"])
def student(request, problem):
    X, y, _, _, teacher = problem
    student = LinearizedKDStudent(teacher, soft_ratio=0.6, ridge=request.param)
    return student.fit(X, y, sample_weight=WEIGHTS)


class Refit:
    """The student trained on the first m of ``rows``, by the normal equations."""

    def __init__(self, student, problem, rows, m, **recipe):
        X, y, X_new, y_new, teacher = problem
        recipe = {"soft_ratio": 0.6, "temperature": 2.0} | recipe
        z = effective_logits(student.teacher_logits_, y, **recipe)[rows]
        X, weights = X[rows], WEIGHTS[rows]
        gram = NTK()(X[:m])
        a = np.linalg.solve(gram + np.diag(student.ridge / weights[:m]), z[:m])
        self.norm = np.sqrt(np.sum(z[:m] * a))
        self.weight_change_norm = np.sqrt(np.sum(a * (gram @ a)))
        logits = NTK()(X_new, X[:m]) @ a
        z_t = teacher.decision_function(X_new)
        predicted, theirs = (
            (v > 0).astype(int) if v.ndim == 1 else v.argmax(axis=1) for v in (logits, z_t)
        )
        self.transfer_risk = np.mean(predicted != theirs)
        self.error = np.mean(predicted != y_new)
        self.next_error = z[m] - NTK()(X[m : m + 1], X[:m])[0] @ a if m < N else None


def check_run(path, refits, get=lambda v: v[0]):
    """Compare one permutation with refits at SIZES."""
    for name in ("weight_change_norm", "transfer_risk", "error"):
        expected = [getattr(refit, name) for refit in refits]
        np.testing.assert_allclose(get(path[name]), expected, **CLOSE)
    for i in (0, 4):  # sizes 1 and 39, followed by 2 and 40
        np.testing.assert_allclose(
            get(path["one_step_error"])[i + 1], refits[i].next_error, **CLOSE
        )


def test_every_size_equals_a_refit(student, problem):
    _, _, X_new, y_new, _ = problem
    path = student.prefix_path(X_new, y=y_new, sizes=SIZES)
    check_run(path, [Refit(student, problem, np.arange(N), m) for m in SIZES])
    assert path.transfer_risk.shape == path.error.shape == (1, len(SIZES))
    np.testing.assert_allclose(path.weight_change_norm[0, -1], student.weight_change_norm_)
    np.testing.assert_allclose(path.error[0, -1], 1 - student.score(X_new, y_new), atol=1e-12)


def test_all_sizes_are_the_default(student, problem):
    _, _, X_new, _, _ = problem
    path, some = student.prefix_path(X_new), student.prefix_path(X_new, sizes=SIZES)
    assert path.sizes.tolist() == list(range(1, N + 1))
    rows = np.array(SIZES) - 1
    for name in ("weight_change_norm", "one_step_error", "transfer_risk"):
        np.testing.assert_allclose(path[name][:, rows], some[name], **CLOSE)
    for name in ("data_inefficiency", "smoothed_data_inefficiency"):
        np.testing.assert_allclose(path[name][rows], some[name], **CLOSE)


def test_permutations_and_candidates(student, problem):
    _, _, X_new, y_new, _ = problem
    path = student.prefix_path(
        X_new, y=y_new, sizes=SIZES, n_permutations=3, param_grid=GRID, random_state=5
    )
    assert [p["soft_ratio"] for p in path.params] == [0.3, 0.3, 1.0, 1.0]
    assert path.error.shape == (4, 3, len(SIZES))
    rng = np.random.RandomState(5)
    orders = [rng.permutation(N) for _ in range(3)]
    for c, params in enumerate(path.params):
        recipe = {name: params[name] for name in GRID}
        for p, order in enumerate(orders):
            refits = [Refit(student, problem, order, m, **recipe) for m in SIZES]
            check_run(path, refits, get=lambda v, c=c, p=p: v[c, p])
        # Eq. 10, the mean over permutations inside the logarithm
        steps = [[Refit(student, problem, o, m, **recipe).norm for o in orders] for m in (7, 8)]
        expected = 7 * np.diff(np.log(np.mean(steps, axis=1)))[0]
        assert path.data_inefficiency[c, 2] == pytest.approx(expected, abs=1e-8)
        ends = [[Refit(student, problem, o, m, **recipe).norm for o in orders] for m in (18, 35)]
        expected = np.diff(np.log(np.mean(ends, axis=1)))[0] / np.log(35 / 18)
        assert path.smoothed_data_inefficiency[c, 3] == pytest.approx(expected, abs=1e-8)
        linear = ends[1] / np.mean(ends[1]) - ends[0] / np.mean(ends[0])
        spread = linear.std() / np.log(35 / 18)
        assert path.smoothed_data_inefficiency_std[c, 3] == pytest.approx(spread, abs=1e-8)


def test_repeated_rows_count_once(problem):
    X, y, X_new, _, teacher = problem
    once = LinearizedKDStudent(teacher).fit(X, y)
    twice = LinearizedKDStudent(teacher).fit(np.vstack([X, X]), np.concatenate([y, y]))
    first, second = once.prefix_path(X_new), twice.prefix_path(X_new)
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, **CLOSE)


def test_random_initial_network(student, problem):
    X, _, X_new, _, _ = problem
    path = student.prefix_path(
        X_new, n_permutations=200, init="random", sizes=[1, N], random_state=0
    )
    # At one row the norm is |z_eff - z_0| / √Θ(x, x), z_0 of the NNGP's variance; 3 classes: gauge.
    assert path.weight_change_norm.std() > 0
    theta = NTK().diag(X) + student.ridge / WEIGHTS
    variance = NTK(kind="nngp").diag(X)
    z = student.effective_logits_.reshape(N, -1)
    gauge = 1 if z.shape[1] == 1 else z.shape[1] - 1
    shrink = NTK().diag(X) / theta**2  # the squared norm of the weights, not of the ridge
    expected = np.mean((np.sum(z**2, axis=1) + gauge * variance) * shrink)
    measured = np.mean(path.weight_change_norm[:, 0] ** 2)
    spread = np.std(path.weight_change_norm[:, 0] ** 2) / np.sqrt(200)
    assert abs(measured - expected) < 4 * spread
    # The converged student at all rows still disagrees less than at one row.
    assert path.transfer_risk[:, 1].mean() < path.transfer_risk[:, 0].mean()


def test_random_initial_network_is_seen_by_the_new_rows(problem):
    X, y, _, _, teacher = problem
    student = LinearizedKDStudent(teacher, soft_ratio=1.0).fit(X, y)
    # On its own training rows the converged student is the teacher whatever z_0 was.
    path = student.prefix_path(X, n_permutations=5, init="random", sizes=[N], random_state=0)
    assert (path.transfer_risk == 0).all()


def test_teacher_logits_stand_in_for_a_teacher(problem):
    X, y, X_new, _, teacher = problem
    z_t, z_new = teacher.decision_function(X), teacher.decision_function(X_new)
    with_teacher = LinearizedKDStudent(teacher).fit(X, y).prefix_path(X_new)
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    path = student.prefix_path(X_new, teacher_logits=z_new)
    np.testing.assert_array_equal(path.transfer_risk, with_teacher.transfer_risk)
    assert "transfer_risk" not in student.prefix_path()
    assert "error" not in path


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
def test_random_labels_of_new_rows_cannot_be_learnt():
    # On later training rows they are, by way of the teacher of all rows: 35 % error.
    at_new, at_later = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(600, 3)), rng.integers(2, size=600)
        student = LinearizedKDStudent(KNeighborsClassifier(1), soft_ratio=1.0, ridge=0.1)
        student.fit(X[:300], y[:300])
        path = student.prefix_path(
            X[300:], y=y[300:], sizes=[150, 300], param_grid={"soft_ratio": [0.5, 1.0]}
        )
        at_new.append(path.error)
        with pytest.warns(SeenLabelsWarning, match="150 of the 150 rows of X equal training rows"):
            at_later += student.prefix_path(X[150:300], y=y[150:300], sizes=[150]).error.tolist()
    error = 0.5 / np.sqrt(300 * 4)
    assert (abs(np.mean(at_new, axis=0) - 0.5) < 2.5 * error).all()
    assert np.mean(at_later) < 0.4


def test_training_rows_are_told_only_where_the_teacher_has_seen_their_labels(problem):
    X, y, _, _, frozen = problem
    student = LinearizedKDStudent(LogisticRegression()).fit(X, y)
    assert student.fit_report_.cross_fitted_teacher
    rows = np.vstack([X[:3], X[:5] + 0.5])
    with pytest.warns(SeenLabelsWarning, match="3 of the 8 rows"):
        student.prefix_path(rows, y=y[:8], sizes=[N])
    student.prefix_path(rows, sizes=[N])
    for teacher, logits in ((frozen, None), (None, student.teacher_logits_)):
        other = LinearizedKDStudent(teacher).fit(X, y, teacher_logits=logits)
        assert not other.fit_report_.cross_fitted_teacher
        other.prefix_path(X, y=y, teacher_logits=logits, sizes=[N])


BAD = {
    "sizes=\\[0\\]": {"sizes": [0]},
    "sizes=\\[3, 3\\]": {"sizes": [3, 3]},
    "sizes=\\[41\\]": {"sizes": [41]},
    "sizes=\\[0.5\\]": {"sizes": [0.5]},
    "n_permutations": {"n_permutations": 0},
    "init": {"init": "network"},
    "window": {"window": 1.0},
    "'ridge'; one factor": {"param_grid": {"ridge": [1.0]}},
    "soft_ratio": {"param_grid": {"soft_ratio": [0.0]}},
    "temperature_scaling": {"param_grid": {"temperature_scaling": ["cubed"]}},
    "pass X too": {"y": [0, 1]},
    "2 labels, but X has 3": {"X": np.zeros((3, 3)), "y": [0, 1]},
}


@pytest.mark.parametrize("message", BAD)
def test_errors(problem, message):
    X, y, _, _, teacher = problem
    student = LinearizedKDStudent(teacher).fit(X, y)
    with pytest.raises(ValueError, match=message):
        student.prefix_path(**BAD[message])


def test_copies_of_one_row_make_no_path():
    student = LinearizedKDStudent().fit(np.ones((3, 2)), [0, 1, 1], teacher_logits=[1.0, 2.0, 0.5])
    with pytest.raises(ValueError, match="two distinct training rows"):
        student.prefix_path()


def test_other_kernels_have_no_known_prior(problem):
    X, y, _, _, teacher = problem
    student = LinearizedKDStudent(teacher, kernel=RBF(), ridge=0.1).fit(X, y)
    with pytest.raises(ValueError, match=r"init='random'.*NNGP"):
        student.prefix_path(init="random")


def test_a_student_that_never_moves(problem):
    X, y, _, _, _ = problem
    z_t = np.zeros((N, 3)) if y.max() == 2 else np.zeros(N)
    student = LinearizedKDStudent(soft_ratio=1.0).fit(X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="data inefficiency is undefined"):
        student.prefix_path()
    assert (student.prefix_path(init="random", random_state=0).weight_change_norm > 0).all()


def test_what_stands_side_by_side_is_planned_together():
    # The prior's (n + m)² matrix beside the n² factor of each order.
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(700, 5)), rng.normal(size=(500, 5))
    student = LinearizedKDStudent().fit(X, X[:, 0] > 0, teacher_logits=X[:, 0])
    orders, joint = 8 * 700**2, 8 * 1200**2
    options = {"teacher_logits": new[:, 0], "sizes": [10, 700], "random_state": 0}

    def needed(**more):
        student.set_params(memory_limit=1.0)
        with pytest.raises(MemoryBudgetError, match=r"prefix_path of n=700 .* needs") as info:
            student.prefix_path(new, **options, **more)
        number, unit = re.search(r"needs ([\d.]+) (\w+)", str(info.value)).groups()
        return float(number) * {"KiB": 2**10, "MiB": 2**20}[unit]

    own, permuted = needed(), needed(n_permutations=2)
    drawn = needed(init="random")
    both = needed(n_permutations=2, init="random")
    assert permuted - own > 0.95 * orders
    assert drawn - own > 0.95 * joint
    assert both - own > 0.95 * (orders + joint)
    student._frame = None  # as after unpickling: the factor has to be built again
    assert needed() - own > 0.95 * orders
