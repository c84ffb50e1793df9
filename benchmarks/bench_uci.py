"""Classification of UCI sets with the folds and the protocol of Fernández-Delgado et al. (2014).

Hyper-parameters are those most accurate on the validation half of the published tuning split after
training on the other half; then the accuracy is the mean over the four published folds or, where a
set comes with test rows, that on these after training on all others. Six sets have test rows that
were standardized in another way than the training rows (their means differ by 0.9 to 3600 standard
deviations), so that no method can do well on them; there the folds are used. Methods:

* NTKTeacher: the tangent kernel machine trained on hard labels; loss, depth and ridge searched.
* student: LinearizedKDStudent of the forest below; ρ, T, depth and ridge by LinearizedKDStudentCV.
  The forest's logits on its training rows are out-of-bag, so that it does not hand their labels
  back, and smoothed by one vote for each class, so that they are finite. The trees have seen the
  other training rows, and no row that the student is scored on: each score has one split, and the
  forest is grown on its training rows alone (``--check``). With several folds such votes would be
  wrong: those of a training row have seen the labels of the fold.
* forest: scikit-learn's RandomForestClassifier, 500 trees, otherwise its defaults; no search.
* SVM: scikit-learn's SVC with the Gaussian kernel, C and gamma searched.
* published: the columns of ntk_reference.csv where that file is in the folder and has the set: the
  NTK-SVM of Arora et al. (2020), and a random forest and a Gaussian SVM of Fernández-Delgado et al.

The data folder holds a file NAME.npz per set (X, y, tune_train, tune_val, fold0_train, fold0_test …
fold3_test, or X_test, y_test) and index.csv with their sizes. Results are kept in the JSON file as
they come: run the script again to go on. Prints tables.
"""

import argparse
import csv
import functools
import json
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, wilcoxon
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.kernels import NTK

DEPTHS = [1, 2, 3, 4, 5]
TEACHER_RIDGES = {
    "squared_error": [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0],
    "log_loss": [1e-2, 0.1, 1.0, 10.0],
}
STUDENT_RIDGES = [0.0, 1e-2, 0.1, 1.0, 10.0]  # ρ and T: the defaults of LinearizedKDStudentCV
SVM_GRID = {  # gamma in units of 1/d
    "C": [2.0**k for k in range(-5, 14, 2)],
    "gamma": [2.0**k for k in range(-10, 5, 2)],
}
N_TREES = 500
CACHE_MIB = 500
# Results of another protocol are never mixed with these.
PROTOCOL = {
    "depths": DEPTHS,
    "teacher_ridges": TEACHER_RIDGES,
    "student_ridges": STUDENT_RIDGES,
    "svm_grid": SVM_GRID,
    "trees": N_TREES,
}

OURS = ["NTKTeacher", "student"]
METHODS = [*OURS, "forest", "SVM"]
PUBLISHED = {"ntk_test_acc": "NTK-SVM*", "rf_caret": "forest*", "svm_C": "SVM*"}
QUICK = ["hepatitis", "iris", "lenses", "monks-1", "seeds", "teaching"]


def same_scale(X, X_test):
    """Return whether no feature's mean differs by half a standard deviation or more."""
    return (abs(X.mean(axis=0) - X_test.mean(axis=0)) < X.std(axis=0) / 2).all()


class Problem:
    """A set: its rows, its tuning split, what to train and test on, and the forests of these."""

    def __init__(self, path):
        with np.load(path) as file:
            self.X, self.y = file["X"].astype(float), file["y"]
            self.train, self.validation = file["tune_train"], file["tune_val"]
            if "X_test" in file and same_scale(self.X, file["X_test"]):
                test = file["X_test"].astype(float), file["y_test"]
                self.folds = [(self.X, self.y, *test)]
            else:
                rows = [(file[f"fold{k}_train"], file[f"fold{k}_test"]) for k in range(4)]
                self.folds = [(*self.take(train), *self.take(test)) for train, test in rows]

    def take(self, rows):
        return self.X[rows], self.y[rows]

    @functools.cached_property
    def forests(self):
        return [grow(X, y) for X, y, _, _ in self.folds]

    def accuracy(self, fitted):
        """Return the accuracy in per cent of one estimator per fold."""
        scores = [e.score(X, y) for e, (_, _, X, y) in zip(fitted, self.folds, strict=True)]
        return 100 * float(np.mean(scores))


