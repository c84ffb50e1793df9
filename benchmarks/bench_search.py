"""Choosing (ρ, T) four ways: refits with other libraries' parts, refits of ours, closed forms.

a. scikit-learn's GridSearchCV over a plain estimator that computes the kernel with scikit-ntk and
   solves with KernelRidge(kernel="precomputed"), candidate by candidate. Timed on a few candidates
   and scaled up to all of them. Needs ``pip install scikit-ntk``; left out without it.
b. GridSearchCV over LinearizedKDStudent.
c. LinearizedKDStudentCV with the same folds.
d. LinearizedKDStudentCV with leave-one-out.

All in this process, one after the other. Prints a table and writes JSON. Run nothing beside it.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import torch
from _common import clock, ten_classes
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK

# GridSearchCV takes the first of equal candidates; LinearizedKDStudentCV the one of largest ρ.
GRID = {"soft_ratio": [1.0, 0.99, 0.96, 0.9, 0.7, 0.5, 0.3, 0.1], "temperature": [1, 2, 5, 10]}
N_TEACHER = 1000
DEPTH = 3


class PlainStudent(ClassifierMixin, BaseEstimator):
    """The student from parts of other libraries."""

    def __init__(self, teacher=None, soft_ratio=0.9, temperature=2.0):
        self.teacher = teacher
        self.soft_ratio = soft_ratio
        self.temperature = temperature

    def fit(self, X, y):
        from skntk import NeuralTangentKernel

        self.classes_, labels = np.unique(y, return_inverse=True)
        # Its bias is a standard deviation, its inputs are not divided by √d.
        self.kernel_ = NeuralTangentKernel(depth=DEPTH, bias=1.0)
        self.X_fit_ = X / np.sqrt(X.shape[1])
        z_eff = effective_logits(
            self.teacher.decision_function(X),
            labels,
            soft_ratio=self.soft_ratio,
            temperature=self.temperature,
        )
        self.ridge_ = KernelRidge(kernel="precomputed", alpha=1e-10)
        self.ridge_.fit(self.kernel_(self.X_fit_), z_eff)
        return self

    def predict(self, X):
        block = self.kernel_(X / np.sqrt(X.shape[1]), self.X_fit_)
        return self.classes_[(self.ridge_.predict(block) > 0).astype(int)]


def timed(search, X, y):
    start = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--data", type=Path, help=".npz with X_train (images 0-255) and y_train")
    parser.add_argument("--plain-candidates", type=int, default=2, help="timed in (a)")
    parser.add_argument("--closed-only", action="store_true", help="only (c) and (d)")
    parser.add_argument("--json", type=Path, default=Path("bench_search.json"))
    arguments = parser.parse_args()
    X, y = ten_classes(arguments.data, arguments.rows + N_TEACHER)
    y = y % 2
    teacher = LogisticRegression(C=0.01).fit(X[:N_TEACHER], y[:N_TEACHER])
    teacher, X, y = FrozenEstimator(teacher), X[N_TEACHER:], y[N_TEACHER:]
    folds = StratifiedKFold(5)
    n_candidates = len(ParameterGrid(GRID))
    axes = {"soft_ratios": GRID["soft_ratio"], "temperatures": GRID["temperature"]}

    seconds, best = {}, {}
    if not arguments.closed_only:
        if importlib.util.find_spec("skntk"):
            some = {name: values[:1] for name, values in GRID.items()}
            some["temperature"] = GRID["temperature"][: arguments.plain_candidates]
            plain = GridSearchCV(PlainStudent(teacher), some, cv=folds, refit=False)
            scale = n_candidates / len(ParameterGrid(some))
            seconds["a: GridSearchCV, scikit-ntk and KernelRidge"] = scale * timed(plain, X, y)
            score = plain.cv_results_["mean_test_score"]
        search = GridSearchCV(LinearizedKDStudent(teacher), GRID, cv=folds)
        seconds["b: GridSearchCV, LinearizedKDStudent"] = timed(search, X, y)
        best["b"] = search.best_params_
    k_fold = LinearizedKDStudentCV(teacher, **axes, cv=folds)
    seconds["c: LinearizedKDStudentCV, five folds"] = timed(k_fold, X, y)
    by_fold = k_fold.cv_results_
    leave_one_out = LinearizedKDStudentCV(teacher, **axes)
    seconds["d: LinearizedKDStudentCV, leave-one-out"] = timed(leave_one_out, X, y)
    best |= {"c": k_fold.best_params_, "d": leave_one_out.best_params_}
    del k_fold, leave_one_out.best_estimator_
    matrix = NTK(depth=DEPTH).to_torch().gram(torch.as_tensor(X))
    info = torch.empty((), dtype=torch.int32)
    seconds["one Cholesky factor of all rows"] = clock(
        torch.linalg.cholesky_ex, matrix.T, out=(matrix.T, info)
    )

    print(
        f"n = {len(X)}, d = {X.shape[1]}, {n_candidates} (ρ, T), float64, "
        f"{torch.get_num_threads()} threads"
    )
    slowest = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{name:>44} {value:9.2f} s   {slowest / value:7.1f}×")
    for name, params in best.items():
        print(f"best of {name}: ρ = {params['soft_ratio']:g}, T = {params['temperature']:g}")
    if not arguments.closed_only:
        theirs = search.cv_results_["mean_test_score"]
        ours = {
            (p["soft_ratio"], p["temperature"]): s
            for p, s in zip(by_fold["params"], by_fold["mean_test_score"], strict=True)
        }
        pairs = zip(search.cv_results_["params"], theirs, strict=True)
        gap = max(abs(ours[p["soft_ratio"], p["temperature"]] - s) for p, s in pairs)
        print(f"largest difference of a mean score between b and c: {gap:.2g}")
        if importlib.util.find_spec("skntk"):
            gap = np.abs(score - theirs[: len(score)]).max()
            print(f"between a, whose kernel is normalised differently, and b: {gap:.2g}")
    record = {"rows": len(X), "candidates": n_candidates, "seconds": seconds, "best": best}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
