"""Which parameter takes which path, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from oracles import shared_tangent_kernel
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch_modules import ZOO, Experts, Recurrent, Sorts, as_inputs, rows_for

from sklearn_kd.kernels.empirical import _rules
from sklearn_kd.kernels.empirical._kernel import EmpiricalKernel
from sklearn_kd.kernels.empirical._layers import LayerUnit
from sklearn_kd.kernels.empirical._network import Network
from sklearn_kd.kernels.empirical._tangents import GenericUnit, Tangents


def tangents_of(module, X, shape=None):
    return Tangents(Network(module, shape, X.device, X.dtype), X)


def generic_names(tangents):
    return {name for u in tangents.units if isinstance(u, GenericUnit) for name in u.names}


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_is_in_one_unit(name):
    module, shape, _ = ZOO[name]
    tangents = tangents_of(module, rows_for(name, 4), shape)
    names = [n for unit in tangents.units for n in unit.names]
    assert sorted(names) == sorted(n for n, _ in module.named_parameters())


@pytest.mark.parametrize(
    ("name", "generic"),
    [
        ("mlp, four outputs", set()),
        ("cnn with pooling", set()),
        ("cnn on signals", {"3.weight", "3.bias"}),
        ("cnn on volumes", {"0.weight", "0.bias"}),
        ("resnet", set()),
        ("shared layers", {"scale"}),
        ("folded tokens", set()),
        ("experts", {f"experts.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}),
        ("sorts", {"layer.weight", "layer.bias"}),
        ("transposed convolution", {"1.weight", "1.bias"}),
        ("used elsewhere", {"layer.weight"}),
        ("tied transformer", {"tokens.weight"}),
        ("NTK parametrisation", {f"biases.{i}" for i in range(3)}),
    ],
)
def test_who_is_differentiated_row_by_row(name, generic):
    module, shape, _ = ZOO[name]
    found = generic_names(tangents_of(module, rows_for(name, 4), shape))
    attention = {n for n in found if "self_attn" in n or n == "positions"}
    assert found - attention == generic


def test_layers_of_one_position_keep_their_factors():
    module, _, _ = ZOO["mlp, four outputs"]
    tangents = tangents_of(module, rows_for("mlp, four outputs", 4))
    assert all(isinstance(u, LayerUnit) and not u.dense for u in tangents.units)


def test_layers_of_many_positions_form_gradients():
    module, shape, _ = ZOO["resnet"]
    tangents = tangents_of(module, rows_for("resnet", 4), shape)
    dense = {u.names[0]: u.dense for u in tangents.units}
    assert dense["stem.weight"]
    assert not dense["readout.weight"]


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0])
def test_a_wrong_rule_is_found_out(factor, monkeypatch):
    right = _rules._linear

    def wrong(*args, **keywords):
        rule = right(*args, **keywords)
        return rule._replace(left=lambda x: rule.left(x) * factor)

    monkeypatch.setitem(_rules.RULES, F.linear, wrong)
    module, _, _ = ZOO["mlp, one output"]
    X = rows_for("mlp, one output", 6)
    J = torch.stack(
        [
            torch.cat([g.ravel() for g in torch.autograd.grad(f, list(module.parameters()))])
            for f in [module(x[None])[0, 0] for x in X]
        ]
    )
    torch.testing.assert_close(EmpiricalKernel(module).gram(X), J @ J.T)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class HidesItsWeight(nn.Module):
    """Uses a weight where no function of torch sees the parameter itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x) + _Square.apply(x, self.layer.weight)


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return (x @ weight.T).square()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        scaled = gradient * 2 * (x @ weight.T)
        return scaled @ weight, scaled.T @ x


