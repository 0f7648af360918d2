"""The generator: what it draws, what it is made of, and its upsampling convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxquant.datafree.generator import Generator, UpsamplingConv2d


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 10, 7), (3, 5, 33)])
def test_the_generator_gives_normalised_images_of_any_shape(shape):
    generator = Generator(shape, latent=16, width=8)
    images = generator(torch.randn(6, 16, generator=rng()))
    assert images.shape == (6, *shape)
    if all(side % 4 == 0 for side in shape[1:]):  # nothing is cut off after the last norm
        assert images.mean((0, 2, 3)).abs().max() < 1e-4
        assert (images.var((0, 2, 3), correction=0) - 1).abs().max() < 0.01


def test_the_generator_is_the_papers():
    """GDFQ's trunk: latent 256, 128 channels at a quarter of the size, then 128, 64 and 3."""
    generator = Generator((3, 32, 32))
    assert generator.project.weight.shape == (128 * 8 * 8, 256)
    convs = [m for m in generator.trunk if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(128, 128), (128, 64), (64, 3)]
    norms = [m for m in generator.trunk if isinstance(m, torch.nn.BatchNorm2d)]
    assert [n.affine for n in norms] == [True, True, True, False]
    assert all(n.eps == 1e-5 for n in norms)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_upsampling_convolution_is_one_of_the_doubled_image(layout):
    fused = UpsamplingConv2d(5, 3).double().to(memory_format=layout)
    plain = torch.nn.Conv2d(5, 3, 3, padding=1).double()
    plain.load_state_dict(fused.state_dict())
    images = torch.randn(2, 5, 4, 6, generator=rng(), dtype=torch.float64)
    doubled = F.interpolate(images, scale_factor=2.0)
    found, expected = fused(images.contiguous(memory_format=layout)), plain(doubled)
    assert (found - expected).abs().max() < 1e-12
    weights = torch.randn(*expected.shape, generator=rng(1), dtype=torch.float64)
    for y in (found, expected):
        (y * weights).sum().backward()
    for name, parameter in fused.named_parameters():
        assert (parameter.grad - plain.get_parameter(name).grad).abs().max() < 1e-12
