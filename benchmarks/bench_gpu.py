"""Kernel, frame and fit on a CUDA GPU: checked against the CPU, timed against cuBLAS and cuSOLVER.

Prints a table and writes JSON. Rates are of the floating-point operations that the step cannot
do without, as fractions of a large `torch.mm` and of `torch.linalg.cholesky` in the same run.
Without a CUDA GPU it says what it would run, and exits.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from _common import gaussian_problem

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def clock(function, repeats=5):
    """Return the median seconds of ``function`` after one warm-up, the device synchronized."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def check_against_cpu(n_rows, n_features):
    """Return the largest relative difference between GPU and CPU (float64) per quantity."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    X_new = gaussian_problem(500, n_features)[0] * 1.1
    differences = {}

    def compare(name, gpu, cpu):
        gpu, cpu = torch.as_tensor(gpu).cpu(), torch.as_tensor(cpu)
        differences[name] = ((gpu - cpu).abs().max() / cpu.abs().max()).item()

    rows, new = torch.as_tensor(X), torch.as_tensor(X_new)
    for depth in (3, 10):
        kernel = NTK(depth=depth).to_torch()
        compare(
            f"kernel block, depth {depth}",
            kernel.block(new.cuda(), rows.cuda()),
            kernel.block(new, rows),
        )
        compare(f"kernel matrix, depth {depth}", kernel.gram(rows.cuda()), kernel.gram(rows))
    kernel, targets = NTK().to_torch(), torch.as_tensor(logits)
    gpu, cpu = TangentFrame(kernel, rows.cuda()), TangentFrame(kernel, rows)
    compare("frame coordinates", gpu.coordinates(targets.cuda()), cpu.coordinates(targets))
    compare("frame features u", gpu.features(new.cuda())[0], cpu.features(new)[0])
    compare("leave-one-out", gpu.loo(targets.cuda()), cpu.loo(targets))
    students = [
        LinearizedKDStudent(device=device).fit(X, y, teacher_logits=logits)
        for device in ("cuda", "cpu")
    ]
    compare("student logits", *(student.decision_function(X_new) for student in students))
    return differences


def measure_rates(n_rows, n_features, dtype):
    X, y, logits = gaussian_problem(n_rows, n_features)
    rows = torch.as_tensor(X, dtype=dtype, device="cuda")
    kernel = NTK().to_torch()
    storage = torch.empty(n_rows, n_rows, dtype=dtype, device="cuda")
    matrix = kernel.gram(rows, out=storage)
    side = min(n_rows, 8192)
    square = torch.randn(side, side, dtype=dtype, device="cuda")
    name = next(key for key, value in DTYPES.items() if value is dtype)

    def fit():
        LinearizedKDStudent(device="cuda", dtype=name).fit(X, y, teacher_logits=logits)

    def frame():
        TangentFrame(kernel, rows)

    seconds = {
        "torch.mm": clock(lambda: torch.mm(square, square)),
        "torch.linalg.cholesky": clock(lambda: torch.linalg.cholesky(matrix)),
        "kernel": clock(lambda: kernel.gram(rows, out=storage, symmetrize=False)),
        "frame": clock(frame),
        "fit": clock(fit),
    }
    flops = {
        "torch.mm": 2 * side**3,
        "torch.linalg.cholesky": n_rows**3 / 3,
        "kernel": n_rows**2 * n_features,
        "frame": n_rows**3 / 3 + n_rows**2 * n_features,
        "fit": n_rows**3 / 3 + n_rows**2 * n_features,
    }
    return {step: (seconds[step], flops[step] / seconds[step]) for step in seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--check-rows", type=int, default=3_000)
    parser.add_argument("--json", type=Path, default=Path("bench_gpu.json"))
    arguments = parser.parse_args()
    n, d = arguments.rows, arguments.features
    if not torch.cuda.is_available():
        print(
            "No CUDA GPU here. With one, this script would (1) compare the kernel (depths 3 and "
            f"10), the frame and a fitted student on {arguments.check_rows} rows with the CPU and "
            f"fail above 1e-9 relative, and (2) time the kernel, frame and fit of n = {n}, d = {d} "
            "in float64 and float32 as fractions of torch.mm and torch.linalg.cholesky."
        )
        return 0

    device = torch.cuda.get_device_name()
    differences = check_against_cpu(arguments.check_rows, min(d, 100))
    print(f"{device}: largest relative difference from the CPU, float64")
    for name, difference in differences.items():
        print(f"{name:>24} {difference:9.1e}")
    result = {"device": device, "differences": differences, "rates": {}}
    for name, dtype in DTYPES.items():
        rates = measure_rates(n, d, dtype)
        print(f"\nn = {n}, d = {d}, {name}\n{'':>24}   seconds  TFLOP/s   of mm  of cholesky")
        for step, (seconds, rate) in rates.items():
            print(
                f"{step:>24} {seconds:9.4f} {rate / 1e12:8.2f} {rate / rates['torch.mm'][1]:7.2f} "
                f"{rate / rates['torch.linalg.cholesky'][1]:12.2f}"
            )
        result["rates"][name] = rates
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(max(differences.values()) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
