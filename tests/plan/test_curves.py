"""Learning curves of a plan, beside explicit students of the same rows."""

import numpy as np
import pytest
from small_plans import GRID
from torch import nn

from sklearn_kd import DistillationPlan, LinearizedKDStudent, TorchStudent
from sklearn_kd.plan import _curves
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


@pytest.mark.parametrize("scored_on", ["folds", "validation rows", "folds, in time"])
def test_last_size_is_that_of_the_search(digits, scored_on):
    """What the search has trained is not trained again, and what is, would be the same."""
    X, y, teacher = digits
    fit = {}
    if scored_on == "validation rows":
        fit, X, y = {"X_val": X[150:], "y_val": y[150:]}, X[:150], y[:150]
    student = None
    if scored_on == "folds, in time":
        student = TorchStudent(network, lr=0.3, max_epochs=8, batch_size=16, random_state=0)
    plan = DistillationPlan(student, teacher, cv=4, n_orders=2, **GRID).fit(X, y, **fit)
    results, best = plan.search_.cv_results_, plan.search_.best_params_
    if scored_on == "folds, in time":
        assert best["stopping_time"] is not None
    (one,) = plan.forecasts_
    for index, rho in enumerate(one.curves.soft_ratios):
        cell = results["params"].index({**best, "soft_ratio": rho})
        for order in range(2):
            score = results["mean_test_score" if fit else f"split{order}_test_score"][cell]
            assert one.curves.errors[index, order, -1] == pytest.approx(1 - score)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_curves._Problem, "knows_the_last", False)
        again = DistillationPlan(student, teacher, cv=4, n_orders=2, **GRID).fit(X, y, **fit)
    np.testing.assert_allclose(again.forecasts_[0].curves.errors, one.curves.errors)


def network():
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 1))
