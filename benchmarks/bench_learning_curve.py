"""Transfer risk and data inefficiency at every training-set size, beside refitting at a few.

Ours: one fit and one `prefix_path` for all sizes and all (ρ, T). The peer: scikit-learn's
`learning_curve` around the same student, which refits at each of 20 sizes for each (ρ, T); its
scorer looks at the test rows only, once for both quantities. Both run in this process; the peak
memory of ours comes from a fresh one. Prints a table and writes JSON. Run nothing beside it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import torch
from _common import clock, peak_bytes, ten_classes
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid, learning_curve

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer

GRID = {"soft_ratio": [0.1, 0.3, 0.5, 0.7, 0.9, 0.96, 0.99, 1.0], "temperature": [1, 2, 5, 10]}
N_TEST = 2000
N_TEACHER = 1000


class Problem:
    """Odd against even digits (or blobs), with a logistic teacher of 1000 rows of its own."""

    def __init__(self, path, n_rows):
        X, y = ten_classes(path, n_rows + N_TEST + N_TEACHER)
        y = y % 2
        teacher = LogisticRegression(C=0.01).fit(X[:N_TEACHER], y[:N_TEACHER])
        self.student = LinearizedKDStudent(FrozenEstimator(teacher))
        self.X_test, self.y_test = X[N_TEACHER : N_TEACHER + N_TEST], y[N_TEACHER:][:N_TEST]
        self.X, self.y = X[N_TEACHER + N_TEST :], y[N_TEACHER + N_TEST :]


def ours(problem):
    student = clone(problem.student).fit(problem.X, problem.y)
    return student.prefix_path(problem.X_test, param_grid=GRID)


def theirs(problem, sizes):
    """Return the transfer risk, (candidates, sizes), from one refit for each."""
    X, y = (np.concatenate(p) for p in ((problem.X, problem.X_test), (problem.y, problem.y_test)))
    split = [(np.arange(len(problem.X)), np.arange(len(problem.X), len(X)))]

    def both_scores(student, X, y):
        if len(X) != N_TEST:
            return 0.0  # the training rows, which learning_curve scores too
        neg_data_inefficiency_scorer(student, X, y)
        return neg_transfer_risk_scorer(student, X, y)

    curves = []
    for params in ParameterGrid(GRID):
        student = clone(problem.student).set_params(**params)
        _, _, scores = learning_curve(
            student, X, y, train_sizes=sizes, cv=split, scoring=both_scores
        )
        curves.append(-scores[:, 0])
        print(
            f"  learning_curve {len(curves)} of {len(ParameterGrid(GRID))}",
            end="\r",
            file=sys.stderr,
        )
    return np.array(curves)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--data", type=Path, help=".npz with X_train (images 0-255) and y_train")
    parser.add_argument("--json", type=Path, default=Path("bench_learning_curve.json"))
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    problem = Problem(arguments.data, arguments.rows)
    if arguments.peak_only:
        LinearizedKDStudent().fit(
            problem.X[:50], problem.y[:50], teacher_logits=np.ones(50)
        )  # loads libraries
        base = psutil.Process().memory_info().rss
        ours(problem)
        print(peak_bytes() - base)
        return

    child = [sys.executable, __file__, "--peak-only", "--rows", str(arguments.rows)]
    child += [] if arguments.data is None else ["--data", str(arguments.data)]
    peak = int(subprocess.run(child, capture_output=True, text=True, check=True).stdout)

    n = len(problem.X)
    sizes = np.linspace(n / arguments.sizes, n, arguments.sizes).astype(int)
    results = {}
    seconds = {"prefix_path": clock(lambda: results.update(ours=ours(problem)))}
    seconds["learning_curve"] = clock(lambda: results.update(theirs=theirs(problem, sizes)))
    difference = np.abs(results["ours"].transfer_risk[:, 0, sizes - 1] - results["theirs"]).max()
    ratio = seconds["learning_curve"] / seconds["prefix_path"]
    n_candidates = len(results["ours"].params)

    print(
        f"n = {n}, d = {problem.X.shape[1]}, {n_candidates} (ρ, T), {N_TEST} test rows, float64, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'fit and prefix_path, every size':>36} {seconds['prefix_path']:9.1f} s")
    print(f"{f'learning_curve, {len(sizes)} sizes':>36} {seconds['learning_curve']:9.1f} s")
    print(f"{'ratio':>36} {ratio:9.0f}")
    print(f"{'largest difference of R':>36} {difference:9.2g}")
    print(f"{'peak above base':>36} {peak / 2**20:9.0f} MiB = {peak / (8 * n * n):.2f} × 8n²")
    record = {"rows": n, "candidates": n_candidates, "sizes": len(sizes), "seconds": seconds}
    record |= {"ratio": ratio, "difference": difference, "peak bytes": peak}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