@pytest.mark.parametrize("module", [Checkpointed(), HidesItsWeight(), Recurrent()])
def test_modules_that_hide_what_they_do_are_still_exact(module):
    module = module.double()
    X = rows_for("mlp, one output", 5)
    shape = (2, 3) if isinstance(module, Recurrent) else None
    inputs = X if shape is None else X.reshape(-1, *shape)
    J = torch.stack(
        [
            torch.cat(
                [g.ravel() for g in torch.autograd.grad(module(x[None]), list(module.parameters()))]
            )
            for x in inputs
        ]
    )
    K = EmpiricalKernel(module, input_shape=shape).gram(X)
    torch.testing.assert_close(K, J @ J.T, rtol=1e-10, atol=1e-10)


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def test_outputs_that_depend_on_other_rows():
    X = rows_for("mlp, one output", 5)
    with pytest.raises(ValueError, match=r"by itself and in a batch differ.*batch_first=True"):
        EmpiricalKernel(MixesRows().double()).gram(X)


class RarelyDrops(MixesRows):
    def forward(self, x):
        return self.layer(F.dropout(x, 1e-9))


def test_random_outputs():
    """Dropout as a function is in training mode by default; two rows need not show it."""
    X = rows_for("mlp, one output", 5)
    module = RarelyDrops().double()
    assert torch.allclose(module(X), module(X))
    with pytest.raises(ValueError, match=r"draws random numbers.*training=self\.training"):
        EmpiricalKernel(module).gram(X)


def test_sequences_before_rows():
    """batch_first=False: what torch takes for the rows are the positions."""
    module = copy.deepcopy(ZOO["attention"][0])
    module.attention.batch_first = False
    X = rows_for("attention", 5)
    with pytest.raises(ValueError, match="by itself and in a batch differ"):
        EmpiricalKernel(module, input_shape=(4, 6)).gram(X)


