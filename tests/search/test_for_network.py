"""LinearizedKDStudentCV.for_network: the search that stands for a network that is trained."""

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch.callbacks import EarlyStopping, LRScheduler
from torch import nn

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, TorchStudent
from sklearn_kd.distillation import DistillationLoss
from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.students._matched_time import Remembered, matched_time

N, D = 60, 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D))
LOGITS = {2: 2 * X[:, 0], 3: 2 * X[:, :3]}
Y = {
    2: (LOGITS[2] + RNG.logistic(size=N) > 0).astype(int),
    3: (LOGITS[3] + RNG.gumbel(size=(N, 3))).argmax(1),
}
GRID = {"soft_ratios": [0.3, 1.0], "temperatures": [1.0]}


def network(n_features, n_classes):
    n_outputs = 1 if n_classes == 2 else n_classes
    return nn.Sequential(nn.Linear(n_features, 30), nn.Tanh(), nn.Linear(30, n_outputs)).double()


def student(**params):
    common = {"soft_ratio": 0.3, "lr": 0.3, "max_epochs": 12, "batch_size": 20, "random_state": 0}
    return TorchStudent(network, **{**common, **params})


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_student_of_the_runs_recipe_has_the_loss_of_the_run(n_classes):
    y, z_t = Y[n_classes], LOGITS[n_classes]
    own = student(temperature=3.0, temperature_scaling="squared")
    search = LinearizedKDStudentCV.for_network(own, X, y, teacher_logits=z_t, **GRID)
    assert not hasattr(own, "module_")
    assert search.temperature_scaling == "squared"
    (time,) = search.stopping_times

    trained = own.fit(X, y, teacher_logits=z_t)
    closed = LinearizedKDStudent(
        kernel=search.kernel,
        soft_ratio=0.3,
        temperature=3.0,
        temperature_scaling="squared",
        stopping_time=time,
    ).fit(X, y, teacher_logits=z_t)
    loss = DistillationLoss(0.3, 3.0, temperature_scaling="squared")
    losses = [
        loss(*map(torch.as_tensor, (one.decision_function(X), z_t, y))).item()
        for one in (trained, closed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # linear between the times looked at

    search.fit(X, y, teacher_logits=z_t)
    assert search.best_params_["stopping_time"] == time
    assert search.score(X, y) > 0.5


def test_kernel_is_the_mean_of_three_pilots_or_that_of_one_network():
    given = {"teacher_logits": LOGITS[2], "stopping_times": None, **GRID}
    search = LinearizedKDStudentCV.for_network(student(), X, Y[2], **given)
    expected = student().pilot_kernel(X, teacher_logits=LOGITS[2], n_epochs=4, n_pilots=3)
    np.testing.assert_allclose(search.kernel(X), expected(X), rtol=1e-10)
    assert search.stopping_times is None  # as it was asked for

    torch.manual_seed(0)
    one = TorchStudent(network(D, 2), max_epochs=6, random_state=0)
    search = LinearizedKDStudentCV.for_network(one, X, Y[2], n_epochs=1, **given)
    expected = one.pilot_kernel(X, teacher_logits=LOGITS[2], n_epochs=1)
    assert isinstance(search.kernel, EmpiricalNTK)
    assert search.kernel(X).shape == expected(X).shape == (N, N)


def test_time_of_a_linear_network_is_learning_rate_times_steps():
    torch.manual_seed(0)
    module = nn.Linear(D, 1).double()
    own = TorchStudent(module, soft_ratio=0.3, lr=0.02, max_epochs=300, batch_size=None)
    found = matched_time(own, EmpiricalNTK(module), X, Y[2], LOGITS[2])
    assert found == pytest.approx(own.stopping_time(N), rel=0.05)


def test_the_kernel_matrix_is_evaluated_once():
    kernel, calls = EmpiricalNTK(network(D, 2)), []
    remembered = Remembered(kernel, N)
    gram = remembered._function.gram
    object.__setattr__(remembered._function, "gram", lambda X: calls.append(len(X)) or gram(X))
    some = torch.as_tensor(X[:7])  # of a sample, as forecasts take it
    np.testing.assert_array_equal(remembered.gram(some), kernel(X[:7]))
    students = [
        LinearizedKDStudent(kernel=one, stopping_time=[1.0, 10.0])
        for one in (kernel, remembered, remembered)
    ]
    found = [one.fit(X, Y[2], teacher_logits=LOGITS[2]).dual_coef_ for one in students]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(remembered.gram(some), kernel(X[:7]))
    assert calls == [7, N, 7]


def test_any_optimizer_and_schedule():
    for params in (
        {"optimizer": "Adam", "lr": 1e-3},
        {"callbacks": [LRScheduler("StepLR", step_size=4), EarlyStopping()]},
    ):
        own = student(**params)
        search = LinearizedKDStudentCV.for_network(own, X, Y[2], teacher_logits=LOGITS[2], **GRID)
        assert search.stopping_times[0] > 0


def test_early_stopping_searches_times_up_to_that_of_the_whole_training():
    given = {"teacher_logits": LOGITS[2], **GRID}
    whole = LinearizedKDStudentCV.for_network(student(), X, Y[2], **given)
    own = student(validation_fraction=0.2)
    search = LinearizedKDStudentCV.for_network(own, X, Y[2], **given)
    assert len(search.stopping_times) == 6
    np.testing.assert_allclose(search.stopping_times[-1], whole.stopping_times[0])


def test_names_as_labels_rows_without_one_and_a_fitted_teacher():
    names = np.array(["no", "yes"])
    teacher = FrozenEstimator(LogisticRegression().fit(X, names[Y[2]]))
    y = np.where(np.arange(N) < 10, None, names[Y[2]].astype(object))
    own = student(teacher=teacher)
    search = LinearizedKDStudentCV.for_network(own, X, y, **GRID).fit(X, y)
    assert search.classes_.tolist() == ["no", "yes"]
    assert search.stopping_times[0] > 0


def test_labels_reach_no_score():
    """Random labels: held-out accuracy is chance, though the time is matched with their help."""
    scores = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows, y = rng.standard_normal((80, D)), rng.permutation(np.arange(80) % 2)
        own = student(max_epochs=60, random_state=seed)
        search = LinearizedKDStudentCV.for_network(
            own, rows, y, teacher_logits=rng.standard_normal(80), n_pilots=1, **GRID
        )
        scores.append(search.fit(rows, y, teacher_logits=rng.standard_normal(80)).best_score_)
    assert np.mean(scores) < 0.6


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"teacher": LogisticRegression()}, {}, "an unfitted LogisticRegression"),
        ({"max_epochs": 3}, {"n_epochs": 3}, "n_epochs=3 leave nothing of the training"),
        ({"max_epochs": 1}, {}, "n_epochs=1 leave nothing of the training"),
        ({}, {"n_pilots": 0}, "n_pilots"),
    ],
)
def test_what_is_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        LinearizedKDStudentCV.for_network(student(**params), X, Y[2], **options)


def test_no_network():
    with pytest.raises(TypeError, match="needs a TorchStudent"):
        LinearizedKDStudentCV.for_network(network(D, 2), X, Y[2])
    with pytest.raises(TypeError, match="soft_ratio"):
        LinearizedKDStudentCV.for_network(
            student(), X, Y[2], teacher_logits=LOGITS[2], soft_ratio=[0.5]
        )
