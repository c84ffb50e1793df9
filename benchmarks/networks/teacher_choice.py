"""Which teacher? What a plan says, beside students that are really distilled from each.

Five problems, each with several teachers: checkpoints of a network that learns wrong labels by
heart, sizes of a forest, families of classifiers. `DistillationPlan` is given the students' rows
alone; its score of a teacher is the held-out accuracy of the best recipe with it. Then a network is
trained with each teacher, by the recipe that the plan gives it, with several seeds, and tested on
thousands of rows. Reported: the rank correlation of the teachers, and what is lost by the teacher
that the plan chose, the most accurate one of those that it cannot tell from the best, beside "the
best score", "the most accurate one" on the student's rows and "the largest": the
last checkpoint, or the most trees.
"""

import copy
import time
import warnings

import numpy as np
from _networks import parser, print_table, report
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import fetch_openml, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from torch import nn

from sklearn_kd import DistillationPlan, TorchStudent

GRID = {"soft_ratios": (0.1, 0.5, 0.9, 1.0), "temperatures": (1.0, 4.0)}
EPOCHS = (1, 3, 10, 30, 100)
TREES = (1, 3, 10, 30, 100, 300)


class Mlp:
    """A network of a hidden layer; an object of its own, so that it is pickled."""

    def __init__(self, width):
        self.width = width

    def __call__(self, n_features, n_classes):
        hidden = nn.Linear(n_features, self.width)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(self.width, n_classes))


def mnist(folder):
    if folder is None:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        return X / 255, y.astype(int)
    with np.load(folder / "mnist" / "mnist.npz") as file:
        return file["X_train"].reshape(-1, 784) / 255, file["y_train"].astype(int)


def table_of(folder, name):
    if folder is None:
        data = fetch_openml({"magic": "MagicTelescope", "pendigits": "pendigits"}[name], version=1)
        return scale(data.data.to_numpy(float)), np.unique(data.target, return_inverse=True)[1]
    with np.load(folder / "uci" / f"{name}.npz", allow_pickle=True) as file:
        return scale(file["X"].astype(float)), np.unique(file["y"], return_inverse=True)[1]


def wrong(y, share, rng):
    """Return labels of which a share is another class."""
    flips = rng.random(len(y)) < share
    return np.where(flips, (y + rng.integers(1, y.max() + 1, len(y))) % (y.max() + 1), y)


def checkpoints(X, y):
    """Return a network at several epochs of one run."""
    network, found = MLPClassifier((256,), max_iter=1, warm_start=True, random_state=0), {}
    for epoch in range(1, EPOCHS[-1] + 1):
        network.fit(X, y)
        if epoch in EPOCHS:
            found[f"epoch {epoch}"] = copy.deepcopy(network)
    return found


def forests(X, y):
    return {
        f"{n} trees": RandomForestClassifier(n, random_state=0, min_samples_leaf=2).fit(X, y)
        for n in TREES
    }


def families(X, y):
    forest = RandomForestClassifier(100, random_state=0)
    models = {
        "naive Bayes": GaussianNB(),
        "logistic": LogisticRegression(max_iter=2000),
        "neighbours": KNeighborsClassifier(5),
        "calibrated forest": CalibratedClassifierCV(forest, cv=3),
        "boosting": HistGradientBoostingClassifier(max_iter=60, random_state=0),
        "network": MLPClassifier((256,), max_iter=60, random_state=0),
    }
    return {name: model.fit(X, y) for name, model in models.items()}


