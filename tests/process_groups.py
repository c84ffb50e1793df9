"""Processes of torch.distributed on this machine, for tests of what they do together.

What they run must live in a module that they can import, so the tasks are here too.
"""

import datetime
import os
import pickle
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._array_kernel import ArrayKernel
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._preconditioner import default_rank
from sklearn_kd.linalg._sharded import ShardedOperator, drive, largest_share
from sklearn_kd.solvers import PCG, _pcg
from sklearn_kd.solvers._pcg import pcg_bytes
from sklearn_kd.solvers._system import Size

TIMEOUT_S = 20


def run(task, n_processes, folder, *arguments):
    """Run ``task(rank, *arguments)`` in each process and return what each of them returned.

    A task's exception is returned in place of a result; a process that died returns None.
    """
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_enter, args=(task, rank, n_processes, folder, arguments))
        for rank in range(n_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [folder / f"{rank}.pickle" for rank in range(n_processes)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _enter(task, rank, n_processes, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=n_processes,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    try:
        result = task(rank, *arguments)
    except Exception as error:  # of whatever type: the parent looks at it
        result = error
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))


def problem(n_rows):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 4))
    logits = np.stack([3 * np.sin(X).sum(axis=1), rng.normal(size=n_rows), X[:, 0]], axis=1)
    return X, logits.argmax(axis=1), logits


def products(rank, n_rows):
    """Return products with all, some and no tiles kept and in float32, and other parts."""
    X = torch.as_tensor(problem(n_rows)[0])
    V = torch.as_tensor(np.random.default_rng(1).normal(size=(n_rows, 5)))
    kernel = InfiniteKernel(depth=2)
    operators = [
        ShardedOperator(kernel, X, kept_bytes=10**8),
        ShardedOperator(kernel, X, kept_bytes=n_rows**2),
        ShardedOperator(kernel, X),
        ShardedOperator(kernel, X.float()),
    ]
    parts = torch.tensor([0, n_rows - 1])

    def ask():
        found = [operator.matmat(V.to(operator.dtype)) for operator in operators]
        found += [operators[0].diag(), operators[0].columns(parts)]
        return [tensor.numpy() for tensor in found]

    return drive(operators, ask)


def student(n_rows, options):
    """Return one with these options; memory_limit="little" keeps 5 of 8 parts of Θ, in float32."""
    options = dict(options)
    if options.get("memory_limit") == "little":
        entries = largest_share(n_rows, torch.device("cpu"), 1)
        beside = pcg_bytes(n_rows, 4, 3, default_rank(n_rows), torch.device("cpu"))
        options = options | {"memory_limit": beside + 5 * entries // 2}
    solver = PCG(**{name: options.pop(name) for name in ("tol", "max_iter") if name in options})
    return LinearizedKDStudent(solver=solver.set_params(random_state=0), **options)


def students(rank, n_rows, options):
    """Return what matters of students fitted with each set of options."""
    X, y, logits = problem(n_rows)
    found = []
    for keywords in options:
        fitted = student(n_rows, keywords).set_params(solver__distributed=True)
        fitted.fit(X, y, teacher_logits=logits)
        logits_new = fitted.decision_function(1.1 * X)
        found.append((logits_new, fitted.dual_coef_, fitted.n_iter_, fitted.fit_report_))
    return found


def dies_in_a_product(rank, victim, n_rows):
    """Process ``victim`` is killed while it evaluates tiles, after some products."""
    n_calls = 0

    def function(x, y):
        nonlocal n_calls
        n_calls += 1
        if rank == victim and n_calls > 100:
            os._exit(1)
        return np.exp(-((x[:, None] - y) ** 2).sum(axis=2) / 10)

    operator = ShardedOperator(ArrayKernel(function), torch.as_tensor(problem(n_rows)[0]))
    V = torch.ones(n_rows, 1, dtype=torch.float64)
    start = time.monotonic()
    try:
        drive([operator], lambda: [operator.matmat(V) for _ in range(1000)])
    except RuntimeError as error:
        return type(error).__name__, str(error), time.monotonic() - start


def memory_of_each(rank):
    """Return the bytes that each process may take with memory_limit="auto"."""
    seen, plan_pcg = [], _pcg.plan_pcg
    _pcg.plan_pcg = lambda *arguments: seen.append(arguments[4])
    try:
        PCG(distributed=True).plan(Size(100, 3, 1, torch.float64, torch.device("cpu")), "auto")
    finally:
        _pcg.plan_pcg = plan_pcg
    return seen[0]


def fails_in_process_0(rank):
    operator = ShardedOperator(InfiniteKernel(), torch.as_tensor(problem(20)[0]))

    def solve():
        operator.matmat(torch.ones(20, 1, dtype=torch.float64))
        raise NotPSDError("found in process 0")

    drive([operator], solve)


def other_data(rank, what):
    """Fit on rows, or teacher logits, that are others in process 1."""
    X, y, logits = problem(50)
    if rank == 1 and what == "rows":
        X = X + 1e-9
    if rank == 1 and what == "number of rows":
        X, y, logits = X[:40], y[:40], logits[:40]
    if rank == 1 and what == "teacher":
        logits = 1.001 * logits
    LinearizedKDStudent(solver=PCG(distributed=True)).fit(X, y, teacher_logits=logits)


def not_converged(rank):
    X, y, logits = problem(200)
    student = LinearizedKDStudent(solver=PCG(distributed=True, max_iter=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        student.fit(X, y, teacher_logits=logits)
    return [str(warning.message) for warning in caught]


def several(rank, *tasks):
    """Run small tasks one after the other; starting processes is what takes the time."""
    results = []
    for task, *arguments in tasks:
        try:
            results.append(task(rank, *arguments))
        except Exception as error:  # likewise
            results.append(error)
    return results
