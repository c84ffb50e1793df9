"""The diagnosis table against row-by-row counting with roots found one by one."""

import numpy as np
import oracles
import pandas as pd
import pytest
import scipy.special
import torch
from sklearn.neighbors import KNeighborsClassifier

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import correction_margin, diagnose_teacher

GRID = {"soft_ratios": [0.3, 0.8, 0.95], "temperatures": [1.0, 2.0, 5.0]}


def class_probability(z, label):
    if z.ndim == 0:
        return scipy.special.expit(z if label == 1 else -z)
    return scipy.special.softmax(z)[label]


def chosen(z):
    return int(z > 0) if z.ndim == 0 else int(np.argmax(z))


def count(z_t, y, soft_ratio, temperature, tolerance):
    hard = oracles.one_hot(y, 2 if z_t.ndim == 1 else z_t.shape[1])
    soft = oracles.soft_labels(z_t, temperature)
    z_eff = oracles.stationary_logits(soft, hard, soft_ratio, temperature)
    errors = overruled = left_alone = 0
    for row, effective, label in zip(z_t, z_eff, y, strict=True):
        if chosen(row) != label:
            errors += 1
            overruled += chosen(effective) == label
        else:
            moved = class_probability(row, label) - class_probability(effective, label)
            left_alone += abs(moved) <= tolerance
    return errors, overruled, left_alone


@pytest.mark.parametrize("n_classes", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_every_row(seed, n_classes):
    rng = np.random.default_rng(seed)
    z_t = 2 * rng.normal(size=60 if n_classes == 2 else (60, n_classes))
    y = rng.integers(n_classes, size=60)
    table = diagnose_teacher(z_t, y, tolerance=0.1, **GRID)
    frame = pd.DataFrame(table)
    assert len(frame) == 9
    assert list(zip(frame.soft_ratio, frame.temperature, strict=True))[:4] == [
        (0.3, 1.0),
        (0.3, 2.0),
        (0.3, 5.0),
        (0.8, 1.0),
    ]
    assert (frame.n_rows == 60).all()
    for row in frame.itertuples():
        assert (row.n_teacher_errors, row.n_errors_overruled, row.n_correct_left_alone) == count(
            z_t, y, row.soft_ratio, row.temperature, 0.1
        )
    assert ("correction_margin" in table) == (n_classes == 2)


@pytest.mark.parametrize("scaling", ["none", "squared"])
def test_overruled_are_the_errors_within_the_margin(scaling):
    rng = np.random.default_rng(0)
    z_t, y = 3 * rng.normal(size=200), rng.integers(2, size=200)
    table = diagnose_teacher(z_t, y, temperature_scaling=scaling, **GRID)
    wrong = (z_t > 0) != y
    assert (table["n_teacher_errors"] == wrong.sum()).all()
    for cell, margin in enumerate(table["correction_margin"]):
        rho, big_t = table["soft_ratio"][cell], table["temperature"][cell]
        assert margin == correction_margin(rho, big_t, temperature_scaling=scaling)
        assert table["n_errors_overruled"][cell] == (np.abs(z_t[wrong]) < margin).sum()


def test_pure_soft_labels_change_nothing():
    z_t, y = np.array([-1.0, 2.0, 3.0, -0.5]), np.array([False, True, False, True])
    table = diagnose_teacher(z_t, y, soft_ratios=1, temperatures=3, tolerance=0)
    assert {name: values.tolist() for name, values in table.items()} == {
        "soft_ratio": [1.0],
        "temperature": [3.0],
        "n_rows": [4],
        "n_teacher_errors": [2],
        "n_errors_overruled": [0],
        "n_correct_left_alone": [2],
        "correction_margin": [0.0],
    }


def test_two_columns_and_tensors_are_read_alike():
    rng = np.random.default_rng(0)
    z_t, y = rng.normal(size=30), rng.integers(2, size=30)
    expected = diagnose_teacher(z_t, y, **GRID)
    columns = torch.as_tensor(np.stack((-z_t / 2, z_t / 2), axis=1))
    got = diagnose_teacher(columns, torch.as_tensor(y), **GRID)
    for name, values in expected.items():
        assert isinstance(got[name], np.ndarray)
        np.testing.assert_array_equal(got[name], values)


def test_what_is_wrong_is_named():
    z_t, y = np.array([-1.0, 2.0]), np.array([0, 1])
    with pytest.raises(ValueError, match=r"y must hold class indices 0, ..., 1; got 0.5.*no right"):
        diagnose_teacher(z_t, [0, 0.5], **GRID)
    with pytest.raises(ValueError, match=r"y must have shape \(2,\)"):
        diagnose_teacher(z_t, [[0, 1]], **GRID)
    with pytest.raises(ValueError, match=r"teacher_logits must have shape \(n,\), or \(n, K\)"):
        diagnose_teacher(z_t[:, None], y, **GRID)
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, 1\]"):
        diagnose_teacher(z_t, y, tolerance=5, **GRID)
    with pytest.raises(ValueError, match=r"soft_ratio must be in \(0, 1\]; got 0.0"):
        diagnose_teacher(z_t, y, soft_ratios=[0.0], temperatures=[1.0])
    with pytest.raises(ValueError, match=r"temperature must be positive and finite; got -1.0"):
        diagnose_teacher(z_t, y, soft_ratios=[0.5], temperatures=[1.0, -1.0])
    with pytest.raises(ValueError, match="temperature_scaling must be one of"):
        diagnose_teacher(z_t, y, temperature_scaling="cubed", **GRID)
    with pytest.raises(ValueError, match="teacher_logits must be finite"):
        diagnose_teacher(np.array([np.nan, 1.0]), y, **GRID)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.SaturatedTeacherWarning")
def test_cross_fitted_logits_have_not_seen_the_labels_they_are_counted_against():
    wrong = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(300, 3)), rng.integers(2, size=300)
        student = LinearizedKDStudent(KNeighborsClassifier(1), ridge=0.1).fit(X, y)
        cell = {"soft_ratios": 1.0, "temperatures": 1.0}
        wrong += diagnose_teacher(student.teacher_logits_, y, **cell)["n_teacher_errors"].tolist()
        # The same teacher on the rows that it was fitted to would be beyond reproach.
        own = student.teacher_decision_function(X)
        assert diagnose_teacher(own, y, **cell)["n_teacher_errors"] == [0]
    assert abs(np.mean(wrong) / 300 - 0.5) < 2.5 * 0.5 / np.sqrt(300 * 4)
