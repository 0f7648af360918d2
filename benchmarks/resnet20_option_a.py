"""The CIFAR-10 ResNet-20 of He et al. 2016, section 4.2, as a user's own module.

Its shortcuts have no weights ("option A"): where the shape changes, every second pixel is taken
and the new channels are zeros.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the sum with the block's input."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.changes_shape, self.padding = stride != 1, planes // 4

    def forward(self, x: Tensor) -> Tensor:
        """The residual, added to `x` and rectified."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.changes_shape:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class OptionAResNet(nn.Module):
    """Three stages of `blocks` basic blocks with 16, 32 and 64 channels."""

    def __init__(self, blocks: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, 1, blocks)
        self.layer2 = stage(16, 32, 2, blocks)
        self.layer3 = stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) to (batch, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def stage(inputs: int, planes: int, stride: int, blocks: int) -> nn.Sequential:
    """Blocks of equal width; the first one changes the shape."""
    first = BasicBlock(inputs, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


def resnet20() -> OptionAResNet:
    """The 20-layer network, 0.27 million parameters."""
    return OptionAResNet(blocks=3)
