"""A torch module that is really trained on Eq. 2: the loop, the classifier, and their limits."""

import functools
import pickle
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import skorch.callbacks
import torch
from process_state import state_of_numpy
from recorder import Recorder
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch_modules import SmallMLP, small_cnn, wide_mlp

from sklearn_kd import LinearizedKDStudent, TorchStudent, TorchTeacher
from sklearn_kd.distillation import DistillationLoss
from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer
from sklearn_kd.training import match_stopping_time

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5))
X_NEW = RNG.normal(size=(30, 5))
Z = {2: 2 * X[:, 0] + X[:, 1] ** 2 - 1, 3: X[:, :3] * [2.0, 1.0, 1.0] - X[:, 3:4]}
Y = {
    2: (Z[2] + RNG.logistic(size=80) > 0).astype(int),
    3: (Z[3] + RNG.gumbel(size=(80, 3))).argmax(axis=1),
}
WEIGHTS = RNG.uniform(0.5, 2, size=80)
FULL_BATCH = {"batch_size": None, "max_epochs": 25, "lr": 0.3}


def mlp(n_outputs, seed=0):
    """Return an MLP with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, n_outputs)).double()


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_weights(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@parametrize_with_checks(
    [
        TorchStudent(SmallMLP, max_epochs=50, lr=0.5),
        TorchStudent(SmallMLP, LogisticRegression(), cv=3, batch_size=None, max_epochs=30, lr=0.5),
        TorchStudent(SmallMLP, batch_size=25, max_epochs=20, lr=1.0, validation_fraction=0.1),
    ],
    expected_failed_checks=lambda student: (
        {
            "check_sample_weight_equivalence_on_dense_data": (
                "copies of a row fall into other batches than the one row of their weight"
            ),
        }
        if student.batch_size == 25
        else {}
    ),
)
def test_sklearn_compatibility(estimator, check):
    check(estimator)


def by_hand(network, z_t, y, weights, *, optimizer, n_steps, recipe):
    """Train in the plainest of loops on the mean of Eq. 2 over all rows."""
    network = pickle.loads(pickle.dumps(network)).train()
    dtype = next(network.parameters()).dtype
    rows, z_t, w = (torch.from_numpy(a).to(dtype) for a in (X, z_t, weights))
    loss = DistillationLoss(**recipe, reduction="none")
    optimizer = optimizer(network.parameters())
    for _ in range(n_steps):
        optimizer.zero_grad()
        z = network(rows)
        if z_t.ndim == 1:
            z = z[:, 0] if z.shape[1] == 1 else z[:, 1] - z[:, 0]
        value = (w * loss(z, z_t, torch.from_numpy(y))).sum() / w.sum()
        value.backward()
        optimizer.step()
    return network.eval(), value.item()


@pytest.mark.parametrize("temperature_scaling", ["none", "squared"])
@pytest.mark.parametrize("soft_ratio", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("n_classes", "n_outputs"), [(2, 1), (2, 2), (3, 3)])
def test_training_is_that_of_a_plain_loop(n_classes, n_outputs, soft_ratio, temperature_scaling):
    recipe = {
        "soft_ratio": soft_ratio,
        "temperature": 3.0,
        "temperature_scaling": temperature_scaling,
    }
    network, y = mlp(n_outputs), Y[n_classes].copy()
    if n_classes == 3:
        y[::4] = -1
    student = TorchStudent(
        network, **recipe, **FULL_BATCH, optimizer_params={"momentum": 0.5}, random_state=0
    ).fit(X, y, WEIGHTS, teacher_logits=Z[n_classes])
    sgd = functools.partial(torch.optim.SGD, lr=0.3, momentum=0.5)
    expected, last_loss = by_hand(
        network,
        Z[n_classes],
        y,
        WEIGHTS,
        optimizer=sgd,
        n_steps=25,
        recipe=recipe,
    )
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.module_.state_dict()[name], value, rtol=0, atol=1e-12)
    assert student.history_[-1, "train_loss"] == pytest.approx(last_loss, abs=1e-12)
    assert student.n_epochs_ == len(student.history_) == 25
    rows = torch.from_numpy(X_NEW)
    outputs = expected(rows).detach().numpy()
    logits = student.decision_function(X_NEW)
    if n_classes == 3:
        outputs = outputs - outputs.mean(axis=1, keepdims=True)
    else:
        outputs = outputs[:, 0] if n_outputs == 1 else outputs[:, 1] - outputs[:, 0]
    np.testing.assert_allclose(logits, outputs, atol=1e-11)


def test_single_precision_agrees_with_a_plain_loop_too():
    network = mlp(3).float()
    recipe = {"soft_ratio": 0.6, "temperature": 2.0}
    student = TorchStudent(network, **recipe, **FULL_BATCH).fit(
        X, Y[3], teacher_logits=Z[3].astype(np.float32)
    )
    sgd = functools.partial(torch.optim.SGD, lr=0.3)
    expected, _ = by_hand(
        network, Z[3], Y[3], np.ones(80), optimizer=sgd, n_steps=25, recipe=recipe
    )
    for name, value in expected.state_dict().items():
        assert student.module_.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(student.module_.state_dict()[name], value, rtol=0, atol=1e-6)
    assert student.fit_report_.dtype == "float32"


def test_other_optimizers_are_torchs():
    for optimizer in ("Adam", torch.optim.Adam, functools.partial(torch.optim.Adam)):
        student = TorchStudent(
            mlp(1), optimizer=optimizer, lr=0.01, optimizer_params={"betas": (0.8, 0.9)},
            batch_size=None, max_epochs=10,
        ).fit(X, Y[2], teacher_logits=Z[2])  # fmt: skip
        adam = functools.partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.9))
        recipe = {"soft_ratio": 0.9, "temperature": 2.0}
        expected, _ = by_hand(
            mlp(1), Z[2], Y[2], np.ones(80), optimizer=adam, n_steps=10, recipe=recipe
        )
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(student.module_.state_dict()[name], value)


def distance_from_the_closed_form(width, seed, n_epochs=100):
    """Return how far training ends from the linearized student, of the way that it has come."""
    network = wide_mlp(5, 2, width, torch.Generator().manual_seed(seed))
    student = TorchStudent(
        network, soft_ratio=0.5, lr=0.1, max_epochs=n_epochs, batch_size=None
    ).fit(X, Y[2], teacher_logits=Z[2])
    kernel = EmpiricalNTK(network)
    closed = LinearizedKDStudent(
        kernel=kernel, init="network", soft_ratio=0.5, stopping_time=student.stopping_time(80)
    ).fit(X, Y[2], teacher_logits=Z[2])
    f = closed.decision_function(X_NEW)
    way = f - kernel.initial_outputs(X_NEW)
    return np.sqrt(np.mean((student.decision_function(X_NEW) - f) ** 2) / np.mean(way**2))


def test_a_wide_network_ends_at_the_closed_form():
    narrow, wide = (
        np.mean([distance_from_the_closed_form(width, seed) for seed in range(2)])
        for width in (256, 4096)
    )
    assert wide < 0.005
    assert wide < narrow / 2  # √16 = 4 on the average, the slow test below


@pytest.mark.slow
def test_the_distance_from_the_closed_form_falls_at_least_as_one_over_root_width():
    widths = 2 ** np.arange(6, 15, 2)
    distances = [
        np.exp(np.mean([np.log(distance_from_the_closed_form(w, s, 300)) for s in range(8)]))
        for w in widths
    ]
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert -1.1 < slope < -0.5  # 1/√width is the bound
    assert distances[-1] < 1e-3


# Seeds, starts and copies


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    def fitted(seed, module=SmallMLP):
        student = TorchStudent(module, batch_size=16, max_epochs=3, random_state=seed)
        return student.fit(X, Y[3], teacher_logits=Z[3]).module_

    assert same_weights(fitted(0), fitted(0))
    assert not same_weights(fitted(0), fitted(1))
    # of a network that is given, seeds only order the rows
    assert same_weights(fitted(0, mlp(3)), fitted(0, mlp(3)))
    assert not same_weights(fitted(0, mlp(3)), fitted(1, mlp(3)))
    assert not same_weights(fitted(None), fitted(None))
    state = np.random.RandomState(0)
    assert not same_weights(fitted(state), fitted(state))


def test_dropout_follows_the_seed():
    def fitted(seed):
        module = nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, 1))
        module.load_state_dict(start)
        student = TorchStudent(module, batch_size=None, max_epochs=3, random_state=seed)
        return student.fit(X, Y[2], teacher_logits=Z[2]).module_

    start = nn.Sequential(nn.Linear(5, 9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, 1)).state_dict()
    assert same_weights(fitted(0), fitted(0))
    assert not same_weights(fitted(0), fitted(1))


def test_the_weights_of_a_module_are_the_start_and_stay_as_they_are():
    network = mlp(1)
    network.train()
    before = weights_of(network)
    student = TorchStudent(network, lr=1e-12, max_epochs=1).fit(X, Y[2], teacher_logits=Z[2])
    for name, value in student.module_.state_dict().items():
        torch.testing.assert_close(value, before[name])
    student.set_params(lr=0.5, max_epochs=5).fit(X, Y[2], teacher_logits=Z[2])
    assert student.module_ is not network
    assert not same_weights(student.module_, network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not student.module_.training
    assert all(parameter.grad is None for parameter in student.module_.parameters())
    # fitted again it starts again; further training is that of the trained module
    again = clone(student).fit(X, Y[2], teacher_logits=Z[2])
    assert not same_weights(
        TorchStudent(student.module_, max_epochs=5).fit(X, Y[2], teacher_logits=Z[2]).module_,
        again.module_,
    )


def test_frozen_parameters_stay():
    network = mlp(1)
    network[0].requires_grad_(False)
    student = TorchStudent(network, optimizer_params={"weight_decay": 0.1}, lr=0.5)
    student.fit(X, Y[2], teacher_logits=Z[2])
    assert same_weights(student.module_[0], network[0])
    assert not same_weights(student.module_[2], network[2])


def test_a_function_is_given_what_it_asks_for():
    seen = []

    def build(n_classes, generator, width=7, **options):
        seen.append((n_classes, generator.initial_seed(), width, options))
        return nn.Sequential(nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(n_classes))

    student = TorchStudent(build, random_state=3).fit(X, Y[3], teacher_logits=Z[3])
    assert seen[0][0] == 3
    assert seen[0][2:] == (7, {})
    assert student.module_[0].in_features == 5
    student.fit(X, Y[3], teacher_logits=Z[3])
    assert seen[0] == seen[1]

    fixed = functools.partial(nn.Linear, 5, 1)
    assert TorchStudent(fixed).fit(X, Y[2], teacher_logits=Z[2]).module_.in_features == 5
    with pytest.raises(TypeError, match=r"needs the argument 'in_features'.*functools.partial"):
        TorchStudent(nn.Linear).fit(X, Y[2], teacher_logits=Z[2])
    with pytest.raises(TypeError, match="returned a list"):
        TorchStudent(list).fit(X, Y[2], teacher_logits=Z[2])


def test_the_random_state_of_the_process_is_left_alone():
    np.random.seed(7)  # noqa: NPY002 - the state that must not matter
    torch.manual_seed(7)
    numpys, torchs = state_of_numpy(), torch.get_rng_state()
    for seed in (0, None):
        student = TorchStudent(SmallMLP, batch_size=16, max_epochs=2, random_state=seed)
        student.fit(X, Y[2], teacher_logits=Z[2]).predict(X)
        student.pilot_kernel(X, teacher_logits=Z[2], n_epochs=1)
    assert state_of_numpy() == numpys
    assert torch.equal(torch.get_rng_state(), torchs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_of_the_process_do_not_matter(mode):
    expected = TorchStudent(mlp(1), random_state=0).fit(X, Y[2], teacher_logits=Z[2])
    network = mlp(1)
    with mode(), torch.device("meta"):
        student = TorchStudent(network, random_state=0).fit(X, Y[2], teacher_logits=Z[2])
        logits = student.decision_function(X_NEW)
    np.testing.assert_array_equal(logits, expected.decision_function(X_NEW))


def test_clones_and_pickles():
    student = TorchStudent(mlp(3), random_state=0)
    copy = clone(student)
    assert copy.module is not student.module
    assert not hasattr(copy, "module_")
    student.fit(X, Y[3], teacher_logits=Z[3])
    loaded = pickle.loads(pickle.dumps(student))
    np.testing.assert_array_equal(loaded.predict_proba(X_NEW), student.predict_proba(X_NEW))
    assert loaded.history_[:, "train_loss"] == student.history_[:, "train_loss"]
    assert same_weights(copy.fit(X, Y[3], teacher_logits=Z[3]).module_, student.module_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    student = TorchStudent(mlp(1).to(dtype), lr=0.3).fit(X, Y[2], teacher_logits=Z[2])
    assert next(student.module_.parameters()).dtype == dtype
    assert student.history_[-1, "train_loss"] < student.history_[0, "train_loss"]
    assert student.decision_function(X_NEW).dtype == np.float64


# Rows, teachers and images


def test_rows_without_a_label_are_learnt_from_the_teacher_alone():
    y = Y[3].copy()
    y[::2] = -1
    student = TorchStudent(mlp(3), soft_ratio=0.5, **FULL_BATCH)
    student.fit(X, y, teacher_logits=Z[3])
    assert student.fit_report_.n_unlabelled_rows == 40
    assert student.score(X, y) == np.mean(student.predict(X[1::2]) == y[1::2])
    # the labels that are missing do not matter to the weights, those that are there do
    hidden = TorchStudent(mlp(3), soft_ratio=1.0, **FULL_BATCH).fit(X, Y[3], teacher_logits=Z[3])
    nearly = y.copy()
    nearly[:] = -1
    nearly[:2] = [0, 1]
    few = TorchStudent(mlp(3), soft_ratio=0.0, **FULL_BATCH)
    few.fit(X, nearly, np.r_[1e-12, 1e-12, np.ones(78)], teacher_logits=Z[3], classes=[0, 1, 2])
    for name, value in hidden.module_.state_dict().items():
        assert not torch.equal(few.module_.state_dict()[name], value)
    full = TorchStudent(mlp(3), soft_ratio=1.0, **FULL_BATCH).fit(
        X, nearly, np.r_[1e-12, 1e-12, np.ones(78)], teacher_logits=Z[3], classes=[0, 1, 2]
    )
    np.testing.assert_allclose(
        few.decision_function(X_NEW), full.decision_function(X_NEW), atol=1e-9
    )


def test_rows_of_weight_zero_are_not_there():
    weights = np.where(np.arange(80) < 60, 2.0, 0.0)
    student = TorchStudent(mlp(3), **FULL_BATCH).fit(X, Y[3], weights, teacher_logits=Z[3])
    fewer = TorchStudent(mlp(3), **FULL_BATCH).fit(X[:60], Y[3][:60], teacher_logits=Z[3][:60])
    assert same_weights(student.module_, fewer.module_)
    assert student.fit_report_.n_zero_weight_rows == 20


def test_teachers_of_all_kinds():
    logistic = LogisticRegression()
    options = {"soft_ratio": 0.7, "random_state": 0}
    cross_fitted = TorchStudent(mlp(3), logistic, cv=4, **options).fit(X, Y[3])
    closed = LinearizedKDStudent(logistic, cv=4, soft_ratio=0.7).fit(X, Y[3])
    np.testing.assert_array_equal(cross_fitted.teacher_logits_, closed.teacher_logits_)
    assert cross_fitted.fit_report_.cross_fitted_teacher
    np.testing.assert_array_equal(cross_fitted.teacher_.coef_, closed.teacher_.coef_)

    frozen = FrozenEstimator(LogisticRegression().fit(X_NEW, Z[3][:30].argmax(axis=1)))
    student = TorchStudent(mlp(3), frozen, **options).fit(X, Y[3])
    given = TorchStudent(mlp(3), **options).fit(X, Y[3], teacher_logits=frozen.decision_function(X))
    assert same_weights(student.module_, given.module_)
    assert given.teacher_ is None

    several = TorchStudent(mlp(3), [frozen, TorchTeacher(mlp(3, seed=1), [0, 1, 2])], **options)
    mean = LinearizedKDStudent(several.teacher, soft_ratio=0.7).fit(X, Y[3])
    several.fit(X, Y[3])
    np.testing.assert_allclose(several.teacher_logits_, mean.teacher_logits_, atol=1e-12)
    assert several.fit_report_.teacher_weights == (0.5, 0.5)
    np.testing.assert_allclose(
        several.teacher_decision_function(X_NEW), mean.teacher_decision_function(X_NEW), atol=1e-12
    )
    with pytest.raises(AttributeError, match="student in closed form"):
        neg_data_inefficiency_scorer(several, X, Y[3])
    assert neg_transfer_risk_scorer(several, X_NEW, Z[3][:30].argmax(axis=1)) <= 0

    assert TorchStudent(mlp(2)).fit(X, Y[2]).teacher_.__class__.__name__ == "NTKTeacher"


def test_labels_of_any_kind_in_their_order():
    names = np.array(["b", "c", "a"])[Y[3]]
    order = [2, 0, 1]  # the columns of a, b, c
    student = TorchStudent(mlp(3), **FULL_BATCH).fit(X, names, teacher_logits=Z[3][:, order])
    assert student.classes_.tolist() == ["a", "b", "c"]
    assert set(student.predict(X_NEW)) <= set("abc")
    assert (student.predict(X) == names).mean() > 0.5


def test_images_through_their_shape():
    images, y = load_digits(n_class=3, return_X_y=True)
    images = (images / 16).astype(np.float32)
    teacher = FrozenEstimator(LogisticRegression().fit(images[:200], y[:200]))
    student = TorchStudent(
        functools.partial(small_cnn, 3), teacher, input_shape=(1, 8, 8), random_state=0
    )
    student.fit(images[200:], y[200:])
    assert student.score(images[:200], y[:200]) > 0.95
    # batch statistics in training, their running average in prediction
    assert student.module_[1].num_batches_tracked > 0
    np.testing.assert_allclose(
        student.decision_function(images[:7]), student.decision_function(images[:20])[:7], atol=1e-5
    )
    with pytest.raises(ValueError, match=r"64 features, but input_shape=\(3, 8, 8\) needs 192"):
        clone(student).set_params(input_shape=(3, 8, 8)).fit(images, y)


def test_a_single_last_row_does_not_stop_batch_normalisation():
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    student = TorchStudent(network, batch_size=79, max_epochs=2)
    student.fit(X, Y[2], teacher_logits=Z[2])
    assert student.module_[1].num_batches_tracked == 2
    assert student.history_[:, "train_batch_count"] == [1, 1]


def test_tokens():
    def tokens():
        return nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 1))

    ids = RNG.integers(9, size=(60, 4))
    y = (ids[:, 0] > 4).astype(int)
    student = TorchStudent(tokens, lr=1.0, max_epochs=100, random_state=0).fit(
        ids, y, teacher_logits=4.0 * y - 2
    )
    assert student.score(ids, y) > 0.9
    with pytest.raises(ValueError, match=r"X\[0, 0\]=9 is not a token id"):
        student.predict(ids + 9)


# The training loop


def test_early_stopping_keeps_the_best_weights():
    student = TorchStudent(
        mlp(3), soft_ratio=0.2, lr=2.0, max_epochs=300, validation_fraction=0.3, random_state=0
    ).fit(X, Y[3], teacher_logits=Z[3])
    losses = np.array(student.history_[:, "valid_loss"])
    assert student.n_epochs_ == len(losses) < 300
    assert len(losses) - 1 - losses.argmin() == 10
    assert student.fit_report_.n_held_out_rows == 24
    assert not student.fit_report_.interrupted
    best = clone(student).set_params(max_epochs=int(losses.argmin()) + 1)
    assert same_weights(best.fit(X, Y[3], teacher_logits=Z[3]).module_, student.module_)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.99 holds all 80 rows out"):
        clone(student).set_params(validation_fraction=0.99).fit(X, Y[3], teacher_logits=Z[3])


def test_callbacks_of_skorch(capsys):
    student = TorchStudent(
        mlp(1),
        callbacks=[
            skorch.callbacks.LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
            ("mine", skorch.callbacks.EarlyStopping("valid_loss", patience=2, threshold=0.9)),
        ],
        validation_fraction=0.2,
        max_epochs=50,
        random_state=0,
    ).fit(X, Y[2], teacher_logits=Z[2])
    assert student.history_[:3, "event_lr"] == [0.1, 0.05, 0.025]
    assert student.n_epochs_ == 3  # the user's patience, not 10
    capsys.readouterr()
    TorchStudent(mlp(1), max_epochs=2).fit(X, Y[2], teacher_logits=Z[2])
    assert capsys.readouterr().out == ""
    TorchStudent(mlp(1), max_epochs=2, callbacks=[skorch.callbacks.PrintLog()]).fit(
        X, Y[2], teacher_logits=Z[2]
    )
    assert "train_loss" in capsys.readouterr().out


def test_progress_is_told_by_epoch():
    recorder = Recorder()
    student = TorchStudent(mlp(1), LogisticRegression(), cv=3, max_epochs=4)
    student.set_callbacks(recorder).fit(X, Y[2])
    tasks = [task for name, task in recorder.begun() if name == "TorchStudent"]
    assert tasks.count("epoch") == 4
    assert recorder.n_announced == 3 + 1 + 4


class Interrupts(skorch.callbacks.Callback):
    """Sends SIGINT in the middle of an epoch."""

    def __init__(self, n_batches):
        self.n_batches = n_batches

    def initialize(self):
        self.left_ = self.n_batches
        return self

    def on_batch_end(self, net, **kwargs):
        self.left_ -= 1
        if self.left_ == 0:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_the_weights_so_far(ctrl_c):
    student = TorchStudent(
        mlp(3), batch_size=20, max_epochs=50, callbacks=[Interrupts(10)], random_state=0
    )
    with pytest.warns(UserWarning, match="interrupted in epoch 3 of 50") as caught:
        student.fit(X, Y[3], teacher_logits=Z[3])
    assert caught[0].filename == __file__
    assert student.n_epochs_ == len(student.history_[:, "train_loss"]) == 2
    assert student.fit_report_.interrupted
    assert student.predict_proba(X_NEW).shape == (30, 3)
    assert not student.module_.training
    done = clone(student).set_params(callbacks=None, max_epochs=2)
    assert not same_weights(done.fit(X, Y[3], teacher_logits=Z[3]).module_, student.module_)


def test_ctrl_c_in_the_first_epoch_and_in_the_teacher(ctrl_c):
    student = TorchStudent(mlp(1), batch_size=20, callbacks=[Interrupts(1)])
    with pytest.warns(UserWarning, match="interrupted in epoch 1 of 20"):
        student.fit(X, Y[2], teacher_logits=Z[2])
    assert student.n_epochs_ == 0
    student.predict(X_NEW)

    class Slow(LogisticRegression):
        def fit(self, X, y):
            signal.raise_signal(signal.SIGINT)

    student = TorchStudent(mlp(1), Slow())
    with pytest.raises(KeyboardInterrupt):
        student.fit(X, Y[2])
    assert not hasattr(student, "classes_")


def test_ctrl_c_ends_a_cross_fitting(ctrl_c):
    teacher = TorchStudent(mlp(1), LogisticRegression(), callbacks=[Interrupts(3)])
    with pytest.raises(KeyboardInterrupt):
        LinearizedKDStudent(teacher).fit(X, Y[2])


def test_ctrl_c_ends_a_search(ctrl_c):
    search = GridSearchCV(
        TorchStudent(mlp(1), LogisticRegression(), callbacks=[Interrupts(3)]),
        {"soft_ratio": [0.5, 0.9]},
        cv=2,
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y[2])


# Searches and routing


def test_grid_search_in_a_pipeline():
    student = TorchStudent(SmallMLP, LogisticRegression(), cv=3, lr=0.5, random_state=0)
    grid = {"torchstudent__soft_ratio": [0.3, 0.9], "torchstudent__temperature": [1.0, 3.0]}
    search = GridSearchCV(make_pipeline(StandardScaler(), student), grid, cv=3)
    search.fit(100 * X, Y[3])
    assert search.best_score_ > 0.4
    assert search.best_estimator_[-1].fit_report_.soft_ratio in (0.3, 0.9)
    grid = {"optimizer_params": [{}, {"momentum": 0.9}], "batch_size": [20, None]}
    search = GridSearchCV(student, grid, cv=2).fit(X, Y[3])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_metadata_is_routed():
    weights = np.where(np.arange(80) % 3, 1.0, 0.5)
    with config_context(enable_metadata_routing=True):
        student = TorchStudent(mlp(3), batch_size=None, random_state=0)
        student.set_fit_request(teacher_logits=True, sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), student)
        pipeline.fit(X, Y[3], teacher_logits=Z[3], sample_weight=weights)
        rows = StandardScaler().fit_transform(X)
        alone = clone(student).fit(rows, Y[3], weights, teacher_logits=Z[3])
        assert same_weights(pipeline[-1].module_, alone.module_)
        search = GridSearchCV(
            student.set_score_request(sample_weight=True), {"soft_ratio": [0.5, 1.0]}, cv=2
        )
        search.fit(X, Y[3], teacher_logits=Z[3], sample_weight=weights)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    scores = cross_val_score(TorchStudent(mlp(3)), X, Y[3], cv=2, params={"teacher_logits": Z[3]})
    assert np.isfinite(scores).all()


# What is refused


def is_refused(match, error=ValueError, y=None, rows=X, **params):
    student = TorchStudent(**{"module": mlp(3), **params})
    before = dict(vars(student))
    with pytest.raises(error, match=match):
        student.fit(rows, Y[3] if y is None else y, teacher_logits=Z[3] if y is None else None)
    assert vars(student) == before


def test_mistakes_are_named_before_anything_is_fitted():
    class NeverFitted(LogisticRegression):
        def fit(self, X, y):
            raise AssertionError("too late")

    teacher = {"teacher": NeverFitted(), "y": Y[3]}
    is_refused("has 4 outputs per row, but 3 classes need 3", module=mlp(4), **teacher)
    is_refused("has 1 output per row, but 3 classes need 3", module=mlp(1), **teacher)
    is_refused("needs? 1 or 2", module=mlp(3), teacher=NeverFitted(), y=Y[2])
    is_refused("failed on a batch of 2 rows of shape", module=nn.Linear(7, 3).double(), **teacher)
    softmax = nn.Sequential(mlp(3), nn.Softmax(dim=1))
    is_refused("ends in a Softmax and returns probabilities", module=softmax, **teacher)
    is_refused("no parameter with requires_grad", module=mlp(3).requires_grad_(False), **teacher)
    is_refused("optimizer='sgd' is none of torch.optim", optimizer="sgd", **teacher)
    is_refused(
        "optimizer=SGD does not take lr=0.1 and optimizer_params={'betas': 1}",
        optimizer_params={"betas": 1},
        **teacher,
    )
    is_refused("optimizer_params=.* holds lr", optimizer_params={"lr": 1.0}, **teacher)
    is_refused("'lr' parameter", lr=0.0, **teacher)
    is_refused("'module' parameter", module="mlp", **teacher)
    is_refused("'soft_ratio' parameter", soft_ratio=1.1, **teacher)
    is_refused(r"input_shape=\(80, 5\), in TorchStudent", rows=np.zeros((80, 80, 5)), **teacher)
    is_refused(r"callbacks\[0\]=3 is no callback", TypeError, callbacks=[3], **teacher)
    broken = mlp(3)
    broken[0].weight.data[0, 0] = torch.nan
    is_refused("returned NaN or infinity", module=broken, **teacher)
    is_refused("returned a tuple", TypeError, module=nn.GRU(5, 3).double(), **teacher)


@pytest.mark.parametrize("batch_size", [None, 20])
def test_divergence_is_an_error_that_leaves_nothing(batch_size):
    fitted = TorchStudent(mlp(3), random_state=0).fit(X, Y[3], teacher_logits=Z[3])
    relu = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))
    for student in (TorchStudent(mlp(3)), fitted):
        student.set_params(module=relu, lr=1e30, batch_size=batch_size)
        before = dict(vars(student))
        with pytest.raises(ValueError, match=r"not finite in epoch \d+: lr=1e\+30 is too large"):
            student.fit(X, Y[3], teacher_logits=Z[3])
        assert vars(student) == before


def test_without_skorch_there_is_a_line_that_installs_it():
    code = """
    import sys
    sys.modules["skorch"] = None
    import torch
    import sklearn_kd
    student = sklearn_kd.TorchStudent(torch.nn.Linear(2, 1))
    try:
        student.fit([[0.0, 1.0], [1.0, 0.0]], [0, 1], teacher_logits=[-1.0, 1.0])
    except ImportError as error:
        print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "pip install 'sklearn_kd[networks]'" in run.stdout


