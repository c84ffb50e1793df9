"""Eq. 12 against its definition, finite differences of the refitted student, and resampling."""

import numpy as np
import oracles
import pytest
import torch

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import correction_logits, effective_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import hard_label_effect


class Task:
    """A random task: rows, a frame, a teacher with errors, labels, truth and initial logits."""

    def __init__(self, seed, n_classes=2, with_initial=True, n_rows=12):
        rng = np.random.default_rng(seed)
        self.X = rng.normal(size=(n_rows, 3))
        self.frame = TangentFrame(NTK(depth=2).to_torch(), torch.as_tensor(self.X))
        self.K = NTK(depth=2)(self.X)
        self.temperature = rng.uniform(1, 5)
        shape = n_rows if n_classes == 2 else (n_rows, n_classes)
        self.z_g, self.z_t, self.z_0 = rng.normal(size=(3, *np.empty(shape).shape))
        self.z_t = 2 * self.z_t + self.z_g
        self.z_0 = self.z_0 if with_initial else np.zeros(shape)
        if n_classes == 2:
            self.y = (self.z_g > 0).astype(int)
            self.proxy = 2.0 * self.y - 1
        else:
            for z in (self.z_g, self.z_t, self.z_0):
                z -= z.mean(axis=1, keepdims=True)
            self.y = self.z_g.argmax(axis=1)
            self.proxy = np.eye(n_classes)[self.y] - 1 / n_classes
        self.correction = correction_logits(self.z_t, self.y, temperature=self.temperature)

    def effect(self, *, with_truth=True, **options):
        return hard_label_effect(
            self.frame,
            self.z_t,
            self.y,
            temperature=self.temperature,
            ground_truth_logits=self.z_g if with_truth else None,
            initial_logits=self.z_0 if self.z_0.any() else None,
            **{"random_state": 0, "n_bootstraps": 50} | options,
        )


@pytest.mark.parametrize("with_truth", [False, True])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_value_is_equation_12(seed, n_classes, with_initial, with_truth):
    task = Task(seed, n_classes, with_initial)
    truth = task.z_g if with_truth else task.proxy
    arguments = (task.K, task.z_t - task.z_0, task.correction, truth - task.z_0)
    got = task.effect(with_truth=with_truth)
    expected = oracles.hard_label_effect(*arguments)
    assert got.value == pytest.approx(expected, rel=1e-8)
    assert got.sign == np.sign(expected)
    assert got.is_proxy is not with_truth
    low, high = got.interval
    assert low < high
    with_norm = task.effect(with_truth=with_truth, oracle_norm=7.5)
    expected = oracles.hard_label_effect(*arguments, truth_norm=7.5)
    assert with_norm.value == pytest.approx(expected, rel=1e-8)
    assert with_norm.sign == got.sign


@pytest.mark.parametrize("with_truth", [False, True])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_value_is_the_derivative_of_the_refitted_students_cosine(
    seed, n_classes, with_initial, with_truth
):
    task = Task(seed, n_classes, with_initial)
    truth = (task.z_g if with_truth else task.proxy) - task.z_0

    def cosine(soft_ratio):
        z_eff = effective_logits(
            task.z_t, task.y, soft_ratio=soft_ratio, temperature=task.temperature
        )
        return oracles.cosine_to_ground_truth(task.K, z_eff - task.z_0, truth)

    # One-sided, of second order: beyond ρ = 1 there is no student.
    h = 1e-5
    slope = (4 * cosine(1 - h) - cosine(1 - 2 * h) - 3 * cosine(1.0)) / (2 * h)
    assert task.effect(with_truth=with_truth).value == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_value_is_the_derivative_for_the_estimator(n_classes):
    task = Task(5, n_classes, with_initial=False, n_rows=20)
    truth_norm = np.sqrt((task.z_g * np.linalg.solve(task.K, task.z_g)).sum())

    def cosine(soft_ratio):
        student = LinearizedKDStudent(
            kernel=NTK(depth=2), soft_ratio=soft_ratio, temperature=task.temperature
        ).fit(task.X, task.y, teacher_logits=task.z_t)
        assert len(student.X_fit_) == 20
        return (task.z_g * student.dual_coef_).sum() / (truth_norm * student.weight_change_norm_)

    h = 1e-5
    slope = (4 * cosine(1 - h) - cosine(1 - 2 * h) - 3 * cosine(1.0)) / (2 * h)
    assert task.effect().value == pytest.approx(slope, rel=1e-4)


def test_labels_may_be_fractions_and_rows_of_the_simplex():
    task = Task(0)
    task.y = np.where(np.arange(12) < 3, 0.25, task.y)
    correction = correction_logits(task.z_t, task.y, temperature=task.temperature)
    expected = oracles.hard_label_effect(
        task.K, task.z_t - task.z_0, correction, 2 * task.y - 1 - task.z_0
    )
    assert task.effect(with_truth=False).value == pytest.approx(expected, rel=1e-8)
    wide = Task(0, 3)
    indices = wide.effect(with_truth=False)
    wide.y = np.eye(3)[wide.y]
    assert wide.effect(with_truth=False).value == pytest.approx(indices.value, rel=1e-12)


