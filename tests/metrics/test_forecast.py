"""Forecasts of learning curves: laws that are known, coverage, and curves that tell nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.metrics import learning_curve_forecast

SIZES = np.array([80, 130, 200, 320, 500, 800])
TARGETS = [800, 1600, 3200, 6400]


def law(m, a, b, d):
    return a + b * np.asarray(m, dtype=float) ** -d


def drawn(rng, a, b, d, n_orders=5, n_rows=1000, spread=0.03):
    """Errors of orders that test a share of the same rows each, whose noise all sizes share."""
    rates = law(SIZES, a, b, d)
    errors = []
    for _ in range(n_orders):
        # A row is wrong where its own threshold is below the rate: the same row at all sizes.
        thresholds = rng.uniform(size=n_rows // n_orders)
        moved = rates * (1 + spread * rng.normal(size=len(SIZES)))
        errors.append((thresholds[:, None] < moved).mean(axis=0))
    return np.array(errors)


# Not a = 0 with d = 0.6: steep laws without an end are thought unlikely, and flattened.
@pytest.mark.parametrize(("a", "d"), [(0.0, 0.3), (0.05, 0.3), (0.05, 0.6), (0.0, 0.4)])
def test_exact_laws_are_continued(a, d):
    errors = law(SIZES, a, 2.0, d)[None]
    found = learning_curve_forecast(SIZES, errors, TARGETS)
    truth = law(TARGETS, a, 2.0, d)
    assert np.abs(found.error / truth - 1)[:2].max() < 0.3
    assert (found.low < truth).all()
    assert (truth < found.high).all()


def test_a_known_floor_is_where_it_ends():
    errors = law(SIZES, 0.1, 3.0, 0.7)[None]
    found = learning_curve_forecast(SIZES, errors, [800, 80_000], floor=0.1)
    assert found.final_error == pytest.approx(0.1)
    np.testing.assert_allclose(found.error, law([800, 80_000], 0.1, 3.0, 0.7), rtol=0.05)


def test_a_curve_that_comes_from_below_its_floor():
    errors = law(SIZES, 0.1, -1.0, 0.6)[None]  # a student that beats its teacher at first
    found = learning_curve_forecast(SIZES, errors, TARGETS, floor=0.1)
    assert (np.diff(found.error) > 0).all()
    assert (found.error < 0.1).all()


@pytest.mark.parametrize("floor", [None, 0.05])
def test_intervals_cover_simulated_curves(floor):
    rng = np.random.default_rng(0)
    covered, n_draws = np.zeros(len(TARGETS)), 120
    for _ in range(n_draws):
        a = rng.uniform(0, 0.1) if floor is None else floor
        d = np.exp(rng.normal(np.log(0.45), 0.3))
        b = rng.uniform(0.05, 0.25) * 100**d
        found = learning_curve_forecast(
            SIZES, drawn(rng, a, b, d), TARGETS, floor=floor, n_test=1000
        )
        truth = law(TARGETS, a, b, d)
        covered += (found.low <= truth) & (truth <= found.high)
    assert (covered / n_draws >= 0.75).all()  # 80 % is promised


def test_fewer_test_rows_and_fewer_orders_widen_the_interval():
    rng = np.random.default_rng(1)
    errors = drawn(rng, 0.05, 2.0, 0.5)

    def width(**options):
        found = learning_curve_forecast(SIZES, errors, [1600], **options)
        return float((found.high - found.low)[0])

    assert width() < width(n_test=10_000) < width(n_test=1000) < width(n_test=100)
    assert width(n_test=1000, confidence=0.5) < width(n_test=1000, confidence=0.95)


@settings(deadline=None, max_examples=40)
@given(
    a=st.floats(0, 0.3),
    b=st.floats(0, 3),
    d=st.floats(0.05, 1.5),
    seed=st.integers(0, 1000),
    n_orders=st.integers(1, 6),
)
def test_forecasts_are_errors_in_order(a, b, d, seed, n_orders):
    rng = np.random.default_rng(seed)
    errors = np.clip(drawn(rng, a, b, d, n_orders), 0, 1)
    targets = [40, 200, 800, 3000, 100_000]
    found = learning_curve_forecast(SIZES, errors, targets, n_test=1000)
    for values in (found.low, found.error, found.high):
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    assert (found.low <= found.error).all()
    assert (found.error <= found.high).all()
    assert (np.diff(found.error) <= 1e-9).all()  # without a floor curves fall
    again = learning_curve_forecast(SIZES, errors, targets, n_test=1000)
    np.testing.assert_array_equal(again.error, found.error)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_constant_curves(level):
    errors = np.full((3, len(SIZES)), level)
    found = learning_curve_forecast(SIZES, errors, TARGETS, n_test=500)
    assert found.error[0] == pytest.approx(level, abs=0.03)
    assert (found.high - found.low > 0).all()  # a count of 0 is no certainty
    assert found.error[-1] <= found.error[0] + 1e-9


def test_one_order_two_sizes():
    found = learning_curve_forecast([100, 200], [0.2, 0.15], [400])
    assert 0.05 < found.error[0] < 0.15
    assert found.low[0] < found.error[0] < found.high[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [100]}, "two or more positive numbers that increase"),
        ({"sizes": [200, 100]}, "two or more positive numbers that increase"),
        ({"sizes": [0, 100]}, "two or more positive numbers that increase"),
        ({"errors": [[0.1, 0.2, 0.3]]}, r"errors has shape \(1, 3\)"),
        ({"errors": [[0.1, np.nan]]}, "errors must be shares of wrong rows"),
        ({"errors": [[10, 20]]}, "errors must be shares of wrong rows"),
        ({"target_sizes": []}, "target_sizes"),
        ({"target_sizes": [-5]}, "target_sizes"),
        ({"floor": 1.5}, "floor=1.5 must be an error"),
        ({"n_test": 0}, "n_test=0 must be a number of rows"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    given_ = {"sizes": [100, 200], "errors": [[0.2, 0.1]], "target_sizes": [400], **arguments}
    with pytest.raises(ValueError, match=message):
        learning_curve_forecast(
            given_.pop("sizes"), given_.pop("errors"), given_.pop("target_sizes"), **given_
        )
