"""Gradients that vanish on the rows looked at first decide nothing about other rows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_kd.kernels.empirical import _jacobian, _tangents
from sklearn_kd.kernels.empirical._features import Dense, Lookup, Outer
from sklearn_kd.kernels.empirical._kernel import EmpiricalKernel

SEEDS = range(12)


class Scale(nn.Module):
    """A parameter for which there is no rule."""

    def __init__(self, n_channels):
        super().__init__()
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(n_channels, 1))

    def forward(self, x):
        return x * self.scale


class Slope(nn.Module):
    """A PReLU whose slope is computed from its parameter."""

    def __init__(self, n_channels):
        super().__init__()
        self.log_slope = nn.Parameter(torch.randn(n_channels) - 1)

    def forward(self, x):
        return F.prelu(x, self.log_slope.exp())


class Pooled(nn.Module):
    """Convolution → scale → activation → maximum over positions → linear layer."""

    def __init__(self, activation, n_outputs=1):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(1, 4, 2), Scale(4), activation, Scale(4))
        self.readout = nn.Linear(4, n_outputs)

    def forward(self, x):
        return self.readout(self.inner(x[:, None]).amax(2))


ACTIVATIONS = {
    "PReLU": nn.PReLU,
    "PReLU of channels": lambda: nn.PReLU(4),
    "computed slope": lambda: Slope(1),
    "computed slopes": lambda: Slope(4),
    "ReLU": nn.ReLU,
    "narrow gate": lambda: nn.Threshold(0.8, 0.0),
    "Hardtanh": lambda: nn.Hardtanh(-0.1, 0.1),
    "Hardshrink": lambda: nn.Hardshrink(0.9),
    "RReLU": nn.RReLU,
    "Dropout": lambda: nn.Sequential(nn.Dropout(0.9), nn.ReLU()),
    "max pooling": lambda: nn.Sequential(nn.PReLU(), nn.MaxPool1d(2), nn.ReLU()),
}


def jacobian(module, X):
    """Return J, shape (n, K, P), row by row."""
    parameters = list(module.parameters())
    rows = []
    for x in X:
        per_output = [
            torch.autograd.grad(f, parameters, retain_graph=True, materialize_grads=True)
            for f in module(x[None])[0]
        ]
        rows.append(torch.stack([torch.cat([g.ravel() for g in found]) for found in per_output]))
    return torch.stack(rows)


def rows(n, seed=0, d=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def pooled(activation, seed, n_outputs=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Pooled(ACTIVATIONS[activation](), n_outputs).double().eval()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_equals_the_jacobian_row_by_row_for_all_initialisations(activation, n_outputs):
    for seed in SEEDS:
        module = pooled(activation, seed, n_outputs)
        n, m = ((9, 4), (1, 4), (4, 1))[seed % 3]
        X, Y = rows(n, seed), rows(m, 100 + seed)
        J, other = jacobian(module, X), jacobian(module, Y)
        kernel = EmpiricalKernel(module, full=True, batch_size=(None, 3)[seed % 2])
        expected = torch.einsum("nkp,mlp->nkml", J, other).flatten(2).flatten(0, 1)
        assert_close(kernel.block(X, Y), expected)
        expected = torch.einsum("nkp,mkp->nm", J, J) / n_outputs
        assert_close(EmpiricalKernel(module).gram(X), expected)


def assert_close(found, expected):
    torch.testing.assert_close(
        found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max())
    )


@pytest.mark.parametrize("activation", ["PReLU", "PReLU of channels"])
def test_the_slope_of_a_prelu_is_no_loop(activation, monkeypatch):
    def never(*args):
        raise AssertionError("row by row")

    monkeypatch.setattr(_tangents, "looped_gradients", never)
    for seed in SEEDS:
        EmpiricalKernel(pooled(activation, seed)).gram(rows(9, seed))


@pytest.mark.parametrize("activation", ["computed slope", "computed slopes"])
def test_what_torch_maps_wrongly_is_found_out_on_later_rows(activation, monkeypatch):
    """PReLU as torch maps it: over rows with a negative maximum the slope's gradient is wrong."""
    monkeypatch.setattr(_jacobian, "_prelu", torch.prelu)
    for seed in range(20):
        module, X = pooled(activation, seed), rows(20, seed)
        J = jacobian(module, X)[:, 0]
        assert_close(EmpiricalKernel(module).gram(X), J @ J.T)
        assert_close(EmpiricalKernel(module).block(X[:1], X[1:5]), J[:1] @ J[1:5].T)
        same = X[:1].expand(4, -1)
        assert_close(EmpiricalKernel(module).gram(same), (J[0] @ J[0]).expand(4, 4))


