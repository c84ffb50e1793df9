"""`paper_quantities` against the paper's formulas, written out with dense matrices."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import beta as beta_law
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.paper import paper_quantities

N, POOL, M = 12, 40, 15


def rows(seed=0, n_features=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(POOL + M, n_features))
    z_t = 2 * np.sin(X[:, 0]) + X[:, 1]
    y = (z_t + rng.normal(size=len(X)) > 0).astype(int)
    return X, y, z_t


def network():
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 1)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return EmpiricalNTK(module)


def root(z_t, y, rho, T, scale):
    """z_eff of a row: the root of Eq. 3."""

    def gradient(z):
        return scale * rho / T * (expit(z / T) - expit(z_t / T)) + (1 - rho) * (expit(z) - y)

    return z_t if rho == 1 else brentq(gradient, -200, 200, xtol=1e-13)


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("rho", [0.8, 1.0])
@pytest.mark.parametrize("kernel", [NTK(depth=2), network()], ids=["ntk", "network"])
def test_the_formulas(kernel, rho, scaling):
    T = 2.0
    X, y, z_t = rows()
    options = {
        "kernel": kernel, "soft_ratio": rho, "temperature": T, "temperature_scaling": scaling
    }  # fmt: skip
    student = LinearizedKDStudent(**options).fit(X[:N], y[:N], teacher_logits=z_t[:N])
    oracle = LinearizedKDStudent(**options).fit(X[:POOL], y[:POOL], teacher_logits=z_t[:POOL])
    found = paper_quantities(student, oracle, X[POOL:], y[POOL:], teacher_logits=z_t[POOL:])

    theta = np.asarray(kernel(X)) if isinstance(kernel, NTK) else np.asarray(kernel(X, X))
    z_0 = np.zeros(len(X))
    if not isinstance(kernel, NTK):
        with torch.no_grad():
            z_0 = kernel.module(torch.as_tensor(X))[:, 0].numpy()
    scale = T**2 if scaling == "squared" else 1.0
    z_eff = np.array([root(a, b, rho, T, scale) for a, b in zip(z_t, y, strict=True)])
    pool, few = slice(0, POOL), slice(0, N)
    # Weight changes as coefficients of the pool's features: inner products are aᵀ Θ b.
    gram = theta[pool, pool]
    of_oracle = np.linalg.solve(gram, (z_eff - z_0)[pool])
    of_zero = np.linalg.solve(gram, -z_0[pool])
    of_student = np.zeros(POOL)
    of_student[few] = np.linalg.solve(theta[few, few], (z_eff - z_0)[few])

    def inner(a, b):
        return a @ gram @ b

    def angle(a, b):
        return np.arccos(inner(a, b) / np.sqrt(inner(a, a) * inner(b, b)))

    assert (found.n_rows, found.n_pool) == (N, POOL)
    assert found.weight_change_norm == pytest.approx(np.sqrt(inner(of_student, of_student)))
    assert found.oracle_norm == pytest.approx(np.sqrt(inner(of_oracle, of_oracle)))
    centred = of_oracle - of_zero
    assert found.centred_oracle_norm == pytest.approx(np.sqrt(inner(centred, centred)))
    assert found.angle == pytest.approx(angle(of_student, of_oracle), rel=1e-5)
    assert found.centred_angle == pytest.approx(angle(of_student - of_zero, centred), rel=1e-5)
    assert np.cos(found.approximate_angle) == pytest.approx(
        found.weight_change_norm / found.oracle_norm
    )

    z_s = z_0[POOL:] + theta[POOL:, few] @ of_student[few]
    np.testing.assert_allclose(found.student_logits, z_s, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.effective_logits, z_eff[POOL:], rtol=1e-8)
    wrong = z_s * z_t[POOL:] < 0
    assert found.transfer_risk == pytest.approx(wrong.mean())
    assert found.binomial_bound == pytest.approx(
        beta_law.ppf(0.95, wrong.sum() + 1, M - wrong.sum())
    )

    of_features = np.arccos(
        np.abs(z_eff[POOL:]) / (found.centred_oracle_norm * np.sqrt(np.diag(theta)[POOL:]))
    )
    np.testing.assert_allclose(found.feature_angles, of_features, rtol=1e-6)
    share = [(of_features > b).mean() for b in found.betas]
    np.testing.assert_allclose(found.angle_distribution, share)
    at = np.pi / 2 - found.centred_angle
    assert found.risk_bound == pytest.approx((of_features > at).mean())
    # The bound of Phuong and Lampert has its minimum at a step of p.
    steps = np.concatenate([[0], of_features, np.pi / 2 - of_features, [np.pi / 2]])
    steps = np.concatenate([steps, steps + 1e-9, steps - 1e-9])
    bounds = [
        (of_features > b).mean() + (of_features > np.pi / 2 - b).mean() ** N
        for b in steps[(steps >= 0) & (steps <= np.pi / 2)]
    ]
    assert found.phuong_lampert_bound == pytest.approx(min(1, *bounds))

    v = np.diag(theta)[POOL:] - np.einsum(
        "ij,ji->i", theta[POOL:, few], np.linalg.solve(theta[few, few], theta[few, POOL:])
    )
    left = found.oracle_norm**2 - found.weight_change_norm**2
    assert found.power_function_bound == pytest.approx(
        (np.abs(z_eff[POOL:]) <= np.sqrt(left * v)).mean()
    )
    r = z_eff[POOL:] - z_s
    norm = found.weight_change_norm
    next_norms = np.sqrt(norm**2 + r**2 / v)
    expected = N * (np.log(next_norms.mean()) - np.log(norm))
    assert found.data_inefficiency == pytest.approx(expected, rel=1e-4)

    inverse = np.linalg.inv(theta[few, few])
    g, s, t = (2 * y - 1 - z_0)[few], (z_eff - z_0)[few], (z_t - z_0)[few]
    cosine = g @ inverse @ s / np.sqrt((g @ inverse @ g) * (s @ inverse @ s))
    assert found.hard_label_cosine == pytest.approx(cosine, rel=1e-5)
    assert found.is_proxy
    h = T**2 / scale * (y - expit(z_t))[few] / (expit(z_t / T) * expit(-z_t / T))[few]
    np.testing.assert_allclose(found.correction_logits, h, rtol=1e-10)
    bracket = g @ inverse @ h - (g @ inverse @ t) / (t @ inverse @ t) * (t @ inverse @ h)
    effect = bracket / np.sqrt((g @ inverse @ g) * (t @ inverse @ t))
    assert float(found.hard_label_effect["value"]) == pytest.approx(effect, rel=1e-4)


def pair(n=N, **options):
    X, y, z_t = rows()
    fitted = [
        LinearizedKDStudent(**options).fit(X[:size], y[:size], teacher_logits=z_t[:size])
        for size in (n, POOL)
    ]
    return *fitted, X[POOL:], y[POOL:], z_t[POOL:]


def test_ground_truth_logits_are_no_proxy():
    student, oracle, X, y, z_t = pair(soft_ratio=1.0)
    truth = rows()[2][:N]  # which the student was taught
    found = paper_quantities(student, oracle, X, y, teacher_logits=z_t, ground_truth_logits=truth)
    assert not found.is_proxy
    assert found.hard_label_cosine == pytest.approx(1)


def test_three_classes_have_what_is_defined():
    rng = np.random.default_rng(0)
    X, z_t = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    y = z_t.argmax(axis=1)
    student, oracle = (
        LinearizedKDStudent().fit(X[:n], y[:n], teacher_logits=z_t[:n]) for n in (15, 40)
    )
    found = paper_quantities(student, oracle, X[40:], y[40:], teacher_logits=z_t[40:])
    assert found.risk_bound is found.feature_angles is found.phuong_lampert_bound is None
    assert 0 < found.centred_angle < np.pi / 2
    assert 0 < found.power_function_bound <= 1
    assert found.correction_logits.shape == (15, 3)
    assert -1 < found.hard_label_cosine < 1


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_equation_12_is_the_derivative_of_equation_11(n_classes, scaling):
    """Also with copies of other labels and logits, weights, and rows of weight 0."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    X[3], X[7] = X[1], X[1]
    z_t = rng.normal(size=60 if n_classes == 2 else (60, 3))
    y = rng.integers(n_classes, size=60)
    weights = rng.integers(3, size=60) + 0.0
    weights[[1, 3, 7]], weights[5] = (1.0, 2.0, 0.5), 0.0
    truth = rng.normal(size=z_t.shape)
    learnt = np.flatnonzero(weights[:15])
    distinct = learnt[~np.isin(learnt, [3, 7])]

    def found(rho):
        student, oracle = (
            LinearizedKDStudent(soft_ratio=rho, temperature_scaling=scaling, temperature=2.0).fit(
                X[:n], y[:n], sample_weight=weights[:n], teacher_logits=z_t[:n]
            )
            for n in (15, 40)
        )
        options = {"teacher_logits": z_t[40:], "ground_truth_logits": truth[distinct]}
        return paper_quantities(student, oracle, X[40:], y[40:], **options), student

    step = 1e-5
    (at_one, of_soft), (near, of_some) = found(1.0), found(1 - step)
    assert at_one.n_rows == len(distinct) < len(learnt)
    change = (of_some.effective_logits_ - of_soft.effective_logits_) / step
    np.testing.assert_allclose(at_one.correction_logits, change, rtol=2e-3, atol=1e-3)
    slope = (near.hard_label_cosine - at_one.hard_label_cosine) / step
    assert at_one.hard_label_effect["value"] == pytest.approx(slope, rel=1e-3)
    low, high = at_one.hard_label_effect["interval"]
    assert low < at_one.hard_label_effect["value"] < high
    # The ground truth's mean over the classes is not seen.
    if n_classes == 3:
        truth += 5.0
        assert found(1.0)[0].hard_label_cosine == pytest.approx(at_one.hard_label_cosine)


