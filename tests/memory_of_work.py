"""What some work takes in a fresh process, beside what it says that it will: run by a test.

``python memory_of_work.py NAME N_ROWS [LIMIT]`` prints the bytes that a refusal names and those
that the process held at most beyond what it held before.
"""

import json
import re
import resource
import sys
from pathlib import Path

import numpy as np
import psutil
from sklearn.model_selection import KFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.solvers import PCG, Nystrom

N_FEATURES = 20
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def fit(**options):
    return lambda X, y, z_t: (
        lambda limit: LinearizedKDStudent(memory_limit=limit, **options).fit(
            X, y, teacher_logits=z_t
        )
    )


def search(**options):
    return lambda X, y, z_t: (
        lambda limit: LinearizedKDStudentCV(memory_limit=limit, **options).fit(
            X, y, teacher_logits=z_t
        )
    )


def prefix_path(X, y, z_t):
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    return lambda limit: student.set_params(memory_limit=limit).prefix_path(
        X[:500], teacher_logits=z_t[:500], n_permutations=2
    )


WORK = {
    "cholesky": fit(solver="cholesky"),
    "refinement": fit(solver="refinement"),
    "pcg": fit(solver=PCG(tol=0.1)),  # what it holds does not depend on how long it iterates
    "nystrom": fit(solver=Nystrom(n_landmarks=800)),
    "leave-one-out": search(),
    "five folds": search(cv=KFold(5)),
    "stopping times": search(cv=KFold(5), soft_ratios=[0.5], stopping_times=[3.0, 30.0, None]),
    "five folds, pcg": search(cv=KFold(5), solver=PCG(tol=0.1)),
    "leave-one-out, nystrom": search(solver=Nystrom(n_landmarks=800)),
    "prefix_path": prefix_path,
}


def problem(n_rows):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, N_FEATURES))
    z_t = 3 * np.sin(X[:, 0]) + rng.normal(size=n_rows)
    return X, (z_t > 0).astype(int), z_t


def named_bytes(work):
    try:
        work(1)
    except MemoryBudgetError as error:
        number, unit = re.search(r"needs ([\d.e+]+) (\w+)", str(error)).groups()
        return float(number) * UNITS[unit]


def peak_bytes():
    """Return the largest resident size of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # macOS, where the unit is a byte
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # on Linux ru_maxrss starts from that of the parent, which may be a large one
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


def main(name, n_rows, limit=None):
    WORK[name](*problem(100))(10**9)  # loads every library
    work = WORK[name](*problem(int(n_rows)))
    named = named_bytes(work)
    before = psutil.Process().memory_info().rss
    work(named * 1.001 if limit is None else float(limit))
    print(json.dumps({"named": named, "taken": peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
