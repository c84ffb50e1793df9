"""Forecasts of learning curves: laws that are known, coverage, and curves that tell nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from sklearn_kd.metrics import learning_curve_forecast

SIZES = np.array([80, 130, 200, 320, 500, 800])
TARGETS = [800, 1600, 3200, 6400]


def law(m, a, b, d):
    return a + b * np.asarray(m, dtype=float) ** -d


def drawn(rng, a, b, d, n_orders=5, n_rows=1000, spread=0.03):
    """Return errors of orders that test a share of the rows each, and of a teacher on all rows.

    The noise of the rows is one for all sizes and for the teacher, who is wrong on a of them.
    """
    rates = law(SIZES, a, b, d)
    errors, of_teacher = [], []
    for _ in range(n_orders):
        # A row is wrong where its own threshold is below the rate: the same row at all sizes.
        thresholds = rng.uniform(size=n_rows // n_orders)
        moved = rates * (1 + spread * rng.normal(size=len(SIZES)))
        errors.append((thresholds[:, None] < moved).mean(axis=0))
        of_teacher.append((thresholds < a).mean())
    return np.array(errors), float(np.mean(of_teacher))


# Not a = 0 with d = 0.6: steep laws without an end are thought unlikely, and flattened.
@pytest.mark.parametrize(("a", "d"), [(0.0, 0.3), (0.05, 0.3), (0.05, 0.6), (0.0, 0.4)])
def test_exact_laws_are_continued(a, d):
    errors = law(SIZES, a, 2.0, d)[None]
    found = learning_curve_forecast(SIZES, errors, TARGETS)
    truth = law(TARGETS, a, 2.0, d)
    assert np.abs(found.error / truth - 1)[:2].max() < 0.3
    assert (found.low < truth).all()
    assert (truth < found.high).all()


@pytest.mark.parametrize("d", [0.8, 1.2])
def test_steep_laws_without_an_end_are_forecast_with_caution(d):
    # As the docstring warns: the interval is above such a law, never below.
    b = 0.5 * SIZES[0] ** d
    found = learning_curve_forecast(SIZES, law(SIZES, 0, b, d)[None], TARGETS, n_test=1000)
    truth = law(TARGETS, 0, b, d)
    assert found.low[0] <= truth[0] <= found.high[0]
    assert (truth[2:] < found.low[2:]).all()


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


@pytest.mark.parametrize("n_rows", [200, 1000])
@pytest.mark.parametrize("has_teacher", [False, True])
def test_intervals_cover_simulated_curves(has_teacher, n_rows):
    rng = np.random.default_rng(0)
    covered, n_draws = np.zeros(len(TARGETS)), 300
    for _ in range(n_draws):
        a = rng.uniform(0, 0.1)
        d = np.exp(rng.normal(np.log(0.4), 0.3))
        b = rng.uniform(0.05, 0.25) * 100**d
        errors, floor = drawn(rng, a, b, d, n_rows=n_rows)
        found = learning_curve_forecast(
            SIZES, errors, TARGETS, floor=floor if has_teacher else None, n_test=n_rows
        )
        truth = law(TARGETS, a, b, d)
        covered += (found.low <= truth) & (truth <= found.high)
    # 80 % is promised, of curves that leave their law, as these do not: hence more, far ahead.
    # The standard error is 0.023.
    assert 0.73 < covered[0] / n_draws < 0.92
    assert (covered / n_draws > 0.73).all()


def test_intervals_of_curves_that_leave_their_law():
    rng = np.random.default_rng(1)
    n_draws, doublings = 300, np.log2(np.append(SIZES, 3200) / SIZES[-1])
    inside = 0
    for _ in range(n_draws):
        steps = np.sqrt(np.abs(np.diff(doublings))) * rng.normal(size=len(SIZES))
        walk = np.append(0, np.cumsum(0.1 * steps))
        # Measured sizes, and one ahead: each doubling moves the curve by a tenth of itself.
        curve = law(np.append(SIZES, 3200), 0.05, 2.0, 0.4) * np.exp(walk - walk[-2])
        errors = rng.binomial(4000, curve[:-1], size=(5, len(SIZES))) / 4000
        found = learning_curve_forecast(SIZES, errors, [3200])
        inside += found.low[0] <= curve[-1] <= found.high[0]
    assert 0.7 < inside / n_draws < 0.95


@pytest.mark.parametrize("floor", [None, 0.04])
@pytest.mark.parametrize("n_test", [None, 300])
@pytest.mark.parametrize("n_orders", [1, 3])
def test_forecasts_are_those_of_the_posterior_by_brute_force(floor, n_test, n_orders):
    sizes, targets = np.array([40, 90, 200]), [50, 200, 900]
    errors = np.array([[0.3, 0.2, 0.15], [0.26, 0.21, 0.13], [0.31, 0.24, 0.15]])[:n_orders]
    found = learning_curve_forecast(sizes, errors, targets, floor=floor, n_test=n_test)
    for j, target in enumerate(targets):
        values = [found.low[j], found.error[j], found.high[j]]
        below, rate, final = posterior(values, sizes, errors, target, floor, n_test)
        # The library takes the misfit at the mean of the scales, not at each of them.
        np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.015)
    assert found.rate == pytest.approx(rate, rel=1e-3)
    assert found.final_error == pytest.approx(final, rel=1e-2)


def posterior(values, sizes, errors, target, floor, n_test):
    """Return P(error < value), E d and E a by sums over shares, rates and a fine grid of scales."""
    n, (n_orders, n_sizes), a = sizes[-1], errors.shape, 0.0 if floor is None else floor
    mean = [errors[:, i].mean() for i in range(n_sizes)]
    moved = [[row[i] - row.mean() for row in errors] for i in range(n_sizes)]
    if n_orders == 1:  # a spread that one order does not show
        spread = [(0.05 * e) ** 2 for e in mean]
    else:
        spread = [np.var(one, ddof=1) for one in moved]

    def of_rows(p):
        if n_test is None:
            return 0.0
        p = (n_test * p + 0.5) / (n_test + 1)
        return (p * (1 - p) / n_test) ** 0.5

    covariance = np.zeros((n_sizes, n_sizes))
    for i in range(n_sizes):
        for j in range(n_sizes):
            covariance[i, j] = of_rows(mean[i] - a) * of_rows(mean[j] - a)
            shared = np.log2(n / max(sizes[i], sizes[j]))
            covariance[i, j] += 0.15**2 * mean[i] * mean[j] * shared
        covariance[i, i] += (spread[i] + np.mean(spread)) / 2 / n_orders
    measured = multivariate_normal(np.array(mean) - a, covariance)

    scales = np.linspace(-0.3, 0.6, 1801)
    weights, centres, deviations, rates, finals = [], [], [], [], []
    for share in np.linspace(0, 0.95, 20) if floor is None else [0.0]:
        for rate in np.geomspace(0.08, 1.6, 14):
            shape = share + (1 - share) * (sizes / n) ** -rate
            prior = np.exp(-((np.log(rate / 0.4) / 0.3) ** 2) / 2)
            weights.append(prior * measured.pdf(scales[:, None] * shape))
            centre = a + scales * (share + (1 - share) * (target / n) ** -rate)
            ahead = 0.07**2 * np.maximum(centre, 0) ** 2 * abs(np.log2(target / n))
            centres.append(centre)
            rates.append(np.full(len(scales), rate))
            finals.append(share * scales if floor is None else np.full(len(scales), floor))
            deviations.append(np.sqrt(ahead + (0 if floor is None else of_rows(a) ** 2) + 1e-12))
    columns = [np.ravel(p) for p in (weights, centres, deviations, rates, finals)]
    some = columns[0] > 1e-9 * columns[0].max()
    weights, centres, deviations, rates, finals = (p[some] for p in columns)
    weights = weights / weights.sum()
    below = [weights @ norm.cdf((v - centres) / deviations) for v in [0, *values]]
    below = (np.array(below[1:]) - below[0]) / (1 - below[0])
    return below, weights @ rates, weights @ finals


def test_fewer_test_rows_and_fewer_orders_widen_the_interval():
    rng = np.random.default_rng(1)
    errors, _ = drawn(rng, 0.05, 2.0, 0.5)

    def width(**options):
        found = learning_curve_forecast(SIZES, errors, [1600], **options)
        return float((found.high - found.low)[0])

    assert width() < width(n_test=10_000) < width(n_test=1000) < width(n_test=100)
    assert width(n_test=1000, confidence=0.5) < width(n_test=1000, confidence=0.95)
    fewer = learning_curve_forecast(SIZES, errors[:2], [800], n_test=10_000)
    more = learning_curve_forecast(SIZES, np.tile(errors, (10, 1)), [800], n_test=10_000)
    assert more.high[0] - more.low[0] < fewer.high[0] - fewer.low[0]


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
    errors, _ = drawn(rng, a, b, d, n_orders)
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
    assert found.error[0] == pytest.approx(level, abs=0.01)
    assert found.low[0] <= max(level, 0.001) <= found.high[0]
    assert (found.high - found.low > 0).all()  # a count of 0 is no certainty
    assert found.error[-1] <= found.error[0] + 1e-9


def test_no_error_in_n_rows_bounds_the_error_by_a_few_over_n():
    found = learning_curve_forecast(SIZES, np.zeros((4, 6)), TARGETS, n_test=1000, confidence=0.9)
    # 3 / n is the exact bound at 95 % of a rate that gave no event in n draws.
    assert (found.high > 0.0005).all()
    assert (found.high < 0.003).all()


def test_a_last_error_of_0_after_larger_ones():
    found = learning_curve_forecast(
        [25, 50, 100, 200], [[0.5, 0.2, 0.02, 0], [0.4, 0.2, 0.0, 0.0]], [200, 800], n_test=50
    )
    assert (found.high < 0.1).all()
    assert found.final_error >= 0


def test_errors_at_chance_are_not_made_to_fall_far():
    rng = np.random.default_rng(3)
    errors = rng.binomial(200, 0.5, size=(5, len(SIZES))) / 200
    found = learning_curve_forecast(SIZES, errors, [800, 6400], n_test=1000)
    assert found.low[0] < 0.5 < found.high[0]
    assert found.high[1] > 0.5  # that it stays is not ruled out


def test_targets_inside_the_measured_range():
    errors = law(SIZES, 0.05, 2.0, 0.4)[None]
    found = learning_curve_forecast(SIZES, errors, [*SIZES[2:], 600], n_test=4000)
    truth = law([*SIZES[2:], 600], 0.05, 2.0, 0.4)
    np.testing.assert_allclose(found.error, truth, rtol=0.1)
    assert (found.low <= truth).all()
    assert (truth <= found.high).all()


def test_a_student_far_below_a_bad_teacher_starts_from_what_was_measured():
    found = learning_curve_forecast(
        SIZES, np.full((4, 6), 0.02), [800, 10**6], floor=0.3, n_test=500
    )
    assert found.low[0] < 0.06
    assert found.error[0] < 0.1 < found.error[1] < 0.3


@pytest.mark.parametrize("floor", [0.1, 0.3, 1.0])
def test_where_no_law_of_the_floor_stays_above_0(floor):
    # A student without errors at n comes from below its floor: at fewer rows all laws are negative.
    found = learning_curve_forecast(
        SIZES, np.zeros((5, 6)), [5, 80, 800], floor=floor, n_test=10**5
    )
    for values in (found.low, found.error, found.high):
        assert ((values >= 0) & (values < 0.01)).all()
    assert (found.low <= found.error).all()
    assert (found.error <= found.high).all()


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_curve_has_a_forecast(data):
    sizes = sorted(data.draw(st.sets(st.integers(1, 10**5), min_size=2, max_size=6)))
    one = st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes))
    found = learning_curve_forecast(
        sizes,
        data.draw(st.lists(one, min_size=1, max_size=4)),
        data.draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=3)),
        floor=data.draw(st.none() | st.floats(0, 1)),
        n_test=data.draw(st.none() | st.integers(1, 10**6)),
        confidence=data.draw(st.sampled_from([0.01, 0.8, 0.999])),
    )
    assert (found.low >= 0).all()
    assert (found.low <= found.error).all()
    assert (found.error <= found.high).all()
    assert (found.high <= 1).all()
    assert 0 <= found.final_error <= 1
    assert found.rate > 0


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
        ({"sizes": [100, np.nan]}, "sizes"),
        ({"sizes": [100, np.inf]}, "sizes"),
        ({"errors": np.zeros((0, 2))}, r"errors has shape \(0, 2\)"),
        ({"errors": [["a", "b"]]}, "errors holds"),
        ({"target_sizes": 400}, "target_sizes must have shape"),
        ({"target_sizes": [np.inf]}, "target_sizes"),
        ({"floor": np.nan}, "floor must be one finite number"),
        ({"n_test": 10.5}, "n_test must be an integer of at least 1"),
        ({"errors": [[0.1, 0.2, 0.3]]}, r"errors has shape \(1, 3\)"),
        ({"errors": [[0.1, np.nan]]}, "errors must be shares of wrong rows"),
        ({"errors": [[10, 20]]}, "errors must be shares of wrong rows"),
        ({"target_sizes": []}, "target_sizes"),
        ({"target_sizes": [-5]}, "target_sizes"),
        ({"floor": 1.5}, "floor=1.5 must be an error"),
        ({"n_test": 0}, "n_test must be an integer of at least 1"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    given_ = {"sizes": [100, 200], "errors": [[0.2, 0.1]], "target_sizes": [400], **arguments}
    with pytest.raises(ValueError, match=message):
        learning_curve_forecast(
            given_.pop("sizes"), given_.pop("errors"), given_.pop("target_sizes"), **given_
        )


@pytest.mark.parametrize("name", ["sizes", "errors", "target_sizes", "floor", "n_test"])
def test_words_are_no_numbers(name):
    given_ = {"sizes": [100, 200], "errors": [0.2, 0.1], "target_sizes": [400], name: "many"}
    with pytest.raises(TypeError, match=f"{name} must be a number or an array of numbers"):
        learning_curve_forecast(**given_)
