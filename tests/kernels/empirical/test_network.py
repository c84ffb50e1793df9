"""Modules as functions of rows: what is refused, and why."""

import copy

import pytest
import torch
from torch import nn
from torch_modules import ZOO, rows_for

from sklearn_kd._logits import logits
from sklearn_kd.kernels.empirical._network import Network, require_evaluable

X = rows_for("mlp, one output", 4)


def network_of(module, shape=None):
    return Network(module, shape, X.device, X.dtype)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Dropout(0.1), r"1 \(Dropout\)"),
        (nn.AlphaDropout(0.1), r"1 \(AlphaDropout\)"),
        (nn.BatchNorm1d(6), r"1 \(BatchNorm1d\)"),
        (nn.RReLU(), r"1 \(RReLU\)"),
        (nn.InstanceNorm1d(6, track_running_stats=True), r"1 \(InstanceNorm1d\)"),
        (nn.MultiheadAttention(6, 2, dropout=0.1), r"1 \(MultiheadAttention\)"),
        (nn.GRU(6, 6, 2, dropout=0.1), r"1 \(GRU\)"),
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), r"1\.1 \(Dropout\)"),
    ],
)
def test_training_mode(layer, name):
    module = nn.Sequential(nn.Linear(6, 6), layer)
    with pytest.raises(ValueError, match=rf"module: {name} is in training mode.*module\.eval\(\)"):
        require_evaluable(module)
    require_evaluable(module.eval())


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.0), nn.LayerNorm(6), nn.InstanceNorm1d(6), nn.MultiheadAttention(6, 2)]
)
def test_layers_that_are_the_same_in_training(layer):
    require_evaluable(nn.Sequential(nn.Linear(6, 6), layer))


def test_statistics_of_the_batch():
    module = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) has no running statistics"):
        require_evaluable(module)


def test_nothing_to_train():
    module = nn.Linear(6, 1).requires_grad_(False)
    for nothing in (module, nn.ReLU()):
        with pytest.raises(ValueError, match="no parameter has requires_grad=True"):
            require_evaluable(nothing)


def test_lazy_modules():
    with pytest.raises(ValueError, match="parameter weight has no shape yet"):
        require_evaluable(nn.LazyLinear(3))


def test_gradients_that_are_no_derivatives():
    with pytest.raises(ValueError, match="scales gradients by the frequency of tokens"):
        require_evaluable(nn.Embedding(5, 2, scale_grad_by_freq=True))


def test_complex_parameters():
    with pytest.raises(ValueError, match="parameter weight is complex"):
        require_evaluable(nn.Linear(6, 1, dtype=torch.complex64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript():
    module = torch.jit.script(nn.Linear(6, 1))
    with pytest.raises(ValueError, match="TorchScript hides its layers"):
        require_evaluable(module)


def test_modules_that_cannot_be_copied():
    module = nn.Linear(6, 1)
    module.last = module(X.float())
    with pytest.raises(ValueError, match=r"cannot be copied by copy\.deepcopy"):
        network_of(module)


def test_the_module_itself_is_not_touched():
    module = nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.0)).train()
    network = network_of(module)
    assert network.module is not module
    assert module.training
    assert not network.module.training
    assert module[0].weight.dtype == torch.float32
    assert network.parameters["0.weight"].dtype == torch.float64


class Reshapes(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer, self.shape = nn.Linear(6, 6), shape

    def forward(self, x):
        return self.shape(self.layer(x))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda y: y[:, :, None], r"shape \(4, 6, 1\) for 4 rows"),
        (lambda y: y.mean(), r"shape \(\) for 4 rows"),
        (lambda y: y[:3], r"shape \(3, 6\) for 4 rows"),
        (lambda y: y[:, :0], r"shape \(4, 0\) for 4 rows"),
        (lambda y: y > 0, r"dtype torch.bool; it must return real logits"),
    ],
)
def test_outputs_of_another_shape(shape, message):
    network = network_of(Reshapes(shape))
    with pytest.raises(ValueError, match=message):
        network(network.inputs(X))


def test_outputs_that_are_no_tensor():
    network = network_of(Reshapes(lambda y: (y, y)))
    with pytest.raises(TypeError, match="module returned a tuple"):
        network(network.inputs(X))


def test_one_number_per_row():
    network = network_of(Reshapes(lambda y: y[:, 0]))
    assert network(network.inputs(X)).shape == (4, 1)


def test_rows_that_are_not_finite():
    network = network_of(copy.deepcopy(ZOO["mlp, one output"][0]))
    for bad in (torch.nan, torch.inf, 1e308):
        rows = X.clone()
        rows[2, :2] = torch.tensor([7.25, bad])
        with pytest.raises(ValueError, match=r"outputs of 1 rows are not finite.*7\.25"):
            network(network.inputs(rows))


def test_the_size_of_rows():
    with pytest.raises(ValueError, match=r"input_shape=\(2, 2\) takes 4 features, but X has 6"):
        network_of(nn.Linear(2, 1), (2, 2)).inputs(X)


def test_embeddings_take_integers():
    module = nn.Sequential(nn.EmbeddingBag(5, 2), nn.Linear(2, 1))
    ids = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    inputs = network_of(module).inputs(ids)
    assert inputs.dtype == torch.int64
    assert network_of(module)(inputs).shape == (2, 1)
    with pytest.raises(ValueError, match=r"X\[0, 1\]=4 is not a token id.*embedding of 3 tokens"):
        network_of(nn.Sequential(nn.Embedding(3, 2))).inputs(ids)


def test_logits():
    f = torch.tensor([[1.0, 4.0, 7.0]])
    assert logits(f[:, :1]).tolist() == [1.0]
    assert logits(f[:, :2]).tolist() == [3.0]
    assert logits(f).tolist() == [[-3.0, 0.0, 3.0]]
