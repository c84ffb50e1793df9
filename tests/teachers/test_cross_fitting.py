"""Cross-fitting by workers: the same logits, told to callbacks, without the kernel matrix."""

import pickle
import threading

import joblib
import numpy as np
import pytest
from recorder import Recorder
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import KFold, LeaveOneOut

import sklearn_kd.teachers._cross_fitting
from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = {"two": (X[:, 0] + RNG.logistic(size=60) > 0).astype(int), "three": np.arange(60) % 3}
WEIGHTS = RNG.uniform(0.5, 2, 60)
TEACHER = ExtraTreesClassifier(5, min_samples_leaf=4, random_state=0)
ALONE = LinearizedKDStudent(TEACHER, cv=4)
SEARCH = LinearizedKDStudentCV(TEACHER, soft_ratios=[0.5], temperatures=[2.0], cv=4)
ESTIMATORS = {
    "student": ALONE,
    "pairs": SEARCH,
    "inner folds": LinearizedKDStudentCV(TEACHER, soft_ratios=[0.5], teacher_cv=3, cv=4),
}


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("y", Y.values(), ids=Y)
@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_workers_change_no_result(estimator, y, backend):
    expected = estimator.fit(X, y, WEIGHTS)
    z_t = getattr(expected, "best_estimator_", expected).teacher_logits_
    logits, results = expected.decision_function(X), getattr(expected, "cv_results_", {})
    with joblib.parallel_config(backend, n_jobs=3):
        found = estimator.fit(X, y, WEIGHTS)
    np.testing.assert_array_equal(getattr(found, "best_estimator_", found).teacher_logits_, z_t)
    np.testing.assert_array_equal(found.decision_function(X), logits)
    for name in [name for name in results if "test" in name]:
        np.testing.assert_array_equal(found.cv_results_[name], results[name])


class WhereTeacher(NTKTeacher):
    """Notes the threads in which it is fitted."""

    threads: set = set()  # noqa: RUF012

    def fit(self, X, y, sample_weight=None):
        WhereTeacher.threads.add(threading.get_ident())
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_n_jobs_of_the_search(n_jobs):
    WhereTeacher.threads.clear()
    search = LinearizedKDStudentCV(WhereTeacher(), cv=3, n_jobs=n_jobs, refit=False)
    with joblib.parallel_config("threading"):
        search.fit(X, Y["two"])
    is_alone = WhereTeacher.threads == {threading.get_ident()}
    assert is_alone == (n_jobs != 2)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_fit_of_a_worker_reaches_the_callbacks(n_jobs):
    recorder = Recorder(max_propagation_depth=0)
    with joblib.parallel_config("threading", n_jobs=n_jobs):
        LinearizedKDStudent(TEACHER, cv=4).set_callbacks(recorder).fit(X, Y["three"])
    tasks = [task for event, _, task in recorder.events if event == "end"]
    assert tasks[:5] == ["fit-teacher"] * 5
    assert tasks.count("fit-teacher") == 5
    n_begun = sum(event == "begin" for event, *_ in recorder.events)
    assert n_begun == len(tasks)


def test_fits_in_other_processes_move_the_bar(capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    student = LinearizedKDStudent(TEACHER, cv=2).set_callbacks(ProgressBar())
    with joblib.parallel_config(n_jobs=2):
        student.fit(X, Y["two"])
    assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize("callbacks", [[], [Recorder(max_propagation_depth=0)]])
def test_workers_do_not_get_the_estimator_unless_a_callback_asks(callbacks, monkeypatch):
    sent = []

    def recording(teacher, rows, unseen, leaf):
        sent.append(leaf)
        return fit_and_ask(teacher, rows, unseen, leaf)

    fit_and_ask = sklearn_kd.teachers._cross_fitting._fit_and_ask
    monkeypatch.setattr(sklearn_kd.teachers._cross_fitting, "_fit_and_ask", recording)
    student = LinearizedKDStudent(TEACHER, cv=3).set_callbacks(*callbacks)
    student.note_ = np.zeros(10**6)  # stands for a network, or an earlier fit
    student.fit(X, Y["three"])
    sizes = [len(pickle.dumps(leaf)) for leaf in sent]
    assert len(sizes) == 3
    assert (max(sizes) < 10**5) == (not callbacks)


class Never(NTKTeacher):
    """Must not be fitted."""

    def fit(self, X, y, sample_weight=None):
        raise AssertionError


def test_errors_come_before_the_first_fit():
    y = np.r_[0, np.ones(59, int)]
    with pytest.raises(ValueError, match=r"without class 0; use fewer folds"):
        LinearizedKDStudent(Never(), cv=KFold(4)).fit(X, y)
    splits = [s for s in LeaveOneOut().split(X) if s[1][0] != 1]
    with pytest.raises(ValueError, match=r"leaves row 1 in no test fold"):
        LinearizedKDStudent(Never(), cv=splits).fit(X, Y["three"])
