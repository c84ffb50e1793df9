"""The problems of `surrogate_choice.py`: rows, a teacher, networks, and how these are trained.

The first nine have two classes and the paper's loss (no factor T²):

* pairs of MNIST digits, an MLP in the parametrisation of Eq. 1, a teacher of 200 other rows; true
  labels or a fifth of them flipped; trained long enough to overfit them, or stopped early;
* pairs of CIFAR-10 classes and a thin ResNet with batch normalisation; human annotators' labels
  (CIFAR-10N "worse") and a published ResNet-20 as teacher, or true labels and a teacher of 200
  rows.

The others have the loss that most people use, with T² before the soft term:

* ten MNIST digits and an MLP, true labels or a fifth of them flipped;
* a pair of digits, a fifth flipped: an MLP as torch initialises it, trained by Adam; and a small
  CNN without normalisation;
* ten classes of CIFAR-10 and a thin ResNet, true labels or annotators', with a ResNet that was
  trained on 10 000 other images as teacher;
* the same network, pretrained on five classes and distilled on the other five.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from _networks import cifar10, imperfect_teacher, or_stop, resnet20_logits
from models import CNN, MLP, DefaultMLP, ResNet
from sklearn.datasets import fetch_openml
from sklearn.linear_model import LogisticRegression
from trainer import Recipe, Students, Training

SOFT_RATIOS, TEMPERATURES = [0.3, 0.7, 0.9, 0.97, 1.0], [1.0, 3.0, 10.0]
# At ρ = 1 the closed form does not depend on T, so that networks are trained at one.
T_SOFT = 3.0
CELLS = [(rho, T) for rho in SOFT_RATIOS for T in TEMPERATURES if rho < 1 or T == T_SOFT]
# What people use by habit, and Hinton's even mixture: trained too, but not in the grid.
HABITS = [(0.9, 4.0), (0.5, 4.0)]
MNIST_PAIRS = [(4, 9), (3, 5)]
CIFAR_PAIRS = [(1, 9), (3, 5)]
CIFAR_CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
N_TAUGHT = 200  # rows of the teachers that are trained here, for two classes
N_TAUGHT_TEN = 500  # and for ten
N_VALIDATION = 300  # for early stopping
N_TEACHER_IMAGES = 10_000


@dataclass
class Rows:
    """Rows of one problem."""

    X: np.ndarray  # (n, ...)
    labels: np.ndarray  # (n,) that a student or a validation is given
    teacher_logits: np.ndarray  # (n,), or (n, K)
    y: np.ndarray  # (n,) true labels


@dataclass
class Problem:
    """Rows, the networks to train on them and how, and the depth of the NTK beside them."""

    name: str
    train: Rows
    test: Rows
    validation: Rows | None
    build: Any
    training: Training
    input_shape: tuple[int, ...]
    depth: int
    at_once: int | None = None  # networks trained side by side; None is all
    habits: list = field(default_factory=lambda: HABITS)
    # Fewer where kernels are slow: of convolutions with many outputs.
    n_pilots: int = 3
    n_asked: int = 2000  # test rows that surrogates are asked about

    @property
    def n_classes(self):
        return 2 if self.train.teacher_logits.ndim == 1 else self.train.teacher_logits.shape[1]


def teacher_accuracy(rows):
    z = rows.teacher_logits
    return ((z > 0 if z.ndim == 1 else z.argmax(1)) == rows.y).mean()


def mnist(folder):
    """Return MNIST images (n, 784), the mean image taken away, of unit variance, and digits."""
    if folder is None:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
    else:
        with np.load(folder / "mnist" / "mnist.npz") as file:
            X, y = file["X_train"].reshape(-1, 784), file["y_train"]
    X = X.astype(np.float32) - X.mean(0, dtype=np.float32)
    return X / X.std(), y.astype(int)


def shuffled(y, pair):
    """Return the positions of a pair of classes in random order, and whether they are the second.

    The order depends on the pair alone, so that problems of one pair share their rows.
    """
    rows = np.random.default_rng(pair).permutation(np.flatnonzero(np.isin(y, pair)))
    return rows, (y == pair[1]).astype(int)


def weakly_taught(X, y, pair, flipped, n_rows, n_validation):
    """Return training, validation and test rows; the teacher is a regression on a few others."""
    rows, y = shuffled(y, pair)
    flat = X.reshape(len(X), -1)
    teacher = LogisticRegression(C=0.1).fit(flat[rows[:N_TAUGHT]], y[rows[:N_TAUGHT]])
    rows = rows[N_TAUGHT:]
    flips = np.random.default_rng(sum(pair)).random(len(rows)) < flipped
    everything = Rows(
        X[rows],
        np.where(flips, 1 - y[rows], y[rows]),
        teacher.decision_function(flat[rows]),
        y[rows],
    )
    return split(everything, np.cumsum([n_rows, n_validation]))


def weakly_taught_ten(X, y, flipped, n_rows, n_test):
    """Return training and test rows of all ten digits; likewise."""
    rng = np.random.default_rng(10)
    rows = rng.permutation(len(X))[: N_TAUGHT_TEN + n_rows + n_test]
    few, rows = rows[:N_TAUGHT_TEN], rows[N_TAUGHT_TEN:]
    teacher = LogisticRegression(C=0.01, max_iter=1000).fit(X[few], y[few])
    moved = (y[rows] + rng.integers(1, 10, len(rows))) % 10
    labels = np.where(rng.random(len(rows)) < flipped, moved, y[rows])
    return split(Rows(X[rows], labels, teacher.decision_function(X[rows]), y[rows]), [n_rows])


def split(rows, bounds):
    parts = (np.split(part, bounds) for part in vars(rows).values())
    return [Rows(*part) for part in zip(*parts, strict=True)]


def annotated(X, y, z, noisy, pair, n_rows):
    """Return training rows that annotators gave one of two classes, and all others as test rows."""
    rows, y = shuffled(y, pair)
    train = rows[np.isin(noisy[rows], pair)][:n_rows]
    rows = np.concatenate([train, np.setdiff1d(rows, train)])
    z_t = z[rows, pair[1]] - z[rows, pair[0]]
    return split(Rows(X[rows], (noisy[rows] == pair[1]).astype(int), z_t, y[rows]), [len(train)])


def problems(arguments, clock):
    """Yield all problems."""
    yield from digits(arguments)
    yield from pairs_of_images(arguments)
    yield from ten_digits(arguments)
    yield from other_networks(arguments)
    yield from ten_images(arguments, clock)


def digits(arguments):
    X, y = mnist(arguments.data)
    long = Training(2.0, epochs=arguments.epochs, batch_size=100, schedule="cosine", check_every=5)
    stopped = Training(1.0, epochs=60, batch_size=100, patience=5)

    def mlp(generator):
        return MLP(784, arguments.width, 2, 1, generator)

    for pair in MNIST_PAIRS[: arguments.pairs]:
        for flipped, training in ((0.0, long), (0.2, long), (0.2, stopped)):
            name = f"MNIST {pair[0]}/{pair[1]}, " + ("20 % flipped" if flipped else "true labels")
            name += ", stopped early" * (training is stopped)
            train, validation, test = weakly_taught(
                X, y, pair, flipped, arguments.rows, N_VALIDATION
            )
            validation = validation if training is stopped else None
            yield Problem(name, train, test, validation, mlp, training, (784,), 2)


def pairs_of_images(arguments):
    X, y = cifar10(arguments.data, arguments.side)
    training = Training(0.1, epochs=arguments.resnet_epochs, batch_size=100, schedule="cosine")

    def thin(generator):
        return ResNet(arguments.channels, 1, 1, generator)

    for index, pair in enumerate(CIFAR_PAIRS[: arguments.pairs]):
        name = "CIFAR " + "/".join(CIFAR_CLASSES[c] for c in pair)
        how = (None, thin, training, X.shape[1:], 3, 1)  # faster one after the other
        if not index:
            train, _, test = weakly_taught(X, y, pair, 0.0, arguments.resnet_rows, 0)
            yield Problem(f"{name}, true labels", train, test, *how)
        if arguments.data is None:
            continue  # annotators' labels and stored logits are in the folder only
        noisy = annotators_labels(arguments.data, len(y))
        z = resnet20_logits(arguments.data)
        train, test = annotated(X, y, z, noisy, pair, arguments.resnet_rows)
        yield Problem(f"{name}, annotators", train, test, *how)


def annotators_labels(folder, n_images):
    with np.load(folder / "cifar10" / "cifar10n.npz") as file:
        return file["worse_label"][:n_images].astype(np.int64)


def ten_digits(arguments):
    X, y = mnist(arguments.data)
    training = Training(
        2.0, epochs=arguments.epochs // 2, batch_size=100, schedule="cosine", check_every=5,
        temperature_scaling="squared",
    )  # fmt: skip

    def mlp(generator):
        return MLP(784, arguments.width, 2, 10, generator)

    for flipped in (0.0, 0.2):
        name = "MNIST, ten classes, " + ("20 % flipped" if flipped else "true labels")
        train, test = weakly_taught_ten(X, y, flipped, 3 * arguments.rows // 2, 5000)
        yield Problem(name, train, test, None, mlp, training, (784,), 2)


def other_networks(arguments):
    X, y = mnist(arguments.data)
    train, _, test = weakly_taught(X, y, (4, 9), 0.2, arguments.rows, 0)
    adam = Training(
        1e-3, epochs=arguments.epochs // 2, batch_size=100, optimizer="adam", check_every=5,
        temperature_scaling="squared",
    )  # fmt: skip

    def mlp(generator):
        return DefaultMLP(784, arguments.width, 2, 1, generator)

    name = "MNIST 4/9, 20 % flipped, MLP of torch by Adam"
    yield Problem(name, train, test, None, mlp, adam, (784,), 2)
    sgd = Training(
        0.02, epochs=arguments.epochs // 3, batch_size=100, schedule="cosine", check_every=5,
        temperature_scaling="squared",
    )  # fmt: skip

    def cnn(generator):
        return CNN(2 * arguments.channels, 1, generator)

    yield Problem("MNIST 4/9, 20 % flipped, CNN", train, test, None, cnn, sgd, (1, 28, 28), 3, 1)


def ten_images(arguments, clock):
    X, y = cifar10(arguments.data, arguments.side)
    training = Training(
        0.1, epochs=arguments.resnet_epochs, batch_size=100, schedule="cosine",
        temperature_scaling="squared",
    )  # fmt: skip

    def thin(n_outputs):
        return lambda generator: ResNet(arguments.channels, 1, n_outputs, generator)

    n_taught = 200 if arguments.quick else N_TEACHER_IMAGES
    z = imperfect_teacher(X, y, n_taught, thin(10), arguments, clock)
    bounds = [n_taught, n_taught + 4 * arguments.resnet_rows // 3]
    every = {"true labels": y}
    if arguments.data is not None:
        every["annotators"] = annotators_labels(arguments.data, len(y))
    for kind, labels in every.items():
        _, train, test = split(Rows(X, labels, z, y), bounds)
        test = Rows(*(part[:5000] for part in vars(test).values()))
        name = f"CIFAR, ten classes, {kind}"
        how = (None, thin(10), training, X.shape[1:], 3, 1)
        yield Problem(name, train, test, *how, n_pilots=1, n_asked=500)

    # Five classes that the network knows already, five to be learnt, a tenth of the labels wrong.
    known = y[:n_taught] < 5
    state = pretrained(thin(5), X[:n_taught][known], y[:n_taught][known], arguments, clock)
    rows = np.flatnonzero(y >= 5)
    rows = rows[rows >= n_taught]
    rng = np.random.default_rng(5)
    labels = np.where(rng.random(len(rows)) < 0.1, rng.integers(0, 5, len(rows)), y[rows] - 5)
    train, test = split(
        Rows(X[rows], labels, z[rows, 5:], y[rows] - 5), [2 * arguments.resnet_rows // 3]
    )
    test = Rows(*(part[:5000] for part in vars(test).values()))
    training = Training(
        0.02, epochs=arguments.resnet_epochs, batch_size=100, schedule="cosine",
        temperature_scaling="squared",
    )  # fmt: skip

    def fine_tuned(generator):
        network = thin(5)(generator)
        fresh = {k: v for k, v in network.state_dict().items() if k.startswith("readout")}
        network.load_state_dict(copy.deepcopy(state) | fresh)
        return network

    name = "CIFAR, five classes, 10 % wrong, fine-tuned"
    how = (None, fine_tuned, training, X.shape[1:], 3, 1)
    yield Problem(name, train, test, *how, n_pilots=1, n_asked=500)


def pretrained(build, X, y, arguments, clock):
    """Return the state of a network that was trained on hard labels, kept in a file."""
    file = arguments.output / f"pretrained_{'quick' if arguments.quick else arguments.channels}.pt"
    if not file.exists():
        training = Training(0.2, epochs=15, batch_size=128, schedule="cosine", weight_decay=5e-4)
        students = Students(build, [Recipe(0.0, 1.0, 20_000)], training)
        no_logits = np.zeros((len(y), int(y.max()) + 1), np.float32)
        checkpoint = file.with_suffix(".part")
        students.fit(X, y, no_logits, checkpoint=checkpoint, seconds=clock.left(), log=print)
        or_stop(students if students.finished else None)
        torch.save(students.module().state_dict(), file)
        checkpoint.unlink()
    return torch.load(file, weights_only=True)
