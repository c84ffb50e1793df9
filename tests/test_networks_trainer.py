"""The reference trainer of benchmarks/networks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from torch import nn

from sklearn_kd.distillation import effective_logits

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "networks"))

from models import MLP, ResNet
from trainer import Recipe, Students, Training, distillation_loss, grid, train_grid

N = 24


@pytest.fixture(params=[2, 3])
def task(request):
    """Rows, labels and teacher logits of two or three classes, the number of outputs."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 4))
    n_classes = request.param
    z = 2 * X[:, :n_classes]
    y = (z + rng.standard_normal(z.shape)).argmax(1)
    return (X, y, z[:, 1] - z[:, 0], 1) if n_classes == 2 else (X, y, z, 3)


def mlp(n_outputs, width=8):
    return lambda generator: MLP(4, width, 2, n_outputs, generator)


def resnet(generator):
    return ResNet(2, 1, 3, generator)


def train(build, recipes, training, rows, **options):
    return Students(build, recipes, training, dtype=torch.float64).fit(*rows, **options)


def equation_2(z, z_t, y, rho, T, k):
    """Return Eq. 2 of one row as the paper writes it."""
    if np.ndim(z) == 0:

        def entropy(p, z):
            return -p * np.log(expit(z)) - (1 - p) * np.log(expit(-z))

        return rho * T**k * entropy(expit(z_t / T), z / T) + (1 - rho) * entropy(y, z)
    soft = -softmax(z_t / T) @ log_softmax(z / T)
    return rho * T**k * soft - (1 - rho) * log_softmax(z)[y]


@pytest.mark.parametrize(("scaling", "k"), [("none", 0), ("squared", 2)])
@pytest.mark.parametrize(("rho", "T"), [(0.3, 2.0), (1.0, 5.0), (0.0, 1.0)])
def test_loss_and_gradient_are_those_of_equation_2(task, scaling, k, rho, T):
    _, y, z_t, n_outputs = task
    is_binary = n_outputs == 1
    start = np.random.default_rng(1).standard_normal(z_t.shape)
    z = torch.tensor(start, requires_grad=True)
    targets = torch.as_tensor(y if is_binary else np.eye(3)[y]).double()
    loss = distillation_loss(z, torch.as_tensor(z_t), targets, rho, T, scaling, is_binary=is_binary)
    expected = [equation_2(*row, rho, T, k) for row in zip(start, z_t, y, strict=True)]
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
    loss.sum().backward()
    for index in np.ndindex(start.shape):
        step = np.zeros_like(start)
        step[index] = 1e-5
        row = index[0]
        up, down = (
            equation_2(moved[row], z_t[row], y[row], rho, T, k)
            for moved in (start + step, start - step)
        )
        assert z.grad[index] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def weights_after(build, rows, training, loss_of_rows, n_steps, scale):
    """Train a module with torch alone, full batch."""
    X, y, z_t, _ = rows
    module = build(torch.Generator().manual_seed(0)).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=training.learning_rate * scale)
    for _ in range(n_steps):
        optimizer.zero_grad()
        z = module(torch.as_tensor(X)).squeeze(-1)
        loss_of_rows(z, torch.as_tensor(z_t), torch.as_tensor(y)).backward()
        optimizer.step()
    return module(torch.as_tensor(X)).squeeze(-1).detach()


def test_soft_ratio_1_is_plain_distillation_and_0_plain_cross_entropy(task):
    *rows, n_outputs = task
    T = 3.0
    training = Training(0.2, epochs=5, momentum=0.0)
    recipes = [Recipe(1.0, T, 0), Recipe(0.0, T, 0), Recipe(1e-9, T, 0)]
    z = train(mlp(n_outputs), recipes, training, rows).logits(rows[0])

    def distillation(z, z_t, y):
        if n_outputs == 1:
            return nn.functional.binary_cross_entropy_with_logits(z / T, (z_t / T).sigmoid())
        return nn.functional.cross_entropy(z / T, (z_t / T).softmax(1))

    def cross_entropy(z, z_t, y):
        if n_outputs == 1:
            return nn.functional.binary_cross_entropy_with_logits(z, y.double())
        return nn.functional.cross_entropy(z, y)

    # The learning rate is per curvature: 1/T² for the soft term.
    expected = [
        weights_after(mlp(n_outputs), task, training, loss, 5, scale)
        for loss, scale in [(distillation, T**2), (cross_entropy, 1)]
    ]
    np.testing.assert_allclose(z[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(z[1], expected[1], atol=1e-12)
    np.testing.assert_allclose(z[2], z[1], atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("centred", [False, True])
def test_side_by_side_equals_one_by_one(task, batch_size, centred):
    *rows, n_outputs = task
    training = Training(0.2, epochs=6, batch_size=batch_size, weight_decay=1e-3, centred=centred)
    recipes = grid([0.9, 1.0], [1.0, 4.0], [0, 1])
    together = train(mlp(n_outputs), recipes, training, rows).logits(rows[0])
    for recipe, z in zip(recipes, together, strict=True):
        alone = train(mlp(n_outputs), [recipe], training, rows).logits(rows[0])
        np.testing.assert_allclose(z, alone[0], atol=1e-10)


def test_batch_statistics_are_each_students_own():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 3, 8, 8)), rng.integers(3, size=12), rng.normal(size=(12, 3))
    training = Training(0.1, epochs=3, batch_size=5)
    recipes = grid([0.5], [2.0], [0, 1])
    together = train(resnet, recipes, training, rows).logits(rows[0])
    for recipe, z in zip(recipes, together, strict=True):
        alone = train(resnet, [recipe], training, rows).logits(rows[0])
        np.testing.assert_allclose(z, alone[0], atol=1e-10)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(task, tmp_path):
    *rows, n_outputs = task
    validation = tuple(part[:10] for part in rows)
    training = Training(0.3, epochs=12, batch_size=7, schedule="cosine", patience=4)
    recipes = grid([0.7, 1.0], [2.0], [3, 4])
    whole = train(mlp(n_outputs), recipes, training, rows, validation=validation)
    options = {"validation": validation, "checkpoint": tmp_path / "students.pt", "seconds": 0}
    pieces, students = 0, None
    while students is None or not students.finished:
        students = train(mlp(n_outputs), recipes, training, rows, **options)
        pieces += 1
    assert pieces >= 5
    np.testing.assert_array_equal(students.logits(rows[0]), whole.logits(rows[0]))
    np.testing.assert_array_equal(students.epochs, whole.epochs)
    assert students.history == whole.history


def test_a_checkpoint_of_other_settings_is_refused(task, tmp_path):
    *rows, n_outputs = task
    file = tmp_path / "students.pt"
    recipes = [Recipe(1.0, 1.0, 0)]
    train(mlp(n_outputs), recipes, Training(0.1, epochs=2), rows, checkpoint=file)
    with pytest.raises(ValueError, match=r"students\.pt belongs to other rows or settings"):
        train(mlp(n_outputs), recipes, Training(0.2, epochs=2), rows, checkpoint=file)


def test_resumed_resnet_has_its_batch_statistics(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 3, 8, 8)), rng.integers(3, size=12), rng.normal(size=(12, 3))
    training = Training(0.1, epochs=3, batch_size=5)
    recipes = [Recipe(0.9, 2.0, 0)]
    whole = train(resnet, recipes, training, rows)
    for _ in range(3):
        resumed = train(resnet, recipes, training, rows, checkpoint=tmp_path / "a.pt", seconds=0)
    assert resumed.finished
    np.testing.assert_array_equal(resumed.logits(rows[0]), whole.logits(rows[0]))


