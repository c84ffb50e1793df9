"""Held-out accuracy on random labels, of searches with an unfitted teacher: chance is 50 %.

The labels are fair coins and the folds are drawn without looking at them, so that a student that
has not seen a fold's labels, by way of its teacher either, is right in half of the cases, exactly.
``cv=None`` draws stratified folds, in which the majority class of the other folds is that of the
held-out one: 52 % by itself. There the accuracy that the same predictions would have on the same
labels in random order is subtracted, and 50 % added. Searches, all at the same few cells:

* grid: GridSearchCV over LinearizedKDStudent, which cross-fits the teacher anew for each fold;
* factor, pcg, nystrom: LinearizedKDStudentCV with five folds, by solver;
* none: the same with ``cv=None`` (five folds that the search draws itself);
* inner: the same with ``teacher_cv=5``;
* once: LinearizedKDStudentCV given logits that were cross-fitted once on all rows. Their labels
  reach the scores: what the others must not show.

Prints a table for each soft ratio: means over the seeds, in per cent, with standard errors.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import PCG, Nystrom

KERNEL, RIDGE, SOFT_RATIOS = NTK(depth=2), 0.1, [0.5, 1.0]
TEACHERS = {
    "nearest neighbour": KNeighborsClassifier(1),
    "ExtraTrees": ExtraTreesClassifier(30, random_state=0),
    "logistic regression": LogisticRegression(),
    "Gaussian naive Bayes": GaussianNB(),
    "NTKTeacher": NTKTeacher(KERNEL, ridge=RIDGE),
}
SEARCHES = ["grid", "factor", "pcg", "nystrom", "none", "inner", "once"]


def search(teacher, **options):
    """Return a search over the cells, to be fitted."""
    return LinearizedKDStudentCV(
        teacher,
        soft_ratios=SOFT_RATIOS,
        temperatures=[1.0],
        ridges=[RIDGE],
        kernel=KERNEL,
        refit=False,
        **options,
    )


def above_chance(student, X, y):
    """Return 1/2 more than the accuracy exceeds that expected for ``y`` in random order."""
    predicted = student.predict(X)
    chance = np.mean([np.mean(y == label) for label in predicted])
    return np.mean(predicted == y) - chance + 0.5


def accuracies(teacher, X, y, folds):
    """Return the mean held-out accuracy of every cell, by search."""
    student = LinearizedKDStudent(teacher, kernel=KERNEL, ridge=RIDGE, temperature=1.0)
    once = LinearizedKDStudent(teacher, kernel=KERNEL, ridge=RIDGE).fit(X, y).teacher_logits_
    fits = {
        "grid": GridSearchCV(student, {"soft_ratio": SOFT_RATIOS}, cv=folds, refit=False),
        "factor": search(teacher, cv=folds),
        "pcg": search(teacher, cv=folds, solver=PCG(tol=1e-6, random_state=0)),
        "nystrom": search(teacher, cv=folds, solver=Nystrom(50, random_state=0)),
        "none": search(teacher, scoring=above_chance),
        "inner": search(teacher, cv=folds, teacher_cv=5),
        "once": search(None, cv=folds),
    }
    found = {}
    for name, fit in fits.items():
        fit.fit(X, y, **({"teacher_logits": once} if name == "once" else {}))
        found[name] = fit.cv_results_["mean_test_score"].tolist()
    return found


def print_table(header, rows):
    """Print a reStructuredText table."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    for line in (rule, header, rule, *rows, rule):
        cells = [line] if isinstance(line, str) else map(str.ljust, line, widths)
        print("  ".join(cells).rstrip())
    print()


def report(found):
    """Print what is known so far, from {teacher: [{search: accuracies} by seed]}."""
    distances = []
    for cell, soft_ratio in enumerate(SOFT_RATIOS):
        rows = []
        for teacher, by_seed in found.items():
            values = 100 * np.array([[seed[name][cell] for name in SEARCHES] for seed in by_seed])
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
            rows.append(
                [teacher, *(f"{m:.1f} ± {e:.1f}" for m, e in zip(mean, error, strict=True))]
            )
            distances += ((mean - 50) / error)[1:-1].tolist()
        print(f"soft ratio {soft_ratio:g}\n")
        print_table(["teacher", *SEARCHES], rows)
    far = np.abs(distances)
    print(
        f"{len(far)} means of LinearizedKDStudentCV with the teacher nested: the farthest is "
        f"{far.max():.1f} standard errors from 50 %, {(far > 2).sum()} are beyond 2, and they are "
        f"{np.mean(distances):+.2f} from it on average."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--features", type=int, default=3)
    parser.add_argument("--teachers", nargs="+", choices=list(TEACHERS), default=list(TEACHERS))
    parser.add_argument("--json", type=Path, default=Path("random_labels.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # saturated teachers, iterations that end at the tolerance
    start, found = time.perf_counter(), {}
    for name in arguments.teachers:
        found[name] = []
        for seed in range(arguments.seeds):
            rng = np.random.default_rng(seed)
            X = rng.normal(size=(arguments.rows, arguments.features))
            y = rng.integers(2, size=arguments.rows)
            folds = KFold(5, shuffle=True, random_state=seed)
            found[name].append(accuracies(TEACHERS[name], X, y, folds))
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print()
    report(found)


if __name__ == "__main__":
    main()