@pytest.mark.parametrize("late", [2, 11, 33])
def test_a_wrong_map_beyond_the_first_rows(late, monkeypatch):
    mapped = _tangents.mapped_gradients

    def wrong(network, names, inputs, cotangents):
        gradients = mapped(network, names, inputs, cotangents)
        hit = (inputs[:, 0] == 7).nonzero().ravel()
        for gradient in gradients:
            gradient[hit] *= 1.001
        return gradients

    monkeypatch.setattr(_tangents, "mapped_gradients", wrong)
    module, X = pooled("ReLU", 0, 3), rows(40)
    X[late, 0] = 7
    J = jacobian(module, X)
    for batch_size in (None, 5):
        kernel = EmpiricalKernel(module, batch_size=batch_size)
        assert_close(kernel.gram(X), torch.einsum("nkp,mkp->nm", J, J) / 3)
        expected = torch.einsum("nkp,mkp->nm", J[:8], J[8:]) / 3
        assert_close(EmpiricalKernel(module).block(X[:8], X[8:]), expected)


class HiddenAndGated(nn.Module):
    """Uses the weight of a layer where no function of torch sees it, for some rows only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, x):
        gate = F.relu(x[:, :1])
        return self.layer(x) + gate * _Product.apply(x, self.layer.weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.detach().T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


def test_a_use_of_a_weight_that_shows_late():
    module, X = HiddenAndGated().double(), rows(40)
    X[:, 0] = -1
    J = jacobian(module, X)[:, 0]
    assert_close(EmpiricalKernel(module).gram(X), J @ J.T)
    X[33, 0] = 2
    J = jacobian(module, X)[:, 0]
    for batch_size in (2, 40):
        kernel = EmpiricalKernel(module, batch_size=batch_size)
        with pytest.raises(ValueError, match=r"gradients of layer\.weight.*Let the first row be"):
            kernel.gram(X)
    order = [33, *range(33), *range(34, 40)]
    assert_close(EmpiricalKernel(module).gram(X[order]), (J @ J.T)[order][:, order])


class Hypernetwork(nn.Module):
    """The weight of its readout is what a layer makes of a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("code", torch.randn(1, 3))
        self.layer, self.inner = nn.Linear(3, 5), nn.Linear(5, 5)

    def forward(self, x):
        return torch.tanh(self.inner(x)) @ self.layer(self.code).T


def test_a_single_row_against_others():
    module, X = Hypernetwork().double(), rows(6)
    J = jacobian(module, X)[:, 0]
    V = rows(5, seed=1, d=2)
    assert_close(EmpiricalKernel(module).block(X[:1], X[1:]), J[:1] @ J[1:].T)
    assert_close(EmpiricalKernel(module).block(X[1:], X[:1]), J[1:] @ J[:1].T)
    assert_close(EmpiricalKernel(module).matmat(X[:1], X[1:], V), J[:1] @ J[1:].T @ V)
    assert_close(EmpiricalKernel(module).matmat(X[1:], X[:1], V[:1]), J[1:] @ J[:1].T @ V[:1])


def test_tokens_that_the_first_rows_do_not_hold():
    module = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.PReLU(), nn.Flatten())
    module.append(nn.Linear(12, 2)).double()
    ids = torch.randint(0, 3, (20, 3))
    ids[12:] = torch.randint(0, 9, (8, 3))
    J = jacobian(module, ids)
    full = EmpiricalKernel(module, full=True).gram(ids.double())
    # the gradient of the padding is zero by definition
    assert_close(full, torch.einsum("nkp,mlp->nkml", J, J).reshape(40, 40))


def test_gradients_that_vanish_everywhere():
    module = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Threshold(1e9, 0.0), nn.Linear(4, 1))
    X = rows(6)
    assert_close(EmpiricalKernel(module.double()).gram(X), torch.ones(6, 6).double())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_pull_back_of_features(k, full):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, S, i, o = 5, 4, 3, 2
    left, right, V = draw(n, S, i), draw(n, k, S, o), draw(n, k)
    ids = torch.randint(0, 6, (n, S), generator=generator)
    gradients = torch.einsum("nkso,nsi->nkoi", right, left)
    by_token = torch.zeros(n, k, 6, o, dtype=torch.float64)
    for row in range(n):
        for s in range(S):
            by_token[row, :, ids[row, s]] += right[row, :, s]
    kept = right if full else right.movedim(1, 2).flatten(2)[:, None]
    values = gradients.reshape(n, k if full else 1, -1)
    for feature, expected in (
        (Outer(left, kept), gradients),
        (Lookup(ids, kept), by_token),
        (Dense(values), gradients),
    ):
        total = torch.einsum("nk,nkab->ab", V, expected)
        torch.testing.assert_close(feature.pull_back(V, torch.empty_like(total)), total)


def test_gradients_that_are_rounding_are_in_no_order():
    """A group normalisation of two numbers gives ±1, so that the layer before it has no effect."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.GroupNorm(3, 6), nn.Tanh(), nn.Linear(6, 2))
    for seed in range(30):
        X = rows(3, seed)
        J = jacobian(module.double(), X)
        expected = torch.einsum("nkp,mkp->nm", J[:, 1:] - J[:, :1], J[:, 1:] - J[:, :1])
        found = EmpiricalKernel(module.float()).gram(X.float()).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
