"""The student that stops: against a general-purpose integrator, its limits, its report."""

import pickle

import numpy as np
import oracles
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.distillation import DistillationLoss
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.inspection import EffectiveLogitsDisplay
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer

TIMES = [1.0, 30.0, 1000.0]


@pytest.fixture(params=[2, 3], ids=["binary", "3 classes"])
def data(request):
    """Rows, labels, the teacher's logits, and new rows."""
    rng = np.random.default_rng(request.param)
    X = rng.normal(size=(25, 3))
    y = rng.integers(0, request.param, 25)
    z_t = 2 * rng.normal(size=(25,) if request.param == 2 else (25, 3))
    return X, y, z_t - (0 if request.param == 2 else z_t.mean(axis=1, keepdims=True)), X[:5] + 0.3


def network(n_outputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, n_outputs)).double()


def shares(y, z_t):
    return y.astype(float) if z_t.ndim == 1 else np.eye(3)[y]


def soft_labels(z_t, temperature):
    return expit(z_t / temperature) if z_t.ndim == 1 else softmax(z_t / temperature, axis=1)


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("soft_ratio", [0.0, 0.4, 1.0])
def test_it_is_the_flow_of_eq_2(data, soft_ratio, scaling):
    X, y, z_t, X_new = data
    recipe = {"soft_ratio": soft_ratio, "temperature": 2.0, "temperature_scaling": scaling}
    student = LinearizedKDStudent(stopping_time=TIMES, **recipe).fit(X, y, teacher_logits=z_t)
    weights = np.full(25, 1 / 25)
    expected = oracles.distillation_flow(
        NTK()(X), soft_labels(z_t, 2.0), shares(y, z_t), weights, TIMES, recipe
    )
    actual = list(student.staged_decision_function(X))
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_allclose(student.decision_function(X), actual[-1], atol=1e-11)
    # New rows by the expansion in the same coefficients.
    new = np.stack([NTK()(X_new, X) @ a for a in student.staged_dual_coef_])
    np.testing.assert_allclose(list(student.staged_decision_function(X_new)), new, atol=1e-10)


def test_stopping_late_is_the_converged_student(data):
    X, y, z_t, X_new = data
    student = LinearizedKDStudent(soft_ratio=0.6, stopping_time=1e5)
    converged = clone(student).set_params(stopping_time=None)
    late, limit = (s.fit(X, y, teacher_logits=z_t) for s in (student, converged))
    np.testing.assert_allclose(
        late.decision_function(X_new), limit.decision_function(X_new), atol=2e-3
    )
    np.testing.assert_allclose(late.effective_logits_, limit.effective_logits_, atol=1e-12)
    np.testing.assert_allclose(late.weight_change_norm_, limit.weight_change_norm_, rtol=1e-3)


def test_hard_labels_alone_are_the_teacher(data):
    X, y, z_t, X_new = data
    student = LinearizedKDStudent(soft_ratio=0.0, stopping_time=TIMES)
    student.fit(X, y, teacher_logits=z_t)
    teacher = NTKTeacher(stopping_time=TIMES).fit(X, y)
    for ours, theirs in zip(
        student.staged_decision_function(X_new),
        teacher.staged_decision_function(X_new),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    assert student.effective_logits_ is None


def mean_loss(f, y, z_t, rho, big_t, weights):
    """Eq. 2 with its weights, from its definition."""
    hard, soft = shares(y, z_t), soft_labels(z_t, big_t)
    if z_t.ndim == 1:
        f = np.stack([0 * f, f], axis=1)
        hard, soft = (np.stack([1 - share, share], axis=1) for share in (hard, soft))
    rows = rho * (soft * log_softmax(f / big_t, axis=1)).sum(axis=1)
    rows += (1 - rho) * (hard * log_softmax(f, axis=1)).sum(axis=1)
    return -(weights @ rows) / weights.sum()


@pytest.mark.parametrize("soft_ratio", [0.0, 0.4])
def test_the_ridge_is_weight_decay(data, soft_ratio):
    X, y, z_t, X_new = data
    X, y, z_t, ridge = X[:10], y[:10], z_t[:10], 0.5
    weights = np.linspace(0.5, 1.5, 10)
    student = LinearizedKDStudent(
        soft_ratio=soft_ratio, temperature=2.0, ridge=ridge, stopping_time=1e4
    ).fit(X, y, weights, teacher_logits=z_t)
    K, root = NTK()(X), np.linalg.cholesky(NTK()(X))

    def objective(q):  # of coordinates with ‖Δ_w‖ = ‖q‖
        q = q.reshape(z_t.shape)
        penalty = ridge / (2 * weights.sum()) * (q**2).sum()
        return mean_loss(root @ q, y, z_t, soft_ratio, 2.0, weights) + penalty

    found = minimize(
        objective, np.zeros(z_t.size), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}
    )
    f = root @ found.x.reshape(z_t.shape)
    expected = NTK()(X_new, X) @ np.linalg.solve(K, f)
    np.testing.assert_allclose(student.decision_function(X_new), expected, atol=1e-3)


