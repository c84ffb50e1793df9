"""Peak memory of kernel, fit, searches and learning curves, beside what was planned for them.

The plan is the number of bytes that the library names when a memory limit of one byte refuses the
call, so it is worked out from shapes alone, before anything is allocated. The peak is the largest
resident size of a fresh process beyond what it held before the call, with libraries loaded and the
data in memory. Prints a table and writes JSON.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from _common import gaussian_problem, peak_bytes
from sklearn.model_selection import KFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd._memory import require
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._tiles import kernel_bytes
from sklearn_kd.linalg import TangentFrame

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
N_TEST = 1000


def kernel(X, y, logits, X_test):
    def run(limit):
        planned = kernel_bytes(len(X), len(X), X.shape[1], torch.float64)
        require(planned, limit, torch.device("cpu"), what="It", remedy="")
        NTK()(X)

    return run


def factor(X, y, logits, X_test):
    return lambda limit: TangentFrame(NTK().to_torch(), torch.as_tensor(X), memory_limit=limit)


def fit(X, y, logits, X_test):
    return lambda limit: LinearizedKDStudent(solver="cholesky", memory_limit=limit).fit(
        X, y, teacher_logits=logits
    )


def search(**options):
    def prepared(X, y, logits, X_test):
        return lambda limit: LinearizedKDStudentCV(memory_limit=limit, **options).fit(
            X, y, teacher_logits=logits
        )

    return prepared


def prefix_path(X, y, logits, X_test):
    student = LinearizedKDStudent().fit(X, y, teacher_logits=logits)
    grid = {"soft_ratio": [0.3, 0.6, 0.9, 1.0], "temperature": [1.0, 2.0, 5.0]}

    def run(limit):
        student.set_params(memory_limit=limit).prefix_path(
            X_test, teacher_logits=X_test[:, 0], param_grid=grid, n_permutations=2
        )

    return run


WORK = {
    "kernel": kernel,
    "factor": factor,
    "fit": fit,
    "leave-one-out": search(),
    "five folds": search(cv=KFold(5)),
    "three folds": search(cv=KFold(3)),
    "five folds, two ridges": search(cv=KFold(5), ridges=[0.0, 1.0]),
    "prefix_path": prefix_path,
}


def problem(n_rows, n_features):
    X, y, logits = gaussian_problem(n_rows + N_TEST, n_features)
    return X[N_TEST:].copy(), y[N_TEST:], logits[N_TEST:], X[:N_TEST].copy()


def planned_bytes(run):
    """Return what the library says it would take."""
    try:
        run(1)
    except MemoryBudgetError as error:
        number, unit = re.search(r"needs ([\d.e+]+) (\w+)", str(error)).groups()
        return float(number) * UNITS[unit]
    raise SystemExit("Nothing was planned.")


def measure(name, n_rows, n_features):
    """Print the planned bytes, and the peak above the base: what a fresh process does."""
    WORK[name](*problem(60, n_features))("auto")  # loads every library
    run = WORK[name](*problem(n_rows, n_features))
    base = psutil.Process().memory_info().rss
    run("auto")
    peak = peak_bytes() - base
    print(json.dumps({"planned": planned_bytes(run), "peak": peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 4000, 8000, 12000])
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), metavar="NAME")
    parser.add_argument("--json", type=Path, default=Path("bench_memory.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rows[0], arguments.features)
        return
    results = []
    print(f"{'':>24} {'n':>7} {'planned':>10} {'peak':>10} {'peak/planned':>13}")
    for name in arguments.only:
        for n_rows in arguments.rows:
            command = [sys.executable, __file__, "--measure", name, "--rows", str(n_rows)]
            command += ["--features", str(arguments.features)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            result = {"what": name, "rows": n_rows, **json.loads(printed)}
            results.append(result)
            planned, peak = result["planned"] / 2**20, result["peak"] / 2**20
            sizes = f"{planned:>6.0f} MiB {peak:>6.0f} MiB {peak / planned:>13.2f}"
            print(f"{name:>24} {n_rows:>7} {sizes}", flush=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
