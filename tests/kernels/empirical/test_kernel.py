"""Tangent kernels of modules against whole Jacobians, whatever the chunks and bundles."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch_modules import ZOO, Recurrent, as_inputs, mlp, rows_for

from sklearn_kd.kernels.empirical import _kernel
from sklearn_kd.kernels.empirical._kernel import EmpiricalKernel

N = 7


def kernel_of(name, **settings):
    module, shape, _ = ZOO[name]
    return EmpiricalKernel(module, input_shape=shape, **settings)


def expected_of(name, X):
    return oracles.shared_tangent_kernel(ZOO[name][0], as_inputs(name, X))


def full_of(name, X):
    full = oracles.tangent_kernel(ZOO[name][0], as_inputs(name, X))
    n, n_outputs = full.shape[:2]
    return full.reshape(n * n_outputs, n * n_outputs)


def assert_close(found, expected):
    """Equal to 1e-10 of the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_equals_the_contraction_of_jacobians(name):
    X = rows_for(name, N)
    kernel, expected = kernel_of(name), expected_of(name, X)
    assert_close(kernel.gram(X), expected)
    assert_close(kernel.block(X[:3], X[2:]), expected[:3, 2:])
    assert_close(kernel.diag(X), expected.diagonal())


@pytest.mark.parametrize("name", ZOO)
def test_equals_the_contraction_of_jacobians_for_all_outputs(name):
    X = rows_for(name, N)
    kernel, expected = kernel_of(name, full=True), full_of(name, X)
    n_outputs = len(expected) // N
    assert_close(kernel.gram(X), expected)
    assert_close(kernel.block(X[:3], X[2:]), expected[: 3 * n_outputs, 2 * n_outputs :])
    assert_close(kernel.diag(X), expected.diagonal())


def test_recurrent_layers_are_differentiated_row_by_row():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Recurrent().double()
    X = rows_for("mlp, one output", 4)
    gradients = []
    for x in X.reshape(4, 2, 3):
        found = torch.autograd.grad(module(x[None]).sum(), list(module.parameters()))
        gradients.append(torch.cat([gradient.ravel() for gradient in found]))
    J = torch.stack(gradients)
    kernel = EmpiricalKernel(module, input_shape=(2, 3))
    with torch.no_grad():
        assert_close(kernel.gram(X), J @ J.T)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["mlp, four outputs", "resnet", "shared layers", "transformer"])
@pytest.mark.parametrize(
    "settings", [{"batch_size": 1}, {"batch_size": 3}, {"workspace_bytes": 20_000}]
)
def test_chunks_and_bundles_change_nothing(name, full, settings):
    X = rows_for(name, N)
    kernel = kernel_of(name, full=full, **settings)
    expected = full_of(name, X) if full else expected_of(name, X)
    sides = len(expected) // N
    assert_close(kernel.gram(X), expected)
    assert_close(kernel.block(X[:2], X), expected[: 2 * sides])
    assert_close(kernel.diag(X), expected.diagonal())
    V = torch.linspace(-1, 1, 2 * len(expected), dtype=X.dtype).reshape(-1, 2)
    assert_close(kernel.matmat(X, X, V), expected @ V)


def test_parameters_and_outputs_are_split_where_features_do_not_fit(monkeypatch):
    X = rows_for("resnet", N)
    kernel = kernel_of("resnet", workspace_bytes=20_000)
    seen = []
    original = EmpiricalKernel._bundles

    def spy(self, *args, **keywords):
        for bundle in original(self, *args, **keywords):
            seen.append((len(bundle.units), len(bundle.cotangents), bundle.rows))
            yield bundle

    monkeypatch.setattr(EmpiricalKernel, "_bundles", spy)
    assert_close(kernel.gram(X), expected_of("resnet", X))
    assert len(seen) > 3
    assert {n_outputs for _, n_outputs, _ in seen} == {1}


