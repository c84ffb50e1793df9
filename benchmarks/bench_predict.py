"""What predictions cost: one row at a time, and many, beside scikit-learn's KernelRidge.

A student and a KernelRidge (RBF) with the same fitted rows predict the same rows. Many rows are
compared with the evaluation of the kernel matrix alone as well. Prints a table and writes JSON.
Run nothing beside it.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import clock, gaussian_problem, median_seconds
from sklearn.kernel_ridge import KernelRidge

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import Nystrom

FITTED = ((1000, 20), (10_000, 20), (10_000, 784))


def measure(n_rows, n_features, n_new):
    """Return the seconds of the student, of KernelRidge, and of the student's kernel alone."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    X_new = gaussian_problem(max(n_new, 2), n_features)[0][:n_new] * 1.1
    # An expansion in all rows, whose coefficients do not matter here, without the cost of a fit.
    student = LinearizedKDStudent(solver=Nystrom(200, random_state=0))
    student.fit(X, y, teacher_logits=logits)
    student.X_fit_, student.dual_coef_ = X, np.resize(student.dual_coef_, n_rows)
    peer = KernelRidge(kernel="rbf").fit(X[:200], logits[:200])
    peer.X_fit_, peer.dual_coef_ = X, logits
    seconds = {}
    for name, predict in (("student", student.decision_function), ("KernelRidge", peer.predict)):
        predict(X_new)
        repeats = 31 if n_new == 1 else 1
        seconds[name] = median_seconds(lambda predict=predict: predict(X_new), repeats)
    if n_new > 1:
        kernel, rows, new = NTK().to_torch(), torch.as_tensor(X), torch.as_tensor(X_new)

        def evaluate():
            for part in new.split(1000):
                kernel.block(part, rows)

        seconds["kernel alone"] = clock(evaluate)
    return {"fitted": n_rows, "features": n_features, "rows": n_new, **seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--json", default="bench_predict.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("fitted x features    rows   student ms   of KernelRidge   of the kernel alone")
    found = []
    for n_rows, n_features in FITTED:
        for n_new in (1, arguments.many):
            one = measure(n_rows, n_features, n_new)
            found.append(one)
            of_peer = one["student"] / one["KernelRidge"]
            alone = f"{one['student'] / one['kernel alone']:.2f}" if n_new > 1 else ""
            print(
                f"{n_rows:7} x {n_features:<8} {n_new:7} {1e3 * one['student']:12.2f} "
                f"{of_peer:16.2f} {alone:>21}",
                flush=True,
            )
    Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
