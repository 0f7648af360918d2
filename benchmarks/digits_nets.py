"""Small networks of six kinds for 16x16 grey images in ten classes, unlike a plain ResNet."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBn(nn.Sequential):
    """Convolution, batch norm and an optional activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **options):
        groups, activation = options.get("groups", 1), options.get("activation", nn.ReLU)
        padding = kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


class InvertedBlock(nn.Module):
    """MobileNetV2's: expansion, depthwise convolution, linear projection, a sum if shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        wide = 4 * inputs
        self.body = nn.Sequential(
            ConvBn(inputs, wide, 1, activation=nn.ReLU6),
            ConvBn(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6),
            ConvBn(wide, outputs, 1, activation=None),
        )
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keeps_shape else self.body(x)


class GatedBlock(nn.Module):
    """A residual block whose branch is multiplied by a squeeze-and-excitation gate."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            ConvBn(inputs, outputs, 3, stride), ConvBn(outputs, outputs, activation=None)
        )
        self.squeeze, self.excite = nn.Conv2d(outputs, 8, 1), nn.Conv2d(8, outputs, 1)
        self.shortcut = ConvBn(inputs, outputs, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return F.relu(self.shortcut(x) + y * torch.sigmoid(gate))


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each convolution; the batch norm after a sum can't be folded."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(F.relu(self.bn2(self.conv1(y))))


class DenseBlock(nn.Module):
    """Four layers, each of which reads all that came before it."""

    def __init__(self, inputs: int, growth: int = 12):
        super().__init__()
        widths = [inputs + index * growth for index in range(4)]
        self.layers = nn.ModuleList(ConvBn(width, growth) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class TransformerBlock(nn.Module):
    """A vision transformer's: attention, then two linear layers, each behind a LayerNorm."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """Cuts images into patches of 4x4, as tokens with a learned position each."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.position


class MeanOfTokens(nn.Module):
    """The mean over an image's tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (n, channels, height, width)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """ConvNeXt's: a depthwise convolution, LayerNorm, and two linear layers over the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        return x + self.mlp(self.norm(y)).permute(0, 3, 1, 2)


def _classifier(*features: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(
        *features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    ).eval()


def inverted() -> nn.Sequential:
    """Depthwise convolutions and inverted residuals."""
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)]
    blocks = [InvertedBlock(*block) for block in plan]
    return _classifier(ConvBn(1, 16), *blocks, ConvBn(32, 96, 1, activation=nn.ReLU6), width=96)


def gated() -> nn.Sequential:
    """Residual blocks with squeeze-and-excitation."""
    plan = [(16, 16, 1), (16, 24, 2), (24, 32, 2)]
    return _classifier(ConvBn(1, 16), *[GatedBlock(*block) for block in plan], width=32)


def pre_activation() -> nn.Sequential:
    """A pre-activation ResNet."""
    stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2)]
    blocks = [PreActivationBlock(*block) for block in plan]
    return _classifier(stem, *blocks, nn.BatchNorm2d(32), nn.ReLU(), width=32)


def dense() -> nn.Sequential:
    """Dense blocks with transitions that halve width and size."""
    return _classifier(
        ConvBn(1, 16),
        DenseBlock(16),
        ConvBn(64, 32, 1),
        nn.AvgPool2d(2),
        DenseBlock(32),
        ConvBn(80, 48, 1),
        nn.AvgPool2d(2),
        width=48,
    )


def transformer() -> nn.Sequential:
    """A vision transformer of three blocks; no batch norms."""
    blocks = [TransformerBlock(48) for _ in range(3)]
    layers = (Patches(48), *blocks, nn.LayerNorm(48), MeanOfTokens(), nn.Linear(48, 10))
    return nn.Sequential(*layers).eval()


def next_net() -> nn.Sequential:
    """A ConvNeXt of four blocks; no batch norms."""
    return _classifier(
        nn.Conv2d(1, 24, 2, 2),
        ChannelNorm(24),
        *(NextBlock(24) for _ in range(2)),
        ChannelNorm(24),
        nn.Conv2d(24, 48, 2, 2),
        *(NextBlock(48) for _ in range(2)),
        ChannelNorm(48),
        width=48,
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "inverted": inverted,
    "gated": gated,
    "pre-activation": pre_activation,
    "dense": dense,
    "transformer": transformer,
    "next": next_net,
}
