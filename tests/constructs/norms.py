"""Batch norms as networks have them, and after what."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from constructs.net import Net, conv


class Norms1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.linear, self.flat = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.relu(self.flat(self.linear(x.mean(2)))))


class Norms3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8)
        self.conv2, self.norm2 = nn.Conv3d(8, 8, (1, 3, 3)), nn.BatchNorm3d(8, affine=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3, 4)))


class TokenNorm(nn.Module):
    """A batch norm whose channels are the tokens: it can't go into the layer before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(16, 8), nn.BatchNorm1d(48), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.flatten(1, 2)))
        return self.head(F.relu(x)).mean(1)


class FunctionalNorm(nn.Module):
    """Its own batch norm: parameters and buffers of one module, `F.batch_norm` in its forward."""

    def __init__(self, channels: int, act: nn.Module | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels) * 0.3)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, 1e-3)
        return self.act(x)


class TorchNorm(FunctionalNorm):
    """The same by `torch.batch_norm`, whose arguments come in another order."""

    def forward(self, x: Tensor) -> Tensor:
        own = (self.weight, self.bias, self.running_mean, self.running_var)
        return self.act(torch.batch_norm(x, *own, self.training, 0.1, 1e-3, False))


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a batch norm with a forward of its own, which ends in a ReLU."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        training = self.training or (self.running_mean is None and self.running_var is None)
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, training, 0.1, self.eps)
        return self.act(self.drop(x))


def frozen() -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(8)
    norm.weight.uniform_(0.5, 1.5), norm.bias.normal_(), norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def after_conv(norm: Callable[[], nn.Module], **settings) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: F.relu(m.norm(m.conv(x))), conv=conv(bias=False), norm=norm(), **settings
    )


def transposed_norms() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.norm1(m.up1(x)))
        x = F.relu(m.norm2(m.up2(x)))
        return m.conv(F.relu(m.norm3(m.up3(x))))

    return Net(
        forward,
        up1=nn.ConvTranspose2d(8, 6, 2, stride=2),
        norm1=nn.BatchNorm2d(6),
        up2=nn.ConvTranspose2d(6, 12, 3, padding=1, groups=3, bias=False),
        norm2=nn.BatchNorm2d(12),
        up3=nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1, groups=12),
        norm3=nn.BatchNorm2d(12),
        conv=conv(12, 8),
    )


def dense_block() -> nn.Module:
    def forward(m, x):
        for norm, layer in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return F.relu(m.last(x))

    return Net(
        forward,
        head=16,
        norms=nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)]),
        convs=nn.ModuleList([conv(8, 4), conv(12, 4)]),
        last=nn.BatchNorm2d(16),
    )


def read_twice() -> nn.Module:
    def forward(m, x):
        y = m.conv(x)
        return F.relu(m.norm(y)) + torch.sigmoid(y)

    return Net(forward, conv=conv(), norm=nn.BatchNorm2d(8))


def block_called_twice() -> nn.Module:
    """A block of layer and batch norm called twice: both calls agree, so it folds."""

    def forward(m, x):
        for _ in range(2):
            x = F.relu(m.norm(m.conv(x)))
        return x

    return Net(forward, conv=conv(bias=False), norm=nn.BatchNorm2d(8))


def norm_of_concat() -> nn.Module:
    return Net(
        lambda m, x: F.relu(m.norm(torch.cat([m.left(x), m.right(x)], 1))),
        head=16,
        left=conv(),
        right=conv(kernel=1),
        norm=nn.BatchNorm2d(16),
    )
