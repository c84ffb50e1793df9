"""scikit-learn's callbacks: the stages they are told, nesting, scoring, and interruption."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from recorder import Recorder
from sklearn.base import clone
from sklearn.callback import ScoringMonitor
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    LeaveOneOut,
    RepeatedKFold,
    ShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import Nystrom

X, Y = make_classification(n_samples=40, random_state=0)


def stages(name, *tasks):
    return [(name, task) for task in tasks]


TEACHER_FIT = stages("NTKTeacher", "fit", "kernel", "minimum")


@pytest.mark.parametrize(
    ("teacher", "tasks"),
    [
        (NTKTeacher(), ["kernel", "minimum"]),
        (NTKTeacher(loss="squared_error"), ["kernel-and-factor", "solve"]),
        (NTKTeacher(stopping_time=[1.0, 100.0]), ["kernel", *["gradient-flow"] * 100]),
        (
            NTKTeacher(stopping_time=100.0, loss="squared_error"),
            ["kernel", *["gradient-flow"] * 100],
        ),
    ],
)
def test_stages_of_the_teacher(teacher, tasks):
    recorder = Recorder()
    teacher.set_callbacks(recorder).fit(X, Y)
    assert recorder.begun() == stages("NTKTeacher", "fit", *tasks)
    assert recorder.events[0] == ("setup", "NTKTeacher", "fit")
    assert recorder.events[-1] == ("teardown", "NTKTeacher", "fit")
    n_begun, n_ended = (sum(e[0] == event for e in recorder.events) for event in ("begin", "end"))
    assert n_begun == n_ended


@pytest.mark.parametrize(
    ("teacher", "fit_teacher"),
    [
        (None, TEACHER_FIT),
        # A teacher without callbacks is one task, and no warning says so.
        (RandomForestClassifier(n_estimators=5, random_state=0), None),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
def test_stages_of_the_student_with_a_teacher_to_fit(teacher, fit_teacher):
    recorder = Recorder()
    LinearizedKDStudent(teacher, cv=2).set_callbacks(recorder).fit(X, Y)
    student = "LinearizedKDStudent"
    assert recorder.begun() == [
        *stages(student, "fit"),
        *(fit_teacher or stages(student, "fit-teacher")) * 3,  # two folds, all rows
        *stages(student, "kernel-and-factor", "solve"),
    ]


def test_stages_of_the_student_without_one():
    recorder = Recorder()
    student = LinearizedKDStudent().set_callbacks(recorder)
    student.fit(X, Y, teacher_logits=2.0 * Y - 1)
    assert recorder.begun() == stages("LinearizedKDStudent", "fit", "kernel-and-factor", "solve")

    recorder.events.clear()
    frozen = FrozenEstimator(LogisticRegression().fit(X, Y))
    student.set_params(teacher=frozen).fit(X, Y)
    assert recorder.begun() == stages(
        "LinearizedKDStudent", "fit", "logits-of-teacher", "kernel-and-factor", "solve"
    )


def test_depth_of_propagation():
    recorder = Recorder(max_propagation_depth=0)
    LinearizedKDStudent(cv=2).set_callbacks(recorder).fit(X, Y)
    assert {name for name, _ in recorder.begun()} == {"LinearizedKDStudent"}


def test_results_do_not_depend_on_callbacks():
    silent = LinearizedKDStudent(NTKTeacher(stopping_time=100.0)).fit(X, Y)
    told = LinearizedKDStudent(NTKTeacher(stopping_time=100.0)).set_callbacks(Recorder())
    told.fit(X, Y)
    np.testing.assert_array_equal(told.dual_coef_, silent.dual_coef_)
    assert vars(told).keys() - vars(silent).keys() == {"_skl_callbacks"}


def test_a_teacher_with_a_progress_callback_of_its_own():
    teacher = NTKTeacher().set_callbacks(Recorder())
    with pytest.raises(TypeError, match="Register them directly on the meta-estimator"):
        LinearizedKDStudent(teacher).fit(X, Y)


@pytest.mark.parametrize("n_jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_stages_nest_in_a_search_over_a_pipeline(n_jobs):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    pipeline = make_pipeline(StandardScaler(), LinearizedKDStudent(cv=2))
    grid = {"linearizedkdstudent__soft_ratio": [0.5, 0.9]}
    recorder = Recorder()
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs)
    search.set_callbacks(recorder, ProgressBar(max_propagation_depth=None)).fit(X, Y)
    refit = recorder.begun()
    if n_jobs is None:
        assert refit.count(("LinearizedKDStudent", "fit")) == 2 * 2 + 1
        assert refit.count(("NTKTeacher", "kernel")) == (2 * 2 + 1) * 3
    assert refit[-2:] == stages("LinearizedKDStudent", "kernel-and-factor", "solve")


def lines_of_bars(capsys, estimator, depth, **fitted):
    """Return the lines that a progress bar shows in the end, without the bars."""
    from sklearn.callback import ProgressBar

    estimator.set_callbacks(ProgressBar(max_propagation_depth=depth)).fit(X, Y, **fitted)
    return [line.split("━")[0].rstrip() for line in capsys.readouterr().out.splitlines()]


LOGITS = {"teacher_logits": 4.0 * Y - 2}
GRID = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0]}
NYSTROM = Nystrom(n_landmarks=15, random_state=0)
FITS = [
    (NTKTeacher(), {}),
    (NTKTeacher(stopping_time=10.0), {}),
    (LinearizedKDStudent(cv=2), {}),
    (LinearizedKDStudent(LogisticRegression(), cv=KFold(3)), {}),
    (LinearizedKDStudent(LogisticRegression(), cv=list(KFold(4).split(X))), {}),
    (LinearizedKDStudent(LogisticRegression(), cv=RepeatedKFold(n_splits=3, n_repeats=1)), {}),
    (LinearizedKDStudent(LogisticRegression(), cv=LeaveOneOut()), {}),
    (LinearizedKDStudent(FrozenEstimator(LogisticRegression().fit(X, Y))), {}),
    (LinearizedKDStudent(solver="refinement"), LOGITS),
    (LinearizedKDStudent(solver="pcg"), LOGITS),
    (LinearizedKDStudent(solver=NYSTROM), LOGITS),
    (LinearizedKDStudentCV(**GRID), LOGITS),
    (LinearizedKDStudentCV(**GRID, refit=False), LOGITS),
    (LinearizedKDStudentCV(**GRID, stopping_times=[1.0, 10.0]), LOGITS),
    (LinearizedKDStudentCV(LogisticRegression(), **GRID), {}),
    (LinearizedKDStudentCV(LogisticRegression(), **GRID, cv=ShuffleSplit(2)), {}),
    (LinearizedKDStudentCV([LogisticRegression(), NTKTeacher()], **GRID, cv=3), {}),
    (LinearizedKDStudentCV(LogisticRegression(), **GRID, cv=3, teacher_cv=2), {}),
    (LinearizedKDStudentCV(LogisticRegression(), **GRID), {"X_val": X[::2], "y_val": Y[::2]}),
    (LinearizedKDStudentCV(**GRID, cv=3, ridges=[0.1, 1.0], kernel=[NTK(1), NTK(2)]), LOGITS),
    (LinearizedKDStudentCV(**GRID, cv=3, ridges=[0.1, 1.0], solver="pcg"), LOGITS),
    (LinearizedKDStudentCV(**GRID, ridges=[0.1, 1.0], solver=NYSTROM), LOGITS),
    (LinearizedKDStudentCV(**GRID, cv=3, kernel=[NTK(1), NTK(2)], solver=NYSTROM), LOGITS),
]


@pytest.mark.parametrize(("estimator", "fitted"), FITS)
def test_a_fit_takes_the_steps_that_it_announces(estimator, fitted):
    recorder = Recorder(max_propagation_depth=1)  # as a progress bar has it
    estimator = clone(estimator).set_callbacks(recorder)
    estimator.fit(X, Y, **fitted)
    name = type(estimator).__name__
    assert {event[1] for event in recorder.events} == {name}
    assert recorder.begun()[0] == (name, "fit")
    assert len(recorder.begun()) - 1 == recorder.n_announced


@pytest.mark.parametrize(("estimator", "fitted"), FITS[::3])
def test_a_progress_bar_is_one_line(capsys, estimator, fitted):
    pytest.importorskip("rich")
    name = type(estimator).__name__
    assert lines_of_bars(capsys, clone(estimator), 1, **fitted) == [f"{name} - fit"]


def test_a_progress_bar_shows_teachers_if_asked(capsys):
    pytest.importorskip("rich")
    threads = lasting_threads()
    teacher = "  LinearizedKDStudent - fit-teacher | NTKTeacher - fit #"
    assert lines_of_bars(capsys, LinearizedKDStudent(cv=2), 2) == [
        "LinearizedKDStudent - fit",
        *(f"{teacher}{number}" for number in range(3)),
    ]
    wait_for(lambda: lasting_threads() <= threads)


def test_more_steps_than_announced_are_taken_in_silence():
    recorder = Recorder(max_propagation_depth=1)
    student = LinearizedKDStudent(LogisticRegression(), cv=KFold(12).split(X))
    student.set_callbacks(recorder).fit(X, Y)
    assert recorder.n_announced == 5 + 1 + 2  # an iterator is not counted
    assert recorder.begun()[1:] == stages("LinearizedKDStudent", *["fit-teacher"] * 8)


@pytest.mark.slow
def test_the_bar_of_a_search_with_workers_is_one_line(capsys):
    pytest.importorskip("rich")
    search = LinearizedKDStudentCV(LogisticRegression(), **GRID, n_jobs=2)
    assert lines_of_bars(capsys, search, 1) == ["LinearizedKDStudentCV - fit"]


@pytest.mark.parametrize("estimator", [NTKTeacher(), LinearizedKDStudent(cv=2)])
def test_a_scoring_callback_scores_the_fitted_estimator(estimator):
    monitor = ScoringMonitor(scoring="neg_log_loss")
    estimator.set_callbacks(monitor).fit(X, Y)
    log = monitor.get_logs(select="most_recent").data[-1]
    probabilities = estimator.predict_proba(X)
    expected = np.log(probabilities[np.arange(len(X)), Y]).mean()
    assert log["neg_log_loss"] == pytest.approx(expected)


def state(estimator):
    """Return what a reader can see of an estimator: names, and values by identity."""
    return {name: id(value) for name, value in vars(estimator).items() if name != "_frame"}


STUDENT_EVENTS = [
    ("setup", "LinearizedKDStudent", "fit"),
    ("begin", "LinearizedKDStudent", "fit"),
    ("begin", "NTKTeacher", "fit"),
    ("begin", "NTKTeacher", "gradient-flow"),
    ("end", "NTKTeacher", "fit"),
    ("begin", "LinearizedKDStudent", "kernel-and-factor"),
    ("end", "LinearizedKDStudent", "solve"),
    ("end", "LinearizedKDStudent", "fit"),
]
TEACHER_EVENTS = [
    ("begin", "NTKTeacher", "fit"),
    ("begin", "NTKTeacher", "gradient-flow"),
    ("end", "NTKTeacher", "fit"),
]


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("event", STUDENT_EVENTS + TEACHER_EVENTS, ids=" ".join)
def test_an_interruption_from_a_callback_leaves_no_trace(event, error, fitted):
    teacher = NTKTeacher(stopping_time=100.0)
    estimator = teacher if event in TEACHER_EVENTS else LinearizedKDStudent(teacher, cv=2)
    estimator = clone(estimator)
    if fitted:
        estimator.fit(X[:20], Y[:20])
    recorder = Recorder(event, error)
    before = state(estimator.set_callbacks(recorder))
    with pytest.raises(error):
        estimator.fit(X, Y)
    assert state(estimator) == before
    assert recorder.events[-1] == ("teardown", type(estimator).__name__, "fit")
    assert sum(name == "teardown" for name, *_ in recorder.events) == 1
    assert "_parent_callback_ctx" not in vars(teacher)
    pickle.loads(pickle.dumps(estimator.set_callbacks())).fit(X, Y)


class InterruptedKernel:
    """The NTK, interrupted at its ``n_calls``-th call; shared by clones."""

    def __init__(self, n_calls):
        self.n_calls = n_calls

    def __call__(self, X, Y=None):
        self.n_calls -= 1
        if self.n_calls <= 0:
            raise KeyboardInterrupt
        return NTK(depth=1)(X, Y)

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("estimator", "n_calls"),
    [
        (NTKTeacher(), 1),
        (LinearizedKDStudent(LogisticRegression()), 1),
        (LinearizedKDStudent(), 1),  # in the first fold
        (LinearizedKDStudent(), 11),  # in the teacher's fit on all rows
        (LinearizedKDStudent(), 12),  # in the student's own kernel
    ],
)
def test_an_interruption_from_the_kernel_leaves_no_trace(estimator, n_calls):
    estimator = clone(estimator).fit(X[:20], Y[:20])
    kernel = InterruptedKernel(n_calls)
    recorder = Recorder()
    before = state(estimator.set_params(kernel=kernel).set_callbacks(recorder))
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, Y)
    assert state(estimator) == before
    assert recorder.events[-1] == ("teardown", type(estimator).__name__, "fit")


def test_an_interrupted_search_leaves_no_threads():
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    threads = lasting_threads()
    search = GridSearchCV(LinearizedKDStudent(cv=2), {"soft_ratio": [0.5, 0.9]}, cv=2)
    recorder = Recorder(("begin", "LinearizedKDStudent", "solve"))
    search.set_callbacks(ProgressBar(max_propagation_depth=None), recorder)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, Y)
    assert not hasattr(search, "cv_results_")
    assert "_parent_callback_ctx" not in vars(search.estimator)
    wait_for(lambda: lasting_threads() <= threads)


def lasting_threads():
    """Return the threads that keep a process alive; scikit-learn's listeners are daemons."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_ctrl_c_in_a_parallel_search_leaves_no_processes():
    pytest.importorskip("rich")
    code = """
    from sklearn.callback import ProgressBar
    from sklearn.datasets import make_classification
    from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    LeaveOneOut,
    RepeatedKFold,
    ShuffleSplit,
)
    from sklearn_kd import LinearizedKDStudent

    class Started:
        max_propagation_depth = None
        def setup(self, estimator, context): pass
        def on_fit_task_begin(self, estimator, context):
            print("began", context.estimator_name, flush=True)
        def on_fit_task_end(self, estimator, context): pass
        def teardown(self, estimator, context): print("torn down", flush=True)

    X, y = make_classification(1500, random_state=0)
    grid = {"soft_ratio": [i / 1000 for i in range(1, 999)]}
    search = GridSearchCV(LinearizedKDStudent(), grid, cv=2, n_jobs=2)
    search.set_callbacks(ProgressBar(), Started())
    try:
        search.fit(X, y)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "began LinearizedKDStudent" in line:  # in a worker, which shares the output
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = process.communicate(timeout=60)
    assert "torn down" in output
    assert "interrupted" in output

    def gone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone)
