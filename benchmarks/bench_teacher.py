"""Training an NTKTeacher to ten stopping times, beside the kernel products it consists of.

Prints a table and writes JSON. The ratio is the time of the fit over that of its products with
the kernel matrix, timed in the same run: what the integrator costs on top. Run nothing beside it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _common import clock, median_seconds, ten_classes

from sklearn_kd import NTKTeacher
from sklearn_kd.kernels import NTK

TIMES = np.geomspace(1, 1e5, 10)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--data", type=Path, help=".npz with X_train (images 0-255) and y_train")
    parser.add_argument("--json", type=Path, default=Path("bench_teacher.json"))
    arguments = parser.parse_args()
    X, y = ten_classes(arguments.data, arguments.rows)
    rows = torch.as_tensor(X)
    kernel, matrix = NTK().to_torch(), torch.empty(len(X), len(X), dtype=torch.float64)
    kernel_seconds = clock(kernel.gram, rows, out=matrix)

    print(
        f"n = {len(X)}, d = {X.shape[1]}, float64, {torch.get_num_threads()} threads, "
        f"ten stopping times to {TIMES[-1]:g}; kernel alone {kernel_seconds:.2f} s"
    )
    print(f"{'':>32} {'fit s':>8} {'products':>9} {'their s':>8} {'fit / (kernel + products)':>26}")
    results = {}
    problems = {"binary": (y % 2, 1), "10 classes": (y, 10)}
    for name, (labels, width) in problems.items():
        vector = torch.randn(len(X), width, dtype=torch.float64)
        product = median_seconds(lambda v=vector: matrix @ v, repeats=20)
        for loss in ("log_loss", "squared_error"):
            teacher = NTKTeacher(loss=loss, stopping_time=TIMES)
            seconds = clock(teacher.fit, X, labels)
            count = teacher.fit_report_.n_kernel_products
            ratio = seconds / (kernel_seconds + count * product)
            print(
                f"{f'{name}, {loss}':>32} {seconds:8.1f} {count:9d} {count * product:8.1f} "
                f"{ratio:26.2f}"
            )
            results[f"{name}, {loss}"] = {"seconds": seconds, "products": count, "ratio": ratio}
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
