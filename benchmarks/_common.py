"""What the benchmark scripts share: a clock, a median, peak memory, and problems to solve."""

import resource
import statistics
import sys
import time

import numpy as np
from sklearn.datasets import make_blobs


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


def ten_classes(path, n_rows):
    """Return rows scaled to [0, 1] and ten classes: images from an .npz file, or blobs."""
    if path is None:
        X, y = make_blobs(n_rows, 784, centers=10, cluster_std=20.0, random_state=0)
        return (X - X.min()) / (X.max() - X.min()), y
    with np.load(path) as file:
        X, y = file["X_train"][:n_rows], file["y_train"][:n_rows]
    return X.reshape(len(X), -1) / 255.0, y


def peak_bytes():
    """Return the largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
