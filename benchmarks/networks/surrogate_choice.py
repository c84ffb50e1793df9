"""Does the closed form choose ρ and T well for networks that are really trained?

Finite students are trained on every cell of a ρ × T grid, with several seeds (`problems.py`), and
their accuracy on thousands of test rows is set beside what `LinearizedKDStudentCV` says about the
same cells from the training rows and labels alone, with each of several surrogates
(`surrogates.py`). Reported for every problem: the rank correlation of the cells, what is lost by
training on the cell that the surrogate chose (regret), the distance of the accuracies on test rows,
and the ratio of the costs in CPU seconds; and what trivial ways of choosing lose: ρ = 1, ρ = 0.9
with T = 4, a cell at random, and a sweep that trains one network per cell and validates it on as
many held-out rows as there are training rows, with labels that are wrong as often.

Two causes of a low correlation are told apart. "Held out" ranks the cells on as few rows and with
labels as wrong as the students had; "test" ranks them by the surrogate's accuracy on test rows,
whose labels are true: it lacks the noise of the first and keeps what a kernel does differently from
a network. "Between seeds" is the correlation of one seed with the mean of the others, beyond which
nothing can be predicted.
"""

import json
import time

import matplotlib.pyplot as plt
import numpy as np
from _networks import Clock, mean_and_error, or_stop, parser, print_table, report
from problems import CELLS, problems, teacher_accuracy
from scipy.stats import spearmanr
from surrogates import SURROGATES, surrogate
from trainer import Recipe, train_grid

N_DRAWS = 200  # of validation rows for the sweep of networks
RECOMMENDED = "pilots, finite time"


def trained_accuracies(problem, arguments, clock):
    """Return whether the classes of trained students are right, (n_seeds, n_cells, n_test), and
    the CPU seconds of all of them.

    The habits come after the cells.
    """
    folder = folder_of(problem, arguments)
    cost_file = folder / "cpu_seconds.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else 0.0
    is_right = []
    for seed in range(arguments.seeds):
        start = time.process_time()
        result = train_grid(
            problem.build,
            [Recipe(*cell, seed) for cell in CELLS + problem.habits],
            problem.training,
            given(problem.train),
            validation=problem.validation and given(problem.validation),
            evaluate=problem.test.X,
            folder=folder,
            at_once=problem.at_once,
            seconds=clock.left(),
        )
        cost += time.process_time() - start
        cost_file.write_text(json.dumps(cost))
        z, _ = or_stop(result)
        predicted = z > 0 if z.ndim == 2 else z.argmax(2)
        is_right.append(predicted == problem.test.y)
    return np.array(is_right), cost


def folder_of(problem, arguments):
    size = (
        f"{len(problem.train.X)}_{problem.training.epochs}_{arguments.width}_{arguments.channels}"
    )
    name = "".join(c if c.isalnum() else "_" for c in problem.name)
    folder = arguments.output / f"choice_{name}_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def given(rows):
    """What a network is trained or validated on."""
    return rows.X, rows.labels, rows.teacher_logits.astype(np.float32)


def surrogates_of(problem, arguments):
    """Return the scores of every surrogate and seed, kept in files beside the networks."""
    folder, found = folder_of(problem, arguments), {}
    for name in SURROGATES:
        of_seeds = []
        for seed in range(1 if name == "infinite width" else arguments.repeats):
            of_pilot = f"{arguments.pilot_epochs} " if name.startswith("pilots") else ""
            file = folder / f"{name} {of_pilot}{seed}.json"
            if not file.exists():
                scores = surrogate(problem, name, seed, arguments.pilot_epochs)
                file.write_text(json.dumps(scores, default=lambda a: a.tolist()))
            of_seeds.append(json.loads(file.read_text()))
        found[name] = of_seeds
    return found


