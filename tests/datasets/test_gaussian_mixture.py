import math
import pickle

import numpy as np
import pytest
import scipy.stats

from sklearn_kd.datasets import make_gaussian_mixture_logits, make_random_logits, make_zero_logits

MAKERS = [make_gaussian_mixture_logits, make_random_logits, make_zero_logits]


def mixture_by_loops(function, X):
    logits = []
    for x in X:
        logit = 0.0
        for amplitude, centre, width in zip(
            function.amplitudes, function.centres, function.widths, strict=True
        ):
            distance = sum((a - b) ** 2 for a, b in zip(x, centre, strict=True))
            logit += amplitude * math.exp(-distance / width**2)
        logits.append(logit)
    return np.array(logits)


@pytest.mark.parametrize("n_features", [1, 2, 5])
@pytest.mark.parametrize("n_modes", [1, 20])
def test_function_is_the_sum_of_its_modes(n_features, n_modes):
    task = make_gaussian_mixture_logits(30, n_features, n_modes=n_modes, random_state=0)
    expected = mixture_by_loops(task.function, task.X)
    np.testing.assert_allclose(task.logits, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(task.y, expected > 0)


def test_function_in_blocks():
    task = make_gaussian_mixture_logits(5, n_modes=2**20, random_state=0)
    expected = [task.function(task.X[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(task.function(task.X), expected, rtol=1e-9)


def test_distributions():
    task = make_gaussian_mixture_logits(5_000, 2, n_modes=5_000, width=(0.2, 1.2), random_state=0)
    function = task.function
    for values in (function.amplitudes, function.centres.ravel(), task.X.ravel()):
        assert scipy.stats.kstest(values, "norm").pvalue > 0.01
    assert scipy.stats.kstest(function.widths, "uniform", args=(0.2, 1.0)).pvalue > 0.01


def test_flips_change_signs_only_and_grow_with_the_probability():
    tasks = {
        p: make_gaussian_mixture_logits(2_000, flip_probability=p, random_state=3)
        for p in (0.0, 0.1, 0.3, 1.0)
    }
    true = tasks[0.0]
    np.testing.assert_array_equal(true.logits, true.function(true.X))
    flipped = {p: np.sign(task.logits) != np.sign(true.logits) for p, task in tasks.items()}
    for p, task in tasks.items():
        np.testing.assert_array_equal(task.X, true.X)
        np.testing.assert_array_equal(task.y, true.y)
        np.testing.assert_array_equal(np.abs(task.logits), np.abs(true.logits))
        np.testing.assert_allclose(flipped[p].mean(), p, atol=0.03)
    assert (flipped[0.1] <= flipped[0.3]).all()


def test_function_can_be_pickled():
    task = make_gaussian_mixture_logits(20, random_state=0)
    again = pickle.loads(pickle.dumps(task.function))
    np.testing.assert_array_equal(again(task.X), task.logits)


def test_random_logits():
    task = make_random_logits(5_000, 3, random_state=0)
    assert task.X.shape == (5_000, 3)
    assert task.function is None
    assert scipy.stats.kstest(task.logits, "norm").pvalue > 0.01
    np.testing.assert_array_equal(task.y, task.logits > 0)


def test_zero_logits():
    task = make_zero_logits(5_000, 3, random_state=0)
    np.testing.assert_array_equal(task.logits, 0)
    np.testing.assert_array_equal(task.function(task.X), 0)
    np.testing.assert_allclose(task.y.mean(), 0.5, atol=0.03)


@pytest.mark.parametrize("make", MAKERS)
def test_random_state(make):
    once, again, other = (make(10, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once.X, again.X)
    np.testing.assert_array_equal(once.logits, again.logits)
    assert (once.X != other.X).all()
    rng = np.random.RandomState(0)
    np.testing.assert_array_equal(make(10, random_state=rng).X, once.X)
    assert (make(10, random_state=rng).X != once.X).all()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["n_samples", "n_features"])
def test_bad_shapes(make, name):
    with pytest.raises(ValueError, match=f"{name} == 0, must be >= 1"):
        make(**{name: 0})
    with pytest.raises(TypeError, match=f"{name} must be an instance of int"):
        make(**{name: 2.5})


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"n_modes": 0}, ValueError, "n_modes == 0, must be >= 1"),
        ({"flip_probability": -0.1}, ValueError, "flip_probability == -0.1, must be >= 0"),
        ({"flip_probability": 1.1}, ValueError, "flip_probability == 1.1, must be <= 1"),
        ({"width": (0.5, 0.2)}, ValueError, r"width must be a pair .* got \(0.5, 0.2\)"),
        ({"width": (0.0, 0.2)}, ValueError, "width must be a pair"),
        ({"width": (0.1, np.inf)}, ValueError, "width must be a pair"),
        ({"width": 0.3}, ValueError, "width must be a pair"),
        ({"width": ("a", "b")}, TypeError, "width must be a pair of numbers"),
    ],
)
def test_bad_arguments(argument, error, message):
    with pytest.raises(error, match=message):
        make_gaussian_mixture_logits(**argument)


def test_function_of_rows_with_other_features():
    function = make_gaussian_mixture_logits(n_features=2, random_state=0).function
    with pytest.raises(ValueError, match=r"X has 3 features, .* n_features=2"):
        function(np.zeros((4, 3)))
