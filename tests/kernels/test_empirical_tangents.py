"""Which parameter takes which path, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_modules import ZOO, Recurrent, as_inputs, rows_for

from sklearn_kd.kernels import _empirical_layers
from sklearn_kd.kernels._empirical_function import EmpiricalKernel
from sklearn_kd.kernels._empirical_layers import LayerUnit
from sklearn_kd.kernels._empirical_network import Network
from sklearn_kd.kernels._empirical_tangents import GenericUnit, Tangents


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
    right = _empirical_layers._linear

    def wrong(*args, **keywords):
        rule = right(*args, **keywords)
        return rule._replace(left=lambda x: rule.left(x) * factor)

    monkeypatch.setitem(_empirical_layers._RULES, F.linear, wrong)
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


class Noisy(MixesRows):
    def forward(self, x):
        return self.layer(x + torch.rand_like(x))


@pytest.mark.parametrize("module", [MixesRows(), Noisy()])
def test_outputs_that_are_no_function_of_one_row(module):
    X = rows_for("mlp, one output", 5)
    with pytest.raises(ValueError, match=r"by itself and in a batch differ.*batch_first=True"):
        EmpiricalKernel(module.double()).gram(X)


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
    X = rows_for("mlp, one output", 6).abs()
    X[2:, 0] *= -1
    with pytest.raises(ValueError, match="calls other layers, or layers on other shapes"):
        EmpiricalKernel(Branches().double(), batch_size=2).gram(X)


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
