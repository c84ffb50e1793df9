"""Kernel, frame and fits on a CUDA GPU: checked against the CPU, timed against cuBLAS and cuSOLVER.

First every solver is compared with the CPU; above 1e-9 relative the script fails. Rates are of the
floating-point operations that a step cannot do without, as fractions of a large `torch.mm` and of
`torch.linalg.cholesky` in the same run. Then PCG with the kernel matrix in memory and without, and
the restricted (Nyström) student, beside the memory planned for them. With ``--cifar`` the time that
is left of six minutes goes to Fig. 5 (left) of the paper at full size: a ResNet-20 on 32 × 32
images. Prints tables, and writes its JSON as it goes. Needs 80 GB; without a GPU it only says so.

    python benchmarks/bench_gpu.py --cifar ../cifar10
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from _common import gaussian_problem

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement
from sklearn_kd.solvers._pcg import _LEAST_RANK as LEAST_RANK
from sklearn_kd.solvers._pcg import pcg_bytes

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# Right-hand sides of a product: a (ρ, T) grid.
N_COLUMNS = 32

# Bytes that no machine has.
NO_LIMIT = 2**62

SECONDS = 360  # of the whole script


class Sizes(NamedTuple):
    """Rows of each measurement, and landmarks."""

    checked: int
    features: int
    rates: int
    stored: int
    evaluated: int
    streamed: int
    landmarks: int


FULL = Sizes(3000, 784, 20_000, 60_000, 60_000, 200_000, 2000)
QUICK = Sizes(200, 20, 400, 400, 400, 800, 100)


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
        Nystrom(n_landmarks=n_rows // 6, random_state=0),
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
        # Without a cache, which would keep the frame from the third fit on.
        solver = Cholesky(cache_size=0)
        student = LinearizedKDStudent(solver=solver, device="cuda", dtype=name)
        student.fit(X, y, teacher_logits=logits)

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


def product_seconds(rows, stored):
    """Return the seconds of a product of the kernel matrix with 32 columns."""
    kernel = NTK().to_torch()
    operator = TiledOperator(kernel, rows, kept_bytes=NO_LIMIT if stored else 0)
    V = torch.randn(len(rows), N_COLUMNS, dtype=rows.dtype, device=rows.device)
    return clock(lambda: operator.matmat(V), repeats=3)


def measure_pcg(n_rows, n_features, dtype, stored, peak_rate):
    """Return what a fit by PCG takes, and a product with 32 columns as a share of torch.mm."""
    X, y, logits = gaussian_problem(n_rows, n_features)
    name = next(key for key, value in DTYPES.items() if value is dtype)
    product = product_seconds(torch.as_tensor(X, dtype=dtype, device="cuda"), stored)
    flops = 2 * n_rows**2 * N_COLUMNS + (0 if stored else n_rows**2 * n_features)
    limit = "auto"
    if not stored:  # what the iteration takes beside the matrix
        limit = pcg_bytes(n_rows, n_features, 1, LEAST_RANK, torch.device("cuda"))
    solver = PCG(max_iter=100 if stored else 5, random_state=0)
    student, seconds, peak = measured_fit(
        LinearizedKDStudent(solver=solver, device="cuda", dtype=name, memory_limit=limit),
        (X, y, logits),
    )
    report = student.fit_report_
    return {
        "rows": n_rows,
        "product seconds": product,
        "product share of mm": flops / product / peak_rate,
        "fit seconds": seconds,
        "iterations": student.n_iter_,
        "residual": report.residual,
        "planned bytes": report.planned_bytes,
        "peak bytes": peak,
    }


def measured_fit(student, problem):
    """Return a fitted student, the seconds of its fit, and the peak of memory."""
    X, y, logits = problem
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    student.fit(X, y, teacher_logits=logits)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return student, seconds, torch.cuda.max_memory_allocated() - before


def measure_nystrom(n_rows, n_features, n_landmarks, peak_rate):
    """Return what a pass over the rows takes, as a share of torch.mm in float64."""
    student, seconds, peak = measured_fit(
        LinearizedKDStudent(solver=Nystrom(n_landmarks, random_state=0), device="cuda"),
        gaussian_problem(n_rows, n_features),
    )
    # a triangular solve and half of a Gram matrix per row, beside the kernel
    flops = n_rows * n_landmarks * (2 * n_landmarks + 2 * n_features)
    return {
        "rows": n_rows,
        "landmarks": n_landmarks,
        "fit seconds": seconds,
        "fit share of mm": flops / seconds / peak_rate,
        "captured trace": student.fit_report_.captured_trace,
        "planned bytes": student.fit_report_.planned_bytes,
        "peak bytes": peak,
    }


def print_rates(title, rates):
    print(f"\n{title}\n{'':>24}   seconds  TFLOP/s   of mm  of cholesky")
    for step, (seconds, rate) in rates.items():
        print(
            f"{step:>24} {seconds:9.4f} {rate / 1e12:8.2f} {rate / rates['torch.mm'][1]:7.2f} "
            f"{rate / rates['torch.linalg.cholesky'][1]:12.2f}",
            flush=True,
        )


def print_measured(name, measured):
    print(f"\n{name}")
    for quantity, value in measured.items():
        print(f"{quantity:>24} {value:.4g}", flush=True)


def fig5_left(folder, seconds):
    """Run Fig. 5 (left) at full size for some seconds; return the numbers that it wrote."""
    script = Path(__file__).parent / "networks" / "fig5_left.py"
    output = Path("fig5_left_gpu.json")
    # fmt: off
    options = [
        "--data", folder, "--device", "cuda", "--seconds", f"{seconds:.0f}", "--json", output,
        "--side", "32", "--blocks", "3", "--rows", "10000", "--epochs", "60", "--teachers", "own",
    ]
    # fmt: on
    done = subprocess.run([sys.executable, script, *map(str, options)], check=False)
    if done.returncode or not output.exists():
        return {"exit code": done.returncode}
    return json.loads(output.read_text())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--cifar", help="a folder of CIFAR-10, as benchmarks/networks takes it")
    parser.add_argument("--json", type=Path, default=Path("bench_gpu.json"))
    arguments = parser.parse_args()
    start = time.monotonic()
    sizes = QUICK if arguments.quick else FULL
    d = sizes.features
    if not torch.cuda.is_available():
        print(
            "No CUDA GPU here. With one, this script would compare the kernel, the frame and "
            "students of all solvers with the CPU, and time them as fractions of torch.mm and "
            "torch.linalg.cholesky."
        )
        return 0

    result = {"device": torch.cuda.get_device_name()}

    def write(key, value):
        result[key] = value
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")

    differences = check_against_cpu(sizes.checked, min(d, 100))
    write("differences", differences)
    print(f"{result['device']}: largest relative difference from the CPU, float64")
    for name, difference in differences.items():
        print(f"{name:>24} {difference:9.1e}", flush=True)
    peaks = {}
    for name, dtype in DTYPES.items():
        rates = measure_rates(sizes.rates, d, dtype)
        write(f"rates, {name}", rates)
        print_rates(f"n = {sizes.rates}, d = {d}, {name}", rates)
        peaks[name] = rates["torch.mm"][1]
    for where, n_rows in (("in memory", sizes.stored), ("evaluated", sizes.evaluated)):
        key = f"pcg, float32, matrix {where}"
        is_stored = where == "in memory"
        write(key, measure_pcg(n_rows, d, torch.float32, is_stored, peaks["float32"]))
        print_measured(key, result[key])
    key = f"nystrom, {sizes.landmarks} landmarks"
    write(key, measure_nystrom(sizes.streamed, d, sizes.landmarks, peaks["float64"]))
    print_measured(key, result[key])
    write("seconds", time.monotonic() - start)
    if arguments.cifar:
        write("Fig. 5, left", fig5_left(arguments.cifar, SECONDS - (time.monotonic() - start)))
    return int(max(differences.values()) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
