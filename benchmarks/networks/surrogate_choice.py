"""Does the closed form choose ρ and T well for networks that are really trained?

Finite students are trained on every cell of a ρ × T grid, with several seeds, and their accuracy
on thousands of test rows is set beside the leave-one-out accuracy that `LinearizedKDStudentCV`
gives the same cells from the training rows and labels alone, with the infinite-width NTK and with
the tangent kernel of the network at its initial weights. Reported for every problem: the rank
correlation of the cells, what is lost by training on the cell that the surrogate chose (regret),
what a sweep of networks and fixed rules would have lost, and the ratio of the costs in CPU seconds.

Two causes of a low correlation are told apart. "LOO" ranks the cells by leave-one-out, on as few
rows and with labels as wrong as the students had; "test" ranks them by the surrogate's accuracy on
the test rows, whose labels are true: it lacks the noise of the first and keeps what a kernel does
differently from a network. "Between seeds" is the correlation of one seed with the mean of the
others, beyond which nothing can be predicted.

Problems: pairs of MNIST digits with a teacher of a few rows, true labels or a fifth of them wrong,
and an MLP that is trained long enough to overfit them, or stopped early; pairs of CIFAR-10 classes
with the logits of a published ResNet-20 and human annotators' labels (CIFAR-10N "worse"), or with a
teacher of a few rows and true labels, and a thin ResNet, to which the NTK of an MLP is a stranger.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _networks import Clock, cifar10, or_stop, parser, print_table, report, resnet20_logits
from models import MLP, ResNet
from scipy.stats import spearmanr
from sklearn.datasets import fetch_openml
from sklearn.linear_model import LogisticRegression
from trainer import Recipe, Training, train_grid

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK, EmpiricalNTK

SOFT_RATIOS, TEMPERATURES = [0.3, 0.7, 0.9, 0.97, 1.0], [1.0, 3.0, 10.0]
# At ρ = 1 the closed form does not depend on T, so that networks are trained at one.
T_SOFT = 3.0
CELLS = [(rho, T) for rho in SOFT_RATIOS for T in TEMPERATURES if rho < 1 or T == T_SOFT]
MNIST_PAIRS = [(4, 9), (3, 5)]
CIFAR_PAIRS = [(1, 9), (3, 5)]
CIFAR_CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
N_TAUGHT = 200  # rows of the teachers that are trained here
N_VALIDATION = 300  # for early stopping
N_DRAWS = 200  # of validation rows for the sweep of networks
KERNELS = ("NTK", "EmpiricalNTK")


@dataclass
class Rows:
    """Rows of one problem with two classes."""

    X: np.ndarray  # (n, ...)
    labels: np.ndarray  # (n,) that a student or a validation is given
    teacher_logits: np.ndarray  # (n,)
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


def problems(arguments):
    """Yield all problems."""
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
    X, y = cifar10(arguments.data, arguments.side)
    resnet = Training(0.1, epochs=arguments.resnet_epochs, batch_size=100, schedule="cosine")

    def thin(generator):
        return ResNet(arguments.channels, 1, 1, generator)

    for index, pair in enumerate(CIFAR_PAIRS[: arguments.pairs]):
        name = "CIFAR " + "/".join(CIFAR_CLASSES[c] for c in pair)
        if not index:
            train, _, test = weakly_taught(X, y, pair, 0.0, arguments.resnet_rows, 0)
            yield Problem(f"{name}, true labels", train, test, None, thin, resnet, X.shape[1:], 3)
        if arguments.data is None:
            continue  # annotators' labels and stored logits are in the folder only
        with np.load(arguments.data / "cifar10" / "cifar10n.npz") as file:
            noisy = file["worse_label"][: len(y)]
        z = resnet20_logits(arguments.data)
        train, test = annotated(X, y, z, noisy, pair, arguments.resnet_rows)
        yield Problem(f"{name}, annotators", train, test, None, thin, resnet, X.shape[1:], 3)


def trained_accuracies(problem, arguments, clock):
    """Return the test accuracy of trained students, (n_seeds, n_cells), whether their classes are
    right, (n_seeds, n_cells, n_test), and the CPU seconds.
    """
    size = (
        f"{len(problem.train.X)}_{problem.training.epochs}_{arguments.width}_{arguments.channels}"
    )
    name = "".join(c if c.isalnum() else "_" for c in problem.name)
    folder = arguments.output / f"choice_{name}_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    cost_file = folder / "cpu_seconds.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else 0.0
    is_right = []
    for seed in range(arguments.seeds):
        start = time.process_time()
        result = train_grid(
            problem.build,
            [Recipe(*cell, seed) for cell in CELLS],
            problem.training,
            given(problem.train),
            validation=problem.validation and given(problem.validation),
            evaluate=problem.test.X,
            folder=folder,
            # thin ResNets are faster one after the other
            at_once=None if len(problem.input_shape) == 1 else 1,
            seconds=clock.left(),
            log=print,
        )
        cost += time.process_time() - start
        cost_file.write_text(json.dumps(cost))
        logits, _ = or_stop(result)
        is_right.append((logits > 0) == problem.test.y)
    is_right = np.array(is_right)
    return is_right.mean(2), is_right, cost


def given(rows):
    """What a network is trained or validated on."""
    return rows.X, rows.labels, rows.teacher_logits.astype(np.float32)


def kernel_of(problem, name):
    """Return the kernel and the initial network that go with a name."""
    if name == "NTK":
        return {"kernel": NTK(depth=problem.depth), "init": "zero"}
    module = problem.build(torch.Generator().manual_seed(0)).double()
    # Batch statistics are those of the training rows, as in the first steps of training.
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(torch.as_tensor(problem.train.X).double())
    kernel = EmpiricalNTK(module.eval(), input_shape=problem.input_shape)
    return {"kernel": kernel, "init": "network"}


def surrogate(problem, name):
    """Return the scores of the cells, by leave-one-out and on test rows, and the chosen cell."""
    train, test = problem.train, problem.test
    X, X_test = (rows.X.reshape(len(rows.X), -1) for rows in (train, test))
    start = time.process_time()
    search = LinearizedKDStudentCV(
        **kernel_of(problem, name),
        soft_ratios=SOFT_RATIOS,
        temperatures=TEMPERATURES,
    ).fit(X, train.labels, teacher_logits=train.teacher_logits)
    seconds = time.process_time() - start
    best = search.best_params_["soft_ratio"], search.best_params_["temperature"]
    results = search.cv_results_
    of_cell = [results["params"].index(_params(cell)) for cell in CELLS]

    # The same cells on the test rows: the end of each learning curve, from one factor.
    student = LinearizedKDStudent(**kernel_of(problem, name))
    path = student.fit(X, train.labels, teacher_logits=train.teacher_logits).prefix_path(
        X_test,
        teacher_logits=test.teacher_logits,
        y=test.y,
        sizes=[len(student.X_fit_)],
        param_grid=[{"soft_ratio": [rho], "temperature": [T]} for rho, T in CELLS],
    )
    return {
        "loo": results["mean_test_score"][of_cell],
        "loo_stderr": results["stderr_test_score"][of_cell],
        "test": 1 - path.error[:, 0, 0],
        "chosen": CELLS.index(best if best[0] < 1 else (1.0, T_SOFT)),
        "seconds": seconds,
    }


def _params(cell):
    return {"ridge": 0.0, "soft_ratio": cell[0], "temperature": cell[1]}


def compared(accuracies, scores, cost):
    """Return how the scores of the cells, and the chosen one, fit the networks' accuracies."""
    mean = accuracies.mean(0)
    lost = accuracies[:, mean.argmax()] - accuracies[:, scores["chosen"]]
    by_test = mean.max() - mean[scores["test"].argmax()]
    return {
        "spearman": spearmanr(scores["loo"], mean).statistic,
        "spearman_of_seeds": [spearmanr(scores["loo"], a).statistic for a in accuracies],
        "spearman_test": spearmanr(scores["test"], mean).statistic,
        "loo_against_own_test": spearmanr(scores["loo"], scores["test"]).statistic,
        "regret": 100 * lost.mean(),
        "regret_stderr": 100 * lost.std(ddof=1) / np.sqrt(len(lost)),
        "regret_test": 100 * by_test,
        "mean_distance": 100 * np.abs(scores["test"] - mean).mean(),
        "cost_ratio": cost / scores["seconds"],
    }


