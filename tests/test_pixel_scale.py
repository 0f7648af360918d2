"""Which numbers a network takes its images in, and that they are generated like that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import ConvBn, Residual
from small_runs import SHAPE, make, shrunk
from torch import Tensor, nn

import fxquant
from fxquant.datafree import pixel_scale
from fxquant.datafree.pixel_scale import SCALES, PixelScale, measure_scale, smooth_noise
from fxquant.errors import SettingError
from fxquant.graph.prepare import Prepared, prepare
from fxquant.spec import QConfig

# What a network of each kind does to an image of 0 to 1 before its first layer.
KINDS = {
    "standard": lambda x: (x - 0.48) / 0.25,
    "0 to 1": lambda x: x,
    "0 to 255": lambda x: 255 * x,
    "0 to 255, centred": lambda x: 255 * (x - 0.48),
}


class Scaled(nn.Module):
    """A network that takes pixels of another scale."""

    def __init__(self, network: nn.Module, scale: PixelScale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.scale.mean) / self.scale.std)


def pictures(count: int, seed: int) -> Tensor:
    """Rectangles of random size, place and colour over each other, as things in a photo: 0 to 1."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 1, 1, generator=rng).expand(-1, -1, 16, 16).clone()
    for image in images:
        for _ in range(12):
            top, left = torch.randint(-4, 16, (2,), generator=rng).tolist()
            height, width = torch.randint(3, 12, (2,), generator=rng).tolist()
            grey, colour = torch.rand(1, generator=rng), torch.rand(3, generator=rng)
            part = image[:, max(top, 0) : top + height, max(left, 0) : left + width]
            part[:] = (0.7 * grey + 0.3 * colour)[:, None, None]
    return images


def seen(network: nn.Module, images: Tensor) -> Prepared:
    """The network prepared, once its batch norms have the statistics that images give them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()
    with torch.no_grad():
        for part in images.split(64):
            network(part)
    return prepare(network.eval(), QConfig(4, 4), SHAPE)


NETWORKS = {
    "residual": Residual,
    "deep stem": lambda: nn.Sequential(ConvBn(3, 8, 7, 2), ConvBn(8, 8), nn.Flatten()),
    "batch norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten()),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_a_networks_pixels_is_found(kind, name):
    p = seen(NETWORKS[name](), KINDS[kind](pictures(256, 1)))
    assert measure_scale(p.teacher, SHAPE) == kind


def test_pixels_from_minus_one_count_as_standard():
    p = seen(Residual(), 2 * pictures(256, 1) - 1)
    assert measure_scale(p.teacher, SHAPE) == "standard"


def test_without_anything_to_tell_by_it_is_standard():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)).eval()
    assert measure_scale(prepare(plain, QConfig(4, 4), SHAPE).teacher, SHAPE) == "standard"
    flat = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert measure_scale(prepare(flat, QConfig(4, 4), (12,)).teacher, (12,)) == "standard"


def test_statistics_that_overflow_tell_nothing(monkeypatch):
    p = seen(Residual(), KINDS["standard"](pictures(64, 1)))
    broken = {**SCALES, "0 to 255": PixelScale(float("inf"), 1.0)}
    monkeypatch.setattr(pixel_scale, "SCALES", broken)
    assert measure_scale(p.teacher, SHAPE) == "standard"


def test_noise_is_standard_smooth_and_the_same_in_each_call():
    noise = smooth_noise(16, (3, 20, 31))
    assert noise.shape == (16, 3, 20, 31)
    assert torch.equal(noise, smooth_noise(16, (3, 20, 31)))
    assert noise.mean((0, 2, 3)).abs().max() < 1e-4
    assert (noise.std((0, 2, 3)) - 1).abs().max() < 1e-4
    beside = F.cosine_similarity(noise[..., 1:].flatten(), noise[..., :-1].flatten(), dim=0)
    assert beside > 0.6
    assert smooth_noise(2, (1, 1, 1)).isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "standard"])
def test_a_network_of_other_pixels_is_quantized_as_one_of_standard_ones(kind):
    """The same images but for their scale, and with them the same student."""
    recipe = shrunk("ddaq", "fast")
    recipe = replace(recipe, reconstruction=replace(recipe.reconstruction, steps=0))
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=0))
    scale, network = SCALES[kind], Residual()
    seen(network, KINDS["standard"](pictures(256, 1)))
    options = {"input_shape": SHAPE, "recipe": recipe}
    plain = fxquant.quantize(network, 4, **options)
    scaled = fxquant.quantize(Scaled(network, scale).eval(), 4, **options)
    assert plain.prepared.notes == ()
    assert any(f"pixels {kind}" in note for note in scaled.prepared.notes)
    assert torch.allclose(scale.to_standard(scaled.images), plain.images, atol=1e-2)
    images = KINDS["standard"](pictures(64, 2))
    close = scaled.student(scale.from_standard(images)) - plain.student(images)
    assert close.square().mean() < 0.01 * plain.student(images).square().mean()


@pytest.mark.parametrize("parts", [1, 2])
def test_generated_and_polished_images_have_the_scale_that_is_asked_for(parts):
    recipe = shrunk("ddaq", "default")
    recipe = replace(
        recipe,
        sampler=replace(recipe.sampler, pixels="0 to 255"),
        schedule=replace(recipe.schedule, parts=parts),
    )
    engine = make(recipe)
    assert engine.pixels == "0 to 255"
    engine.run()
    for images in (engine.sampler.collect(64), engine.held_back, engine.replay.images):
        assert 60 < images.mean() < 170
        assert 35 < images.std() < 100


def test_the_papers_recipe_stays_with_standard_pixels():
    engine = make(shrunk("ddaq", "paper"))
    assert engine.pixels == "standard"


def test_an_unknown_scale_is_named():
    recipe = shrunk("ddaq", "fast")
    with pytest.raises(SettingError, match="unknown scale '0 to 9'"):
        replace(recipe.sampler, pixels="0 to 9")
