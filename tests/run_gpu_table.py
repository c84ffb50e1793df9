"""What the package would ask of a GPU: the account of one that is pretended (`device_books`).

Prints a table of every entry point, checked against the CPU, and one of larger problems, with the
time of an H100 by a model as a multiple of that of their matrix products and factorizations, and
the peak of memory beside the plan. Ten minutes on one core.

    OMP_NUM_THREADS=1 python tests/run_gpu_table.py [pattern]
"""

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before scikit-learn

import numpy as np
import pretend_cuda
import torch
from gpu_cases import CASES, Z3, flat
from pretend_cuda import PretendCuda

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement
from sklearn_kd.solvers._frame_cache import frames


def rows(n, d):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    z = X @ rng.standard_normal(d) + rng.standard_normal(n)
    return X, (z > 0).astype(int), z


class Problem(NamedTuple):
    """A problem whose size a GPU would feel."""

    n: int
    d: int
    solve: Callable


def fit(**options):
    def solve(X, y, z):
        return LinearizedKDStudent(device="cuda", **options).fit(X, y, teacher_logits=z)

    return solve


def search(X, y, z):
    made = LinearizedKDStudentCV(device="cuda", cv=5, refit=False)
    return made.fit(X, y, teacher_logits=z)


def prediction(X, y, z):
    made = LinearizedKDStudent(device="cuda", solver=Nystrom(200, random_state=0))
    made.fit(X[:400], y[:400], teacher_logits=z[:400])
    made.X_fit_, made.dual_coef_ = X, np.resize(made.dual_coef_, len(X))
    pretend_cuda.active().forget()
    made.decision_function(X[:4000])
    return None


PROBLEMS = {
    "fit, cholesky": Problem(10_000, 100, fit(solver=Cholesky())),
    "fit, cholesky, float32": Problem(10_000, 100, fit(solver=Cholesky(), dtype="float32")),
    "fit, refinement": Problem(10_000, 100, fit(solver=Refinement())),
    "fit, pcg": Problem(6_000, 100, fit(solver=PCG(max_iter=30, random_state=0), ridge=1.0)),
    "fit, nystrom": Problem(20_000, 100, fit(solver=Nystrom(1000, random_state=0))),
    "fit, flow": Problem(3_000, 100, fit(stopping_time=[10.0])),
    "search, 5 folds": Problem(3_000, 100, search),
    "4000 predictions": Problem(10_000, 100, prediction),
}


def entry_points(pattern):
    print(f"{'entry point':40} {'differs':>8} launches  waits  to GPU  to CPU  peak MB  model ms")
    for name, case in CASES.items():
        if pattern not in name:
            continue
        frames.clear()
        expected = flat(case("cpu"))
        frames.clear()
        with PretendCuda() as gpu:
            try:
                found, error = flat(case("cuda")), None
            except Exception as raised:  # a table of failures too
                found, error = [], raised
            frames.clear()
        t = gpu.total
        differs = f"{difference(found, expected):8.0e}" if error is None else "   FAILS"
        print(
            f"{name:40} {differs} {t.launches:8} {t.waits:6} {t.to_gpu:7} {t.to_cpu:7} "
            f"{gpu.peak / 1e6:8.1f} {1e3 * gpu.seconds:9.1f}",
            flush=True,
        )
        if error is not None:
            print(f"    {type(error).__name__}: {str(error)[:120]}")


def difference(found, expected):
    """Return the largest difference, relative to the largest entry of each result."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if other.dtype.kind in "fc" and other.size:
            finite = np.isfinite(other)
            scale = np.abs(other[finite]).max(initial=1e-300)
            worst = max(worst, float(np.abs(one - other)[finite].max(initial=0) / scale))
        elif not np.array_equal(one, other):
            return np.inf
    return worst


def problems(pattern):
    print(
        f"\n{'problem':24}      n   d launches  waits  to GPU  to CPU  model ms  products ms"
        "  ratio  peak MB  plan MB"
    )
    for name, problem in PROBLEMS.items():
        if pattern not in name:
            continue
        frames.clear()
        data = rows(problem.n, problem.d)
        start = time.perf_counter()
        with PretendCuda() as gpu:
            made = problem.solve(*data)
            frames.clear()
        t, products = gpu.total, gpu.total.product_seconds
        plan = getattr(getattr(made, "fit_report_", None), "planned_bytes", None)
        print(
            f"{name:24} {problem.n:6} {problem.d:3} {t.launches:8} {t.waits:6} {t.to_gpu:7} "
            f"{t.to_cpu:7} {1e3 * gpu.seconds:9.1f} {1e3 * products:12.1f} "
            f"{gpu.seconds / products:6.1f} {gpu.peak / 1e6:8.0f} "
            f"{'' if plan is None else f'{plan / 1e6:8.0f}'} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        print(gpu.summary(5), flush=True)


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    NTK().to_torch().gram(torch.as_tensor(Z3))  # constants that are made once
    entry_points(pattern)
    problems(pattern)


if __name__ == "__main__":
    main()
