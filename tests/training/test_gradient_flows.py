"""Many runs side by side: against a general-purpose integrator, and against each alone."""

import itertools

import numpy as np
import oracles
import pytest
import torch
from scipy.special import expit, softmax

from sklearn_kd.training._function_space import CrossEntropy, SquaredError, Term
from sklearn_kd.training._gradient_flow import gradient_flow, gradient_flows

TIMES = 10.0 ** np.arange(6)
RECIPES = [
    {"soft_ratio": rho, "temperature": big_t, "temperature_scaling": scaling}
    for rho, big_t, scaling in [
        *itertools.product((0.0, 0.3, 0.9, 1.0), (1.0, 4.0), ["none"]),
        (0.5, 2.0, "squared"),
    ]
]


def problem(n_classes, n_rows=12):
    """Return K, the teacher's logits, labels and row weights of each recipe."""
    rng = np.random.default_rng(n_classes)
    X = rng.normal(size=(n_rows, 4))
    y = rng.integers(0, n_classes, n_rows)
    shape = (n_rows,) if n_classes == 2 else (n_rows, n_classes)
    labels = y.astype(float) if n_classes == 2 else np.eye(n_classes)[y]
    weights = rng.uniform(0.5, 2, (len(RECIPES), n_rows))
    weights[1::2, :3] = 0  # rows that these runs leave out
    weights /= weights.sum(axis=1, keepdims=True)
    return oracles.relu_ntk(X), 2 * rng.normal(size=shape), labels, weights


def columns(values):
    """Return (n,) or (n, K) as (C, n)."""
    values = torch.as_tensor(values)
    return values[None] if values.ndim == 1 else values.mT


def mixed_loss(z_t, labels, recipes):
    """Eq. 2 of several recipes."""
    soft, rest, soft_weights = [], [], []
    for recipe in recipes:
        big_t = recipe["temperature"]
        scale = big_t**2 if recipe["temperature_scaling"] == "squared" else 1.0
        soft.append(columns(soft_shares(z_t, big_t)))
        rest.append(1 - soft[-1])
        soft_weights.append(scale * recipe["soft_ratio"])

    def column(values):
        return torch.as_tensor(np.array(values, float))[:, None, None]

    hard = columns(labels).expand(len(recipes), -1, -1)
    hard_weights = [1 - recipe["soft_ratio"] for recipe in recipes]
    big_ts = [recipe["temperature"] for recipe in recipes]
    return CrossEntropy(
        [
            Term(torch.stack(soft), torch.stack(rest), column(soft_weights), column(big_ts)),
            Term(hard, 1 - hard, column(hard_weights), column(np.ones(len(recipes)))),
        ]
    )


def soft_shares(z_t, temperature):
    return expit(z_t / temperature) if z_t.ndim == 1 else softmax(z_t / temperature, axis=1)


@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_runs_agree_with_a_general_purpose_integrator(n_classes, decay):
    K, z_t, labels, weights = problem(n_classes)
    start = 0.5 * np.random.default_rng(1).normal(size=labels.shape)
    start = start if n_classes == 2 else start - start.mean(axis=1, keepdims=True)
    decays = decay * np.linspace(0.5, 2, len(RECIPES))
    coefs, info = gradient_flows(
        torch.as_tensor(K),
        mixed_loss(z_t, labels, RECIPES),
        torch.as_tensor(weights),
        stopping_times=TIMES,
        initial_logits=columns(start),
        decay=decays,
    )
    for run, recipe in enumerate(RECIPES):
        soft = soft_shares(z_t, recipe["temperature"])
        expected = oracles.distillation_flow(
            K, soft, labels, weights[run], TIMES, recipe, start=start, decay=decays[run]
        )
        actual = coefs[:, run].numpy() @ K
        actual = start + (actual[:, 0] if n_classes == 2 else actual.swapaxes(1, 2))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4, err_msg=str(recipe))
        assert not coefs[:, run, :, weights[run] == 0].any()
    assert (info.n_rejected < info.n_steps / 5).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_run_does_not_depend_on_those_beside_it(n_classes):
    K, z_t, labels, weights = problem(n_classes)
    times, loss = [3.0, 500.0], mixed_loss(z_t, labels, RECIPES)
    together, info = gradient_flows(
        torch.as_tensor(K), loss, torch.as_tensor(weights), stopping_times=times
    )
    for run in range(len(RECIPES)):
        alone, own = gradient_flows(
            torch.as_tensor(K),
            loss.of([run]),
            torch.as_tensor(weights[[run]]),
            stopping_times=times,
        )
        torch.testing.assert_close(alone[:, 0], together[:, run], rtol=1e-9, atol=1e-12)
        assert own.n_steps[0] == info.n_steps[run]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_without_soft_labels_it_is_the_teacher(n_classes):
    K, z_t, labels, weights = problem(n_classes)
    recipes = [recipe for recipe in RECIPES if recipe["soft_ratio"] == 0]
    chosen = [RECIPES.index(recipe) for recipe in recipes]
    coefs, _ = gradient_flows(
        torch.as_tensor(K),
        mixed_loss(z_t, labels, recipes),
        torch.as_tensor(weights[chosen]),
        stopping_times=TIMES,
    )
    for run, own in enumerate(chosen):
        kept = weights[own] > 0
        teacher, _ = gradient_flow(
            torch.as_tensor(K[np.ix_(kept, kept)]),
            torch.as_tensor(labels[kept]),
            torch.as_tensor(weights[own, kept]),
            stopping_times=TIMES,
        )
        ours = coefs[:, run][:, :, kept]
        ours = ours[:, 0] if n_classes == 2 else ours.mT
        torch.testing.assert_close(ours, teacher, rtol=1e-3, atol=1e-4)


def test_decay_alone_shrinks_to_the_ridge_minimum():
    # At the end ω r(K a) = μ a: the minimum of the mean loss plus μ/2 aᵀ K a.
    K, z_t, labels, weights = problem(3)
    decay = np.full(len(RECIPES), 0.01)
    loss = mixed_loss(z_t, labels, RECIPES)
    coefs, _ = gradient_flows(
        torch.as_tensor(K),
        loss,
        torch.as_tensor(weights),
        stopping_times=[1e5],
        decay=decay,
        tol=1e-5,
    )
    force = torch.as_tensor(weights)[:, None] * loss.residual(coefs[0] @ torch.as_tensor(K))
    torch.testing.assert_close(force, 0.01 * coefs[0], rtol=1e-3, atol=1e-6)


def test_squared_errors_side_by_side():
    K, _, labels, weights = problem(3)
    labels = labels - 1 / 3  # coefficients sum to zero over the classes
    targets = torch.stack([columns(labels), 2 * columns(labels)])
    coefs, _ = gradient_flows(
        torch.as_tensor(K),
        SquaredError(targets),
        torch.as_tensor(weights[[0, 2]]),
        stopping_times=[1.0, 50.0],
    )
    for run, factor in enumerate((1, 2)):
        expected = oracles.gradient_flow_squared_error(
            K, factor * labels, weights[[0, 2]][run], [1.0, 50.0]
        )
        np.testing.assert_allclose((coefs[:, run].numpy() @ K).swapaxes(1, 2), expected, atol=1e-6)
