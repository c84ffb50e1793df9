"""Time and peak memory of one fit, beside its kernel and one torch Cholesky measured alone.

Prints a table and writes JSON. The times are medians of runs interleaved in one process; the
peak memory comes from a fresh process that does nothing but the fit. Run nothing beside it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from _common import clock, gaussian_problem, peak_bytes

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK


def measure_times(n_rows, n_features, repeats):
    X, y, logits = gaussian_problem(n_rows, n_features)
    kernel, rows = NTK().to_torch(), torch.as_tensor(X)
    storage = torch.empty(n_rows, n_rows, dtype=torch.float64)
    times = {"kernel": [], "cholesky": [], "fit": []}
    for _ in range(repeats):
        times["kernel"].append(clock(kernel.gram, rows, out=storage, symmetrize=False))
        kernel.gram(rows, out=storage)
        times["cholesky"].append(clock(torch.linalg.cholesky, storage))
        times["fit"].append(clock(LinearizedKDStudent().fit, X, y, teacher_logits=logits))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_peak(n_rows, n_features):
    """Print the peak resident bytes of a fit above those before it; runs in a fresh process."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    LinearizedKDStudent().fit(X[:50], y[:50], teacher_logits=logits[:50])  # loads every library
    base = psutil.Process().memory_info().rss
    LinearizedKDStudent().fit(X, y, teacher_logits=logits)
    print(peak_bytes() - base)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench_fit.json"))
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n, d = arguments.rows, arguments.features
    if arguments.peak_only:
        measure_peak(n, d)
        return

    child = [sys.executable, __file__, "--peak-only", "--rows", str(n), "--features", str(d)]
    peak = int(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    times = measure_times(n, d, arguments.repeats)
    parts = times["kernel"] + times["cholesky"]
    result = {
        "rows": n,
        "features": d,
        "threads": torch.get_num_threads(),
        "seconds": times,
        "fit / (kernel + cholesky)": times["fit"] / parts,
        "peak bytes": peak,
        "peak / (8 n^2)": peak / (8 * n * n),
    }
    print(f"n = {n}, d = {d}, float64, {result['threads']} threads, median of {arguments.repeats}")
    for name, seconds in times.items():
        print(f"{name:>24} {seconds:9.2f} s")
    print(f"{'fit / (kernel+cholesky)':>24} {result['fit / (kernel + cholesky)']:9.2f}")
    print(f"{'peak above base':>24} {peak / 2**20:9.0f} MiB")
    print(f"{'peak / (8 n²)':>24} {result['peak / (8 n^2)']:9.2f}")
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
