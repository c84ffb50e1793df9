"""What a teacher that is nested in the folds costs a search, beside the teacher's own fits.

LinearizedKDStudentCV over its default 21 (ρ, T), five folds, one kernel and no ridge, on Gaussian
rows of ten features. Once with a frozen teacher, whose logits all folds share; once with the same
teacher unfitted, which gives every fold logits, effective logits and right-hand sides of its own.
CPU seconds of one thread, the least of several runs, without the fits and answers of the teacher.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from sklearn_kd import LinearizedKDStudentCV


class TimedTeacher(LogisticRegression):
    """Adds up the CPU seconds that fits and answers take."""

    seconds = 0.0

    def fit(self, X, y, sample_weight=None):
        start = time.process_time()
        super().fit(X, y, sample_weight)
        TimedTeacher.seconds += time.process_time() - start
        return self

    def decision_function(self, X):
        start = time.process_time()
        logits = super().decision_function(X)
        TimedTeacher.seconds += time.process_time() - start
        return logits


def seconds_of(teacher, X, y):
    """Return the CPU seconds of a search without those of its teacher."""
    start, TimedTeacher.seconds = time.process_time(), 0.0
    LinearizedKDStudentCV(teacher, cv=5).fit(X, y)
    return time.process_time() - start - TimedTeacher.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1200, 2000, 4000])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("bench_nested.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = []
    print(f"{'rows':>6} {'classes':>8} {'frozen':>8} {'unfitted':>9} {'ratio':>6}")
    for n_rows in arguments.rows:
        for n_classes in arguments.classes:
            rng = np.random.default_rng(0)
            X, rule = rng.normal(size=(n_rows, 10)), rng.normal(size=(10, n_classes))
            y = (X @ rule + 2 * rng.gumbel(size=(n_rows, n_classes))).argmax(axis=1)
            teacher = TimedTeacher(C=0.1)
            frozen = FrozenEstimator(TimedTeacher(C=0.1).fit(X, y))
            pairs = [
                [seconds_of(t, X, y) for t in (frozen, teacher)] for _ in range(arguments.repeats)
            ]
            shared, nested = np.min(pairs, axis=0)
            found.append({"rows": n_rows, "classes": n_classes, "frozen": shared, "nested": nested})
            line = f"{n_rows:6} {n_classes:8} {shared:8.2f} {nested:9.2f} {nested / shared:6.2f}"
            print(line, flush=True)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