def test_early_stopping_keeps_the_lowest_validation_loss(task):
    X, y, z_t, n_outputs = task
    noise = np.random.default_rng(2)
    validation = noise.standard_normal(X.shape), y, z_t  # cannot be learnt: the loss soon rises
    students = train(
        mlp(n_outputs, 64),
        grid([0.5, 1.0], [1.0], [0]),
        Training(0.3, epochs=60, patience=5),
        (X, y, z_t),
        validation=validation,
    )
    losses = np.array([look["validation_loss"] for look in students.history])
    for column, epoch in zip(losses.T, students.epochs, strict=True):
        seen = column[: epoch + 5]
        assert seen.argmin() + 1 == epoch < 60


def test_with_a_tolerance_the_student_reaches_the_effective_logits(task):
    *rows, n_outputs = task
    X, y, z_t = (part[:8] for part in rows)
    training = Training(0.3, epochs=20_000, tolerance=1e-2, check_every=50, centred=True)
    students = train(mlp(n_outputs, 32), [Recipe(0.7, 2.0, 0)], training, (X, y, z_t))
    assert students.finished
    assert students.epochs[0] < 20_000
    z = students.logits(X)[0]
    if n_outputs == 3:
        z = z - z.mean(1, keepdims=True)
    z_eff = effective_logits(z_t, y, soft_ratio=0.7, temperature=2.0)
    assert np.sqrt(np.mean((z - z_eff) ** 2)) < 1e-2


def test_centred_students_start_from_zero(task):
    *rows, n_outputs = task
    training = Training(0.1, epochs=1, centred=True)
    students = Students(mlp(n_outputs), [Recipe(1.0, 1.0, 0)], training, dtype=torch.float64)
    students._is_binary = n_outputs == 1
    assert (students.logits(rows[0]) == 0).all()
    assert (students.initial_logits(rows[0]) != 0).all()


def test_train_grid_resumes_and_keeps_results(task, tmp_path):
    *rows, n_outputs = task
    recipes = grid([0.5, 1.0], [1.0, 3.0], [0])
    training = Training(0.2, epochs=4)

    def run(seconds, folder, at_once=2, training=training):
        return train_grid(
            mlp(n_outputs), recipes, training, rows, evaluate=rows[0], folder=folder,
            at_once=at_once, seconds=seconds, dtype=torch.float64,
        )  # fmt: skip

    assert run(0, tmp_path / "a") is None
    while (result := run(1e-3, tmp_path / "a")) is None:
        pass
    logits, epochs = result
    expected, _ = run(np.inf, tmp_path / "b", at_once=None)
    np.testing.assert_allclose(logits, expected, atol=1e-10)
    assert (epochs == 4).all()
    with pytest.raises(ValueError, match="other rows or settings"):
        run(np.inf, tmp_path / "a", training=Training(0.1, epochs=4))


def test_errors_name_the_parameter(task, tmp_path):
    X, y, z_t, n_outputs = task
    recipes = [Recipe(1.0, 1.0, 0)]
    with pytest.raises(ValueError, match="patience=3 needs validation rows"):
        train(mlp(n_outputs), recipes, Training(0.1, epochs=1, patience=3), (X, y, z_t))
    with pytest.raises(ValueError, match=r"labels of shape .* do not go together"):
        train(mlp(n_outputs), recipes, Training(0.1, epochs=1), (X, y[:-1], z_t))
    with pytest.raises(ValueError, match="module without buffers"):
        Students(resnet, recipes, Training(0.1, epochs=1, centred=True))
    with pytest.raises(FloatingPointError, match=r"soft_ratio=1\.0.*learning_rate=1e\+30"):
        train_grid(
            mlp(n_outputs), recipes, Training(1e30, epochs=9), (X, y, z_t),
            evaluate=X, folder=tmp_path,
        )  # fmt: skip