def test_rows_without_a_label_or_full_trust_have_no_equation_12():
    X, y, z_t = rows()
    y = np.where(y > 0, "yes", "no").astype(object)
    some, trust = y.copy(), np.ones(POOL)
    some[3], trust[4] = None, 0.5
    for labels, more in ((some, None), (y, trust)):
        student, oracle = (
            LinearizedKDStudent().fit(
                X[:n],
                labels[:n],
                teacher_logits=z_t[:n],
                teacher_trust=None if more is None else more[:n],
            )
            for n in (N, POOL)
        )
        found = paper_quantities(student, oracle, X[POOL:], y[POOL:], teacher_logits=z_t[POOL:])
        assert found.n_rows == N
        names = ("hard_label_effect", "hard_label_cosine", "correction_logits", "is_proxy")
        assert [found[name] for name in names] == [None] * 4


def test_ground_truth_logits_that_are_none():
    student, oracle, X, y, z_t = pair()
    for truth, message in (
        (np.ones(N - 1), r"ground_truth_logits has shape \(11,\), but 12 rows of 2 classes"),
        (np.full(N, np.nan), "ground_truth_logits must be finite, but row 0"),
        (np.zeros(N), "ground_truth_logits equal the initial logits on all rows"),
    ):
        options = {"teacher_logits": z_t, "ground_truth_logits": truth}
        with pytest.raises(ValueError, match=message):
            paper_quantities(student, oracle, X, y, **options)


