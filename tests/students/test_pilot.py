"""Pilot runs of a network: their tangent kernels, and that no label enters these."""

import functools
import math

import numpy as np
import pytest
import skorch.callbacks
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch_modules import SmallMLP, small_cnn, wide_mlp

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, TorchStudent, TorchTeacher
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.students._pilot import MeanNetwork, settle_batch_statistics

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
X_NEW = RNG.normal(size=(9, 5))
Z = X[:, :3] * [2.0, 1.0, 1.0]
Y = (Z + RNG.gumbel(size=(60, 3))).argmax(axis=1)
IMAGES = RNG.normal(size=(50, 64)).astype(np.float32)


def student_of(module=SmallMLP, **params):
    return TorchStudent(module, **{"batch_size": 20, "lr": 0.3, "random_state": 0, **params})


def test_a_pilot_is_the_network_trained_on_the_teacher_alone():
    student = student_of(temperature=3.0, optimizer_params={"momentum": 0.5})
    kernel = student.pilot_kernel(X, teacher_logits=Z, n_epochs=4)
    assert isinstance(kernel, EmpiricalNTK)
    assert not hasattr(student, "module_")
    # the same seed, at ρ = 1: labels are without effect there
    student.set_params(soft_ratio=1.0, max_epochs=4).fit(X, Y, teacher_logits=Z)
    np.testing.assert_array_equal(kernel(X_NEW), EmpiricalNTK(student.module_)(X_NEW))
    np.testing.assert_allclose(kernel.initial_outputs(X_NEW), student.decision_function(X_NEW))


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_two_classes(n_outputs):
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, n_outputs)).double()
    for z_t in (Z[:, 0], Z[:, :1], np.column_stack([-Z[:, 0] / 2, Z[:, 0] / 2])):
        student = student_of(module)
        kernel = student.pilot_kernel(X, teacher_logits=z_t, n_epochs=2)
        assert kernel.initial_outputs(X_NEW).shape == (9,)
        student.set_params(soft_ratio=1.0, max_epochs=2).fit(X, Y > 0, teacher_logits=Z[:, 0])
        np.testing.assert_allclose(kernel.initial_outputs(X_NEW), student.decision_function(X_NEW))


def test_the_parameters_of_the_student_that_are_of_a_whole_fit_are_left_out():
    class Never(skorch.callbacks.Callback):
        def on_epoch_begin(self, net, **kwargs):
            raise AssertionError

    expected = student_of().pilot_kernel(X, teacher_logits=Z)(X_NEW)
    params = {"callbacks": [Never()], "validation_fraction": 0.5, "soft_ratio": 0.1}
    found = student_of(**params).pilot_kernel(X, teacher_logits=Z)(X_NEW)
    np.testing.assert_array_equal(found, expected)


# Teachers


def test_fitted_teachers_are_asked_and_labels_are_not_needed():
    frozen = FrozenEstimator(LogisticRegression().fit(X_NEW, np.arange(9) % 3))
    expected = student_of().pilot_kernel(X, teacher_logits=frozen.decision_function(X))(X_NEW)
    for teacher, cv in ((frozen, 5), (frozen.estimator, "prefit"), ([frozen, frozen], 5)):
        found = student_of(teacher=teacher, cv=cv).pilot_kernel(X)(X_NEW)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    torch_teacher = TorchTeacher(SmallMLP(5, 3), [2, 0, 1])
    assert student_of(teacher=torch_teacher).pilot_kernel(X)(X_NEW).shape == (9, 9)


@pytest.mark.parametrize("teacher", [None, LogisticRegression(), [LogisticRegression()]])
def test_an_unfitted_teacher_would_bring_labels_in(teacher):
    with pytest.raises(ValueError, match=r"trained on the labels of these rows.*FrozenEstimator"):
        student_of(teacher=teacher).pilot_kernel(X)
    if teacher is not None:
        fitted = student_of(teacher=teacher, max_epochs=1).fit(X, Y)
        with pytest.raises(ValueError, match="trained on the labels of these rows"):
            fitted.pilot_kernel(X)


def test_a_certain_teacher_is_doubted_without_labels():
    neighbour = FrozenEstimator(KNeighborsClassifier(1).fit(X, Y))
    with (
        pytest.warns(SaturatedTeacherWarning),
        pytest.warns(UserWarning, match="KNeighborsClassifier is certain in each of 60 rows"),
    ):
        student_of(teacher=neighbour).pilot_kernel(X, n_epochs=1)
    with (
        pytest.warns(SaturatedTeacherWarning),
        pytest.warns(UserWarning, match="teacher_logits is certain in each of 60 rows"),
    ):
        student_of().pilot_kernel(X, teacher_logits=50.0 * np.eye(3)[Y], n_epochs=1)


def test_labels_do_not_reach_held_out_scores():
    """Leave-one-out of random labels is at chance after a pilot, unless its logits hold them."""
    options = {"init": "network", "soft_ratios": [0.5], "temperatures": [1.0], "ridges": [0.1]}
    student = student_of(
        nn.Sequential(nn.Linear(5, 200), nn.ReLU(), nn.Linear(200, 1)),
        batch_size=None,
        lr=0.5,
        optimizer_params={"momentum": 0.9},
    )
    honest, seen = [], []
    for seed in range(4):
        y, z_t = np.random.default_rng(seed).integers(2, size=60), Z[:, 0] / 4
        for found, pilots in ((honest, z_t), (seen, 8.0 * y - 4)):
            kernel = student.pilot_kernel(X, teacher_logits=pilots, n_epochs=200)
            search = LinearizedKDStudentCV(kernel=kernel, **options)
            found.append(search.fit(X, y, teacher_logits=z_t).best_score_)
    assert np.mean(honest) < 0.6
    assert np.mean(seen) > 0.8