def test_many_tiles():
    X = rows_for("mlp, four outputs", 3 * _kernel._TILE // 2)
    kernel = kernel_of("mlp, four outputs")
    J = oracles.tangent_kernel(ZOO["mlp, four outputs"][0], X[:5])
    K = kernel.gram(X)
    assert_close(K[:5, :5], torch.einsum("nkmk->nm", J) / 4)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(kernel.block(X, X), K, rtol=1e-10)
    np.testing.assert_allclose(kernel.diag(X), K.diagonal(), rtol=1e-12)


@pytest.mark.parametrize("full", [False, True])
def test_upper_half_in_given_storage(full, monkeypatch):
    monkeypatch.setattr(_kernel, "_TILE", 8)
    X = rows_for("mlp, four outputs", N)
    kernel = kernel_of("mlp, four outputs", full=full, batch_size=3)
    expected = kernel_of("mlp, four outputs", full=full).gram(X)
    storage = torch.full_like(expected, torch.nan)
    upper = kernel.gram(X, out=storage, symmetrize=False)
    assert upper.data_ptr() == storage.data_ptr()
    assert_close(upper.triu(), expected.triu())
    n = len(expected)
    assert torch.isnan(upper.tril(-1)).sum() == n * (n - 1) // 2
    storage.fill_(torch.nan)
    assert_close(kernel.gram(X, out=storage), expected)


@pytest.mark.parametrize("name", ["mlp, one output", "mlp, two outputs", "resnet", "transformer"])
@pytest.mark.parametrize("by_weights", [True, False])
def test_products(name, by_weights, monkeypatch):
    X = rows_for(name, N)
    kernel, expected = kernel_of(name), expected_of(name, X)
    monkeypatch.setattr(EmpiricalKernel, "_is_product_cheaper", lambda *args: by_weights)
    V = torch.linspace(-1, 1, 2 * N, dtype=X.dtype).reshape(N, 2)
    assert_close(kernel.matmat(X, X, V), expected @ V)
    assert_close(kernel.matmat(X[:3], X[2:], V[2:, :1]), expected[:3, 2:] @ V[2:, :1])


@pytest.mark.parametrize("name", ZOO)
def test_products_with_the_full_kernel(name):
    X = rows_for(name, N)
    expected = full_of(name, X)
    V = torch.linspace(-1, 1, 2 * len(expected), dtype=X.dtype).reshape(-1, 2)
    assert_close(kernel_of(name, full=True).matmat(X, X, V), expected @ V)


def test_a_product_with_one_column_forms_no_entries(monkeypatch):
    monkeypatch.setattr(EmpiricalKernel, "block", None)
    X = rows_for("mlp, one output", 500)
    kernel = kernel_of("mlp, one output")
    V = torch.ones(500, 1, dtype=X.dtype)
    K = kernel.gram(X)
    np.testing.assert_allclose(kernel.matmat(X, X, V), K @ V, rtol=1e-10)


def test_pull_back_is_the_weight_change_of_the_product():
    X = rows_for("mlp, one output", N)
    kernel = kernel_of("mlp, one output", batch_size=2)
    V = torch.linspace(-1, 1, N, dtype=X.dtype)[:, None]
    change = kernel.pull_back(X, V, torch.ones(1, 1, dtype=X.dtype))
    squared = sum(part.square().sum() for part in change.values())
    torch.testing.assert_close(squared, (V.T @ kernel.gram(X) @ V).squeeze(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["mlp, one output", "resnet", "transformer", "shared layers"])
def test_products_are_slopes_of_the_outputs(name):
    """f(w₀ + ε Δ) − f(w₀) ≈ ε Θ(x, X) V with Δ = J(X)ᵀ V, by central differences."""
    X = rows_for(name, N)
    module, shape, _ = ZOO[name]
    n_outputs = EmpiricalKernel(module, input_shape=shape).n_outputs(X)
    V = torch.linspace(-1, 1, 3 * n_outputs, dtype=X.dtype).reshape(3, n_outputs)
    kernel = kernel_of(name, full=True)
    change = kernel.pull_back(X[:3], V, torch.eye(n_outputs, dtype=X.dtype))
    epsilon, outputs = 1e-6, []
    for step in (epsilon, -epsilon):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for parameter_name, parameter in moved.named_parameters():
                parameter += step * change[parameter_name]
            outputs.append(moved(as_inputs(name, X)).ravel())
    slope = (outputs[0] - outputs[1]) / (2 * epsilon)
    found = kernel.matmat(X, X[:3], V.reshape(-1, 1)).ravel()
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6 * slope.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_outputs(name):
    X = rows_for(name, N)
    f = ZOO[name][0](as_inputs(name, X)).detach()
    f = f.reshape(N, -1)
    expected = {1: f[:, 0], 2: f[:, -1] - f[:, 0]}.get(f.shape[1], f - f.mean(1, keepdim=True))
    for full in (False, True):
        torch.testing.assert_close(kernel_of(name, full=full, batch_size=2).outputs(X), expected)


def test_frozen_parameters_do_not_count():
    module, _, _ = copy.deepcopy(ZOO["mlp, four outputs"])
    X = rows_for("mlp, four outputs", N)
    module[0].weight.requires_grad_(False)
    module[2].bias.requires_grad_(False)
    expected = oracles.shared_tangent_kernel(module, X)
    assert_close(EmpiricalKernel(module).gram(X), expected)
    for parameter in module[:4].parameters():
        parameter.requires_grad_(False)
    expected = oracles.shared_tangent_kernel(module, X)
    assert_close(EmpiricalKernel(module).gram(X), expected)


def test_the_module_is_copied_and_left_alone():
    module = mlp(1).double()
    module.train()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    X = rows_for("mlp, one output", N)
    kernel = EmpiricalKernel(module)
    before = kernel.gram(X), kernel.outputs(X)
    assert module.training
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    with torch.no_grad():
        module[0].weight.mul_(2)
    torch.testing.assert_close(kernel.gram(X), before[0])
    torch.testing.assert_close(kernel.outputs(X), before[1])
    assert not torch.allclose(EmpiricalKernel(module).gram(X), before[0])


def test_precision_and_gradient_mode():
    X = rows_for("resnet", N)
    expected = expected_of("resnet", X)
    single = kernel_of("resnet").gram(X.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=2e-4, atol=1e-4 * expected.abs().max())
    inside = kernel_of("resnet", dtype=torch.float32)
    for mixed in (inside.gram(X), inside.block(X, X)):
        assert mixed.dtype == torch.float64
        np.testing.assert_allclose(mixed, expected, rtol=2e-4, atol=1e-4 * expected.abs().max())
    assert inside.diag(X).dtype == inside.outputs(X).dtype == torch.float64
    assert inside.matmat(X, X, torch.ones_like(X[:, :1])).dtype == torch.float64
    v = torch.ones_like(X[:, :1])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(kernel_of("resnet").gram(X.clone()), expected)
            assert_close(kernel_of("resnet").matmat(X, X, v), expected @ v)
            assert_close(kernel_of("resnet").diag(X), expected.diagonal())
    rows = X.clone().requires_grad_()
    assert not kernel_of("resnet").gram(rows).requires_grad


def test_no_rows():
    X = rows_for("mlp, one output", 3)
    kernel = kernel_of("mlp, one output")
    assert kernel.block(X[:0], X).shape == (0, 3)
    assert kernel.block(X, X[:0]).shape == (3, 0)
    assert kernel.gram(X[:0]).shape == (0, 0)
    assert kernel.diag(X[:0]).shape == kernel.outputs(X[:0]).shape == (0,)
    assert kernel.matmat(X[:0], X, torch.ones_like(X[:, :1])).shape == (0, 1)
    full = kernel_of("mlp, four outputs", full=True)
    assert full.matmat(X, X[:0], X[:0, :2]).shape == (12, 2)
    assert full.matmat(X[:0], X, torch.ones(12, 2)).shape == (0, 2)


def test_one_row():
    X = rows_for("resnet", 1)
    assert_close(kernel_of("resnet").gram(X), expected_of("resnet", X))


def test_the_jacobian_is_never_held(monkeypatch):
    """The features of all bundles together exceed what any of them may hold."""
    X = rows_for("resnet", 60)
    held = []
    original = EmpiricalKernel._chunks

    def spy(self, *args):
        for start, features in original(self, *args):
            held.append(sum(t.numel() * t.element_size() for f in features for t in f.tensors))
            yield start, features

    monkeypatch.setattr(EmpiricalKernel, "_chunks", spy)
    budget = 500_000
    kernel_of("resnet", workspace_bytes=budget).gram(X)
    n_parameters = sum(p.numel() for p in ZOO["resnet"][0].parameters())
    assert max(held) < budget < 3 * 60 * n_parameters * 8 < 2 * sum(held)


def test_two_threads_share_a_kernel():
    X = rows_for("attention", N)
    kernel, expected = kernel_of("attention"), expected_of("attention", X)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(kernel.gram, [X] * 12):
            assert_close(found, expected)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_module_of_one_linear_layer_is_the_linear_kernel():
    X = rows_for("mlp, one output", N)
    expected = X @ X.T + 1
    assert_close(EmpiricalKernel(nn.Linear(6, 3).double()).gram(X), expected)


def test_pickles():
    X = rows_for("attention", N)
    kernel = kernel_of("attention")
    K = kernel.gram(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kernel)).gram(X), K)
