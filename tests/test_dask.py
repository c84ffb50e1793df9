"""Searches and the pass over the rows on a Dask scheduler with worker processes, one killed."""

import json
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("distributed")

SCRIPT = """
    import itertools, json, os, signal, sys
    from pathlib import Path
    # As many threads as Dask's workers have: other numbers of them round differently.
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    import dask
    import joblib
    import numpy as np
    from dask.distributed import Client, LocalCluster
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    import sklearn_kd.solvers._pass
    from sklearn_kd import LinearizedKDStudent
    from sklearn_kd.kernels import NTK
    from sklearn_kd.solvers import Nystrom

    FOLDER = Path(sys.argv[1])

    class Traced:
        '''A kernel that notes the processes it runs in, and once ends the one it is in.

        It waits for both workers: joblib sends each array to one, from which the other copies it.
        '''

        def __init__(self, deadly=False):
            self.deadly = deadly

        def __call__(self, A, B):
            (FOLDER / f"pid-{os.getpid()}").touch()
            try:
                workers = processes() - {int(os.environ["PARENT"])}
                if self.deadly and os.getpid() in workers and len(workers) > 1:
                    (FOLDER / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
            return NTK()(A, B)

    def processes():
        return {int(name.name[4:]) for name in FOLDER.glob("pid-*")}

    def search(X, y, z_t, kernel):
        student = LinearizedKDStudent(kernel=kernel)
        grid = {"soft_ratio": [0.3, 0.9], "temperature": [1.0, 4.0]}
        search = GridSearchCV(student, grid, cv=SPLITS, scoring="neg_log_loss")
        return search.fit(X, y, teacher_logits=z_t).cv_results_

    def restricted(X, y, z_t, kernel):
        student = LinearizedKDStudent(
            kernel=kernel, solver=Nystrom(n_landmarks=30, random_state=0)
        )
        return student.fit(X, y, teacher_logits=z_t).dual_coef_

    if __name__ == "__main__":
        os.environ["PARENT"] = str(os.getpid())
        sklearn_kd.solvers._pass.block_rows = lambda n_landmarks: 32
        sklearn_kd.solvers._pass.ROWS_PER_TASK = 1
        rng = np.random.default_rng(0)
        X = rng.normal(size=(400, 3))
        z_t = 3 * np.sin(X).sum(axis=1)
        problem = X, (z_t + rng.logistic(size=400) > 0).astype(int), z_t
        SPLITS = list(StratifiedKFold(3).split(*problem[:2]))
        # A copy on every worker: joblib sends each array to one alone, which then must not die,
        # and Dask's memory manager would reduce the copies to one after some seconds.
        everywhere = [*problem[:2], *itertools.chain(*SPLITS)]
        dask.config.set({"distributed.scheduler.active-memory-manager.start": False})
        found = {}
        with LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster, Client(cluster) as client:
            for name, what, deadly, scatter in [
                ("search", search, False, None),
                ("search with one killed", search, True, everywhere),
                ("pass with one killed", restricted, True, None),
            ]:
                expected = what(*problem, Traced())
                for note in FOLDER.glob("*-*"):
                    note.unlink()
                (FOLDER / "killed").unlink(missing_ok=True)
                client.wait_for_workers(2)  # the one killed before has come back
                with joblib.parallel_config(backend="dask", scatter=scatter):
                    actual = what(*problem, Traced(deadly))
                workers = processes() - {os.getpid()}
                record = {"processes": len(workers), "killed": (FOLDER / "killed").exists()}
                if what is search:
                    names = [name for name in expected if "test" in name]
                    same = [np.array_equal(expected[n], actual[n]) for n in names]
                    record["same"] = all(same) and len(same) > 5
                else:
                    record["error"] = float(abs(actual - expected).max())
                found[name] = record
        print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_search_has_the_same_results(found):
    record = found["search"]
    assert record["processes"] == 2
    assert record["same"]


def test_a_search_survives_a_worker(found):
    record = found["search with one killed"]
    assert record["killed"]
    assert record["processes"] >= 2
    assert record["same"]


def test_the_pass_over_the_rows_survives_a_worker(found):
    record = found["pass with one killed"]
    assert record["killed"]
    assert record["processes"] >= 2
    assert record["error"] < 1e-10
