"""From a teacher to a trained student: the recipe of the search beside two habits.

For some of the problems of `problems.py`: pilots of the network and one run of it make the search
(`LinearizedKDStudentCV.for_network`), the search chooses ρ and T from the training rows and labels
alone, and `TorchStudent` trains the network with that recipe, and with those that people use by
habit: ρ = 0.9 and T = 4, and Hinton's even mixture at T = 4, all with T² before the soft term. The
accuracies are those on thousands of test rows with true labels; errors are over seeds of the
network, and differences are paired by seed.
"""

import time
import warnings

import numpy as np
from _networks import Clock, mean_and_error, parser, print_table, report
from problems import problems
from surrogates import flat, network_of

from sklearn_kd import LinearizedKDStudentCV

SOFT_RATIOS, TEMPERATURES = [0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0], [1.0, 4.0, 10.0]
HABITS = {"ρ = 0.9, T = 4": (0.9, 4.0), "ρ = 0.5, T = 4": (0.5, 4.0)}
PROBLEMS = ("MNIST 4/9, 20 % flipped", "CIFAR car/truck, annotators", "CIFAR, five classes")


def chosen_recipe(problem):
    """Return the search, fitted, and the CPU seconds of pilots, run and search."""
    start = time.process_time()
    X, labels = flat(problem.train.X), problem.train.labels
    given = {"teacher_logits": problem.train.teacher_logits}
    grid = {"soft_ratios": SOFT_RATIOS, "temperatures": TEMPERATURES, "refit": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forecasts of long fits
        search = LinearizedKDStudentCV.for_network(
            network_of(problem, 0), X, labels, **given, **grid
        ).fit(X, labels, **given)
    return search, time.process_time() - start


def accuracies(problem, recipe, n_seeds):
    """Return the test accuracies of networks trained with a recipe, (n_seeds,), in per cent."""
    X, test = flat(problem.train.X), problem.test
    found = []
    for seed in range(n_seeds):
        student = network_of(problem, seed)
        student.set_params(soft_ratio=recipe[0], temperature=recipe[1])
        student.fit(X, problem.train.labels, teacher_logits=problem.train.teacher_logits)
        found.append(100 * student.score(flat(test.X), test.y))
    return np.array(found)


def main():
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--only", default="", help="part of the names of the problems to take")
    arguments = options.parse_args()
    defaults = {"rows": 1000, "resnet_rows": 1500, "pairs": 2, "epochs": 120, "resnet_epochs": 15}
    defaults |= {"width": 256, "channels": 8, "side": 16}
    if arguments.quick:
        defaults |= {"rows": 200, "resnet_rows": 150, "pairs": 1, "epochs": 12, "resnet_epochs": 3}
        defaults |= {"width": 32, "channels": 4}
        arguments.seeds = 2
    vars(arguments).update(defaults)
    results, table = {}, []
    for problem in problems(arguments, Clock(arguments.seconds)):
        if not problem.name.startswith(PROBLEMS) or problem.validation is not None:
            continue
        if arguments.only not in problem.name:
            continue
        search, seconds = chosen_recipe(problem)
        best = search.best_params_["soft_ratio"], search.best_params_["temperature"]
        found = {"chosen": accuracies(problem, best, arguments.seeds)}
        for name, recipe in HABITS.items():
            found[name] = accuracies(problem, recipe, arguments.seeds)
        results[problem.name] = {
            "recipe": best, "verdict": search.verdict_, "cpu_seconds": seconds, "accuracies": found,
        }  # fmt: skip
        cells = ["{:.1f} ± {:.1f}".format(*mean_and_error(found["chosen"]))]
        for name in HABITS:
            gain = mean_and_error(found["chosen"] - found[name])
            cells.append("{:.1f} ± {:.1f}".format(*mean_and_error(found[name])))
            cells.append("{:+.1f} ± {:.1f}".format(*gain))
        table.append([problem.name, "ρ = {:g}, T = {:g}".format(*best), *cells])
        print(*table[-1], search.verdict_, f"({seconds:.0f} CPU s)", sep=" | ", flush=True)
    columns = ["problem", "chosen", "accuracy (%)"]
    for name in HABITS:
        columns += [name, "gain"]
    print_table("Networks trained with the chosen recipe and by habit", columns, table)
    report({"problems": results}, arguments, "loop")


if __name__ == "__main__":
    main()
