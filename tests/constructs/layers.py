"""Layers that are not plain convolutions or linear layers, or not once."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.ops import StochasticDepth

from constructs.net import Net, conv


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.ConvTranspose1d(3, 6, 4, stride=2, padding=1)
        self.two = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.three = nn.ConvTranspose3d(8, 8, 2, stride=2, groups=8)
        self.conv = nn.Conv3d(8, 8, 1)
        self.last = nn.ConvTranspose2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x.flatten(2))).unflatten(2, (16, -1))
        x = F.relu(self.two(x))
        x = F.relu(self.conv(F.relu(self.three(x.unflatten(3, (4, -1))))))
        return self.last(x.mean(2)).mean((2, 3))


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(48, 16, 3, padding=1), nn.Conv1d(16, 16, 5, groups=4)
        self.mix, self.grid, self.head = nn.Linear(12, 12), nn.Linear(4, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x.flatten(1, 2)))))
        x = F.relu(self.mix(x)).unflatten(2, (3, 4))
        return self.head(F.gelu(self.grid(x))).mean((1, 2))


class Functional(nn.Module):
    """Layers called as functions on parameters of the model and of others of its modules."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.bias = nn.Parameter(torch.randn(8))
        self.inner = nn.Module()
        self.inner.up_weight = nn.Parameter(torch.randn(8, 4, 2, 2) * 0.3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 10)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight, bias=self.bias, padding=1, stride=2))
        x = F.relu(self.norm(F.conv_transpose2d(x, self.inner.up_weight, stride=2)))
        x = x.mean((2, 3))
        for block in self.blocks:
            x = F.linear(x, block.weight, block.bias)
        return x


def baked() -> nn.Module:
    """Weights that torch computes at each call, in its old way and in its new one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old way
        old = weight_norm(conv())
    net = Net(
        lambda m, x: m.conv3(F.relu(m.conv2(F.relu(m.conv1(x))))),
        conv1=parametrizations.weight_norm(conv()),
        conv2=old,
        conv3=spectral_norm(conv()),
    )
    parametrizations.spectral_norm(net.head)
    return net


class StandardConv(nn.Conv2d):
    """As timm's StdConv2d: the weight is standardised anew at each call."""

    def __init__(self):
        super().__init__(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            *(self.weight.reshape(1, 8, -1), None, None),
            weight=(self.gain * 0.2).view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, weight, self.bias, *settings)


def dynamic() -> nn.Module:
    """A convolution whose weight is computed from the input."""

    def forward(m, x):
        weight = m.make(x.mean((0, 2, 3))).view(8, 8, 1, 1)
        return m.conv(F.relu(F.conv2d(m.norm(x), weight)))

    return Net(forward, make=nn.Linear(8, 64), conv=conv(), norm=nn.BatchNorm2d(8))


def shared() -> nn.Module:
    """Two layers with one weight, one called twice, and a transposed one on the same weight."""

    def forward(m, x):
        x = F.relu(m.second(F.relu(m.first(x))))
        x = F.relu(m.first(x))
        return F.conv_transpose2d(x, m.first.weight, padding=1)

    net = Net(forward, first=conv(), second=conv())
    net.second.weight = net.first.weight
    return net


class DropPath(nn.Module):
    """As timm's: a module of its own that does nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))


def dropped() -> nn.Module:
    def forward(m, x):
        x = x + m.depth(m.norm(m.conv1(x)))
        x = x + m.path(F.dropout2d(m.relu(m.same(m.conv2(x))), training=m.training))
        return F.dropout(m.alpha(x), 0.3, m.training)

    return Net(
        forward,
        conv1=conv(),
        norm=nn.BatchNorm2d(8),
        depth=StochasticDepth(0.2, "row"),
        conv2=nn.Sequential(conv(), nn.Dropout2d(0.1)),
        same=nn.Identity(),
        relu=nn.ReLU(),
        path=DropPath(),
        alpha=nn.AlphaDropout(0.1),
    )