def test_pipelines_are_named():
    student, oracle, X, y, _ = pair()
    with pytest.raises(TypeError, match=r"got Pipeline\. Of a pipeline pass the last step"):
        paper_quantities(make_pipeline(student), oracle, X, y)


def test_pairs_that_are_none():
    student, oracle, X, y, z_t = pair()
    other = pair(soft_ratio=0.5)[1]
    with pytest.raises(ValueError, match=r"student has soft_ratio=0\.9, but oracle 0\.5"):
        paper_quantities(student, other, X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="kernel"):
        paper_quantities(student, pair(kernel=NTK(depth=5))[1], X, y, teacher_logits=z_t)
    rows_, labels, logits = rows()
    for labels_, logits_ in ((labels, logits / 5), (1 - labels, logits)):
        stranger = LinearizedKDStudent().fit(
            rows_[:POOL], labels_[:POOL], teacher_logits=logits_[:POOL]
        )
        with pytest.raises(ValueError, match="teacher or labels are others"):
            paper_quantities(student, stranger, X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="do not begin with those of student"):
        paper_quantities(oracle, student, X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="no ridge"):
        paper_quantities(*pair(ridge=0.1)[:2], X, y, teacher_logits=z_t)
    stopped = pair(stopping_time=10.0)
    with pytest.raises(AttributeError, match="stopped at"):
        paper_quantities(*stopped[:2], X, y, teacher_logits=z_t)