# Batch statistics


def test_batch_statistics_are_those_of_all_rows():
    student = student_of(functools.partial(small_cnn, 3), input_shape=(1, 8, 8), batch_size=20)
    z_t = IMAGES[:, :3]
    kernel = student.pilot_kernel(IMAGES, teacher_logits=z_t, n_epochs=2)
    network = kernel.module
    with torch.no_grad():
        hidden = network[0](torch.from_numpy(IMAGES).reshape(-1, 1, 8, 8))
    mean = hidden.mean(dim=(0, 2, 3))
    torch.testing.assert_close(network[1].running_mean, mean, rtol=0.02, atol=2e-3)
    assert network[1].momentum == 0.1
    assert not any(part.training for part in network.modules())
    assert kernel.input_shape == (1, 8, 8)
    kernel(IMAGES[:4])
    # in one batch they are exact
    settle_batch_statistics(network, torch.from_numpy(IMAGES).reshape(-1, 1, 8, 8), 50)
    torch.testing.assert_close(network[1].running_mean, mean)
    torch.testing.assert_close(network[1].running_var, hidden.var(dim=(0, 2, 3)))


def test_settling_changes_no_weights_and_draws_no_dropout():
    network = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in network.named_parameters()}
    rows = torch.from_numpy(X).float()
    settle_batch_statistics(network, rows, 15)
    mean = network[0](rows).mean(0)
    torch.testing.assert_close(network[2].running_mean, mean.detach())
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


# Several pilots


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_one_network_has_the_mean_kernel_and_outputs_of_several(n_outputs):
    networks = [
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, n_outputs)).double()
        for _ in range(3)
    ]
    kernels = [EmpiricalNTK(network) for network in networks]
    mean = EmpiricalNTK(MeanNetwork(networks))
    each = np.mean([kernel(X, X_NEW) for kernel in kernels], axis=0)
    np.testing.assert_allclose(mean(X, X_NEW), each, rtol=1e-10, atol=1e-12)
    outputs = np.mean([kernel.initial_outputs(X) for kernel in kernels], axis=0)
    np.testing.assert_allclose(mean.initial_outputs(X), outputs, atol=1e-12)
    np.testing.assert_allclose(mean.diag(X), np.diag(mean(X)), rtol=1e-10)
    full = np.mean([EmpiricalNTK(one, output="full")(X_NEW) for one in networks], axis=0)
    np.testing.assert_allclose(
        EmpiricalNTK(mean.module, output="full")(X_NEW), full, rtol=1e-10, atol=1e-12
    )


def test_the_mean_of_convolutional_networks():
    networks = [small_cnn(3).eval() for _ in range(2)]
    each = np.mean(
        [EmpiricalNTK(one, input_shape=(1, 8, 8))(IMAGES[:6]) for one in networks], axis=0
    )
    mean = EmpiricalNTK(MeanNetwork(networks).eval(), input_shape=(1, 8, 8))
    np.testing.assert_allclose(mean(IMAGES[:6]), each, rtol=1e-9)


def test_several_pilots_start_from_weights_of_their_own():
    student = student_of()
    kernel = student.pilot_kernel(X, teacher_logits=Z, n_epochs=2, n_pilots=3)
    first, *others = kernel.module.networks
    assert not torch.equal(first[0].weight, others[0][0].weight)
    alone = student.pilot_kernel(X, teacher_logits=Z, n_epochs=2)
    assert torch.equal(first[0].weight, alone.module[0].weight)
    each = np.mean([EmpiricalNTK(one)(X_NEW) for one in (first, *others)], axis=0)
    np.testing.assert_allclose(kernel(X_NEW), each, rtol=1e-10)
    again = student.pilot_kernel(X, teacher_logits=Z, n_epochs=2, n_pilots=3)
    np.testing.assert_array_equal(again(X_NEW), kernel(X_NEW))
    closed = LinearizedKDStudent(kernel=kernel, init="network", ridge=0.1)
    closed.fit(X, Y, teacher_logits=Z)
    z_0 = np.mean([EmpiricalNTK(one).initial_outputs(X) for one in (first, *others)], axis=0)
    np.testing.assert_allclose(closed.initial_logits_, z_0, atol=1e-10)


def test_several_pilots_of_given_weights_are_refused():
    with pytest.raises(ValueError, match="n_pilots=2 needs as many random starts"):
        student_of(SmallMLP(5, 3)).pilot_kernel(X, teacher_logits=Z, n_pilots=2)


@pytest.mark.parametrize("name", ["n_epochs", "n_pilots"])
def test_counts_are_checked(name):
    with pytest.raises(ValueError, match=f"'{name}' parameter of pilot_kernel"):
        student_of().pilot_kernel(X, teacher_logits=Z, **{name: 0})


def test_an_interrupted_pilot_is_none():
    class Interrupts(nn.Linear):
        n_calls = 0

        def forward(self, x):
            self.n_calls += 1
            if self.n_calls == 5:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        student_of(Interrupts(5, 3).double()).pilot_kernel(X, teacher_logits=Z)


def test_pilots_of_wide_networks_are_close_to_their_start():
    """The further the weights move, the more of the kernel that training sees is the pilot's."""
    build = functools.partial(wide_mlp, width=4096)

    def change(lr):
        student = student_of(build, lr=lr, batch_size=None)
        before = student.pilot_kernel(X, teacher_logits=Z, n_epochs=1)(X_NEW)
        after = student.pilot_kernel(X, teacher_logits=Z, n_epochs=20)(X_NEW)
        return np.linalg.norm(after - before) / np.linalg.norm(before)

    assert change(0.1) < 3 / math.sqrt(4096)
