"""scikit-learn's other searches, and a worker that dies in the middle of one."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - for its effect
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import HalvingGridSearchCV
from sklearn.preprocessing import scale

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.solvers import Cholesky


@pytest.fixture(scope="module")
def data():
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)
    teacher = FrozenEstimator(LogisticRegression(C=0.01).fit(X[:100], y[:100]))
    return X[100:400], y[100:400], teacher


def test_halving_search_is_the_same_with_and_without_kept_frames(data):
    X, y, teacher = data
    grid = {"soft_ratio": [0.1, 0.5, 0.9, 1.0], "temperature": [1.0, 4.0]}
    on, off = (
        HalvingGridSearchCV(
            LinearizedKDStudent(teacher, solver=Cholesky(cache_size=size)),
            grid,
            cv=3,
            random_state=0,
        ).fit(X, y)
        for size in ("auto", 0)
    )
    for key, values in off.cv_results_.items():
        if "test" in key:
            np.testing.assert_array_equal(on.cv_results_[key], values, err_msg=key)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from sklearn.model_selection import GridSearchCV
    from sklearn_kd import LinearizedKDStudent
    from sklearn_kd.kernels import NTK

    class Deadly:
        def __call__(self, A, B):
            flag = Path(sys.argv[1])
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return NTK()(A, B)

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 2
    student = LinearizedKDStudent(LinearizedKDStudent(), kernel=Deadly(), cv=2)
    student.teacher.set_params(cv=2)
    grid = {"soft_ratio": [0.5, 1.0]}
    def search(n_jobs):
        return GridSearchCV(student, grid, cv=3, n_jobs=n_jobs, scoring="neg_log_loss")
    try:
        search(2).fit(X, y)
    except TerminatedWorkerError:
        print("ended in joblib's error")
    else:
        print("finished")
    again, alone = search(2).fit(X, y), search(1).fit(X, y)
    same = again.cv_results_["mean_test_score"] == alone.cv_results_["mean_test_score"]
    print("right" if same.all() else "wrong")
"""


def test_a_worker_killed_midway_ends_the_search_and_leaves_nothing_behind(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "flag")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    outcome, second = run.stdout.splitlines()
    assert outcome in ("ended in joblib's error", "finished")
    assert second == "right"


def test_the_closed_forms_can_be_searched_over(data):
    X, y, teacher = data
    outer = HalvingGridSearchCV(
        LinearizedKDStudentCV(teacher, cv=3), {"ridges": [[0.0], [0.1]]}, cv=2, random_state=0
    ).fit(X, y)
    assert outer.best_score_ > 0.9