def references(accuracies, is_right, problem):
    """Return what the cells differ by, and the regret of other ways to choose, in per cent.

    The sweep of networks trains one seed of every cell and validates it on as many held-out rows as
    it was trained on, with labels that are wrong as often.
    """
    mean = accuracies.mean(0)
    rng = np.random.default_rng(0)
    n_rows, wrong = len(problem.train.y), (problem.train.labels != problem.train.y).mean()
    of_sweep = []
    for draw in range(N_DRAWS):
        rows = rng.choice(is_right.shape[2], n_rows, replace=False)
        agrees = is_right[draw % len(is_right)][:, rows] ^ (rng.random(n_rows) < wrong)
        of_sweep.append(mean.max() - mean[agrees.mean(1).argmax()])
    between = [
        spearmanr(accuracies[seed], np.delete(accuracies, seed, 0).mean(0)).statistic
        for seed in range(len(accuracies))
    ]
    return {
        "best": 100 * mean.max(),
        "spread": 100 * (mean.max() - mean.min()),
        "stderr_of_seeds": 100 * np.sqrt(accuracies.var(0, ddof=1).mean() / len(accuracies)),
        "between_seeds": np.mean(between),
        "regret_sweep": 100 * np.mean(of_sweep),
        "regret_soft_only": 100 * (mean.max() - mean[-1]),
        "regret_any": 100 * (mean.max() - mean.mean()),
    }


