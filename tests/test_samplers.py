"""What draws images: the generator, images optimised directly, and the replay of stored ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxquant.datafree.recipe import Sampler
from fxquant.datafree.samplers import GeneratorSampler, PixelSampler, Replay, cosine

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(*numbers: int, size: tuple[int, int] = (4, 4)) -> Tensor:
    """Images that are constant, one number each."""
    return torch.tensor(numbers).float()[:, None, None, None].expand(-1, 2, *size).clone()


def test_images_without_a_graph_are_made_anew_for_their_gradient():
    settings = Sampler("generator", lr=0.1, latent=8, width=8)
    kept, anew = (GeneratorSampler(settings, (3, 8, 8), 4, rng(), CPU) for _ in range(2))
    gradient = torch.randn(4, 3, 8, 8, generator=rng(1))
    kept.step(kept.draw(), gradient, 1.0)
    with torch.no_grad():
        images = anew.draw()
    anew.step(images, gradient, 1.0)
    for a, b in zip(kept.network.parameters(), anew.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_generator_sampler_draws_fresh_images_and_collects_without_gradients():
    settings = Sampler("generator", lr=0.1, latent=8, width=8)
    sampler = GeneratorSampler(settings, (3, 8, 8), 4, rng(), CPU)
    first, second = sampler.draw(), sampler.draw()
    assert first.requires_grad
    assert not torch.equal(first, second)
    collected = sampler.collect(10)
    assert collected.shape == (10, 3, 8, 8)
    assert not collected.requires_grad
    weight = sampler.network.project.weight.clone()
    images = sampler.draw()
    sampler.step(images, 2 * images.detach() * torch.arange(8.0), 0.5)
    change = (sampler.network.project.weight - weight).abs().max()
    assert abs(change - 0.05) < 1e-4  # Adam's first step is the learning rate


def test_pixels_are_optimised_batch_after_batch():
    sampler = PixelSampler(Sampler("images", lr=0.1), (3, 4, 4), 5, rng(), CPU)
    start = sampler.draw().detach().clone()
    assert start.abs().max() <= 127.5 / 5418.75
    assert start.unique().numel() > 50
    for _ in range(30):
        images = sampler.draw()
        sampler.step(images, 2 * (images.detach() - 1), 1.0)
    assert (sampler.draw() - 1).abs().max() < 0.5
    first = sampler.draw().detach().clone()
    sampler.finish_batch()
    assert not torch.equal(sampler.draw(), start)
    assert sampler.draw().abs().max() < 0.03
    sampler.finish_batch()
    assert sampler.collect(100).shape == (10, 3, 4, 4)
    assert torch.equal(sampler.collect(5), first)


def test_the_cosine_goes_from_one_to_zero():
    values = [cosine(step, 10) for step in range(12)]
    assert values[0] == 1
    assert abs(values[5] - 0.5) < 1e-12
    assert abs(values[10]) < 1e-12
    assert values == sorted(values, reverse=True)


def kept(replay: Replay) -> list[int]:
    return sorted(replay.images[:, 0, 0, 0].int().tolist())


def test_replay_overwrites_its_oldest_images():
    replay = Replay(4, 0, rng(), CPU)
    replay.add(numbered(0, 1))
    assert kept(replay) == [0, 1]
    replay.add(numbered(2, 3, 4))
    assert kept(replay) == [1, 2, 3, 4]
    replay.add(numbered(5, 6, 7))
    assert kept(replay) == [4, 5, 6, 7]
    replay.add(numbered(8, 9))
    assert kept(replay) == [6, 7, 8, 9]


def test_replay_draws_all_its_images_with_replacement():
    replay = Replay(3, 0, rng(), CPU)
    replay.keep(numbered(1, 2, 3))
    drawn = replay.draw(200)
    assert drawn.shape == (200, 2, 4, 4)
    counts = drawn[:, 0, 0, 0].int().bincount()
    assert counts.numel() == 4
    assert (counts[1:] > 40).all()


def test_what_is_kept_stays_half_of_each_draw():
    replay = Replay(2, 0, rng(), CPU)
    replay.keep(numbered(1, 2, 3))
    for number in range(4, 8):
        replay.add(numbered(number))
    drawn = replay.draw(201)[:, 0, 0, 0].int()
    assert set(drawn[::2].tolist()) == {1, 2, 3}
    assert set(drawn[1::2].tolist()) == {6, 7}


def test_replay_keeps_no_gradient_and_no_alias():
    images = numbered(1, 2).requires_grad_()
    replay = Replay(2, 0, rng(), CPU)
    replay.keep(images * 1)
    replay.add(images * 1)
    assert not replay.images.requires_grad
    assert not replay.kept.requires_grad
    drawn = replay.draw(2)
    drawn += 10
    assert kept(replay) == [1, 2]
    assert torch.equal(replay.kept, images)


@pytest.mark.parametrize("crop", [1, 2])
def test_replayed_images_are_mirrored_and_shifted_by_at_most_the_crop(crop):
    """A ramp to the right tells how an image lies: its steps' sign, and the value at a corner."""
    replay = Replay(1, crop, rng(), CPU)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) + 100 * torch.arange(8.0)[:, None]
    replay.keep(ramp)
    drawn = replay.draw(300)[:, 0]
    assert drawn.shape == (300, 8, 8)
    inner = drawn[:, crop:-crop, crop:-crop]
    steps = inner[:, 0, 1] - inner[:, 0, 0]
    assert set(steps.tolist()) == {-1, 1}
    assert 100 < (steps > 0).sum() < 200
    straight = inner[steps > 0][:, 0, 0]
    wanted = range(2 * crop + 1)
    assert {divmod(int(v), 100) for v in straight} == {(y, x) for y in wanted for x in wanted}


def test_replay_state_goes_on_where_it_stood():
    replay, other = Replay(3, 0, rng(1), CPU), Replay(3, 0, rng(2), CPU)
    replay.keep(numbered(7, 8))
    replay.add(numbered(0, 1, 2))
    replay.add(numbered(3))
    other.load_state_dict(replay.state_dict())
    for ring in (replay, other):
        ring.add(numbered(4))
    assert kept(other) == kept(replay) == [2, 3, 4]
    assert torch.equal(other.kept, replay.kept)
