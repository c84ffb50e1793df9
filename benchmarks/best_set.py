"""Is the truly best cell in the best set of a search, as often as promised, and how small is it?

Each simulated problem is a mixture of Gaussian bumps, labels of which a share is wrong, and a
logistic regression on quadratic features of a few other rows as teacher. `LinearizedKDStudentCV`
scores 21 cells by leave-one-out and by five folds with the teacher frozen, and by five folds with
the teacher unfitted (nested). The truth of a cell is the accuracy on fresh rows of the student that
is refitted to all rows: what the user of the chosen cell gets.

For every way of scoring: how often the best cell of the truth is in

paired     ``in_best_set``, promised at 90 %
unpaired   the set of the same rule from the errors of the scores, as if cells were independent
one s.e.   the cells within one standard error of the best score

and the mean size of each. Ties of the truth count as held if any of them is.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from sklearn_kd import LinearizedKDStudentCV
from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK

RIDGE = 0.1
KERNEL = NTK(depth=3)
N_DRAWS = 2000
WAYS = ("leave-one-out", "five folds", "five folds, unfitted teacher")
SETS = ("paired", "unpaired", "one s.e.")


def make_problem(seed, n_fresh):
    """Return training rows, labels and a teacher, and fresh rows with true labels."""
    rng = np.random.default_rng(seed)
    n_rows, n_features = int(rng.integers(150, 500)), int(rng.integers(2, 6))
    task = make_gaussian_mixture_logits(
        n_rows + 50,
        n_features,
        n_modes=int(rng.integers(3, 20)),
        width=(1.0, 2.0),
        random_state=seed,
    )
    truth, X = task.function, task.X
    y = truth(X) > 0
    y = (y ^ (rng.random(len(X)) < rng.uniform(0, 0.3))).astype(int)
    teacher = make_pipeline(PolynomialFeatures(2), LogisticRegression(C=10 ** rng.uniform(-1, 2)))
    few = int(rng.integers(20, 50))
    if len(np.unique(y[:few])) < 2 or len(np.unique(y[50:])) < 2:
        return None
    fitted = clone(teacher).fit(X[:few], y[:few])
    fresh = rng.standard_normal((n_fresh, n_features))
    return X[50:], y[50:], teacher, fitted, fresh, truth(fresh) > 0


def true_accuracies(searches, X, y, fresh, y_fresh):
    """Return the accuracy on fresh rows of the student of every cell, refitted to all rows."""
    z_eff = [
        effective_logits(
            search.best_estimator_.teacher_logits_,
            y,
            soft_ratio=params["soft_ratio"],
            temperature=params["temperature"],
        )
        for search in searches
        for params in search.cv_results_["params"]
    ]
    a = np.linalg.solve(KERNEL(X) + RIDGE * np.eye(len(X)), np.stack(z_eff, axis=1))
    right = [
        (KERNEL(block, X) @ a > 0) == labels[:, None]
        for block, labels in zip(
            np.array_split(fresh, 20), np.array_split(y_fresh, 20), strict=True
        )
    ]
    return np.split(np.concatenate(right).mean(axis=0), len(searches))


def sets_of(search, n_rows):
    """Return the sets of cells, {name: (n_cells,) bool}."""
    results = search.cv_results_
    mean = results["mean_test_score"]
    error = np.sqrt(mean * (1 - mean) / n_rows)
    pair = np.maximum(np.hypot(error[:, None], error), 1e-12)
    noise = np.random.default_rng(0).standard_normal((N_DRAWS, len(mean))) * error
    unpaired = [
        ((mean - mean[j]) / pair[j]).max()
        <= np.quantile(((noise - noise[:, [j]]) / pair[j]).max(axis=1), 0.9)
        for j in range(len(mean))
    ]
    return {
        "paired": results["in_best_set"],
        "unpaired": np.array(unpaired),
        "one s.e.": mean >= mean.max() - error[mean.argmax()],
    }


def outcome(search, truth):
    """Return, for each set, whether it holds the best cell, and its size; the regret too."""
    found = sets_of(search, len(search.best_estimator_.teacher_logits_))
    is_best = truth == truth.max()
    held = {name: bool(some[is_best].any()) for name, some in found.items()}
    size = {name: int(some.sum()) for name, some in found.items()}
    return {"held": held, "size": size, "regret": truth.max() - truth[search.best_index_]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--fresh", type=int, default=50_000, help="fresh rows for the truth")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem")
    parser.add_argument("--json", type=Path, default=Path("best_set.json"))
    arguments = parser.parse_args()
    outcomes = {way: [] for way in WAYS}
    seed, n_made = arguments.seed, 0
    while n_made < arguments.problems:
        made = make_problem(seed, arguments.fresh)
        seed += 1
        if made is None:
            continue
        n_made += 1
        X, y, teacher, fitted, fresh, y_fresh = made
        searches = [
            LinearizedKDStudentCV(
                teacher if "unfitted" in way else FrozenEstimator(fitted),
                ridges=[RIDGE],
                kernel=KERNEL,
                cv=None if way == "leave-one-out" else 5,
            ).fit(X, y)
            for way in WAYS
        ]
        truths = true_accuracies(searches, X, y, fresh, y_fresh)
        for way, search, truth in zip(WAYS, searches, truths, strict=True):
            outcomes[way].append(outcome(search, truth))
    print(f"{n_made} problems, {len(truths[0])} cells")
    print(f"{'':30}" + "".join(f"{name:>22}" for name in SETS) + f"{'regret (%)':>14}")
    for way, every in outcomes.items():
        line = f"{way:30}"
        for name in SETS:
            held = np.mean([one["held"][name] for one in every])
            error = np.sqrt(held * (1 - held) / len(every))
            size = np.mean([one["size"][name] for one in every])
            line += f"{100 * held:8.1f} ± {100 * error:3.1f} %{size:6.1f}"
        print(line + f"{100 * np.mean([one['regret'] for one in every]):10.2f}")
    arguments.json.write_text(json.dumps(outcomes, indent=1) + "\n")


if __name__ == "__main__":
    main()