def draw(results):
    """Plot the accuracy of the networks against the surrogates' accuracy on the test rows."""
    n_columns = 3
    n_rows = -(-len(results) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(4 * n_columns, 3.6 * n_rows),
        layout="constrained",
        squeeze=False,
    )
    rho = [cell[0] for cell in CELLS]
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        accuracies = 100 * result["accuracies"]
        mean = accuracies.mean(0)
        bars = accuracies.std(0, ddof=1) / np.sqrt(len(accuracies))
        for kernel, marker in zip(KERNELS, "os", strict=True):
            scores = result["surrogates"][kernel]
            x, chosen = 100 * scores["test"], scores["chosen"]
            axis.errorbar(x, mean, bars, fmt="none", ecolor="0.8", zorder=0)
            look = {"cmap": "viridis_r", "vmin": 0.3, "vmax": 1, "edgecolor": "0.3", "lw": 0.5}
            points = axis.scatter(x, mean, c=rho, marker=marker, s=30, **look)
            axis.plot([], [], marker, color="0.5", label=kernel)
            axis.plot(
                x[chosen], mean[chosen], marker, ms=11, mfc="none", mec="C3", mew=1.6,
                label="chosen (leave-one-out)" if kernel == KERNELS[0] else None,
            )  # fmt: skip
        ends = [mean.min() - 0.5, mean.max() + 0.5]
        axis.plot(ends, ends, color="0.6", lw=0.8, ls="--", zorder=0, label="equal")
        ranks = [f"{result['compared'][k]['spearman']:.2f}" for k in KERNELS]
        axis.set_title(f"{name}\nSpearman, leave-one-out: {ranks[0]}, {ranks[1]}", fontsize=9.5)
        axis.set(xlabel="closed form, test accuracy (%)", ylabel="trained networks, test (%)")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=4, loc="outside upper center")
    figure.colorbar(points, ax=axes, label="soft ratio ρ", shrink=0.7)
    return figure


