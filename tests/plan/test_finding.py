"""Contrasts of cells, and the words for numbers."""

import numpy as np
import pytest
from sklearn.utils import Bunch

from sklearn_kd.plan._finding import contrast, listed, paired, percent, points


def search_with(mean, in_set):
    mean = np.array(mean)
    return Bunch(
        cv_results_={
            "mean_test_score": mean,
            "diff_test_score": mean - mean.max(),
            "stderr_diff_test_score": np.full(len(mean), 0.01),
            "in_best_set": np.array(in_set),
        }
    )


def test_a_contrast_is_that_of_the_best_cell():
    search = search_with([0.9, 0.8, 0.85, 0.7], [True, False, False, False])
    found = contrast(search, np.array([False, True, True, True]))
    assert found.difference == pytest.approx(0.05)
    assert found.stderr == 0.01
    assert found.is_worse
    assert not contrast(search, np.array([True, True, False, False])).is_worse
    assert str(found) == "5.0 ± 1.0 points"


def test_paired_differences():
    first, second = np.array([1.0, 1, 0, np.nan, 1]), np.array([1.0, 0, 1, 1, 0])
    mean, error = paired(first, second)
    assert mean == pytest.approx(0.25)
    assert error == pytest.approx(np.std([0, 1, -1, 1], ddof=1) / 2)
    assert np.isnan(paired(first[:1], second[:1])).all()


def test_words():
    assert percent(0.9524, 0.006) == "95.2 ± 0.6 %"
    assert percent(0.9524) == "95.2 %"
    assert points(-0.012, 0.003) == "−1.2 ± 0.3 points"
    assert points(-1e-9, 0.003) == "0.0 ± 0.3 points"
    assert points(0.01, np.nan) == "1.0 points"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
