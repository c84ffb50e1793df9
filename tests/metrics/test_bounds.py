"""Bounds on the transfer risk: never violated where they are exact, and exact where they count."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import Matern

from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import (
    accumulative_angle_distribution,
    binomial_upper_bound,
    feature_angles,
    phuong_lampert_bound,
    power_function_bound,
    transfer_risk,
    transfer_risk_bound,
    weight_change_angles,
)

right_angle = math.pi / 2


def random_kernel(rng):
    if rng.random() < 0.25:
        kernel = Matern(length_scale=rng.uniform(0.3, 2), nu=rng.choice([0.5, 1.5]))
    else:
        kernel = NTK(depth=int(rng.integers(1, 4)))
    return as_kernel_function(kernel)


class Problem:
    """Kernel machines in a random kernel, some training rows and 50 others."""

    def __init__(self, rng):
        self.rng = rng
        self.kernel = random_kernel(rng)
        self.n_features = int(rng.integers(1, 4))
        self.train, self.test = self.rows(int(rng.integers(2, 31))), self.rows(50)

    def rows(self, n_rows):
        return torch.as_tensor(self.rng.normal(size=(n_rows, self.n_features)))

    def machine(self, n_classes=None):
        """Return centres, coefficients and the exact norm of a random Σ_j a_j Θ(x, c_j)."""
        centres = self.rows(int(self.rng.integers(1, 9)))
        shape = (len(centres),) if n_classes is None else (len(centres), n_classes)
        a = self.rng.normal(size=shape)
        a = torch.as_tensor(a if n_classes is None else a - a.mean(axis=1, keepdims=True))
        return centres, a, (a * (self.kernel.gram(centres) @ a)).sum().sqrt()

    def logits(self, X, machine):
        centres, a, _ = machine
        return self.kernel.block(X, centres) @ a


def measured_risk(z_eff, student):
    """The transfer risk by both columns: weak logits may all be in [0, 1], as probabilities are."""
    pair = [z if z.ndim == 2 else torch.stack([-z / 2, z / 2], dim=1) for z in (z_eff, student)]
    return transfer_risk(*pair)


def certificate(problem, machine, initial=None):
    """Return measured risk, power-function bound and norms; ``initial`` is a machine too."""
    frame = TangentFrame(problem.kernel, problem.train)
    change = problem.logits(problem.train, machine)
    u, v = frame.features(problem.test)
    z_0 = 0 if initial is None else problem.logits(problem.test, initial)
    z_eff = z_0 + problem.logits(problem.test, machine)
    student = z_0 + u @ frame.coordinates(change)
    student_norm = frame.prefix_norms(change)[-1]
    bound = power_function_bound(z_eff, v, machine[2], student_norm)
    return measured_risk(z_eff, student), bound, z_eff, student_norm


def test_risk_is_below_certificate_is_below_theorem_1():
    rng = np.random.default_rng(0)
    risks = []
    for _ in range(1000):
        problem = Problem(rng)
        machine = problem.machine()
        risk, bound, z_eff, student_norm = certificate(problem, machine)
        angles = feature_angles(z_eff, problem.kernel.diag(problem.test), machine[2])
        theorem_1 = transfer_risk_bound(
            angles, torch.arccos((student_norm / machine[2]).clamp_max(1))
        )
        assert risk <= bound <= theorem_1
        risks.append([risk, bound, theorem_1])
    risk, bound, theorem_1 = np.mean(risks, axis=0)
    assert 0.005 < risk < bound < 0.9 * theorem_1 < 0.9  # it was no empty test


def test_certificate_holds_for_several_classes_and_initial_logits():
    rng = np.random.default_rng(1)
    risks = []
    for _ in range(200):
        problem = Problem(rng)
        n_classes = rng.choice([None, 2, 3, 5])
        initial = problem.machine(n_classes) if rng.random() < 0.5 else None
        risk, bound, *_ = certificate(problem, problem.machine(n_classes), initial)
        assert risk <= bound
        risks.append([risk, bound])
    risk, bound = np.mean(risks, axis=0)
    assert 0.01 < risk < bound < 0.8


def test_theorem_1_holds_with_initial_logits_and_needs_the_sign_of_the_cosine():
    rng = np.random.default_rng(2)
    violations = 0
    for _ in range(150):
        problem = Problem(rng)
        machine, initial = problem.machine(), problem.machine()
        centres = [machine[0], initial[0]]
        if rng.random() < 0.3:  # a network that starts on the other side
            initial, centres = (machine[0], -0.95 * machine[1], 0.95 * machine[2]), [machine[0]]
        n_rows = int(rng.integers(1, 1 + len(problem.train)))
        # All weights are in the span of this pool.
        pool = torch.cat((problem.train, *centres))
        z_0 = problem.logits(pool, initial)
        z_eff = z_0 + problem.logits(pool, machine)
        frame = TangentFrame(problem.kernel, pool)
        angles = weight_change_angles(frame, z_eff, z_0, sizes=[n_rows])
        assert angles.oracle_norm == pytest.approx(machine[2].item(), rel=1e-6)

        student = TangentFrame(problem.kernel, problem.train[:n_rows])
        test_0 = problem.logits(problem.test, initial)
        test_eff = test_0 + problem.logits(problem.test, machine)
        u, _ = student.features(problem.test)
        risk = measured_risk(test_eff, test_0 + u @ student.coordinates((z_eff - z_0)[:n_rows]))
        rows = feature_angles(
            test_eff, problem.kernel.diag(problem.test), angles.centred_oracle_norm
        )
        bound = transfer_risk_bound(rows, angles.centred)
        assert risk <= bound[0]
        folded = torch.minimum(angles.centred, math.pi - angles.centred)
        violations += int(risk > transfer_risk_bound(rows, folded)[0])
    assert violations > 0


def test_two_columns_are_two_classes():
    rng = np.random.default_rng(0)
    z, v = rng.normal(size=40), rng.uniform(size=40)
    columns = np.stack((-z / 2, z / 2), axis=1)
    expected = power_function_bound(z, v, 3.0, 2.9)
    assert 0 < expected < 1
    norm = np.sqrt(0.5)
    assert power_function_bound(columns, v, 3.0 * norm, 2.9 * norm) == expected


@pytest.mark.parametrize("n_classes", [None, 4])
def test_power_function_bound_counts_what_cannot_be_ruled_out(n_classes):
    rng = np.random.default_rng(0)
    z = rng.normal(size=30 if n_classes is None else (30, n_classes))
    v, norms = rng.uniform(size=(2, 5, 30)), rng.uniform(0, 4, size=5)

    def undecided(row, direction, norm):
        reach = math.sqrt(4.0**2 - norm**2) * math.sqrt(direction)
        if n_classes is None:
            return abs(row) <= reach
        second, first = np.sort(row)[-2:]
        return first - second <= math.sqrt(2) * reach

    expected = [
        [
            np.mean([undecided(row, d, norm) for row, d in zip(z, directions, strict=True)])
            for directions, norm in zip(block, norms, strict=True)
        ]
        for block in v
    ]
    got = power_function_bound(z, v, 4.0, norms)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert power_function_bound(z, v[0, 0], 4.0, norms[0]) == pytest.approx(expected[0][0])
    assert isinstance(power_function_bound(torch.as_tensor(z), v, 4, norms), torch.Tensor)


def test_power_function_bound_names_what_is_wrong():
    z, v = np.ones(3), np.ones(3)
    with pytest.raises(ValueError, match=r"must be in \[0, oracle_norm=2\].*got 2.1.*small a pool"):
        power_function_bound(z, v, 2, 2.1)
    assert power_function_bound(z, v, 2.0, 2.0 + 1e-9) == 0  # rounding
    with pytest.raises(ValueError, match="effective_logits must be finite; got nan"):
        power_function_bound([1.0, np.nan, 1.0], v, 2.0, 1.0)
    with pytest.raises(ValueError, match="its last axis must hold the rows"):
        power_function_bound(z, v[:2], 2.0, 1.0)
    with pytest.raises(ValueError, match=r"effective_logits must have shape \(n,\), or \(n, K\)"):
        power_function_bound(z[:, None], v, 2.0, 1.0)
    with pytest.raises(ValueError, match="new_directions must be >= 0"):
        power_function_bound(z, -v, 2.0, 1.0)
    with pytest.raises(ValueError, match="shapes do not broadcast"):
        power_function_bound(z, np.ones((4, 3)), 2.0, np.ones(5))


def test_theorem_1_is_the_distribution_at_the_complement():
    rng = np.random.default_rng(0)
    angles, alpha = rng.uniform(0, right_angle, size=30), rng.uniform(0, right_angle, size=(2, 3))
    expected = np.mean(angles > right_angle - alpha[..., None], axis=-1)
    np.testing.assert_allclose(transfer_risk_bound(angles, alpha), expected, rtol=1e-14)
    assert transfer_risk_bound(angles, 2) == 1
    with pytest.raises(ValueError, match=r"weight_change_angle must be in \[0, π\]; got -0.1"):
        transfer_risk_bound(angles, -0.1)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n_angles=st.integers(1, 12), n_rows=st.integers(1, 60))
def test_phuong_lampert_is_the_minimum_over_a_dense_grid(seed, n_angles, n_rows):
    angles = np.random.default_rng(seed).beta(2, 1, size=n_angles) * right_angle
    got = phuong_lampert_bound(angles, n_rows)

    def objective(beta):
        return np.mean(angles > beta) + np.mean(angles > right_angle - beta) ** n_rows

    grid = [objective(beta) for beta in np.linspace(0, right_angle, 5001)]
    assert got <= min(grid) + 1e-12
    # It is attained: at 0 or at an angle, where p has just stepped down.
    assert got == pytest.approx(min(map(objective, [0, *angles])), abs=1e-12)
    assert 0 <= got <= 1


def test_phuong_lampert_takes_several_sizes_and_falls_with_them():
    angles = np.random.default_rng(0).uniform(0, right_angle, size=50)
    bounds = phuong_lampert_bound(angles, [[1, 10, 100]])
    assert bounds.shape == (1, 3)
    assert (np.diff(bounds[0]) < 0).all()
    assert bounds[0, 1] == phuong_lampert_bound(angles, 10)
    with pytest.raises(ValueError, match="n_rows must be an integer of at least 1; got 0"):
        phuong_lampert_bound(angles, 0)


def test_phuong_lampert_holds_on_average():
    rng = np.random.default_rng(0)
    problem = Problem(rng)
    problem.kernel = as_kernel_function(lambda X, Y: X @ Y.T)  # their setting: linear features
    weights = torch.as_tensor(rng.normal(size=3))
    test = torch.as_tensor(rng.normal(size=(2000, 3)))
    angles = feature_angles(test @ weights, (test**2).sum(dim=1), weights.norm())
    for n_rows in (1, 2):
        risks = []
        for _ in range(200):
            train = torch.as_tensor(rng.normal(size=(n_rows, 3)))
            student = torch.linalg.lstsq(train, (train @ weights)[:, None], driver="gelsd").solution
            risks.append(measured_risk(test @ weights, (test @ student)[:, 0]))
        assert np.mean(risks) <= phuong_lampert_bound(angles, n_rows)
    assert accumulative_angle_distribution(angles, right_angle) == 0


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    n_rows=st.integers(1, 3000),
    share=st.floats(0, 1),
    confidence_level=st.sampled_from([1e-3, 0.5, 0.9, 0.95, 0.999, 1 - 1e-9]),
)
def test_binomial_bound_inverts_the_incomplete_beta(n_rows, share, confidence_level):
    n_errors = round(share * n_rows)
    got = binomial_upper_bound(n_errors, n_rows, confidence_level)
    expected = oracles.binomial_upper_bound(n_errors, n_rows, confidence_level)
    assert got == pytest.approx(expected, rel=1e-8)


def test_binomial_bound_covers_as_promised():
    # The smallest coverage over the risk is at least the level: k errors or fewer have
    # probability 1 − c at the bound.
    bounds = binomial_upper_bound(np.arange(20), 19 + np.ones(20, dtype=int), 0.9)
    for k, bound in enumerate(bounds):
        tail = sum(math.comb(20, j) * bound**j * (1 - bound) ** (20 - j) for j in range(k + 1))
        assert tail == pytest.approx(0.1, rel=1e-10)
    assert binomial_upper_bound(20, 20) == 1
    assert binomial_upper_bound(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))


def test_binomial_bound_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"n_errors must be an integer in 0…n_rows; got 3.0 at"):
        binomial_upper_bound([1, 3], 2)
    with pytest.raises(ValueError, match=r"n_errors must be an integer in 0…n_rows; got 0.2"):
        binomial_upper_bound(0.2, 10)
    with pytest.raises(ValueError, match="n_rows must be an integer of at least 1; got 0"):
        binomial_upper_bound(0, 0)
    with pytest.raises(ValueError, match="confidence_level must be between 0 and 1"):
        binomial_upper_bound(0, 10, 95)
    with pytest.raises(ValueError, match="shapes do not broadcast"):
        binomial_upper_bound([1, 2], [10, 20, 30])