def tables(results):
    """Print one table on the problems and one for each kernel."""
    table = []
    for name, result in results.items():
        r = result["references"]
        numbers = [100 * result[k] for k in ("teacher_accuracy", "label_accuracy")]
        numbers += [r["best"], r["spread"], r["stderr_of_seeds"]]
        cells = [f"{v:.1f}" for v in numbers[:2]] + [f"{v:.2f}" for v in numbers[2:]]
        cells += [f"{r['between_seeds']:.2f}", f"{r['regret_sweep']:.2f}"]
        cells += [f"{r['regret_soft_only']:.2f}", f"{r['regret_any']:.2f}"]
        table.append([name, *cells, f"{result['cpu_seconds']:.0f}"])
    columns = ["problem", "teacher", "labels", "best cell", "best − worst", "± seeds"]
    columns += ["between seeds", "regret of a sweep", "of ρ = 1", "of any", "CPU s"]
    print_table("Networks: accuracies and regrets in per cent", columns, table)
    for kernel in KERNELS:
        table = []
        for name, result in results.items():
            c, scores = result["compared"][kernel], result["surrogates"][kernel]
            seeds = c["spearman_of_seeds"]
            table.append(
                [
                    name,
                    f"{c['spearman']:.2f} ({min(seeds):.2f}…{max(seeds):.2f})",
                    f"{c['spearman_test']:.2f}",
                    f"{c['loo_against_own_test']:.2f}",
                    f"{c['mean_distance']:.2f}",
                    "ρ = {:g}, T = {:g}".format(*CELLS[scores["chosen"]]),
                    f"{c['regret']:.2f} ± {c['regret_stderr']:.2f}",
                    f"{c['regret_test']:.2f}",
                    f"{scores['seconds']:.1f}",
                    f"{c['cost_ratio']:.0f}",
                ]
            )
        columns = ["problem", "Spearman LOO (seeds)", "Spearman test", "LOO against own test"]
        columns += ["mean distance (%)", "chosen", "regret (%)", "of test", "CPU s", "cost ratio"]
        print_table(kernel, columns, table)


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, default=1000, help="training rows of a pair of digits")
    add("--resnet-rows", type=int, default=1500, help="training rows of a pair of CIFAR classes")
    add("--pairs", type=int, default=2, help="pairs of each data set, at most")
    add("--epochs", type=int, default=120, help="of the MLPs")
    add("--resnet-epochs", type=int, default=15)
    add("--width", type=int, default=256, help="of the MLPs")
    add("--channels", type=int, default=8, help="of the first stage of the ResNets")
    add("--side", type=int, default=16, help="CIFAR images are averaged down to this size")
    add("--seeds", type=int, default=3)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.resnet_rows, arguments.pairs, arguments.seeds = 200, 100, 1, 2
        arguments.epochs, arguments.resnet_epochs = 10, 2
        arguments.width, arguments.channels = 32, 4
    return arguments


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    every = list(problems(arguments))
    trained = [trained_accuracies(problem, arguments, clock) for problem in every]
    results = {}
    for problem, (accuracies, is_right, cost) in zip(every, trained, strict=True):
        scores = {name: surrogate(problem, name) for name in KERNELS}
        train, test = problem.train, problem.test
        results[problem.name] = {
            "accuracies": accuracies,
            "cpu_seconds": cost,
            "surrogates": scores,
            "compared": {name: compared(accuracies, s, cost) for name, s in scores.items()},
            "references": references(accuracies, is_right, problem),
            "teacher_accuracy": ((test.teacher_logits > 0) == test.y).mean(),
            "label_accuracy": (train.labels == train.y).mean(),
            "test_rows": len(test.y),
        }
        print(problem.name, "done", flush=True)
    tables(results)
    if arguments.plot:
        draw(results).savefig(arguments.plot, dpi=100)
    report({"cells": CELLS, "problems": results}, arguments, "surrogate_choice")


if __name__ == "__main__":
    main()
