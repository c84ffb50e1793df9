"""What a plan costs, beside the networks that it spares: a sweep of its grid by five folds.

Three plans: of 1197 digits in ten classes with an MLP; of a MNIST pair with an NTK; and with an
MLP. The peer is one training of that MLP with the chosen recipe in the same run, times the cells
of the grid and five folds. Prints a table and writes JSON. Run nothing beside it.

    python benchmarks/bench_plan.py --data mnist.npz
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from _common import clock
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_kd import DistillationPlan, TorchStudent
from sklearn_kd.kernels import NTK

PAIR = (4, 9)
N_TAUGHT = 600  # rows of the teacher
N_FOLDS = 5


def digits(n_rows):
    """Return rows in ten classes, a forest of other rows, and the shape of a network."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    teacher = RandomForestClassifier(random_state=0).fit(X[:N_TAUGHT], y[:N_TAUGHT])
    rest = slice(N_TAUGHT, None if n_rows is None else N_TAUGHT + n_rows)
    return X[rest], y[rest], teacher, (64, 256, 10)


def mnist_pair(path, n_rows):
    """Return rows of two digits, a fifth of them with a wrong label, and a teacher of others."""
    with np.load(path) as file:
        X, y = file["X_train"], file["y_train"]
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.flatnonzero(np.isin(y, PAIR)))[: N_TAUGHT + n_rows]
    X, y = X[rows].reshape(len(rows), -1) / 255.0, (y[rows] == PAIR[1]).astype(int)
    teacher = LogisticRegression(C=0.01).fit(X[:N_TAUGHT], y[:N_TAUGHT])
    X, y = X[N_TAUGHT:], y[N_TAUGHT:]
    return X, np.where(rng.random(len(y)) < 0.2, 1 - y, y), teacher, (784, 256, 1)


def network_of(shape):
    """Return a builder of an MLP."""
    n_inputs, width, n_outputs = shape

    def build():
        return nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, n_outputs))

    return build


def measure(name, problem, student_of, epochs):
    """Return the seconds of a plan and of one training of the network that it stands for."""
    X, y, teacher, shape = problem
    teacher = FrozenEstimator(teacher)
    options = {"lr": 0.1, "max_epochs": epochs, "batch_size": 32, "random_state": 0}
    network = TorchStudent(network_of(shape), teacher, **options)
    plan = DistillationPlan(student_of(network), teacher, random_state=0)
    processor = time.process_time()
    seconds = clock(plan.fit, X, y)
    processor = time.process_time() - processor
    recipe = {name: getattr(plan.recipe_, name) for name in ("soft_ratio", "temperature")}
    network.set_params(**recipe, temperature_scaling="squared")
    of_network = clock(network.fit, X, y)
    n_cells = len(plan.search_.cv_results_["params"])
    return {
        "name": name,
        "rows": len(X),
        "seconds": seconds,
        "processor": processor,
        "training": of_network,
        "of a sweep": seconds / (of_network * n_cells * N_FOLDS),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="an .npz file of MNIST: X_train, y_train")
    parser.add_argument("--rows", type=int, default=4000, help="of the MNIST pair")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="200 rows, 8 epochs")
    parser.add_argument("--json", default="bench_plan.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.epochs = 200, 8
    cases = [("digits, MLP", digits(200 if arguments.quick else None), lambda net: net)]
    if arguments.data:
        pair = mnist_pair(arguments.data, arguments.rows)
        cases += [
            ("MNIST 4/9, NTK", pair, lambda net: NTK()),
            ("MNIST 4/9, MLP", pair, lambda net: net),
        ]
    warnings.simplefilter("ignore")
    heads = ("rows", "wall s", "processor s", "one training s", "of a sweep")
    print(f"{'plan':16}" + "".join(f"{head:>16}" for head in heads))
    found = []
    for name, problem, student_of in cases:
        one = measure(name, problem, student_of, arguments.epochs)
        found.append(one)
        numbers = (one["seconds"], one["processor"], one["training"], one["of a sweep"])
        print(f"{name:16}{one['rows']:16}" + "".join(f"{x:16.2f}" for x in numbers), flush=True)
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