def test_two_columns_are_two_classes():
    task = Task(1)
    binary = task.effect(with_truth=False)
    for name in ("z_t", "z_0"):
        z = getattr(task, name)
        setattr(task, name, np.stack((-z / 2, z / 2), axis=1))
    columns = task.effect(with_truth=False)
    assert columns.value == pytest.approx(binary.value, rel=1e-10)


def test_bootstrap_on_orthogonal_rows_is_that_of_the_rows():
    # With Θ = 1 a row and its axis are the same thing, so rows can be resampled instead.
    rng = np.random.default_rng(0)
    n_rows = 40
    frame = TangentFrame(as_kernel_function(lambda X, Y: X @ Y.T), torch.eye(n_rows).double())
    z_g = rng.normal(size=n_rows)
    z_t, y = z_g + 0.5 * rng.normal(size=n_rows), (z_g > 0).astype(int)
    correction = correction_logits(z_t, y, temperature=3.0)
    options = {"temperature": 3.0, "ground_truth_logits": z_g, "n_bootstraps": 20000}
    for norm in (None, 4.0):
        values = []
        for _ in range(20000):
            rows = rng.integers(n_rows, size=n_rows)
            values.append(
                oracles.hard_label_effect(
                    np.eye(n_rows), z_t[rows], correction[rows], z_g[rows], truth_norm=norm
                )
            )
        got = hard_label_effect(
            frame, z_t, y, oracle_norm=norm, confidence_level=0.8, random_state=1, **options
        )
        expected = np.quantile(values, [0.1, 0.9])
        np.testing.assert_allclose(got.interval, expected, atol=0.03 * np.ptp(expected))


def test_bootstrap_is_reproducible_and_widens_with_the_level():
    task = Task(0, n_rows=30)
    first, again = (task.effect(n_bootstraps=200) for _ in range(2))
    assert first.interval == again.interval
    seeded = task.effect(n_bootstraps=200, random_state=np.random.default_rng(0))
    assert seeded.interval == first.interval
    narrow = task.effect(n_bootstraps=200, confidence_level=0.5)
    assert first.interval[0] < narrow.interval[0] < narrow.interval[1] < first.interval[1]
    assert task.effect(n_bootstraps=200, random_state=1).interval != first.interval


def test_replicates_in_blocks_are_the_same(monkeypatch):
    task = Task(0)
    whole = task.effect()
    monkeypatch.setattr("sklearn_kd.metrics._hard_labels._REPLICATE_ENTRIES", 5 * 12)
    assert task.effect().interval == pytest.approx(whole.interval, rel=1e-12)


def test_tensors_in_tensors_out():
    task = Task(0)
    task.z_t = torch.as_tensor(task.z_t)
    got = task.effect()
    assert isinstance(got.value, torch.Tensor)
    assert isinstance(got.interval[0], torch.Tensor)
    assert isinstance(got.sign, int)


def test_what_is_wrong_is_named():
    task = Task(0)

    def effect(frame=task.frame, z_t=task.z_t, y=task.y, temperature=2.0, **options):
        return hard_label_effect(frame, z_t, y, temperature=temperature, **options)

    with pytest.raises(ValueError, match=r"teacher_logits must have shape \(12,\)"):
        effect(z_t=task.z_t[:5])
    with pytest.raises(ValueError, match=r"y has shape \(5,\), but must hold one label for each"):
        effect(y=task.y[:5])
    with pytest.raises(ValueError, match=r"y must be in \[0, 1\]"):
        effect(y=task.y + 1)
    with pytest.raises(ValueError, match="ground_truth_logits has shape"):
        effect(ground_truth_logits=np.zeros((12, 3)))
    with pytest.raises(ValueError, match="temperature must be one positive, finite number"):
        effect(temperature=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="oracle_norm must be one positive"):
        effect(oracle_norm=0)
    with pytest.raises(ValueError, match="n_bootstraps must be an integer of at least 1; got 0"):
        effect(n_bootstraps=0)
    with pytest.raises(ValueError, match="confidence_level must be between 0 and 1"):
        effect(confidence_level=95)
    with pytest.raises(ValueError, match="teacher_logits equal initial_logits"):
        effect(initial_logits=task.z_t)
    with pytest.raises(ValueError, match="the ground truth equal initial_logits"):
        effect(ground_truth_logits=np.zeros(12))


def test_products_near_the_largest_number_do_not_overflow_in_the_replicates():
    X = torch.linspace(1, 3, 4, dtype=torch.float64)[:, None]
    z_t, y = np.array([-7.0, 7.0, 6.5, -1.0]), np.array([0, 1, 0, 1])

    def frame(scale):
        return TangentFrame(as_kernel_function(lambda A, B: scale * np.minimum(A, B.T)), X)

    columns = np.stack([z_t, correction_logits(z_t, y, temperature=2.0), 2.0 * y - 1], axis=1)
    squares = frame(1.0).coordinates(torch.as_tensor(columns)).square().sum().item()
    options = {"temperature": 2.0, "random_state": 0}
    expected = hard_label_effect(frame(1.0), z_t, y, **options)
    actual = hard_label_effect(frame(squares / 1.7e308), z_t, y, **options)
    np.testing.assert_allclose(actual.value, expected.value, rtol=1e-9)
    np.testing.assert_allclose(actual.interval, expected.interval, rtol=1e-9)
