"""What moves numbers, and sums of one value's numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs.net import Net, conv


def moves() -> nn.Module:
    def forward(m, x):
        y = m.conv1(x.roll((2, 1), (2, 3)).flip(3))
        left, right = y.chunk(2, 1)
        y = m.conv2(torch.stack([right, left], 2).flatten(1, 2))
        y = y.view(-1, 2, 4, 16, 16).transpose(1, 2).contiguous().view(-1, 8, 16, 16)
        a, b, c = torch.split(y, [2, 4, 2], 1)
        y = m.conv3(torch.cat([c, torch.cat([a, b], 1)], 1))
        parts = torch.index_select(y, 1, m.order)[:, ::2].repeat(1, 2, 1, 1).unbind(1)
        return m.conv4(torch.stack(parts[:8], 1))

    net = Net(forward, **{f"conv{i}": conv() for i in range(1, 5)})
    net.register_buffer("order", torch.randperm(8))
    return net


def pads() -> nn.Module:
    def forward(m, x):
        x = m.conv1(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = m.conv2(F.pad(x, (1, 1, 1, 1), mode="replicate"))
        x = m.conv3(F.pad(x, (1, 1, 1, 1)))
        return m.conv4(m.pad(x))

    layers = {f"conv{i}": nn.Conv2d(8, 8, 3) for i in range(1, 4)}
    last = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    return Net(forward, **layers, conv4=last, pad=nn.ReflectionPad2d(1))


def resized() -> nn.Module:
    def forward(m, x):
        x = m.conv1(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2))
        x = m.conv2(F.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False))
        x = m.conv3(m.shuffle(x))
        return m.conv4(m.up(m.max(x)))

    return Net(
        forward,
        conv1=conv(),
        conv2=conv(),
        shuffle=nn.PixelShuffle(2),
        conv3=conv(2, 8),
        conv4=conv(),
        max=nn.AdaptiveMaxPool2d(4),
        up=nn.Upsample(scale_factor=2),
    )


def unpooled() -> nn.Module:
    """A SegNet: places of the largest numbers, kept by one pooling, used by its inverse."""

    def forward(m, x):
        y, places = F.max_pool2d(m.conv1(x), 2, return_indices=True)
        return m.conv3(F.max_unpool2d(m.conv2(y), places, 2))

    return Net(forward, **{f"conv{i}": conv() for i in range(1, 4)})


def picked() -> nn.Module:
    """Attention maps of the mean and the largest number of each place, as in CBAM."""

    def forward(m, x):
        largest, _ = torch.max(x, 1, keepdim=True)
        gate = torch.sigmoid(m.gate(torch.cat([largest, x.mean(1, keepdim=True)], 1)))
        return m.conv(x * gate) + x.amax((2, 3), keepdim=True) + x.sum(1, keepdim=True)

    return Net(forward, gate=conv(2, 1, 7), conv=conv())


class Blur(nn.Module):
    """A fixed filter for each channel, made from one buffer."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", row[:, None] * row[None])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filter[None, None].repeat(8, 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=8)
