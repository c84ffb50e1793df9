"""Splits: those of the splitter, and advice for one that needs groups."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd.rows._splits import splits_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y, GROUPS = (X[:, 0] > 0).astype(int), np.repeat(np.arange(12), 5)


def test_splits_are_those_of_the_splitter():
    expected = StratifiedKFold(3).split(X, Y)
    found = splits_of(StratifiedKFold(3), Y, cv=3)
    for (train, test), (its_train, its_test) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(train, its_train)
        np.testing.assert_array_equal(test, its_test)


@pytest.mark.parametrize("estimator", [LinearizedKDStudent, LinearizedKDStudentCV])
def test_a_splitter_that_needs_groups_is_told_how(estimator):
    teacher = LogisticRegression()
    with pytest.raises(ValueError, match=r"cv=GroupKFold.* cv=list\(splitter.split\(X, y, groups"):
        estimator(teacher, cv=GroupKFold(3)).fit(X, Y)
    folds = list(GroupKFold(3).split(X, Y, GROUPS))
    assert estimator(teacher, cv=folds).fit(X, Y).score(X, Y) > 0.8


def test_other_errors_of_a_splitter_stay_as_they_are():
    with pytest.raises(ValueError, match=r"n_splits=9"):
        splits_of(StratifiedKFold(9), Y[:4], cv=9)
