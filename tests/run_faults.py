"""Kill a checkpointed fit at random moments and finish it: is the result that of no interruption?

Three kinds of work on rows in files: a pass (a student by `Nystrom`), a search (two kernels, two
ridges), and a search whose first pass is done already, so that the second one is interrupted.
Each is killed by SIGKILL at random moments, started again with the same arguments, and compared
with a run without interruption. Prints a table and writes JSON.

    python tests/run_faults.py --kills 20 --rows 40000
"""

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked

import numpy as np
import torch

import sklearn_kd.search._by_pass
import sklearn_kd.solvers._nystrom
from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import Nystrom
from sklearn_kd.solvers._checkpoint import Checkpoint

N_LANDMARKS, N_FEATURES = 200, 10
GRID = {"soft_ratios": [0.3, 0.9], "temperatures": [1.0, 4.0], "ridges": [1e-3, 1e-1]}


class Problem:
    """Rows in files, labels and the teacher's logits."""

    def __init__(self, folder, n_rows):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(n_rows, N_FEATURES))
        self.rows, self.n_rows = folder / "rows", n_rows
        self.rows.mkdir()
        for i, part in enumerate(np.array_split(X, 4)):
            np.save(self.rows / f"{i}.npy", part)
        self.logits = 3 * np.sin(X[:, :3]).sum(axis=1)
        self.labels = (self.logits + rng.logistic(size=n_rows) > 0).astype(int)

    def fit(self, estimator):
        return estimator.fit(self.rows, self.labels, teacher_logits=self.logits)


def solver(checkpoint):
    return Nystrom(N_LANDMARKS, random_state=0, checkpoint=checkpoint)


def student(problem, checkpoint):
    fitted = problem.fit(LinearizedKDStudent(solver=solver(checkpoint), ridge=1e-2))
    return {"dual_coef": fitted.dual_coef_, "resumed": fitted.fit_report_.resumed_at_row}


def search(problem, checkpoint, kernels=2):
    found = problem.fit(
        LinearizedKDStudentCV(
            kernel=[NTK(depth=depth + 1) for depth in range(kernels)],
            solver=solver(checkpoint),
            scoring="neg_log_loss",
            **GRID,
        )
    )
    return {
        "dual_coef": found.dual_coef_,
        "scores": found.cv_results_["mean_test_score"],
        "resumed": found.best_estimator_.fit_report_.resumed_at_row,
    }


WORK = {
    "pass": student,
    "search": search,
    "second pass": functools.partial(search, kernels=1),
}


def started(work, problem, folder):
    """Start the work in a process of its own and return its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        result = work(problem, folder / "pass.npz")
        np.savez(folder / "result.npz", **result)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finished(process):
    """Wait for a process and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def done(work, problem, folder):
    """Return what the work, run to its end, comes to, and how many seconds that took."""
    start = time.perf_counter()
    code = finished(started(work, problem, folder))
    if code:
        raise RuntimeError(f"the work ended with exit status {code}")
    seconds = time.perf_counter() - start
    with np.load(folder / "result.npz") as file:
        result = {name: file[name] for name in file.files}
    (folder / "result.npz").unlink()
    return result, seconds


def first_pass_done(problem, folder):
    """Leave in ``folder`` what a search leaves that is killed when its second pass begins."""

    def killed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    blocks = sklearn_kd.search._by_pass.leave_one_out_blocks
    sklearn_kd.search._by_pass.leave_one_out_blocks = killed
    try:
        assert finished(started(WORK["second pass"], problem, folder)) == -signal.SIGKILL
    finally:
        sklearn_kd.search._by_pass.leave_one_out_blocks = blocks


def difference(found, expected):
    """Return the largest difference, relative to the largest value of each array."""
    return max(
        np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        for name in expected
        if name != "resumed"
    )


def kill_and_resume(kind, problem, scratch, seconds, expected, start_from, random):
    """Kill the work once, finish it, and return what happened."""
    folder = scratch / "run"
    shutil.copytree(start_from, folder)
    delay = random.uniform(0, seconds)
    process = started(WORK[kind], problem, folder)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    was_running = finished(process) == -signal.SIGKILL
    left = [path.name for path in folder.glob("pass-*.npz")]
    (folder / "result.npz").unlink(missing_ok=True)
    result, again = done(WORK[kind], problem, folder)
    forgotten = [path.name for path in folder.iterdir()]
    shutil.rmtree(folder)
    return {
        "killed after": delay,
        "was running": was_running,
        "files left": len(left),
        "resumed at row": int(result["resumed"]),
        "seconds to finish": again,
        "difference": float(difference(result, expected)),
        "files forgotten": len(forgotten),
    }


def trials(kind, problem, scratch, n_kills, seed):
    random = np.random.default_rng(seed)
    start_from = scratch / f"start of {kind}"
    start_from.mkdir()
    whole = scratch / "whole"
    whole.mkdir()
    expected, seconds = done(WORK[kind], problem, whole)
    if kind == "second pass":
        first_pass_done(problem, start_from)
        shutil.rmtree(whole)
        shutil.copytree(start_from, whole)
        _, seconds = done(WORK[kind], problem, whole)
    shutil.rmtree(whole)
    arguments = kind, problem, scratch, seconds, expected, start_from, random
    return seconds, [kill_and_resume(*arguments) for _ in range(n_kills)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="random moments for each kind")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--seconds", type=float, default=0.2, help="between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    often = functools.partial(Checkpoint, seconds=arguments.seconds)
    sklearn_kd.solvers._nystrom.Checkpoint = often
    results = {}
    print(
        f"{'work':<12} {'seconds':>8} {'kills':>6} {'resumed':>8} {'lost':>5} {'largest diff.':>14}"
    )
    with tempfile.TemporaryDirectory() as name:
        problem = Problem(Path(name), arguments.rows)
        for kind in WORK:
            seconds, found = trials(kind, problem, Path(name), arguments.kills, arguments.seed)
            kills = [trial for trial in found if trial["was running"]]
            lost = [t for t in kills if t["difference"] > 1e-12 or t["files forgotten"]]
            resumed = sum(trial["files left"] > 0 for trial in kills)
            largest = max(trial["difference"] for trial in found)
            print(
                f"{kind:<12} {seconds:>8.1f} {len(kills):>6} {resumed:>8} {len(lost):>5} "
                f"{largest:>14.1e}",
                flush=True,
            )
            results[kind] = {"seconds": seconds, "trials": found}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))
    n_lost = sum(
        trial["difference"] > 1e-12 or trial["files forgotten"] > 0
        for of_kind in results.values()
        for trial in of_kind["trials"]
    )
    sys.exit(1 if n_lost else 0)


if __name__ == "__main__":
    main()
