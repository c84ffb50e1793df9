"""The networks of these experiments: MLPs, a small CNN, and a thin ResNet.

Weights are drawn from the generator that a network is given, so a seed fixes a network.
"""

import itertools
import math

import torch
from torch import nn


class MLP(nn.Module):
    """Fully connected network of Eq. 1, in the NTK parametrisation, σ_W = σ_b = 1.

    h¹ = W⁰x/√d + b⁰, h^{l+1} = W^l g(h^l)/√m + b^l, all W and b ~ N(0, 1), g the ReLU. Its tangent
    kernel tends to `sklearn_kd.kernels.NTK(depth)` as the width m grows.
    """

    def __init__(self, n_features, width, depth, n_outputs, generator):
        super().__init__()
        sizes = [n_features] + [width] * depth + [n_outputs]
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        for layer in self.layers:
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)

    def forward(self, x):
        x = x.flatten(1)
        for index, layer in enumerate(self.layers):
            if index:
                x = torch.relu(x)
            # The scale goes on the smaller operand: the rows, not the weights.
            x = nn.functional.linear(x / math.sqrt(layer.in_features), layer.weight, layer.bias)
        return x


class DefaultMLP(nn.Module):
    """Fully connected ReLU network with the weights that `torch.nn.Linear` starts from."""

    def __init__(self, n_features, width, depth, n_outputs, generator):
        super().__init__()
        sizes = [n_features] + [width] * depth + [n_outputs]
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        for layer in self.layers:
            _start(layer, layer.in_features, generator)

    def forward(self, x):
        x = x.flatten(1)
        for index, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if index else x)
        return x


class CNN(nn.Module):
    """Three strided convolutions and a linear layer on 28 × 28 images, without normalisation.

    Convolutions start from weights of variance 2/fan_in (He et al., 2015), uniformly drawn.
    """

    def __init__(self, channels, n_outputs, generator):
        super().__init__()
        widths = [1, channels, 2 * channels, 2 * channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
            for n_in, n_out in itertools.pairwise(widths)
        )
        self.readout = nn.Linear(16 * widths[-1], n_outputs)
        for layer in self.convolutions:
            _start(layer, 9 * layer.in_channels, generator, gain=math.sqrt(6))
        _start(self.readout, self.readout.in_features, generator)

    def forward(self, x):
        x = x.reshape(len(x), 1, 28, 28)
        for layer in self.convolutions:
            x = torch.relu(layer(x))
        return self.readout(x.flatten(1))


def _start(layer, fan_in, generator, gain=1.0):
    """Draw weights of variance gain²/(3 fan_in), and biases as torch does."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(layer.weight, -gain * bound, gain * bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


class ResNet(nn.Module):
    """Residual network of He et al. (2016) for small images: 6 n_blocks + 2 layers.

    Three stages of ``n_blocks`` basic blocks of ``channels``, 2 ``channels`` and 4 ``channels``,
    the second and third at half the resolution of the one before; the shortcut of a block that
    halves the resolution is a strided 1 × 1 convolution. ``n_blocks=1, channels=16`` is ResNet-8,
    ``n_blocks=3`` the ResNet-20 of CIFAR-10. Every convolution is followed by batch normalisation.
    """

    def __init__(self, channels, n_blocks, n_outputs, generator):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers.append(nn.ReLU())
        width = channels
        for stage in range(3):
            for block in range(n_blocks):
                stride = 2 if stage and not block else 1
                layers.append(_Block(width, channels << stage, stride))
                width = channels << stage
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(width, n_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
        nn.init.normal_(self.readout.weight, std=1 / math.sqrt(width), generator=generator)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x):
        return self.readout(self.features(x).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))