# The training time


def test_the_training_time_is_that_of_its_steps():
    student = TorchStudent(mlp(1), lr=0.1, batch_size=32, max_epochs=4)
    assert student.stopping_time(80) == pytest.approx(0.1 * 3 * 4)
    assert student.stopping_time(80, n_epochs=2) == pytest.approx(0.1 * 3 * 2)
    student.set_params(optimizer_params={"momentum": 0.9, "nesterov": True})
    assert student.stopping_time(80) == pytest.approx(12.0)
    student.set_params(validation_fraction=0.25, batch_size=None)
    assert student.stopping_time(80) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"optimizer": "Adam"}, "optimizer=Adam is not torch.optim.SGD"),
        ({"optimizer": functools.partial(torch.optim.SGD)}, "is not torch.optim.SGD"),
        ({"optimizer_params": {"weight_decay": 0.1}}, "holds weight_decay=0.1"),
        ({"optimizer_params": {"momentum": 0.5, "dampening": 0.5}}, "holds dampening=0.5"),
        ({"callbacks": [skorch.callbacks.LRScheduler()]}, "callbacks change the learning rate"),
    ],
)
def test_what_has_no_training_time(params, match):
    with pytest.raises(ValueError, match=f"{match}.*match_stopping_time"):
        TorchStudent(mlp(1), **params).stopping_time(80)


def test_the_training_time_of_adam_is_found_by_the_loss():
    network = wide_mlp(5, 2, 512, torch.Generator().manual_seed(0))
    adam = TorchStudent(network, optimizer="Adam", lr=0.01, batch_size=None, max_epochs=15)
    adam.fit(X, Y[2], teacher_logits=Z[2])
    times = np.geomspace(0.1, 1000, 9)
    closed = LinearizedKDStudent(kernel=EmpiricalNTK(network), init="network", stopping_time=times)
    closed.fit(X, Y[2], teacher_logits=Z[2])
    time = match_stopping_time(closed, adam.history_[-1, "train_loss"])
    assert 0.1 < time < 1000
