"""init="network": students that start from the outputs of a network, against explicit features."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from torch import nn

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, TorchTeacher
from sklearn_kd.inspection import (
    AngleDistributionDisplay,
    HardLabelEffectDisplay,
    TransferRiskDisplay,
)
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.metrics import (
    feature_angles,
    hard_label_effect,
    neg_data_inefficiency_scorer,
    neg_transfer_risk_scorer,
    weight_change_angles,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
N = 30
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2, size=N)


def network(n_outputs, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 20), nn.GELU(), nn.Linear(20, n_outputs))
    with torch.no_grad():
        net[2].weight.mul_(4)  # an initial network that says something
    return net.double()


class Expansion:
    """A module to first order in its weights, f(x) = z₀(x) + φ(x)ᵀ Δ, one gradient per logit."""

    def __init__(self, module):
        self.module = module

    def logits(self, X):
        """z₀ as a tensor (n, 1) or (n, K)."""
        outputs = self.module(torch.tensor(X))
        if outputs.shape[1] == 2:
            return outputs[:, 1:] - outputs[:, :1]
        return outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 2 else outputs

    def start(self, X):
        z_0 = self.logits(X).detach().numpy()
        return z_0[:, 0] if z_0.shape[1] == 1 else z_0

    def features(self, X):
        """Gradients of the outputs, or of the difference of two: (K, n, P)."""
        outputs = self.module(torch.tensor(X))
        if outputs.shape[1] == 2:
            outputs = outputs[:, 1:] - outputs[:, :1]
        weights = list(self.module.parameters())
        rows = [
            [
                torch.cat([g.ravel() for g in torch.autograd.grad(f, weights, retain_graph=True)])
                for f in column
            ]
            for column in outputs.T
        ]
        return np.array([[g.numpy() for g in row] for row in rows])

    def __call__(self, X, Y):
        left = self.features(X)
        right = left if X is Y else self.features(Y)
        return np.mean(left @ right.swapaxes(1, 2), axis=0)


@pytest.fixture(params=[(1, 2), (2, 2), (3, 3)], ids=["one output", "two outputs", "three"])
def problem(request):
    """Return a network, training and new rows with labels, and a teacher that is often wrong."""
    n_outputs, n_classes = request.param
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N + 40, 3))
    y = np.digitize(X[:, 0] + 0.7 * rng.normal(size=len(X)), [0.0, 0.8][: n_classes - 1])
    teacher = LogisticRegression().fit(X[:50], np.arange(50) % n_classes)
    teacher.coef_ = 3 * rng.normal(size=teacher.coef_.shape)
    return network(n_outputs), X[:N], y[:N], X[N:], y[N:], FrozenEstimator(teacher)


def student_of(problem, **parameters):
    net, _, _, _, _, teacher = problem
    kernel = EmpiricalNTK(net)
    return LinearizedKDStudent(
        teacher, kernel=kernel, init="network", **{"soft_ratio": 0.6} | parameters
    )


class Refit:
    """The student of some rows by the normal equations, from explicit features."""

    def __init__(self, net, X, z_eff, ridge=0.0, weights=1.0):
        self.expansion, self.X = Expansion(net), X
        self.z_0 = self.expansion.start(X)
        change = z_eff - self.z_0
        gram = self.expansion(X, X)
        row_ridges = np.diag(np.broadcast_to(ridge / weights, len(X)))
        self.a = np.linalg.solve(gram + row_ridges, change)
        self.norm = np.sqrt(np.sum(change * self.a))
        self.weight_change_norm = np.sqrt(np.sum(self.a * (gram @ self.a)))

    def __call__(self, X):
        return self.expansion.start(X) + self.expansion(X, self.X) @ self.a


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_closed_form(problem, ridge):
    net, X, y, X_new, _, _ = problem
    student = student_of(problem, ridge=ridge).fit(X, y, sample_weight=WEIGHTS)
    refit = Refit(net, X, student.effective_logits_, ridge, WEIGHTS)
    assert np.abs(refit.z_0).mean() > 0.5
    np.testing.assert_allclose(student.initial_logits_, refit.z_0, **CLOSE)
    np.testing.assert_allclose(student.dual_coef_, refit.a, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(student.decision_function(X_new), refit(X_new), rtol=1e-7, atol=1e-8)
    assert student.weight_change_norm_ == pytest.approx(refit.weight_change_norm, rel=1e-7)
    if ridge == 0:
        np.testing.assert_allclose(
            student.decision_function(X), student.effective_logits_, rtol=1e-7, atol=1e-8
        )
    assert student.fit_report_.init == "network"


def test_the_effective_logits_do_not_depend_on_the_start(problem):
    _, X, y, _, _, _ = problem
    student = student_of(problem).fit(X, y)
    zero = student_of(problem).set_params(init="zero").fit(X, y)
    np.testing.assert_array_equal(student.effective_logits_, zero.effective_logits_)
    assert not zero.initial_logits_.any()
    assert zero.initial_logits_.shape == student.initial_logits_.shape


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_gradient_descent_on_the_linearized_network(n_outputs):
    """Train all weights of the first-order model on Eq. 2, and compare weights and predictions."""
    rho, temperature = 0.6, 2.0
    rng = np.random.default_rng(3)
    X, X_new, y = 2 * rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), np.array([0, 1, 1, 0, 1])
    z_t = 2 * rng.normal(size=5)
    net = network(n_outputs, seed=1)
    expansion = Expansion(net)
    phi, z_0 = expansion.features(X)[0], expansion.start(X)
    step = 4 / np.linalg.norm(phi @ phi.T, 2)
    change = previous = np.zeros(phi.shape[1])
    for _ in range(20000):
        ahead = change + 0.95 * (change - previous)
        z = z_0 + phi @ ahead
        soft = rho / temperature * (expit(z / temperature) - expit(z_t / temperature))
        slope = soft + (1 - rho) * (expit(z) - y)
        previous, change = change, ahead - step * phi.T @ slope
    assert np.abs(slope).max() < 1e-12
    student = LinearizedKDStudent(
        kernel=EmpiricalNTK(net), init="network", soft_ratio=rho, temperature=temperature
    ).fit(X, y, teacher_logits=z_t)
    assert student.weight_change_norm_ == pytest.approx(np.linalg.norm(change), rel=1e-8)
    expected = expansion.start(X_new) + expansion.features(X_new)[0] @ change
    np.testing.assert_allclose(student.decision_function(X_new), expected, rtol=1e-7, atol=1e-8)


def test_a_student_that_starts_from_its_teacher_stays_there(problem):
    net, X, y, X_new, _, _ = problem
    teacher = TorchTeacher(net, np.unique(y))
    student = student_of(problem, soft_ratio=1.0).set_params(teacher=teacher).fit(X, y)
    assert student.weight_change_norm_ < 1e-10
    np.testing.assert_allclose(
        student.decision_function(X_new), teacher.decision_function(X_new), **CLOSE
    )
    assert neg_transfer_risk_scorer(student, X_new, np.zeros(len(X_new), int)) == 0


def test_repeating_rows_equals_weighting_them(problem):
    _, X, y, X_new, _, _ = problem
    counts = np.random.default_rng(1).integers(1, 4, size=N)
    weighted = student_of(problem, ridge=0.5).fit(X, y, sample_weight=counts)
    repeated = student_of(problem, ridge=0.5).fit(X.repeat(counts, axis=0), y.repeat(counts))
    assert len(repeated.initial_logits_) == N
    np.testing.assert_allclose(
        repeated.decision_function(X_new), weighted.decision_function(X_new), **CLOSE
    )


# State


def test_predictions_are_those_of_the_fit(problem):
    net, X, y, X_new, _, _ = problem
    student = student_of(problem).fit(X, y)
    expected = student.decision_function(X_new)
    loaded = pickle.loads(pickle.dumps(student))
    np.testing.assert_allclose(loaded.decision_function(X_new), expected, **CLOSE)
    scores = [neg_data_inefficiency_scorer(s, X_new, y[:1].repeat(40)) for s in (student, loaded)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)
    student.set_params(init="zero")
    np.testing.assert_array_equal(student.decision_function(X_new), expected)
    with torch.no_grad():
        net[2].bias.add_(1.0)  # the caller trains on
    np.testing.assert_array_equal(student.decision_function(X_new), expected)


def test_clone(problem):
    _, X, y, X_new, _, _ = problem
    student = student_of(problem).fit(X, y)
    copy = clone(student)
    assert copy.init == "network"
    assert not hasattr(copy, "initial_logits_")
    np.testing.assert_allclose(
        copy.fit(X, y).decision_function(X_new), student.decision_function(X_new), **CLOSE
    )


# Scores, paths, displays


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_scores_are_what_they_say(problem, ridge):
    net, X, y, X_new, y_new, teacher = problem
    student = student_of(problem, ridge=ridge).fit(X, y)
    z_new = student.effective_decision_function(X_new, y_new)
    refit = Refit(net, X, student.effective_logits_, ridge)
    grown = [
        Refit(net, np.vstack([X, x]), np.concatenate([student.effective_logits_, z[None]]), ridge)
        for x, z in zip(X_new[:10], z_new[:10], strict=True)
    ]
    expected = N * (np.log(np.mean([g.norm for g in grown])) - np.log(refit.norm))
    actual = neg_data_inefficiency_scorer(student, X_new[:10], y_new[:10])
    assert actual == pytest.approx(-expected, rel=1e-6)
    logits = refit(X_new)
    predicted = logits > 0 if logits.ndim == 1 else logits.argmax(axis=1)
    risk = np.mean(predicted != teacher.predict(X_new))
    assert neg_transfer_risk_scorer(student, X_new, y_new) == pytest.approx(-risk)


def test_prefix_path_starts_from_the_network_too(problem):
    net, X, y, X_new, y_new, teacher = problem
    student = student_of(problem, ridge=0.3).fit(X, y, sample_weight=WEIGHTS)
    grid, sizes = {"soft_ratio": [0.6, 1.0]}, [1, 10, 11, 29, 30]
    path = student.prefix_path(
        X_new, y=y_new, sizes=sizes, n_permutations=2, param_grid=grid, random_state=5
    )
    rng = np.random.RandomState(5)
    orders = [rng.permutation(N) for _ in range(2)]
    for c, params in enumerate(path.params):
        z_eff = (
            clone(student)
            .set_params(**params)
            .fit(X, y, teacher_logits=None, sample_weight=WEIGHTS)
            .effective_logits_
        )
        for p, order in enumerate(orders):
            refits = [
                Refit(net, X[order[:m]], z_eff[order[:m]], 0.3, WEIGHTS[order[:m]]) for m in sizes
            ]
            for s, refit in enumerate(refits):
                actual = path.weight_change_norm[c, p, s]
                assert actual == pytest.approx(refit.weight_change_norm, rel=1e-6)
                logits = refit(X_new)
                predicted = logits > 0 if logits.ndim == 1 else logits.argmax(axis=1)
                assert path.error[c, p, s] == pytest.approx(np.mean(predicted != y_new))
                risk = np.mean(predicted != teacher.predict(X_new))
                assert path.transfer_risk[c, p, s] == pytest.approx(risk)
            error = z_eff[order[10]] - refits[1](X[order[10:11]])[0]
            np.testing.assert_allclose(path.one_step_error[c, p, 2], error, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(path.weight_change_norm[0, :, -1], student.weight_change_norm_)
    np.testing.assert_allclose(path.error[0, :, -1], 1 - student.score(X_new, y_new), atol=1e-12)


def test_displays(problem):
    _, X, y, X_new, y_new, _ = problem
    student = student_of(problem, soft_ratio=1.0).fit(X, y)
    z_0, z_t = student.initial_logits_, student.teacher_logits_
    display = HardLabelEffectDisplay.from_estimator(student, X_new, y_new, random_state=0)
    labels = y if z_t.ndim == 1 else np.eye(3)[y]
    effect = hard_label_effect(
        student.tangent_frame(), z_t, labels, temperature=2.0, initial_logits=z_0, random_state=0
    )
    assert display.effect == pytest.approx(float(effect.value), rel=1e-9)
    norm = 1.5 * student.weight_change_norm_
    display = TransferRiskDisplay.from_estimator(student, X_new, oracle_norm=norm, sizes=[5, N])
    assert display.power_function_bound.shape == (2,)
    assert display.theorem_bound is None
    if z_t.ndim > 1:
        return
    display = AngleDistributionDisplay.from_estimator(student, sizes=[5, 20])
    path = weight_change_angles(student.tangent_frame(), z_t, z_0, sizes=[5, 20])
    np.testing.assert_allclose(display.weight_change_angles, path.centred)
    squared_norms = student.tangent_frame().kernel.diag(torch.tensor(X)).numpy()
    np.testing.assert_allclose(
        display.feature_angles, feature_angles(z_t, squared_norms, path.centred_oracle_norm)
    )


# Search

SCORING = {
    "accuracy": "accuracy",
    "log_loss": "neg_log_loss",
    "risk": neg_transfer_risk_scorer,
    "inefficiency": neg_data_inefficiency_scorer,
}
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0, 4.0], "ridges": [0.1]}


def refits(problem, kernels, cv):
    grid = {
        "ridge": GRID["ridges"],
        "kernel": kernels,
        "soft_ratio": GRID["soft_ratios"],
        "temperature": GRID["temperatures"],
    }
    return GridSearchCV(student_of(problem), grid, cv=cv, scoring=SCORING, refit=False)


@pytest.mark.parametrize("with_copies", [False, True], ids=["distinct", "copies"])
def test_k_fold_equals_refits(problem, with_copies):
    net, X, y, _, _, teacher = problem
    if with_copies:  # some of them in other folds, some with other labels
        X, y = np.vstack([X, X[:12]]), np.hstack([y, y[:6], y[10:16]])
    n_outputs = net[2].out_features
    kernels = [EmpiricalNTK(net), EmpiricalNTK(network(n_outputs, seed=7))]
    search = LinearizedKDStudentCV(
        teacher, **GRID, kernel=kernels, init="network", cv=3, scoring=SCORING, refit=False
    ).fit(X, y)
    reference = refits(problem, kernels, 3).fit(X, y)
    for name in SCORING:
        for kind in ("mean", "std", "split0"):
            column = f"{kind}_test_{name}"
            np.testing.assert_allclose(
                search.cv_results_[column], reference.cv_results_[column], **CLOSE
            )


def test_leave_one_out_equals_refits(problem):
    """Copies of a row are left out together."""
    net, X, y, _, _, teacher = problem
    X, y = np.vstack([X, X[:5]]), np.hstack([y, y[1:6]])
    recorded = {}

    def record(student, X, y):
        if len(y) == N + 5:
            recorded["logits"] = student.decision_function(X)
            recorded["inefficiency"] = -neg_data_inefficiency_scorer(student, X, y)
        return 0.0

    single = {"soft_ratios": [0.6], "temperatures": [2.0], "ridges": [0.2]}
    LinearizedKDStudentCV(
        teacher, **single, kernel=EmpiricalNTK(net), init="network", scoring=record
    ).fit(X, y)
    groups = np.r_[:N, :5]
    for train, test in LeaveOneGroupOut().split(X, y, groups):
        student = student_of(problem, ridge=0.2).fit(X[train], y[train])
        np.testing.assert_allclose(
            recorded["logits"][test], student.decision_function(X[test]), **CLOSE
        )
    assert np.isfinite(recorded["inefficiency"])


def test_the_best_is_refitted_and_predicts_from_the_network(problem):
    net, X, y, X_new, y_new, teacher = problem
    search = LinearizedKDStudentCV(
        teacher, **GRID, kernel=EmpiricalNTK(net), init="network", cv=3
    ).fit(X, y)
    best = student_of(problem, **search.best_params_).fit(X, y)
    assert search.best_estimator_.init == "network"
    np.testing.assert_allclose(
        search.decision_function(X_new), best.decision_function(X_new), **CLOSE
    )
    np.testing.assert_array_equal(search.predict(X_new), best.predict(X_new))
    assert search.score(X_new, y_new) == best.score(X_new, y_new)
    loaded = pickle.loads(pickle.dumps(search))
    np.testing.assert_allclose(
        loaded.predict_proba(X_new), best.predict_proba(X_new), rtol=1e-7, atol=1e-9
    )


# Errors

X3 = np.random.default_rng(0).normal(size=(12, 3))
BAD = {
    "init": ({"init": "random", "kernel": EmpiricalNTK(network(1))}, 2, "'init' parameter"),
    "other kernel": ({"kernel": NTK(depth=1)}, 2, r"needs\s+kernel=EmpiricalNTK\(module\), not"),
    "no kernel": ({"kernel": None}, 2, "use init='zero'"),
    "one output, three classes": ({"kernel": EmpiricalNTK(network(1))}, 3, r"need \(12, 3\)"),
    "three outputs, two classes": ({"kernel": EmpiricalNTK(network(3))}, 2, r"need \(12,\)"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("estimator", [LinearizedKDStudent, LinearizedKDStudentCV])
def test_errors(case, estimator):
    parameters, n_classes, message = BAD[case]
    student = estimator(**{"init": "network"} | parameters)
    y = np.arange(12) % n_classes
    z_t = np.zeros(12) if n_classes == 2 else np.zeros((12, 3))
    with pytest.raises(ValueError, match=message):
        student.fit(X3, y, teacher_logits=z_t)


def test_a_network_has_no_known_prior(problem):
    _, X, y, _, _, _ = problem
    with pytest.raises(ValueError, match=r"(?s)init='random'.*NNGP.*init='student'"):
        student_of(problem).fit(X, y).prefix_path(init="random")


def test_auto_is_the_network_where_the_kernel_has_one():
    rng = np.random.default_rng(3)
    X, z_t = rng.standard_normal((N, 3)), rng.standard_normal(N)
    y = np.arange(N) % 2
    kernels = {"network": EmpiricalNTK(network(1)), "zero": NTK()}
    for start, kernel in kernels.items():
        found, named = (
            LinearizedKDStudent(kernel=kernel, init=init).fit(X, y, teacher_logits=z_t)
            for init in ("auto", start)
        )
        assert found.fit_report_.init == start
        np.testing.assert_array_equal(found.initial_logits_, named.initial_logits_)
        np.testing.assert_array_equal(found.decision_function(X), named.decision_function(X))

    # A list of kernels: each with its own start.
    grid = {"soft_ratios": [0.3, 0.7], "temperatures": [1.0]}
    together = LinearizedKDStudentCV(kernel=list(kernels.values()), **grid)
    scores = together.fit(X, y, teacher_logits=z_t).cv_results_["mean_test_score"]
    for index, (start, kernel) in enumerate(kernels.items()):
        alone = LinearizedKDStudentCV(kernel=kernel, init=start, **grid)
        alone.fit(X, y, teacher_logits=z_t)
        expected = alone.cv_results_["mean_test_score"]
        np.testing.assert_array_equal(scores[2 * index : 2 * index + 2], expected)
        assert alone.best_estimator_.fit_report_.init == start
