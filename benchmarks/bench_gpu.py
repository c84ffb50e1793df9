"""Kernel, frame and fits on a CUDA GPU: checked against the CPU, timed against cuBLAS and cuSOLVER.

Prints a table and writes JSON. Rates are of the floating-point operations that the step cannot
do without, as fractions of a large `torch.mm` and of `torch.linalg.cholesky` in the same run.
Then PCG with the kernel matrix in memory and without, and the restricted (Nyström) student, each at
the largest number of rows that fits, beside the memory planned for it.
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
from sklearn_kd._memory import budget_bytes
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement
from sklearn_kd.solvers._pcg import plan_pcg

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# Right-hand sides of a product: a (ρ, T) grid.
N_COLUMNS = 32

# Bytes that no machine has.
NO_LIMIT = 2**62


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
    solvers = (
        Cholesky(),
        Refinement(tol=1e-12),
        PCG(tol=1e-12, random_state=0),
        Nystrom(n_landmarks=500, random_state=0),
    )
    for solver in solvers:
        gpu, cpu = (
            LinearizedKDStudent(solver=solver, device=device)
            .fit(X, y, teacher_logits=logits)
            .decision_function(X_new)
            for device in ("cuda", "cpu")
        )
        compare(f"student logits, {solver.name}", gpu, cpu)
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


def largest_that_fits(planned_bytes, device):
    """Return the largest number of rows, to two digits, whose plan fits the device's budget."""
    budget = budget_bytes("auto", torch.device(device))
    sizes = [m * 10**e for e in range(3, 8) for m in range(10, 100)]
    return max((n for n in sizes if planned_bytes(n) <= budget), default=sizes[0])


def product_seconds(rows, stored):
    """Return the seconds of a product of the kernel matrix with 32 columns."""
    kernel = NTK().to_torch()
    operator = TiledOperator(kernel, rows, kept_bytes=NO_LIMIT if stored else 0)
    V = torch.randn(len(rows), N_COLUMNS, dtype=rows.dtype, device=rows.device)
    return clock(lambda: operator.matmat(V), repeats=3)


def measure_pcg(n_rows, n_features, dtype, stored, peak_rate, device="cuda"):
    """Return what a fit by PCG takes, and a product with 32 columns as a share of torch.mm."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    name = next(key for key, value in DTYPES.items() if value is dtype)
    product = product_seconds(torch.as_tensor(X, dtype=dtype, device=device), stored)
    flops = 2 * n_rows**2 * N_COLUMNS + (0 if stored else n_rows**2 * n_features)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    student = LinearizedKDStudent(
        solver=PCG(max_iter=100, random_state=0), device=device, dtype=name
    ).fit(X, y, teacher_logits=logits)
    report = student.fit_report_
    return {
        "rows": n_rows,
        "product seconds": product,
        "product share of mm": flops / product / peak_rate,
        "fit seconds": time.perf_counter() - start,
        "iterations": student.n_iter_,
        "residual": report.residual,
        "products": report.products,
        "planned bytes": report.planned_bytes,
        "peak bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def measure_nystrom(n_rows, n_features, n_landmarks, peak_rate, device="cuda"):
    """Return what a pass over the rows takes, as a share of torch.mm in float64."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    student = LinearizedKDStudent(solver=Nystrom(n_landmarks, random_state=0), device=device).fit(
        X, y, teacher_logits=logits
    )
    seconds = time.perf_counter() - start
    # a triangular solve and half of a Gram matrix per row, beside the kernel
    flops = n_rows * n_landmarks * (2 * n_landmarks + 2 * n_features)
    return {
        "rows": n_rows,
        "landmarks": n_landmarks,
        "fit seconds": seconds,
        "fit share of mm": flops / seconds / peak_rate,
        "captured trace": student.fit_report_.captured_trace,
        "planned bytes": student.fit_report_.planned_bytes,
        "peak bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def measure_scale(n_features, rates, device="cuda"):
    """Return the measurements of PCG and of the restricted student at the sizes that fit."""
    results = {}
    for name, dtype in DTYPES.items():
        peak = rates[name]["torch.mm"][1]

        def stored_bytes(n, dtype=dtype):
            return plan_pcg(n, n_features, 1, dtype, NO_LIMIT, torch.device(device)).planned_bytes

        n_rows = largest_that_fits(stored_bytes, device)
        for n, stored in ((n_rows, True), (2 * n_rows, False)):
            where = "in memory" if stored else "evaluated"
            key = f"pcg, {name}, matrix {where}"
            results[key] = measure_pcg(n, n_features, dtype, stored, peak, device)
    peak = rates["float64"]["torch.mm"][1]
    for n_landmarks in (2000, 10_000):
        key = f"nystrom, {n_landmarks} landmarks"
        results[key] = measure_nystrom(10**6, n_features, n_landmarks, peak, device)
    return results


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
            "10), the frame and students of all exact solvers and of solver='nystrom' on "
            f"{arguments.check_rows} rows with the CPU and fail above 1e-9 relative, (2) time the "
            f"kernel, frame and fit of n = {n}, d = {d} in float64 and float32 as fractions of "
            "torch.mm and torch.linalg.cholesky, and (3) time solver='pcg' and 'nystrom' at the "
            "largest number of rows that fits."
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
    result["scale"] = measure_scale(d, result["rates"])
    for name, measured in result["scale"].items():
        print(f"\n{name}")
        for quantity, value in measured.items():
            print(f"{quantity:>24} {value if isinstance(value, str) else f'{value:.4g}'}")
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(max(differences.values()) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
