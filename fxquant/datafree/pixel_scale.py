"""In which numbers a network takes its images, told by its first batch norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.datafree import losses
from fxquant.graph.insert_taps import BN_TAPS, record

# So many images are looked at, at most: statistics of a batch norm need few.
MOST_IMAGES = 16
# Share of standard images' distance that those of another scale must be within to be preferred.
CLEARLY_CLOSER = 0.75


@dataclass(frozen=True)
class PixelScale:
    """What pixels are like as a network takes them: their mean and deviation over images."""

    mean: float = 0.0
    std: float = 1.0

    def from_standard(self, images: Tensor) -> Tensor:
        """Images of mean 0 and deviation 1 as the network takes them."""
        return images * self.std + self.mean

    def to_standard(self, images: Tensor) -> Tensor:
        """The inverse of `from_standard`."""
        return (images - self.mean) / self.std


STANDARD = PixelScale()

# Photographs are somewhat darker than half, and deviate by a quarter of the range.
SCALES = {
    "standard": STANDARD,
    "0 to 1": PixelScale(0.45, 0.27),
    "0 to 255": PixelScale(115.0, 69.0),
    "0 to 255, centred": PixelScale(0.0, 69.0),
}
# Pixels from -1 to 1. A batch norm hardly tells them from those of twice their deviation, and too
# little is worse than too much, as ranges are taken from images: standard ones do for both.
HALF_STANDARD = PixelScale(-0.1, 0.54)


@torch.no_grad()
def measure_scale(
    teacher: nn.Module, image_shape: tuple[int, ...], batch: int = MOST_IMAGES
) -> str:
    """The name of the scale whose images give the first batch norm nearly its running statistics.

    Images are of noise whose amplitudes fall with frequency as those of photographs do (Field,
    1987), so that filters of any kind respond to them as they do to pictures. `standard` where
    there is nothing to tell it by: no batch norm, or no (channels, height, width). No more than
    `batch` images are in memory at once.
    """
    if len(image_shape) != 3:
        return "standard"
    parameter = next(teacher.parameters(), torch.empty(0))
    images = smooth_noise(min(batch, MOST_IMAGES), image_shape).to(parameter)
    distances = {name: _distance(teacher, s.from_standard(images)) for name, s in SCALES.items()}
    half = _distance(teacher, HALF_STANDARD.from_standard(images))
    distances["standard"] = min(distances["standard"], half) * CLEARLY_CLOSER
    return min(distances, key=distances.get)


def smooth_noise(count: int, image_shape: tuple[int, int, int]) -> Tensor:
    """Noise of amplitudes 1 / frequency, standardised, mostly grey; the same in each call."""
    channels, height, width = image_shape
    rng = torch.Generator().manual_seed(0)
    grey = torch.randn(count, 1, height, width, generator=rng)
    noise = grey + 0.5 * torch.randn(count, channels, height, width, generator=rng)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (rows.square() + columns.square()).sqrt()
    frequency[0, 0] = 1 / max(height, width)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(height, width))
    deviation, mean = torch.std_mean(images, (0, 2, 3), keepdim=True)
    return (images - mean) / deviation.clamp(min=losses.EPS)


def _distance(teacher: nn.Module, images: Tensor) -> float:
    """How far the first batch norm's input is from its statistics, in its deviations."""
    with record(teacher, BN_TAPS) as inputs:
        teacher(images.contiguous(memory_format=torch.channels_last))
    if not inputs:
        return 0.0
    name, x = next(iter(inputs.items()))
    norm = teacher.get_submodule(name)
    std = (norm.running_var.float() + losses.EPS).sqrt()
    found_mean, found_std = losses.channel_statistics(x)
    errors = ((found_mean - norm.running_mean) / std).square() + ((found_std - std) / std).square()
    distance = float(errors.mean())
    return distance if math.isfinite(distance) else math.inf