def middle_of_best(scores):
    """Return the position of the best score; of several, the middle one.

    Validation rows are few, ties many, and those at the ends of a grid are the least sound.
    """
    best = np.flatnonzero(np.asarray(scores) == np.max(scores))
    return best[len(best) // 2]


def run_teacher(problem):
    numbers = np.arange(len(problem.X), dtype=float)[:, None]
    train, validation = problem.train, problem.validation
    candidates, scores = [], []
    for depth in DEPTHS:
        matrix = NTK(depth=depth)(problem.X)

        def kernel(a, b, matrix=matrix):  # of row numbers: all candidates share one matrix
            return matrix[np.ix_(a[:, 0].astype(int), b[:, 0].astype(int))]

        for loss, ridges in TEACHER_RIDGES.items():
            for ridge in ridges:
                teacher = NTKTeacher(kernel, loss=loss, ridge=ridge)
                teacher.fit(numbers[train], problem.y[train])
                scores.append(teacher.score(numbers[validation], problem.y[validation]))
                candidates.append({"depth": depth, "loss": loss, "ridge": ridge})
    chosen = candidates[middle_of_best(scores)]
    depth, loss, ridge = chosen.values()
    teachers = [
        NTKTeacher(NTK(depth=depth), loss=loss, ridge=ridge).fit(X, y)
        for X, y, _, _ in problem.folds
    ]
    return problem.accuracy(teachers), chosen


def grow(X, y):
    return RandomForestClassifier(N_TREES, oob_score=True, random_state=0).fit(X, y)


def run_forest(problem):
    return problem.accuracy(problem.forests), {}


def smoothed_logits(probabilities):
    """Return a forest's logits with one vote added for each class (Laplace's rule)."""
    return np.log((N_TREES * probabilities + 1) / (N_TREES + probabilities.shape[1]))


def forest_logits(problem, y):
    """Return logits of all rows by a forest of the tuning split's training rows."""
    X, train, validation = problem.X, problem.train, problem.validation
    forest = grow(X[train], y[train])
    probabilities = np.empty((len(X), len(forest.classes_)))
    probabilities[train] = forest.oob_decision_function_
    probabilities[validation] = forest.predict_proba(X[validation])
    return smoothed_logits(probabilities)


def run_student(problem):
    kernels = [NTK(depth=depth) for depth in DEPTHS]
    split = problem.train, problem.validation
    search = LinearizedKDStudentCV(kernel=kernels, ridges=STUDENT_RIDGES, cv=[split], refit=False)
    search.fit(problem.X, problem.y, teacher_logits=forest_logits(problem, problem.y))
    students = []
    for (X, y, _, _), forest in zip(problem.folds, problem.forests, strict=True):
        logits = smoothed_logits(forest.oob_decision_function_)
        student = LinearizedKDStudent(**search.best_params_)
        students.append(student.fit(X, y, teacher_logits=logits))
    chosen = dict(search.best_params_)
    chosen["depth"] = chosen.pop("kernel").depth
    return problem.accuracy(students), chosen


def validation_predictions(problem, y):
    """Return what students of every (ρ, T) predict on the validation rows, (candidates, rows)."""
    predictions = []

    def record(student, X, y):
        predictions.append(student.predict(X))
        return 0.0

    search = LinearizedKDStudentCV(
        kernel=NTK(depth=2),
        ridges=[0.1],
        cv=[(problem.train, problem.validation)],
        scoring=record,
        refit=False,
    )
    search.fit(problem.X, y, teacher_logits=forest_logits(problem, y))
    return np.array(predictions)


def check(problems):
    """Print whether validation labels reach the students that are scored on them."""
    n_same, excess = 0, []
    for problem in problems:
        rng, y, rows = np.random.default_rng(0), problem.y.copy(), problem.validation
        before = validation_predictions(problem, y)
        y[rows] = rng.permutation(y[rows])
        n_same += np.array_equal(before, validation_predictions(problem, y))
        y = rng.permutation(problem.y)
        if len(np.unique(y[problem.train])) == len(np.unique(y)):
            predicted = validation_predictions(problem, y)
            chance = [np.mean(predicted == rng.permutation(y[rows])) for _ in range(100)]
            excess.append(100 * (np.mean(predicted == y[rows]) - np.mean(chance)))
    error = np.std(excess, ddof=1) / np.sqrt(len(excess))
    print(f"{n_same} of {len(problems)} sets: same predictions with other validation labels")
    print(f"all labels shuffled, {len(excess)} sets: {np.mean(excess):+.2f} ± {error:.2f} points")


def run_svm(problem):
    grid = {"C": SVM_GRID["C"], "gamma": np.divide(SVM_GRID["gamma"], problem.X.shape[1]).tolist()}
    split = problem.train, problem.validation
    search = GridSearchCV(SVC(cache_size=CACHE_MIB), grid, cv=[split], refit=False)
    found = search.fit(problem.X, problem.y).cv_results_
    chosen = found["params"][middle_of_best(found["mean_test_score"])]
    machines = [SVC(**chosen, cache_size=CACHE_MIB).fit(X, y) for X, y, _, _ in problem.folds]
    return problem.accuracy(machines), chosen


RUNS = {"NTKTeacher": run_teacher, "forest": run_forest, "student": run_student, "SVM": run_svm}


def add_method(record, name, problem):
    """Run one method on a set and put into the set's record what comes out."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record["accuracy"][name], record["chosen"][name] = RUNS[name](problem)
    record["seconds"][name] = time.perf_counter() - start
    record["warnings"][name] = dict(Counter(w.category.__name__ for w in caught))


def save(state, path):
    """Write the results so that an interruption leaves the old file or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(state, indent=1) + "\n")
    part.replace(path)


