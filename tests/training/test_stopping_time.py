"""The time of real runs: heavy-ball descent against the flow, and times matched by their loss."""

import numpy as np
import pytest
import torch

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK
from sklearn_kd.training import match_stopping_time, stopping_time_of


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    z_t = 2 * X[:, 0] + rng.normal(size=30)
    return X, (z_t + rng.logistic(size=30) > 0).astype(int), z_t


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", [None, lambda step: 1 - step / 3000])
@pytest.mark.parametrize("nesterov", [False, True])
def test_descent_of_torch_takes_that_time(problem, momentum, schedule, nesterov):
    if nesterov and momentum == 0:
        pytest.skip("torch's Nesterov momentum needs some")
    X, y, z_t = problem
    rate, n_steps = 0.02, 3000
    # A linear model of features with φᵀφ = Θ is the wide network; its loss is the mean of Eq. 2.
    features = torch.linalg.cholesky(torch.as_tensor(NTK()(X)))
    weights = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], rate, momentum=momentum, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule or (lambda step: 1.0))
    soft, hard = torch.sigmoid(torch.as_tensor(z_t) / 2), torch.as_tensor(y).double()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(n_steps):
        optimizer.zero_grad()
        f = features @ weights
        (0.7 * entropy(f / 2, soft) + 0.3 * entropy(f, hard)).backward()
        optimizer.step()
        scheduler.step()
    time = stopping_time_of(rate, n_steps, momentum=momentum, schedule=schedule)
    student = LinearizedKDStudent(soft_ratio=0.7, temperature=2.0, stopping_time=time)
    student.fit(X, y, teacher_logits=z_t)
    expected = (features @ weights).detach().numpy()
    np.testing.assert_allclose(student.decision_function(X), expected, atol=0.02)
    assert np.ptp(expected) > 2


def test_the_time_with_the_training_loss_of_a_run(problem):
    X, y, z_t = problem
    student = LinearizedKDStudent(soft_ratio=0.7, stopping_time=np.geomspace(0.3, 3000, 25))
    student.fit(X, y, teacher_logits=z_t)
    other = LinearizedKDStudent(soft_ratio=0.7, stopping_time=47.0).fit(X, y, teacher_logits=z_t)
    (loss,) = other.fit_report_.training_loss
    assert match_stopping_time(student, loss) == pytest.approx(47.0, rel=0.03)


def test_what_cannot_be_matched(problem):
    X, y, z_t = problem
    student = LinearizedKDStudent(stopping_time=[1.0, 10.0]).fit(X, y, teacher_logits=z_t)
    first, last = student.fit_report_.training_loss
    for loss in (first + 0.01, last - 0.01, np.nan):
        with pytest.raises(ValueError, match="not among the training losses"):
            match_stopping_time(student, loss)
    for stopping_time in (None, 3.0):
        student.set_params(stopping_time=stopping_time).fit(X, y, teacher_logits=z_t)
        with pytest.raises(ValueError, match="increasing sequence"):
            match_stopping_time(student, first)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"learning_rate": 0.0, "n_steps": 5}, "learning_rate"),
        ({"learning_rate": np.inf, "n_steps": 5}, "learning_rate"),
        ({"learning_rate": 0.1, "n_steps": 0}, "n_steps"),
        ({"learning_rate": 0.1, "n_steps": 2.5}, "n_steps"),
        ({"learning_rate": 0.1, "n_steps": 5, "momentum": 1.0}, "momentum"),
    ],
)
def test_arguments_are_checked(arguments, name):
    with pytest.raises(ValueError, match=name):
        stopping_time_of(**arguments)
