"""Data inefficiency along a path, against its definition taken literally."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.metrics import data_inefficiency
from sklearn_kd.metrics._inefficiency import data_inefficiency_std


def eq_10(norms, m):
    """Return n [ln E‖Δ_{n+1}‖ − ln E‖Δ_n‖] at n = m with 30 digits."""
    with mpmath.workdps(30):
        now, after = (mpmath.fsum(column) / len(column) for column in norms[:, m - 1 : m + 1].T)
        return float(m * (mpmath.log(after) - mpmath.log(now)))


def slope(norms, low, high):
    with mpmath.workdps(30):
        start, stop = (mpmath.log(mpmath.fsum(norms[:, m - 1]) / len(norms)) for m in (low, high))
        return float((stop - start) / (mpmath.log(high) - mpmath.log(low)))


increasing_norms = st.builds(
    lambda seed, runs, n: np.sqrt(
        np.cumsum(np.random.default_rng(seed).exponential(size=(runs, n)), axis=1)
    ),
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(2, 60),
)


@given(norms=increasing_norms)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_equals_the_definition(norms):
    n = norms.shape[1]
    expected = [eq_10(norms, min(m, n - 1)) for m in range(1, n + 1)]
    np.testing.assert_allclose(data_inefficiency(norms), expected, rtol=1e-8, atol=1e-12)


def test_one_run_needs_no_axis():
    norms = np.sqrt(np.arange(1.0, 30))
    np.testing.assert_array_equal(data_inefficiency(norms), data_inefficiency(norms[None]))


@pytest.mark.parametrize(
    ("size", "low", "high"), [(1, 1, 2), (10, 7, 14), (32, 23, 45), (50, 35, 50), (3, 2, 4)]
)
def test_window_is_the_slope_between_its_ends(size, low, high):
    norms = np.sqrt(np.cumsum(np.random.default_rng(0).exponential(size=(3, 50)), axis=1))
    actual = data_inefficiency(norms, [size], window=2.0)
    np.testing.assert_allclose(actual, [slope(norms, low, high)], rtol=1e-12)


def test_window_is_a_mean_of_single_steps():
    norms = np.sqrt(np.cumsum(np.random.default_rng(0).exponential(size=(3, 50)), axis=1))
    steps = data_inefficiency(norms)[23 - 1 : 45 - 1] / np.arange(23, 45)
    expected = steps.sum() / np.log(45 / 23)
    np.testing.assert_allclose(data_inefficiency(norms, [32], window=2.0), [expected], rtol=1e-12)


@pytest.mark.parametrize("window", [None, 2.0])
def test_spread_is_that_of_the_mean_of_many_runs(window):
    rng = np.random.default_rng(0)
    norms = np.sqrt(np.cumsum(rng.exponential(size=(4000, 20)), axis=1))
    spread = data_inefficiency_std(
        torch.as_tensor(norms), torch.tensor([5.0, 12.0]), window=window
    ).numpy()
    # what 40 groups of 100 runs say of the standard error of 100 runs
    groups = [data_inefficiency(g, [5, 12], window=window) for g in np.split(norms, 40)]
    np.testing.assert_allclose(np.std(groups, axis=0), spread / 10, rtol=0.35)
    single = data_inefficiency_std(torch.as_tensor(norms[:1]), window=window)
    assert (single == 0).all()


def test_zero_norms_before_the_first_size_do_not_matter():
    norms = np.array([0.0, 0.0, 1.0, 2.0])
    np.testing.assert_allclose(data_inefficiency(norms, [3]), [3 * np.log(2)])
    with pytest.raises(ValueError, match="undefined at 2 rows"):
        data_inefficiency(norms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0],), "1 training-set size"),
        (([1.0, 2.0], [3]), "sizes must be integers in 1…2"),
        (([1.0, 2.0], [0]), "sizes must be integers in 1…2"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        data_inefficiency(*arguments)


@pytest.mark.parametrize("window", [1.0, 0.5, np.inf])
def test_window_must_exceed_one(window):
    with pytest.raises(ValueError, match="window"):
        data_inefficiency([1.0, 2.0], window=window)