def problems(arguments):
    """Yield name, teachers, rows and labels of the student, test rows and labels."""
    rng = np.random.default_rng(0)
    X, y = mnist(arguments.data)
    order = rng.permutation(len(X))
    X, y = X[order], y[order]
    pair = np.isin(y, (4, 9))
    four_nine = X[pair], (y[pair] == 9).astype(int)
    digits, magic, pendigits = (
        shuffled(*data, rng)
        for data in (
            load_digits(return_X_y=True),
            table_of(arguments.data, "magic"),
            table_of(arguments.data, "pendigits"),
        )
    )
    tables = [
        ("MNIST 4/9, 20 % wrong, checkpoints", four_nine, 0.2, checkpoints),
        ("MNIST, ten classes, 10 % wrong, checkpoints", (X, y), 0.1, checkpoints),
        ("digits, families", digits, 0.0, families),
        ("magic, 10 % wrong, families", magic, 0.1, families),
        ("pendigits, sizes of a forest", pendigits, 0.0, forests),
    ]
    for name, (X, y), share, teach in tables:
        n = min(arguments.rows, len(X) // 4)
        X = X / 16 if "digits, f" in name else X
        given = wrong(y, share, rng)
        teachers = teach(X[: 2 * n], given[: 2 * n])
        student, test = slice(2 * n, 3 * n), slice(3 * n, 3 * n + 6000)
        yield name, teachers, X[student], given[student], X[test], y[test]


def shuffled(X, y, rng):
    order = rng.permutation(len(X))
    return X[order], y[order]


def main():
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=800, help="of a student")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--epochs", type=int, default=40)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seeds, arguments.width, arguments.epochs = 150, 2, 32, 6
    results, table = {}, []
    for name, teachers, X, y, X_test, y_test in problems(arguments):
        start = time.process_time()
        found = one_problem(arguments, teachers, X, y, X_test, y_test)
        found["seconds"] = time.process_time() - start
        results[name] = found
        table.append(row_of(name, found))
        print(table[-1], flush=True)
    columns = [
        "problem",
        "Spearman",
        "of accuracy",
        "regret",
        "of the best score",
        "most accurate",
        "largest",
    ]
    columns += ["any", "chosen", "really best", "spread"]
    print_table("Choice of a teacher; regrets in points", columns, table)
    report(results, arguments, "teacher_choice")


def student_of(arguments):
    """Return the network, and how it is trained."""
    return TorchStudent(
        Mlp(arguments.width),
        lr=0.1,
        optimizer_params={"momentum": 0.9},
        batch_size=64,
        max_epochs=arguments.epochs,
        soft_ratio=0.5,
        random_state=0,
    )


def one_problem(arguments, teachers, X, y, X_test, y_test):
    """Return, for each teacher, the plan's score, its own accuracy, and what networks learn."""
    student = student_of(arguments)
    frozen = {name: FrozenEstimator(teacher) for name, teacher in teachers.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = DistillationPlan(student, frozen, n_orders=2, random_state=0, **GRID).fit(X, y)
    results = plan.teacher_search_.cv_results_
    n = len(frozen)
    scores, accuracies, learnt = [], [], []
    for index, (name, teacher) in enumerate(frozen.items()):
        weights = tuple(float(i == index) for i in range(n))
        cells = [i for i, p in enumerate(results["params"]) if p["teacher_weights"] == weights]
        best = max(cells, key=lambda i: results["mean_test_score"][i])
        scores.append(results["mean_test_score"][best])
        accuracies.append(plan.findings_["teacher"].values["accuracies"][name])
        params = results["params"][best]
        recipe = {k: params[k] for k in ("soft_ratio", "temperature")}
        of_seeds = []
        for seed in range(arguments.seeds):
            network = clone(student).set_params(
                teacher=teacher, temperature_scaling="squared", random_state=seed, **recipe
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                of_seeds.append(network.fit(X, y).score(X_test, y_test))
        learnt.append(of_seeds)
    return {
        "teachers": list(frozen),
        "chosen": plan.findings_["teacher"].claim,
        "scores": scores,
        "accuracies": accuracies,
        "learnt": np.array(learnt),
        "sentence": str(plan.findings_["teacher"]),
    }


def row_of(name, found):
    learnt = found["learnt"].mean(axis=1)
    best, accurate = int(np.argmax(found["scores"])), int(np.argmax(found["accuracies"]))
    chosen = best
    if found["chosen"] in found["teachers"]:
        chosen = found["teachers"].index(found["chosen"])
    is_ordered = "families" not in name
    regrets = [100 * (learnt.max() - learnt[i]) for i in (chosen, best, accurate)]
    largest = f"{100 * (learnt.max() - learnt[-1]):.2f}" if is_ordered else "–"
    return [
        name,
        f"{spearmanr(found['scores'], learnt).statistic:.2f}",
        f"{spearmanr(found['accuracies'], learnt).statistic:.2f}",
        *(f"{regret:.2f}" for regret in regrets),
        largest,
        f"{100 * (learnt.max() - learnt.mean()):.2f}",
        found["teachers"][chosen],
        found["teachers"][int(learnt.argmax())],
        f"{100 * (learnt.max() - learnt.min()):.1f}",
    ]


if __name__ == "__main__":
    main()