class Transposed(nn.Module):
    """Rows are not the first dimension of what a layer sees, though of what the module takes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1).sum((1, 2))


@pytest.mark.parametrize("n_positions", [2, 3])
def test_layers_that_see_the_rows_elsewhere(n_positions):
    module = Transposed().double()
    X = rows_for("mlp, one output", 5).repeat(1, n_positions).cumsum(1)
    inputs = X.reshape(5, n_positions, 6)
    J = torch.stack(
        [
            torch.cat(
                [g.ravel() for g in torch.autograd.grad(module(x[None]), list(module.parameters()))]
            )
            for x in inputs
        ]
    )
    K = EmpiricalKernel(module, input_shape=(n_positions, 6)).gram(X)
    torch.testing.assert_close(K, J @ J.T, rtol=1e-10, atol=1e-10)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        return self.one(x) if (x[:, 0] > 0).all() else self.two(x)


def test_layers_that_depend_on_the_rows():
    X = rows_for("mlp, one output", 40).abs()
    X[33:, 0] *= -1
    with pytest.raises(ValueError, match="by itself and in a batch differ, or in two batches"):
        EmpiricalKernel(Branches().double()).gram(X)
    X[35, 0] *= -1  # the rows that are looked at first are all of one kind
    with pytest.raises(ValueError, match="calls other layers, or layers on other shapes"):
        EmpiricalKernel(Branches().double(), batch_size=2).gram(X)


@pytest.mark.parametrize("kind", [Experts, Sorts])
def test_an_order_that_shows_late(kind):
    X = rows_for("mlp, one output", 40).abs()
    X[:, 0] = torch.arange(1, 41)
    X[33, 0] = -5
    for batch_size in (2, 40):
        with pytest.raises(ValueError, match="which rows a layer sees, or in which order"):
            EmpiricalKernel(kind(2).double(), batch_size=batch_size).gram(X)


class Hypernetwork(nn.Module):
    """The weight of its readout is what a layer makes of a constant."""

    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.randn(1, 3))
        self.layer, self.inner = nn.Linear(3, 6), nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.inner(x)) @ self.layer(self.code).T


def test_a_single_row_decides_nothing():
    """Alone, a constant that goes through a layer looks like a row."""
    module = Hypernetwork().double()
    X = rows_for("mlp, one output", 6)
    kernel = EmpiricalKernel(module)
    kernel.gram(X[:1])
    torch.testing.assert_close(kernel.gram(X), EmpiricalKernel(module).gram(X))
    np.testing.assert_allclose(kernel.gram(X), shared_tangent_kernel(module, X), rtol=1e-10)


class SquareRoot(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.layer(x).square().sum(1).sqrt()


def test_gradients_that_are_not_finite():
    X = rows_for("mlp, one output", 6)
    X[3] = 0
    with pytest.raises(ValueError, match="gradients of its outputs are not finite"):
        EmpiricalKernel(SquareRoot().double()).gram(X)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_parametrizations():
    layers = [kind(nn.Linear(6, 6)) for kind in (weight_norm, spectral_norm, orthogonal)]
    module = nn.Sequential(*layers, nn.PReLU(), nn.Linear(6, 1)).double().eval()
    X = rows_for("mlp, one output", 5)
    expected = shared_tangent_kernel(module, X)
    np.testing.assert_allclose(EmpiricalKernel(module).gram(X), expected, rtol=1e-9)


def test_embeddings_with_sparse_gradients():
    X = torch.randint(0, 7, (6, 5)).double()
    module = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(20, 1)).double()
    found = EmpiricalKernel(module).gram(X)
    module[0].sparse = False
    torch.testing.assert_close(found, EmpiricalKernel(module).gram(X))
    torch.testing.assert_close(found, shared_tangent_kernel(module, X.long()))


def test_hooks_on_gradients_play_no_part():
    module = copy.deepcopy(ZOO["mlp, one output"][0])
    X = rows_for("mlp, one output", 5)
    expected = EmpiricalKernel(module).gram(X)
    module[0].register_full_backward_hook(lambda part, grad_input, grad_output: (None,))
    module[2].register_full_backward_pre_hook(lambda part, grad_output: (0 * grad_output[0],))
    torch.testing.assert_close(EmpiricalKernel(module).gram(X), expected)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("rule", ["linear", "generic"])
def test_modules_that_work_in_place_leave_the_rows_alone(rule):
    scale = Scale() if rule == "generic" else nn.Identity()
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3), scale).double()
    outside = nn.Sequential(nn.ReLU(), *module[1:])
    X = rows_for("mlp, one output", 5)
    before = X.clone()
    kernel, expected = EmpiricalKernel(module), EmpiricalKernel(outside)
    torch.testing.assert_close(kernel.gram(X), expected.gram(X))
    torch.testing.assert_close(kernel.outputs(X), expected.outputs(X))
    torch.testing.assert_close(kernel.matmat(X, X, X), expected.matmat(X, X, X))
    assert torch.equal(X, before)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(6, 1)

    def forward(self, x):
        return x[:, :1]


def test_outputs_without_parameters():
    X = rows_for("mlp, one output", 3)
    with pytest.raises(ValueError, match="depend on no parameter with requires_grad=True"):
        EmpiricalKernel(Constant()).gram(X)


class Unregistered(Constant):
    """Layers in a plain list are no part of a module."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(6, 1).double()]

    def forward(self, x):
        return self.layers[0](x) + self.unused(x)


def test_parameters_that_are_not_registered():
    X = rows_for("mlp, one output", 3)
    with pytest.raises(ValueError, match=r"shape .* not among module\.parameters\(\)"):
        EmpiricalKernel(Unregistered()).gram(X)


def test_a_forward_that_holds_on_to_the_original_module():
    module = copy.deepcopy(ZOO["mlp, one output"][0])
    layers = list(module)
    module.forward = lambda x: nn.Sequential(*layers)(x)
    with pytest.raises(ValueError, match="or not of a copy of the module"):
        EmpiricalKernel(module).gram(rows_for("mlp, one output", 3))


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = copy.deepcopy(ZOO["mlp, one output"][0])
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x)


def test_unused_parameters_add_nothing():
    X = rows_for("mlp, one output", 5)
    module = PartlyUsed()
    expected = EmpiricalKernel(module.inner).gram(X)
    torch.testing.assert_close(EmpiricalKernel(module).gram(X), expected)


def test_as_inputs_are_what_the_network_makes_of_rows():
    for name, (module, shape, _) in ZOO.items():
        X = rows_for(name, 3)
        inputs = Network(module, shape, X.device, X.dtype).inputs(X)
        assert torch.equal(inputs, as_inputs(name, X))