def compared(is_right, of_seeds, cost_of_network, n_asked):
    """Return how the scores of the cells, and the chosen one, fit the networks' accuracies."""
    mean = is_right.mean((0, 2))[: len(CELLS)]
    on_same_rows = is_right[:, : len(CELLS), :n_asked].mean((0, 2))
    rows = []
    for scores in of_seeds:
        held_out, test = np.array(scores["held_out"]), np.array(scores["test"])
        rows.append(
            {
                "spearman": spearmanr(held_out, mean).statistic,
                "spearman_test": spearmanr(test, mean).statistic,
                "regret": 100 * (mean.max() - mean[choice(held_out)]),
                "regret_test": 100 * (mean.max() - mean[choice(test)]),
                "distance": 100 * np.abs(test - on_same_rows).mean(),
                "chosen": choice(held_out),
                "seconds": scores["seconds"],
                "cost_ratio": len(CELLS) * cost_of_network / scores["seconds"],
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def choice(scores):
    """Return the best cell; of equals that of the larger ρ, then the smaller T."""
    return max(range(len(CELLS)), key=lambda i: (scores[i], CELLS[i][0], -CELLS[i][1]))


def references(is_right, problem):
    """Return what the cells differ by, and the regret of other ways to choose, in per cent."""
    every = is_right.mean(2)
    accuracies, habits = np.split(every, [len(CELLS)], axis=1)
    mean = accuracies.mean(0)
    rng = np.random.default_rng(0)
    n_rows, wrong = len(problem.train.y), (problem.train.labels != problem.train.y).mean()
    of_sweep, ranks = [], []
    for draw in range(N_DRAWS):
        rows = rng.choice(is_right.shape[2], min(n_rows, is_right.shape[2]), replace=False)
        validated = is_right[draw % len(is_right), : len(CELLS)][:, rows]
        # A wrong label is that of the network's class by chance.
        flipped = rng.random(len(rows)) < wrong
        by_chance = rng.random(len(rows)) < 1 / (problem.n_classes - 1)
        agrees = np.where(flipped, ~validated & by_chance, validated)
        of_sweep.append(mean.max() - mean[choice(agrees.mean(1))])
        ranks.append(spearmanr(agrees.mean(1), mean).statistic)
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
        "spearman_sweep": np.mean(ranks),
        "regret_soft_only": 100 * (mean.max() - mean[-1]),
        "regret_habits": (100 * (mean.max() - habits.mean(0))).tolist(),
        "regret_any": 100 * (mean.max() - mean.mean()),
    }


def draw(results):
    """Plot the accuracy of the networks against that of two surrogates on the test rows."""
    n_columns = 4
    n_rows = -(-len(results) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.6 * n_columns, 3.3 * n_rows), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        accuracies = 100 * np.array(result["accuracies"])[:, : len(CELLS)]
        mean = accuracies.mean(0)
        bars = accuracies.std(0, ddof=1) / np.sqrt(len(accuracies))
        for surrogate_name, marker in (("infinite width", "s"), (RECOMMENDED, "o")):
            scores = result["surrogates"][surrogate_name]
            x = 100 * np.mean([one["test"] for one in scores], axis=0)
            axis.errorbar(x, mean, bars, fmt="none", ecolor="0.85", zorder=0)
            look = {"cmap": "viridis_r", "vmin": 0.3, "vmax": 1, "edgecolor": "0.3", "lw": 0.5}
            rho = [cell[0] for cell in CELLS]
            points = axis.scatter(x, mean, c=rho, marker=marker, s=28, **look)
            axis.plot([], [], marker, color="0.5", label=surrogate_name)
        ends = [mean.min() - 0.5, mean.max() + 0.5]
        axis.plot(ends, ends, color="0.6", lw=0.8, ls="--", zorder=0, label="equal")
        axis.set_title(name.replace(", ", ",\n", 1), fontsize=9)
        axis.set(xlabel="surrogate, test accuracy (%)", ylabel="networks, test (%)")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=4, loc="outside upper center")
    figure.colorbar(points, ax=axes, label="soft ratio ρ", shrink=0.5)
    return figure


def tables(results):
    """Print one table on the problems and one for each surrogate."""
    table = []
    for name, result in results.items():
        r = result["references"]
        numbers = [100 * result["teacher_accuracy"], 100 * result["label_accuracy"]]
        numbers += [r["best"], r["spread"], r["stderr_of_seeds"]]
        cells = [f"{v:.1f}" for v in numbers[:4]] + [f"{numbers[4]:.2f}"]
        cells += [f"{r['between_seeds']:.2f}", f"{r['spearman_sweep']:.2f}"]
        cells += [f"{r['regret_sweep']:.2f}"]
        cells += [f"{r['regret_soft_only']:.2f}"]
        cells += [f"{regret:.2f}" for regret in r["regret_habits"]]
        table.append([name, *cells, f"{r['regret_any']:.2f}", f"{result['cpu_seconds']:.0f}"])
    columns = ["problem", "teacher", "labels", "best cell", "best − worst", "± seeds"]
    columns += [
        "between seeds",
        "Spearman of a sweep",
        "its regret",
        "of ρ = 1",
        "of .9, 4",
        "of .5, 4",
    ]
    print_table(
        "Networks: accuracies and regrets in per cent", [*columns, "of any", "CPU s"], table
    )
    for surrogate_name in SURROGATES:
        table = []
        for name, result in results.items():
            c = result["compared"][surrogate_name]
            chosen = ["{:g}/{:g}".format(*CELLS[index]) for index in c["chosen"]]
            numbers = ("spearman", "spearman_test", "regret", "regret_test", "distance")
            cells = [in_short(c[key]) for key in numbers]
            ratio = f"{np.mean(c['cost_ratio']):.0f}"
            table.append([name, *cells, " ".join(chosen), f"{np.mean(c['seconds']):.1f}", ratio])
        columns = ["problem", "Spearman held out", "test", "regret held out (%)", "test"]
        columns += ["distance (%)", "chosen ρ/T", "CPU s", "sweep / search"]
        print_table(surrogate_name, columns, table)


def in_short(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return "{:.2f} ± {:.2f}".format(*mean_and_error(values))


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
    add("--seeds", type=int, default=3, help="of the networks")
    add("--repeats", type=int, default=3, help="seeds of every surrogate with a network")
    add("--pilot-epochs", type=int, default=5)
    add("--only", help="part of the names of the problems to take")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.resnet_rows, arguments.pairs, arguments.seeds = 200, 150, 1, 2
        arguments.epochs, arguments.resnet_epochs, arguments.pilot_epochs = 12, 2, 1
        arguments.width, arguments.channels, arguments.repeats = 32, 4, 2
    return arguments


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    results = {}
    for problem in problems(arguments, clock):
        if arguments.only and arguments.only not in problem.name:
            continue
        is_right, cost = trained_accuracies(problem, arguments, clock)
        scores = surrogates_of(problem, arguments)
        of_network = cost / (is_right.shape[0] * is_right.shape[1])
        results[problem.name] = {
            "accuracies": is_right.mean(2),
            "cpu_seconds": cost,
            "surrogates": scores,
            "compared": {
                name: compared(is_right, s, of_network, problem.n_asked)
                for name, s in scores.items()
            },
            "references": references(is_right, problem),
            "teacher_accuracy": teacher_accuracy(problem.test),
            "label_accuracy": (problem.train.labels == problem.train.y).mean(),
            "test_rows": len(problem.test.y),
        }
        print(problem.name, "done", flush=True)
    tables(results)
    if arguments.plot:
        draw(results).savefig(arguments.plot, dpi=100)
    report({"cells": CELLS, "problems": results}, arguments, "surrogate_choice")


if __name__ == "__main__":
    main()
