"""What the benchmark scripts share: a clock, a median, and a plain two-class problem."""

import statistics
import time

import numpy as np


def clock(function, *arguments, **keywords):
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - start


def median_seconds(function, repeats=5):
    """Return the median seconds of ``repeats`` calls."""
    return statistics.median(clock(function) for _ in range(repeats))


def gaussian_problem(n_rows, n_features):
    """Return Gaussian rows, the labels of a random linear rule, and noisy logits of it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_features))
    logits = X @ rng.standard_normal(n_features) / np.sqrt(n_features) * 3
    return X, (logits > 0).astype(int), logits + rng.standard_normal(n_rows)
