"""Does `rows_to_check` find the labels that are worth checking? Annotators' labels of CIFAR-10.

The problems "annotators" of `surrogate_choice.py`: two classes of CIFAR-10 averaged to 16 × 16,
the labels of one person per image (CIFAR-10N "worse"), a published ResNet-20 as teacher. Each draw
takes other 1500 rows; all rows left, with true labels, are the test rows. `LinearizedKDStudentCV`
chooses ρ and T by leave-one-out. Then some labels are replaced by the true ones, and it chooses
again:

none       no label is checked
rows       those of `rows_to_check`, all at once
rounds     those of `rows_to_check`, in four rounds with a fit after each
random     as many rows at random
all        every label is checked

The regret of a choice is the accuracy on the test rows of the best cell less that of the chosen
one, the students of all cells being fitted to the labels at hand. They are the closed form's
students, not trained networks.
"""

import json

import numpy as np
from _networks import cifar10, mean_and_error, parser, print_table, resnet20_logits
from surrogate_choice import CIFAR_CLASSES, CIFAR_PAIRS, SOFT_RATIOS, TEMPERATURES

from sklearn_kd import LinearizedKDStudentCV
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK

KERNEL = NTK(depth=3)
N_ROUNDS = 4
WAYS = ("none", "rows", "rounds", "random", "all")


class Draw:
    """Training rows of one draw, their labels, and the accuracy of every cell on all other rows."""

    def __init__(self, X, y, annotated, z_t, n_rows, rng):
        order = rng.permutation(len(X))
        train, test = order[:n_rows], order[n_rows:]
        self.X, self.y, self.annotated, self.z_t = X[train], y[train], annotated[train], z_t[train]
        self.y_test = y[test]
        self.cross = np.linalg.solve(KERNEL(self.X), KERNEL(self.X, X[test])).T

    def search(self):
        return LinearizedKDStudentCV(
            kernel=KERNEL, soft_ratios=SOFT_RATIOS, temperatures=TEMPERATURES, refit=False
        )

    def fit(self, search, labels):
        return search.fit(self.X, labels, teacher_logits=self.z_t)

    def outcome(self, search, labels):
        """Return the regret of the choice, its accuracy, and the size of the set, in per cent."""
        z_eff = [
            effective_logits(
                self.z_t, labels, soft_ratio=p["soft_ratio"], temperature=p["temperature"]
            )
            for p in search.cv_results_["params"]
        ]
        predicted = self.cross @ np.stack(z_eff, axis=1) > 0
        accuracy = 100 * (predicted == self.y_test[:, None]).mean(axis=0)
        chosen = accuracy[search.best_index_]
        return [accuracy.max() - chosen, chosen, search.cv_results_["in_best_set"].sum()]


def checked(labels, true, rows):
    """Return labels with those of some rows replaced by the true ones."""
    labels = labels.copy()
    labels[rows] = true[rows]
    return labels


def outcomes(draw, n_checked, rng):
    """Return what each way of checking comes to, and the share of wrong labels that it found."""
    search, n_rows = draw.search(), len(draw.y)
    draw.fit(search, draw.annotated)
    rows = search.rows_to_check(n_checked)
    labels = {
        "none": draw.annotated,
        "rows": checked(draw.annotated, draw.y, rows),
        "random": checked(draw.annotated, draw.y, rng.permutation(n_rows)[:n_checked]),
        "all": draw.y,
    }
    found = {}
    for way, given in labels.items():
        draw.fit(search, given)
        found[way] = [*draw.outcome(search, given), (given != draw.annotated).sum()]
    # Rows that have been checked keep their labels, and are not asked again.
    given, done = draw.annotated, np.zeros(n_rows, bool)
    for _ in range(N_ROUNDS):
        draw.fit(search, given)
        rows = search.rows_to_check(n_rows)
        rows = rows[~done[rows]][: n_checked // N_ROUNDS]
        done[rows] = True
        given = checked(given, draw.y, rows)
    draw.fit(search, given)
    found["rounds"] = [*draw.outcome(search, given), (given != draw.annotated).sum()]
    return found


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, default=1500, help="training rows of a pair of classes")
    add("--checked", type=int, default=[25, 50, 100], nargs="+", help="labels that are checked")
    add("--draws", type=int, default=20)
    add("--side", type=int, default=16, help="images are averaged down to this size")
    arguments = options.parse_args()
    if arguments.data is None:
        options.error("--data is needed: the annotators' labels and the logits are in the folder")
    if arguments.quick:
        arguments.rows, arguments.draws, arguments.checked = 200, 2, [20]
    return arguments


def main():
    arguments = parse_arguments()
    X, y = cifar10(arguments.data, arguments.side)
    with np.load(arguments.data / "cifar10" / "cifar10n.npz") as file:
        annotated = file["worse_label"][: len(y)]
    z = resnet20_logits(arguments.data)
    results = {}
    for pair in CIFAR_PAIRS:
        name = "/".join(CIFAR_CLASSES[c] for c in pair)
        rows = np.flatnonzero(np.isin(y, pair) & np.isin(annotated, pair))
        of_pair = (
            X[rows].reshape(len(rows), -1).astype(float),
            (y[rows] == pair[1]).astype(int),
            (annotated[rows] == pair[1]).astype(int),
            (z[rows, pair[1]] - z[rows, pair[0]]).astype(float),
        )
        every = {n: [] for n in arguments.checked}
        for seed in range(arguments.draws):
            rng = np.random.default_rng(seed)
            draw = Draw(*of_pair, arguments.rows, rng)
            for n_checked in arguments.checked:
                every[n_checked].append(outcomes(draw, n_checked, rng))
            print(f"{name}: draw {seed + 1} of {arguments.draws}", flush=True)
        table = []
        for n_checked, found in every.items():
            for way in WAYS:
                values = np.array([one[way] for one in found], float)
                mean, error = mean_and_error(values[:, 0])
                regret = f"{mean:.2f} ± {error:.2f}"
                others = [f"{value:.1f}" for value in values[:, 1:].mean(axis=0)]
                table.append([n_checked, way, regret, *others])
        print_table(name, ["checked", "way", "regret (%)", "accuracy", "set", "corrected"], table)
        results[name] = every
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.json or arguments.output / "labels_to_check.json"
    file.write_text(json.dumps(results, default=lambda value: value.tolist(), indent=1))


if __name__ == "__main__":
    main()
