"""The generator: from latent noise to images of any size and channel count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.datafree import processes


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the batch, all processes' parts of it."""

    def __init__(self, channels: int, *, affine: bool = True):
        super().__init__(channels, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        if processes.size() == 1:
            return super().forward(x)
        own_variance, own_mean = torch.var_mean(x, (0, 2, 3), correction=0)
        mean = processes.average(own_mean)
        variance = processes.average(own_variance + (own_mean - mean).square())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y = (x - mean[:, None, None]) * scale[:, None, None]
        return y + self.bias[:, None, None] if self.affine else y


class UpsamplingConv2d(nn.Conv2d):
    """A 3 x 3 convolution of what is first doubled in size by repeating each pixel.

    Computed as the transposed convolution that the two amount to: 4/9 of the products, and what
    is kept for the backward pass is the input as it was, a quarter of the doubled one.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # A pixel spreads by the kernel to 3 x 3, its three copies by the kernel moved by one.
        spread = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        rows = spread[:, :, 1:] + spread[:, :, :-1]
        kernel = rows[..., 1:] + rows[..., :-1]
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


class Generator(nn.Module):
    """A light upsampling CNN without labels: GDFQ's trunk (Xu et al., 2020) as DDAQ uses it.

    Takes latent vectors (n, latent) and returns images (n, channels, height, width) that have
    zero mean and unit variance per channel over the batch. Heights and widths that are no
    multiple of 4 are cut from the next larger one.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent: int = 256, width: int = 128):
        super().__init__()
        channels, height, width_px = image_shape
        self.latent = latent
        self.image_size = (height, width_px)
        self.start = (width, -(-height // 4), -(-width_px // 4))
        self.project = nn.Linear(latent, width * self.start[1] * self.start[2])
        self.trunk = nn.Sequential(
            SharedBatchNorm2d(width),
            UpsamplingConv2d(width, width),
            SharedBatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            UpsamplingConv2d(width, width // 2),
            SharedBatchNorm2d(width // 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.Tanh(),
            SharedBatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z).unflatten(1, self.start)
        height, width = self.image_size
        return self.trunk(x)[:, :, :height, :width]


def sample_latent(count: int, latent: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal latent vectors, shape (count, latent), drawn on the host from `rng`."""
    return torch.randn(count, latent, generator=rng).to(device, non_blocking=True)
