"""Learning curves of a plan, beside explicit students of the same rows."""

import numpy as np
import pytest
from small_plans import GRID

from sklearn_kd import DistillationPlan, LinearizedKDStudent
from sklearn_kd.plan._curves import _stratified_order


@pytest.mark.parametrize("n_orders", [2, 7])
def test_last_size_is_a_student_without_the_fold(digits, n_orders):
    X, y, teacher = digits
    plan = DistillationPlan(teachers=teacher, **{**GRID, "random_state": 3}, n_orders=n_orders)
    plan.fit(X, y)
    (one,) = plan.forecasts_
    curves = one.curves
    assert curves.errors.shape == (3, n_orders, len(curves.sizes))
    splits = plan.stopping_search_.cv  # the folds of the plan
    assert curves.n_test == (200 if n_orders > 5 else 80)
    for order in range(n_orders):
        learnt, tested = splits[order % 5]
        for index, rho in enumerate(curves.soft_ratios):
            student = LinearizedKDStudent(
                teacher,
                soft_ratio=rho,
                temperature=plan.recipe_.temperature,
                temperature_scaling="squared",
            ).fit(X[learnt], y[learnt])
            expected = 1 - student.score(X[tested], y[tested])
            assert curves.errors[index, order, -1] == pytest.approx(expected)


def test_every_beginning_has_its_share_of_each_class():
    rng = np.random.RandomState(0)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rows = rng.permutation(1000)[:100]
    order = _stratified_order(rows, labels, rng)
    assert sorted(order) == sorted(rows)
    label_of = dict(zip(rows, labels, strict=True))
    for size in (10, 25, 50, 80):
        counts = np.bincount([label_of[row] for row in order[:size]], minlength=3)
        assert (np.abs(counts - size * np.array([0.6, 0.3, 0.1])) <= 1.5).all()
    assert (order != _stratified_order(rows, labels, rng)).any()


def test_few_rows_have_no_curve(digits):
    X, y, teacher = digits
    plan = DistillationPlan(teachers=teacher, **GRID).fit(X[:20], y[:20])
    assert plan.forecasts_ == []
    assert "too few for a learning curve" in str(plan.findings_["rows"])
