"""The generator: from latent noise to images of any size and channel count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z).unflatten(1, self.start)
        height, width = self.image_size
        return self.trunk(x)[:, :, :height, :width]


def sample_latent(count: int, latent: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal latent vectors, shape (count, latent), drawn on the host from `rng`."""
    return torch.randn(count, latent, generator=rng).to(device)