def print_table(header, rows):
    """Print a reStructuredText table."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    print(rule)
    for index, row in enumerate([header, *rows]):
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
        if index == 0:
            print(rule)
    print(rule + "\n")


def print_summary(accuracy):
    """Print averages, ranks and shares of the best method, from {method: per cent by set}."""
    table = np.column_stack(list(accuracy.values()))
    share = table / table.max(axis=1, keepdims=True)
    ranks = rankdata(-table, axis=1)
    rows = [
        [
            name,
            f"{table[:, k].mean():.2f}",
            f"{ranks[:, k].mean():.2f}",
            f"{100 * (share[:, k] >= 0.90).mean():.1f}",
            f"{100 * (share[:, k] >= 0.95).mean():.1f}",
            f"{100 * share[:, k].mean():.1f}",
        ]
        for k, name in enumerate(accuracy)
    ]
    print_table(["method", "accuracy", "rank", "P90", "P95", "PMA"], rows)


def print_pairs(accuracy):
    """Print how far our methods are from the others, paired by set."""
    rows = []
    pairs = [(mine, other) for mine in OURS for other in accuracy if other not in OURS]
    for mine, other in [*pairs, ("student", "NTKTeacher")]:
        gap = np.round(accuracy[mine] - accuracy[other], 1)
        rows.append(
            [
                f"{mine} − {other}",
                f"{gap.mean():+.2f} ± {gap.std(ddof=1) / np.sqrt(len(gap)):.2f}",
                f"{(gap > 0).sum()} / {(gap == 0).sum()} / {(gap < 0).sum()}",
                f"{wilcoxon(gap).pvalue:.2g}",
            ]
        )
    print_table(["pair", "difference", "won / tied / lost", "Wilcoxon p"], rows)


def report(sets, published):
    """Print what is known so far: per set, for all sets, and for those with published figures."""
    by_set = {name: [sets[name]["accuracy"][m] for m in METHODS] for name in sorted(sets)}
    rows = [
        [
            name,
            str(sets[name]["rows"]),
            *(f"{a:.1f}" for a in [*accuracy, *published.get(name, [])]),
        ]
        for name, accuracy in by_set.items()
    ]
    width = 2 + len(METHODS) + len(PUBLISHED) * bool(published)
    header = ["set", "n", *METHODS, *PUBLISHED.values()][:width]
    print_table(header, [row + ["–"] * (width - len(row)) for row in rows])
    print_comparison(list(by_set.values()), METHODS)
    shared = [accuracy + published[name] for name, accuracy in by_set.items() if name in published]
    print_comparison(shared, [*METHODS, *PUBLISHED.values()])


def print_comparison(rows, methods):
    """Print what can be said of two or more sets, from their accuracies by method."""
    if len(rows) > 1:
        # Published figures have one decimal: a difference beyond it is no difference.
        accuracy = dict(zip(methods, np.round(rows, 1).T, strict=True))
        print(f"{len(rows)} sets\n")
        print_summary(accuracy)
        print_pairs(accuracy)


def read_csv(path):
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--check", action="store_true", help="whether labels reach their scores")
    parser.add_argument("--quick", action="store_true", help="only six small sets")
    parser.add_argument("--max-rows", type=int, default=5_000, help="leave out larger sets")
    parser.add_argument("--seconds", type=float, default=np.inf, help="begin nothing after this")
    parser.add_argument("--json", type=Path, default=Path("bench_uci.json"))
    arguments = parser.parse_args()
    start = time.perf_counter()

    index = read_csv(arguments.data / "index.csv")
    wanted = arguments.sets or (QUICK if arguments.quick else list(index))
    unknown = sorted(set(wanted) - set(index))
    if unknown:
        parser.error(f"--sets: {unknown} are not in {arguments.data / 'index.csv'}.")
    rows = {name: int(index[name]["n"]) for name in wanted}
    too_large = [name for name in wanted if rows[name] > arguments.max_rows]
    wanted = sorted(set(wanted) - set(too_large), key=rows.get)

    if arguments.check:
        check([Problem(arguments.data / f"{name}.npz") for name in wanted])
        return

    state = {"protocol": PROTOCOL, "sets": {}}
    if arguments.json.exists():
        state = json.loads(arguments.json.read_text())
        if state["protocol"] != PROTOCOL:
            parser.error(f"--json: {arguments.json} holds results of another protocol.")
    for name in wanted:
        new = {"rows": rows[name], "accuracy": {}, "chosen": {}, "seconds": {}, "warnings": {}}
        record = state["sets"].setdefault(name, new)
        problem = Problem(arguments.data / f"{name}.npz")
        for method in RUNS:
            late = time.perf_counter() - start > arguments.seconds
            if method not in record["accuracy"] and not late:
                add_method(record, method, problem)
                save(state, arguments.json)
                print(f"{name}, {method}: {record['accuracy'][method]:.1f}", flush=True)
    print()

    published = {}
    if (arguments.data / "ntk_reference.csv").exists():
        for name, row in read_csv(arguments.data / "ntk_reference.csv").items():
            published[name] = [float(row[column]) for column in PUBLISHED]
    done = {n: state["sets"][n] for n in wanted if len(state["sets"][n]["accuracy"]) == len(RUNS)}
    report(done, published)
    if too_large:
        print(f"left out, n > {arguments.max_rows}: {', '.join(sorted(too_large))}")
    missing = [name for name in wanted if name not in done]
    if missing:
        print(f"still to run: {', '.join(missing)}")


if __name__ == "__main__":
    main()
