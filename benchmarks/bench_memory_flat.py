"""Resident memory over minutes of repeated searches: it must not grow.

Alternates a GridSearchCV over the student, which keeps factors for reuse, and a
LinearizedKDStudentCV, each time on other rows. Prints the resident memory every 30 seconds and its
slope, once the factors kept have reached their bound, and writes JSON.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import numpy as np
import psutil
from _common import gaussian_problem
from sklearn.model_selection import GridSearchCV

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.solvers import Cholesky


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--json", type=Path, default=Path("bench_memory_flat.json"))
    arguments = parser.parse_args()
    X, y, _ = gaussian_problem(20 * arguments.rows, 20)
    solver = Cholesky(cache_size=10 * 8 * arguments.rows**2)
    teacher = NTKTeacher(stopping_time=10.0)
    grid = {"soft_ratio": [0.3, 0.9, 1.0], "temperature": [1.0, 4.0]}
    process, rng = psutil.Process(), np.random.default_rng(0)
    start, times, resident, searches = time.perf_counter(), [], [], 0
    next_print = 0.0
    while (elapsed := time.perf_counter() - start) < 60 * arguments.minutes:
        rows = rng.choice(len(X), arguments.rows, replace=False)
        student = LinearizedKDStudent(teacher, cv=2, solver=solver)
        GridSearchCV(student, grid, cv=3).fit(X[rows], y[rows])
        LinearizedKDStudentCV(teacher, cv=3).fit(X[rows], y[rows])
        searches += 2
        gc.collect()
        times.append(elapsed)
        resident.append(process.memory_info().rss)
        if elapsed >= next_print:
            print(f"{elapsed:6.0f} s  {searches:5d} searches  {resident[-1] / 2**20:7.0f} MiB")
            next_print += 30
    settled = np.array(times) > times[-1] / 3
    slope = np.polyfit(np.array(times)[settled], np.array(resident)[settled], 1)[0] * 60 / 2**20
    print(f"slope over the last two thirds: {slope:+.2f} MiB a minute, {searches} searches")
    record = {"searches": searches, "slope MiB a minute": slope, "resident": resident}
    arguments.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