def test_copies_act_as_one_row(data):
    X, y, z_t, X_new = data
    rng = np.random.default_rng(5)
    numbers = np.r_[np.arange(25), rng.integers(0, 25, 10)]
    labels = np.r_[y, (y[numbers[25:]] + 1) % 2]  # some in conflict
    logits, trust = np.r_[z_t, 0.5 * z_t[numbers[25:]]], rng.uniform(0.3, 1, 35)
    student = LinearizedKDStudent(soft_ratio=0.7, stopping_time=20.0)
    student.fit(X[numbers], labels, teacher_logits=logits, teacher_trust=trust)
    assert student.fit_report_.n_merged_rows == 10

    def velocity(f):  # of the mean over all 35 rows, copies apart
        rho = (0.7 * trust).reshape(-1, *[1] * (z_t.ndim - 1))
        residual = rho / 2 * (soft_labels(logits, 2.0) - soft_labels(f[numbers], 2.0))
        residual = residual + (1 - rho) * (shares(labels, z_t) - soft_labels(f[numbers], 1.0))
        total = np.zeros_like(f)
        np.add.at(total, numbers, residual / 35)
        return total

    K, a, n_steps = NTK()(X), np.zeros_like(z_t), 4000
    for _ in range(n_steps):  # Heun's method
        first = velocity(K @ a)
        second = velocity(K @ (a + 20.0 / n_steps * first))
        a = a + 10.0 / n_steps * (first + second)
    np.testing.assert_allclose(
        student.decision_function(X_new), NTK()(X_new, X) @ a, rtol=1e-3, atol=1e-3
    )


def test_rows_without_a_label_have_the_soft_term_alone():
    rng = np.random.default_rng(0)
    X, y, z_t = rng.normal(size=(20, 3)), rng.integers(0, 2, 20), rng.normal(size=20)
    without = y.copy()
    without[::3] = -1
    student = LinearizedKDStudent(soft_ratio=0.5, stopping_time=[10.0, 300.0])
    student.fit(X, without, teacher_logits=z_t)
    # ρ = 1 there is trust of 1 / ρ elsewhere lowered to a half.
    trust = np.where(without < 0, 1.0, 0.5)
    same = clone(student).set_params(soft_ratio=1.0)
    same.fit(X, y, teacher_logits=z_t, teacher_trust=trust)
    np.testing.assert_allclose(student.decision_function(X), same.decision_function(X), atol=1e-9)
    right = student.predict(X)[without >= 0] == y[without >= 0]
    assert student.fit_report_.training_accuracy[-1] == pytest.approx(right.mean())


def test_report_of_the_training(data):
    X, y, z_t, _ = data
    student = LinearizedKDStudent(soft_ratio=0.4, temperature=3.0, stopping_time=TIMES)
    report = student.fit(X, y, teacher_logits=z_t).fit_report_
    loss = DistillationLoss(0.4, 3.0)
    for index, f in enumerate(student.staged_decision_function(X)):
        expected = loss(*(torch.as_tensor(v) for v in (f, z_t, y))).item()
        assert report.training_loss[index] == pytest.approx(expected, rel=1e-9)
    assert report.training_accuracy[-1] == student.score(X, y)
    assert report.stopping_time == TIMES
    assert report.solver == "gradient flow"
    assert report.n_kernel_products > 10


