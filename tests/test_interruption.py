"""Ctrl-C ends a fit within the block in progress, and leaves the estimator as it was."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.linalg import _cholesky
from sklearn_kd.solvers import Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = (X[:, 0] > 0).astype(int)
FITTED = {"teacher_logits": 4.0 * Y - 2}
SEARCH = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0]}


@pytest.mark.parametrize(
    ("estimator", "n_blocks"),
    [
        (LinearizedKDStudent(solver="cholesky"), 6),
        (LinearizedKDStudent(solver="refinement"), 6),
        (LinearizedKDStudent(solver=Nystrom(n_landmarks=30, random_state=0)), 3 + 3),
        (LinearizedKDStudentCV(**SEARCH), 6),
        (LinearizedKDStudentCV(**SEARCH, cv=2), 2 * 3),
        (NTKTeacher(loss="squared_error"), 6),
    ],
    ids=["cholesky", "refinement", "nystrom", "leave-one-out", "folds", "teacher"],
)
@pytest.mark.parametrize("is_fitted", [False, True])
def test_ctrl_c_during_a_factorization(ctrl_c, monkeypatch, estimator, n_blocks, is_fitted):
    fitted = {} if isinstance(estimator, NTKTeacher) else FITTED
    if is_fitted:
        estimator.fit(X[:8], Y[:8], **{name: z[:8] for name, z in fitted.items()})
    before = dict(vars(estimator))
    monkeypatch.setattr(_cholesky, "_ROWS_PER_CALL", 9)
    monkeypatch.setattr(_cholesky, "_BLOCK_COLUMNS", 10)
    blocks, panels = [], _cholesky._panels

    def interrupted(start, *args):
        blocks.append(start)
        if len(blocks) == n_blocks - 1:
            signal.raise_signal(signal.SIGINT)
        return panels(start, *args)

    monkeypatch.setattr(_cholesky, "_panels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, Y, **fitted)
    assert len(blocks) == n_blocks - 1
    assert vars(estimator).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(estimator).items())


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_from_a_terminal():
    code = """
    import signal

    import numpy as np
    from sklearn_kd import LinearizedKDStudent
    from sklearn_kd.linalg import _cholesky

    signal.signal(signal.SIGINT, signal.default_int_handler)
    blocks, panels = [], _cholesky._panels

    def counted(start, *args):
        blocks.append(start)
        if len(blocks) == 2:
            print("factoring", flush=True)
        return panels(start, *args)

    _cholesky._panels = counted
    X = np.random.default_rng(0).normal(size=(7000, 5))
    student = LinearizedKDStudent()
    before = dict(vars(student))
    try:
        student.fit(X, X[:, 0] > 0, teacher_logits=X[:, 0])
    except KeyboardInterrupt:
        print("stopped", len(blocks), vars(student) == before, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "factoring\n"
    process.send_signal(signal.SIGINT)
    stopped, n_blocks, is_unchanged = process.communicate(timeout=60)[0].split()
    assert (stopped, is_unchanged) == ("stopped", "True")
    assert int(n_blocks) < 14  # of 14
