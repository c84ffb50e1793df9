"""Small modules of every kind, with rows to evaluate them on."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F


class NTKParametrised(nn.Module):
    """Eq. 1 with explicit scales: weights N(0, 1) over √fan-in, biases N(0, 1) times σ_b."""

    def __init__(self, sizes, weight_std=1.0, bias_std=1.0, activation=torch.relu, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        pairs = list(itertools.pairwise(sizes))
        draw = {"generator": generator, "dtype": torch.float64}
        self.weights = nn.ParameterList(torch.randn(m, n, **draw) for n, m in pairs)
        self.biases = nn.ParameterList(torch.randn(m, **draw) for _, m in pairs)
        self.weight_std, self.bias_std, self.activation = weight_std, bias_std, activation

    def forward(self, x):
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if index:
                x = self.activation(x)
            # a bias with a scale is no argument of `linear`: it takes the generic path
            x = F.linear(x * self.weight_std / math.sqrt(x.shape[1]), weight) + self.bias_std * bias
        return x


class ResidualBlock(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(4, 4, 1), ResidualBlock(4, 6, 2))
        self.readout = nn.Linear(6, n_outputs)

    def forward(self, x):
        return self.readout(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """Token and position embeddings, one encoder layer, mean over the tokens."""

    def __init__(self, n_outputs):
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.readout = nn.Linear(8, n_outputs)

    def forward(self, ids):
        return self.readout(self.layer(self.tokens(ids) + self.positions).mean(1))


class Attention(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.readout = nn.Linear(6, n_outputs)

    def forward(self, x):
        return self.readout(self.norm(x + self.attention(x, x, x)[0]).mean(1))


class TiedTransformer(Transformer):
    """The readout over the vocabulary is the transposed embedding, as in language models."""

    def __init__(self):
        super().__init__(11)
        self.readout.weight = self.tokens.weight


class SharedLayers(nn.Module):
    """A layer called twice, its weight in a second layer too, and once by itself."""

    def __init__(self, n_outputs):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        self.other.weight = self.layer.weight
        self.scale = nn.Parameter(torch.randn(6))
        self.readout = nn.Linear(6, n_outputs)

    def forward(self, x):
        x = torch.tanh(self.layer(x))
        x = torch.tanh(self.layer(x)) * self.scale
        return self.readout(torch.tanh(self.other(x)))


class UsedElsewhere(nn.Module):
    """A weight that is a linear layer's and also enters the outputs by itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x)) @ self.layer.weight[:, :2].square()


class FoldedTokens(nn.Module):
    """The tokens of all rows are one batch of its layers."""

    def __init__(self, n_outputs):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2), nn.BatchNorm1d(4), nn.Tanh()
        )
        self.readout = nn.Linear(8, n_outputs)

    def forward(self, x):
        tokens = self.inner(x.flatten(0, 1)).flatten(1)
        return self.readout(tokens).unflatten(0, (len(x), -1)).square().sum(1)


class Experts(nn.Module):
    """Sends each row to one of two layers."""

    def __init__(self, n_outputs):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
        self.readout = nn.Linear(4, n_outputs)

    def forward(self, x):
        first, hidden = x[:, 0] > 0, x.new_empty(len(x), 4)
        for chosen, expert in zip((first, ~first), self.experts, strict=True):
            hidden[chosen] = torch.tanh(expert(x[chosen]))
        return self.readout(hidden)


class Sorts(nn.Module):
    """Its first layer sees the rows in the order of what they hold."""

    def __init__(self, n_outputs):
        super().__init__()
        self.layer, self.readout = nn.Linear(6, 4), nn.Linear(4, n_outputs)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.readout(torch.tanh(self.layer(x[order]))[order.argsort()])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)
        self.readout = nn.Linear(4, 1)

    def forward(self, x):
        return self.readout(self.cell(x)[0][:, -1])


def mlp(n_outputs, bias=True):
    return nn.Sequential(
        nn.Linear(6, 9, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(9, 7),
        nn.GELU(),
        nn.Linear(7, n_outputs, bias=bias),
    )


def cnn(n_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=(1, 0)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, (2, 1), groups=2, dilation=1),
        nn.AvgPool2d((1, 2)),
        nn.GroupNorm(3, 6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6, n_outputs),
    )


def signal_cnn(n_outputs):
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", dilation=2),
        nn.LeakyReLU(),
        nn.Conv1d(4, 4, 2, stride=2, groups=4),
        nn.InstanceNorm1d(4, affine=True),
        nn.Softplus(),
        nn.Flatten(),
        nn.RMSNorm(20),
        nn.Linear(20, n_outputs),
    )


def volume_cnn():
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(2, 2))


def transposed_cnn(n_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(108, n_outputs),
    )


def zoo():
    """Return modules by name, each with the shape of an input and whether these are token ids."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = {
            "mlp, one output": (mlp(1), (6,), False),
            "mlp, two outputs": (mlp(2, bias=False), (6,), False),
            "mlp, four outputs": (mlp(4), (6,), False),
            "cnn with pooling": (cnn(3), (2, 9, 10), False),
            "cnn on signals": (signal_cnn(1), (2, 10), False),
            "cnn on volumes": (volume_cnn(), (1, 2, 2, 2), False),
            "resnet": (ResNet(3), (3, 6, 6), False),
            "transformer": (Transformer(2), (5,), True),
            "attention": (Attention(3), (4, 6), False),
            "tied transformer": (TiedTransformer(), (5,), True),
            "shared layers": (SharedLayers(3), (6,), False),
            "folded tokens": (FoldedTokens(2), (4, 6), False),
            "experts": (Experts(2), (6,), False),
            "sorts": (Sorts(3), (6,), False),
            "transposed convolution": (transposed_cnn(2), (2, 3, 3), False),
            "used elsewhere": (UsedElsewhere(), (6,), False),
            "NTK parametrisation": (NTKParametrised([6, 8, 8, 1]), (6,), False),
        }
        for module, _, _ in modules.values():
            module.double().eval()
            for part in module.modules():
                if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2)
                if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                    nn.init.normal_(part.weight)
    return modules


ZOO = zoo()


def rows_for(name, n, seed=0):
    """Return rows (n, d) for the module of this name, in float64."""
    _, shape, are_tokens = ZOO[name]
    generator = torch.Generator().manual_seed(seed)
    size = (n, math.prod(shape))
    if are_tokens:
        return torch.randint(0, 11, size, generator=generator).double()
    return torch.randn(size, generator=generator, dtype=torch.float64)


def as_inputs(name, X):
    """Return rows as what the module itself takes."""
    _, shape, are_tokens = ZOO[name]
    X = X.reshape(-1, *shape)
    return X.long() if are_tokens else X


class SmallMLP(nn.Sequential):
    """An MLP in double precision, with torch's own initialisation."""

    def __init__(self, n_features, n_classes):
        n_outputs = n_classes if n_classes > 2 else 1
        super().__init__(nn.Linear(n_features, 16), nn.Tanh(), nn.Linear(16, n_outputs))
        self.double()


def wide_mlp(n_features, n_classes, width, generator):
    """Return a network of one hidden layer in the NTK parametrisation, in double precision."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return NTKParametrised([n_features, width, n_classes if n_classes > 2 else 1], seed=seed)


def small_cnn(n_classes):
    """Return a network with batch normalisation for images of 1 x 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, n_classes),
    )