def test_training_starts_from_the_network(data):
    X, y, z_t, X_new = data
    kernel = EmpiricalNTK(network(1 if z_t.ndim == 1 else 3))
    student = LinearizedKDStudent(kernel=kernel, init="network", stopping_time=[0.001, 50.0])
    student.fit(X, y, teacher_logits=z_t)
    z_0 = student.initial_logits_
    early, late = student.staged_decision_function(X)
    np.testing.assert_allclose(early, z_0, atol=0.05)
    recipe = {"soft_ratio": 0.9, "temperature": 2.0, "temperature_scaling": "none"}
    expected = oracles.distillation_flow(
        student.kernel_(X, X),
        soft_labels(z_t, 2.0),
        shares(y, z_t),
        np.full(25, 1 / 25),
        [50.0],
        recipe,
        start=z_0,
    )
    np.testing.assert_allclose(late, expected[0], atol=1e-4)
    assert np.shape(list(student.staged_decision_function(X_new))) == (2, 5, *z_t.shape[1:])


def test_a_converged_student_has_one_stage(data):
    X, y, z_t, X_new = data
    student = LinearizedKDStudent(stopping_time=3.0).fit(X, y, teacher_logits=z_t)
    student.set_params(stopping_time=None).fit(X, y, teacher_logits=z_t)
    assert student.staged_dual_coef_ is None
    assert student.fit_report_.stopping_time is None
    (only,) = student.staged_decision_function(X_new)
    np.testing.assert_array_equal(only, student.decision_function(X_new))


def test_single_precision_and_pickles(data):
    X, y, z_t, X_new = data
    student = LinearizedKDStudent(stopping_time=TIMES, dtype="float32")
    student.fit(X.astype(np.float32), y, teacher_logits=z_t)
    double = LinearizedKDStudent(stopping_time=TIMES).fit(X, y, teacher_logits=z_t)
    logits = student.decision_function(X_new.astype(np.float32))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, double.decision_function(X_new), atol=5e-3)
    again = pickle.loads(pickle.dumps(student))
    np.testing.assert_array_equal(again.decision_function(X_new.astype(np.float32)), logits)


def test_an_unfitted_teacher_is_cross_fitted_as_ever(data):
    X, y, _, _ = data
    student = LinearizedKDStudent(LogisticRegression(), stopping_time=5.0, cv=3).fit(X, y)
    converged = LinearizedKDStudent(LogisticRegression(), cv=3).fit(X, y)
    np.testing.assert_array_equal(student.teacher_logits_, converged.teacher_logits_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soft_ratio": 0.0}, "soft_ratio=0 leaves hard labels alone"),
        ({"stopping_time": [3.0, 2.0]}, "increasing sequence"),
        ({"stopping_time": 0.0}, "stopping_time"),
        ({"stopping_time": 5.0, "solver": "pcg"}, "needs the kernel matrix in memory"),
        ({"stopping_time": 5.0, "solver": "nystrom"}, "needs the kernel matrix in memory"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    X = np.random.default_rng(0).normal(size=(20, 3))
    student = LinearizedKDStudent(**settings)
    with pytest.raises(ValueError, match=message):
        student.fit(X, (X[:, 0] > 0).astype(int), teacher_logits=X[:, 0])
    assert not hasattr(student, "classes_")


def test_it_plans_its_memory():
    X = np.random.default_rng(0).normal(size=(50, 3))
    with pytest.raises(MemoryBudgetError, match="with a stopping_time"):
        LinearizedKDStudent(stopping_time=5.0, memory_limit=3e4).fit(
            X, (X[:, 0] > 0).astype(int), teacher_logits=X[:, 0]
        )


def test_what_belongs_to_the_converged_student_is_refused():
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = (X[:, 0] > 0).astype(int)
    student = LinearizedKDStudent(soft_ratio=0.0, stopping_time=5.0)
    student.fit(X, y, teacher_logits=X[:, 0])
    for what in (student.tangent_frame, student.prefix_path):
        with pytest.raises(AttributeError, match=r"stopped at\s+stopping_time=\[5\.0\]"):
            what()
    with pytest.raises(AttributeError, match="stopping_time=None"):
        neg_data_inefficiency_scorer(student, X, y)
    with pytest.raises(ValueError, match="soft_ratio=0"):
        EffectiveLogitsDisplay.from_estimator(student)
    with pytest.raises(ValueError, match="no finite effective logit"):
        student.effective_decision_function(X, y, X[:, 0])
