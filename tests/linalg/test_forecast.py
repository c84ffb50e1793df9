"""Forecasts: what is measured, when it is not, and what the warning says."""

import itertools
import warnings

import pytest
import torch

from sklearn_kd.exceptions import LongFitWarning
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg import _forecast
from sklearn_kd.linalg._forecast import Speed, Work, format_seconds, n_sampled, warn_if_long

X = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(20, 2)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which everything that is measured takes two seconds."""
    ticks = itertools.count(0, 2)
    monkeypatch.setattr(_forecast.time, "perf_counter", lambda: float(next(ticks)))


def test_time_is_that_of_the_sample_in_proportion(clock):
    speed = Speed([InfiniteKernel()], X)
    n, k, p = _forecast._PRODUCT
    assert speed.seconds([Work(torch.float64, 20**2 / 2, 0)]) == 2
    assert speed.seconds([Work(torch.float32, 20**2, 3 * n * k * p)]) == 2 * 2 + 2 * 3


def test_several_kernels_take_their_mean_time(clock):
    kernels = [InfiniteKernel(depth=1), InfiniteKernel(depth=2)]
    assert Speed(kernels, X).seconds([Work(torch.float64, 2 * 20**2 / 2, 0)]) == 4


def test_each_kind_of_work_is_measured_once_in_each_dtype():
    class Counted:
        n_calls = 0

        def gram(self, X, *, out, symmetrize):
            self.n_calls += 1

    kernel = Counted()
    speed = Speed([kernel], X)
    for dtype in (torch.float64, torch.float32) * 3:
        speed.seconds([Work(dtype, 1.0, 0.0), Work(dtype, 2.0, 0.0)])
    assert kernel.n_calls == 2 * 2


@pytest.mark.parametrize(("n_rows", "expected"), [(1, 1), (100, 7), (10_000, 700), (10**6, 1024)])
def test_sample_is_a_small_share_of_the_work(n_rows, expected):
    assert n_sampled(n_rows) == expected
    assert n_rows < 100 or expected**2 <= 0.005 * n_rows**2


def warned(works, options=None, **speeds):
    """Return the warning about work, at so many seconds for each kind."""

    class Known(Speed):
        def __init__(self):
            super().__init__([], X)
            self._measured = speeds

        def _unit(self, kind, dtype):
            return self._measured[kind]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_long("A fit", works, lambda: options or {}, Known)
    assert all(issubclass(warning.category, LongFitWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_work_that_is_short_on_any_machine_is_not_measured():
    assert not warned([Work(torch.float64, 1e6, 1e10)])  # a KeyError otherwise
    # nor are multiplications, if the entries are many and were found to be quick
    assert not warned([Work(torch.float64, 1e8, 1e10)], entry=1e-9)


def test_warning_names_the_time_and_what_is_faster_in_words():
    works = [Work(torch.float64, 1e9, 0), Work(torch.float32, 0, 6e12)]
    options = {
        "half of the rows": [work.times(0.25) for work in works],
        "another": [work.times(0.9) for work in works],
        "a sketch": [Work(torch.float64, 1e9, 0)],
    }
    assert warned(works, options, entry=1e-7, multiplication=1e-10) == [
        "A fit will take about 12 minutes, by the speed of a sample of it just now; faster: half "
        "of the rows, about 3 minutes; a sketch, about 100 seconds."
    ]
    assert warned(works, {}, entry=1e-7, multiplication=1e-10) == [
        "A fit will take about 12 minutes, by the speed of a sample of it just now."
    ]
    assert not warned(works, options, entry=1e-8, multiplication=1e-11)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7200, "2.0 hours"),
        (3 * 86400, "3.0 days"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert format_seconds(seconds) == words
