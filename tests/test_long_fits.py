"""A fit that will take minutes says so before its work begins, with what is faster."""

import re
import warnings

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.exceptions import LongFitWarning
from sklearn_kd.linalg import _forecast
from sklearn_kd.solvers import PCG, Cholesky, Nystrom

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = (X[:, 0] > 0).astype(int)
Z = 4.0 * Y - 2
GRID = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0]}
NYSTROM = Nystrom(n_landmarks=20, random_state=0)


@pytest.fixture
def slow_machine(monkeypatch):
    """Every kernel entry takes a second, and every multiplication a millisecond."""
    monkeypatch.setattr(
        _forecast.Speed, "_unit", lambda self, kind, dtype: 1.0 if kind == "entry" else 1e-3
    )
    monkeypatch.setattr(_forecast, "_SLOWEST_ENTRY", 1.0)


class Stopped(Exception):
    pass


def stopped(*args, **options):
    raise Stopped


def warning_before_any_work(monkeypatch, estimator, **fitted):
    """Return the warning that a fit gives before it trains a teacher or evaluates a kernel."""
    monkeypatch.setattr("sklearn_kd.kernels.infinite._kernel.fill_gram", stopped)
    monkeypatch.setattr("sklearn_kd.kernels.infinite._kernel.fill_block", stopped)
    monkeypatch.setattr(LogisticRegression, "fit", stopped)
    with (
        pytest.raises(Stopped),
        pytest.warns(LongFitWarning) as caught,
    ):
        estimator.fit(X, Y, **fitted)
    assert not hasattr(estimator, "classes_")
    (warning,) = caught
    assert warning.filename == __file__
    return str(warning.message)


def minutes(message):
    """Return the numbers of minutes in a message."""
    units = {"seconds": 1 / 60, "minutes": 1, "hours": 60, "days": 60 * 24}
    found = re.findall(r"about ([\d.]+) (\w+)", message)
    return [float(number) * units[unit] for number, unit in found]


@pytest.mark.parametrize(
    ("solver", "others"),
    [
        ("cholesky", ["half of the rows"]),
        ("refinement", ["'cholesky' (exact to rounding)", "half of the rows"]),
        (PCG(random_state=0), ["half of the rows"]),
        (NYSTROM, ["n_landmarks=10"]),
    ],
)
def test_student(slow_machine, monkeypatch, solver, others):
    student = LinearizedKDStudent(LogisticRegression(), solver=solver)
    message = warning_before_any_work(monkeypatch, student)
    assert message.startswith("LinearizedKDStudent.fit on n=60 distinct rows with solver=")
    first, *rest = minutes(message)
    assert first >= 2
    assert rest
    assert all(other < first for other in rest)
    assert all(other in message for other in others)


def test_student_by_a_factor_counts_entries_and_the_factor(slow_machine, monkeypatch):
    monkeypatch.setattr(_forecast, "CONDITION", 0)
    message = warning_before_any_work(
        monkeypatch, LinearizedKDStudent(solver=Cholesky(cache_size=0)), teacher_logits=Z
    )
    expected = 60**2 / 2 + 1e-3 * (60**3 / 6 + 60**2 * (1 + _forecast.READING))
    assert minutes(message)[0] == pytest.approx(expected / 60, abs=0.5)


@pytest.mark.parametrize(
    ("search", "others"),
    [
        (LinearizedKDStudentCV(**GRID), ["half of the rows"]),
        (LinearizedKDStudentCV(**GRID, cv=KFold(3), ridges=[0.1, 1.0]), ["half of the rows"]),
        (LinearizedKDStudentCV(**GRID, cv=KFold(3), solver=PCG(random_state=0)), ["half of the"]),
        (LinearizedKDStudentCV(**GRID, solver=NYSTROM), ["n_landmarks=10"]),
        (LinearizedKDStudentCV(**GRID, solver=NYSTROM, cv=KFold(3)), ["n_landmarks=10"]),
    ],
)
def test_search(slow_machine, monkeypatch, search, others):
    message = warning_before_any_work(monkeypatch, search, teacher_logits=Z)
    assert message.startswith("LinearizedKDStudentCV.fit on n=60 distinct rows with solver=")
    assert all(other in message for other in others)


def forecast(monkeypatch, estimator, **fitted):
    return minutes(warning_before_any_work(monkeypatch, estimator, **fitted))[0]


def test_a_search_grows_with_folds_ridges_and_kernels(slow_machine, monkeypatch):
    def search(**options):
        options = {**GRID, "cv": KFold(3), "solver": PCG(random_state=0), **options}
        return forecast(monkeypatch, LinearizedKDStudentCV(**options), teacher_logits=Z)

    one = search()
    assert search(ridges=[0.1, 1.0, 2.0]) > 2 * one
    assert search(kernel=[None, None, None]) > 2 * one
    assert search(cv=KFold(10)) > 3 * one


def test_a_search_with_a_teacher_to_fit_says_so_before_the_teacher_is_fitted(
    slow_machine, monkeypatch
):
    search = LinearizedKDStudentCV(LogisticRegression(), **GRID)
    message = warning_before_any_work(monkeypatch, search)
    assert "folds: 5" in message


@pytest.mark.parametrize(
    "teacher",
    [
        NTKTeacher(),
        NTKTeacher(loss="squared_error"),
        NTKTeacher(stopping_time=[1.0, 10.0]),
        NTKTeacher(stopping_time=10.0, loss="squared_error"),
    ],
)
def test_teacher(slow_machine, monkeypatch, teacher):
    message = warning_before_any_work(monkeypatch, teacher)
    assert message.startswith("NTKTeacher.fit on n=60 distinct rows will take about ")
    assert "half of the rows" in message


@pytest.mark.parametrize("times", [1e3, [1.0, 1e3]])
def test_student_that_stops(slow_machine, monkeypatch, times):
    student = LinearizedKDStudent(soft_ratio=0.0, stopping_time=times)
    message = warning_before_any_work(monkeypatch, student, teacher_logits=Z)
    assert "to stopping_time=1000" in message
    assert "half of the rows" in message


def test_the_fit_is_the_same(slow_machine):
    teacher = FrozenEstimator(LogisticRegression().fit(X, Y))
    with pytest.warns(LongFitWarning):
        slow = LinearizedKDStudent(teacher).fit(X, Y)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_forecast, "LONG_SECONDS", 1e9)
        quick = LinearizedKDStudent(teacher).fit(X, Y)
    np.testing.assert_array_equal(slow.dual_coef_, quick.dual_coef_)


def test_ordinary_fits_measure_nothing(monkeypatch):
    monkeypatch.setattr(_forecast.Speed, "_unit", stopped)
    LinearizedKDStudentCV(**GRID).fit(X, Y, teacher_logits=Z)
    NTKTeacher().fit(X, Y)


def test_fit_again_with_corrected_labels_has_its_factors(slow_machine):
    search = LinearizedKDStudentCV(**GRID)
    with pytest.warns(LongFitWarning):
        search.fit(X, Y, teacher_logits=Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LongFitWarning)
        search.fit(X, np.roll(Y, 1), teacher_logits=Z)
