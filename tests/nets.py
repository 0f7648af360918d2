"""Small networks for the tests, each with a trait that networks in the wild have.

All take (batch, 3, 16, 16) and give (batch, 10). `ALL[name]()` builds one in eval mode, the same
at each call, its batch-norm layers as training would leave them: no parameter at its default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBn(nn.Sequential):
    """Convolution, batch norm and an optional activation module."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ):
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        super().__init__(conv, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


class PadBlock(nn.Module):
    """Basic residual block with functional ReLUs and a shortcut that has no weights."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class Residual(nn.Module):
    """A CIFAR ResNet with option-A shortcuts: F.relu, slicing, F.pad, F.avg_pool2d, view."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = PadBlock(8, 8)
        self.layer2 = PadBlock(8, 16, stride=2)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.linear(F.avg_pool2d(x, 8).view(x.size(0), -1))


class InvertedBlock(nn.Module):
    """Expansion, depthwise convolution, linear projection; a sum where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        wide = 3 * inputs
        self.body = nn.Sequential(
            ConvBn(inputs, wide, 1, activation=nn.ReLU6),
            ConvBn(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6),
            ConvBn(wide, outputs, 1, activation=None),
        )
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keeps_shape else self.body(x)


class InvertedResidual(nn.Module):
    """A MobileNetV2: depthwise convolutions, ReLU6, sums of signed values, dropout."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            ConvBn(3, 8, activation=nn.ReLU6), InvertedBlock(8, 8, 1), InvertedBlock(8, 16, 2)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Concat(nn.Module):
    """Two branches and an average-pooled one, concatenated, then a convolution as the head."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBn(3, 8)
        self.left, self.right = ConvBn(8, 8, 1), ConvBn(8, 8, 3)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.merge = ConvBn(24, 16, 1, stride=2)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x), self.pool(x)], dim=1)
        return self.head(self.merge(x)).mean((2, 3))


class SqueezeExcite(nn.Module):
    """A sigmoid gate computed from pooled channels multiplies the features."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = ConvBn(3, 8), ConvBn(8, 16, stride=2)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last = ConvBn(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.last(x * gate).mean((2, 3)))


class Plain(nn.Module):
    """A VGG: convolutions with biases, max-pooling, flatten, two linear layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class SharedRelu(nn.Module):
    """One ReLU module called from three places, as in torchvision's ResNets."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second = ConvBn(3, 8, activation=None), ConvBn(8, 8, activation=None)
        self.third = ConvBn(8, 16, stride=2, activation=None)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x) + x)
        return self.head(self.relu(self.third(x)).mean((2, 3)))


class RepeatedConv(nn.Module):
    """One convolution called twice, each call with a batch norm of its own: neither folds."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBn(3, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.bn1(self.conv(x)))
        x = F.relu(self.bn2(self.conv(x)))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution: after a sum, a batch norm can't be folded."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(F.relu(self.bn1(x)))
        x = x + self.conv2(F.relu(self.bn2(y)))
        return self.head(F.relu(self.bn3(x)).mean((2, 3)))


def _builder(network: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return settle_batchnorm(network())

    return build


@torch.no_grad()
def settle_batchnorm(model: nn.Module) -> nn.Module:
    """Random affine parameters, and the statistics of noise images, which the layers then fit."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
        norm.momentum = None  # a plain average over the one pass below
    model.train()(torch.randn(64, 3, 16, 16) + 0.2)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    return model.eval()


ALL: dict[str, Callable[[], nn.Module]] = {
    "residual": _builder(Residual),
    "inverted_residual": _builder(InvertedResidual),
    "concat": _builder(Concat),
    "squeeze_excite": _builder(SqueezeExcite),
    "plain": _builder(Plain),
    "shared_relu": _builder(SharedRelu),
    "repeated_conv": _builder(RepeatedConv),
    "pre_activation": _builder(PreActivation),
}
