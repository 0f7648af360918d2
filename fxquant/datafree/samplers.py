"""Samplers: what draws images. Each has `draw`, `step` on a loss, and a state to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxquant.datafree import processes
from fxquant.datafree.generator import Generator, sample_latent
from fxquant.datafree.pixel_scale import STANDARD, PixelScale
from fxquant.datafree.recipe import Polish, Sampler


def cosine(step: int, total: int) -> float:
    """Half a cosine from 1 to 0 over `total` steps."""
    return 0.5 * (1 + math.cos(math.pi * min(step, total) / max(total, 1)))


class GeneratorSampler:
    """Images from a generator that is fed with noise."""

    def __init__(
        self,
        settings: Sampler,
        image_shape: tuple[int, ...],
        batch: int,
        rng: torch.Generator,
        device: torch.device,
        scale: PixelScale = STANDARD,
    ):
        self.settings, self.batch, self.rng, self.device = settings, batch, rng, device
        self.scale = scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
            network = Generator(image_shape, settings.latent, settings.width)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), settings.lr, betas=settings.betas
        )

    def draw(self, rng: torch.Generator | None = None) -> Tensor:
        """Fresh images, this process's part of (batch, channels, height, width), with gradient."""
        latent = sample_latent(self.batch, self.settings.latent, rng or self.rng, self.device)
        self._latent = processes.part(latent)
        return self._images()

    def _images(self) -> Tensor:
        return self.scale.from_standard(self.network(self._latent))

    def step(self, images: Tensor, gradient: Tensor, rate: float) -> None:
        """One optimiser step at `rate` times the learning rate, for a gradient of a loss.

        `images` are those drawn last; without their graph, which takes memory, they are made anew.
        """
        images = images if images.requires_grad else self._images()
        _follow(self.optimizer, images, gradient, self.settings.lr * rate)

    @torch.no_grad()
    def collect(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """At least `count` images cut to that number, drawn batch by batch."""
        batches = [processes.gather(self.draw(rng)) for _ in range(-(-count // self.batch))]
        return torch.cat(batches)[:count]

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class PixelSampler:
    """Images whose pixels, as standard ones, are optimised directly, batch after batch.

    `start` draws what a batch starts from; by default noise, as in ZeroQ (Cai et al., 2020).
    """

    def __init__(
        self,
        settings: Sampler,
        image_shape: tuple[int, ...],
        batch: int,
        rng: torch.Generator,
        device: torch.device,
        scale: PixelScale = STANDARD,
        start: Callable[[], Tensor] | None = None,
    ):
        self.settings, self.device, self.scale = settings, device, scale
        self.start = start or partial(_pixel_noise, (batch, *image_shape), rng, device)
        self.finished: list[Tensor] = []
        self.images: Tensor | None = None
        self.optimizer: torch.optim.Adam | None = None

    def draw(self, rng: torch.Generator | None = None) -> Tensor:
        """This process's part of the batch that is being optimised, (batch, ...)."""
        if self.images is None:
            self._optimize(self.start())
        return self.scale.from_standard(processes.part(self.images))

    def _optimize(self, images: Tensor) -> None:
        self.images = images.detach().clone().requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.images], self.settings.lr, self.settings.betas)

    def step(self, images: Tensor, gradient: Tensor, rate: float) -> None:
        """One optimiser step at `rate` times the learning rate, for a gradient of a loss."""
        images = images if images.requires_grad else self.draw()
        _follow(self.optimizer, images, gradient, self.settings.lr * rate)

    def finish_batch(self) -> None:
        """Put the batch aside; the next draw starts another."""
        self.finished.append(self.scale.from_standard(self.images.detach()))
        self.images = self.optimizer = None

    def collect(self, count: int, rng: torch.Generator | None = None) -> Tensor:
        """At most `count` of the finished images."""
        return torch.cat(self.finished)[:count]

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": None if self.images is None else self.images.detach(),
            "finished": self.finished,
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.finished = [images.to(self.device) for images in state["finished"]]
        if state["images"] is not None:
            self._optimize(state["images"].to(self.device))
            self.optimizer.load_state_dict(state["optimizer"])


def _pixel_noise(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    """Uniform noise of 8-bit pixels, centred and scaled as ZeroQ does (about +-0.0235)."""
    pixels = torch.randint(0, 256, shape, generator=rng)
    return ((pixels.float() - 127.5) / 5418.75).to(device)


def make_polisher(
    settings: Polish,
    sampler: GeneratorSampler,
    image_shape: tuple[int, ...],
    rng: torch.Generator,
    device: torch.device,
) -> PixelSampler | None:
    """Optimises the pixels of what a generator draws, where the recipe asks for it."""
    if not settings.steps:
        return None
    scale = sampler.scale

    def start() -> Tensor:
        return scale.to_standard(sampler.collect(settings.batch))

    adam = Sampler("images", lr=settings.lr, betas=(0.9, 0.999))
    return PixelSampler(adam, image_shape, settings.batch, rng, device, scale, start)


def _follow(optimizer: torch.optim.Optimizer, images: Tensor, gradient: Tensor, lr: float) -> None:
    """One step of what images come from, for a gradient of a loss in them."""
    optimizer.zero_grad(set_to_none=True)
    images.backward(gradient)
    take_step(optimizer, lambda group: lr)


def take_step(optimizer: torch.optim.Optimizer, rate: Callable[[dict], float]) -> None:
    """One step on the gradients that are there, at the learning `rate` of each group."""
    processes.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    for group in optimizer.param_groups:
        group["lr"] = rate(group)
    optimizer.step()


SAMPLERS = {"generator": GeneratorSampler, "images": PixelSampler}


class Replay:
    """Generated images that the student trains on, shifted and mirrored at random.

    Some are kept for good; of those that are added later `capacity` are held, in a ring.
    """

    def __init__(self, capacity: int, crop: int, rng: torch.Generator, device: torch.device):
        self.capacity, self.crop, self.rng, self.device = capacity, crop, rng, device
        self.kept: Tensor | None = None
        self.images: Tensor | None = None
        self.position = 0

    def keep(self, images: Tensor) -> None:
        """Have images (n, channels, height, width) that stay."""
        self.kept = images.detach()

    def add(self, images: Tensor) -> None:
        """Append images (n, channels, height, width), over the oldest once it is full."""
        images = images.detach()
        if self.images is None or len(self.images) < self.capacity:
            held = images if self.images is None else torch.cat([self.images, images])
            self.images = held[-self.capacity :]
            return
        places = (torch.arange(len(images)) + self.position) % self.capacity
        self.images[places.to(images.device, non_blocking=True)] = images
        self.position = (self.position + len(images)) % self.capacity

    def draw(self, count: int) -> Tensor:
        """This process's part of `count` images, drawn with replacement: of both kinds in turns."""
        images = self._pick(self.kept, count)
        if self.images is not None:
            others = self._pick(self.images, count)
            odd = processes.part(torch.arange(count) % 2 == 1)
            odd = odd.to(images.device, non_blocking=True).view(-1, *[1] * (images.dim() - 1))
            images = torch.where(odd, others, images)
        return self._augment(images, count)

    def _pick(self, images: Tensor, count: int) -> Tensor:
        picked = torch.randint(len(images), (count,), generator=self.rng)
        # The host must not wait for what the device has to do before such a copy.
        return images[processes.part(picked).to(images.device, non_blocking=True)]

    def _augment(self, images: Tensor, count: int) -> Tensor:
        """Shift and mirror a part of a batch of `count`, by numbers drawn for all of it."""
        if not self.crop or images.dim() != 4:
            return images
        crop = min(self.crop, *(side - 1 for side in images.shape[2:]))
        flips = torch.rand(count, generator=self.rng) < 0.5
        flips = processes.part(flips).to(images.device, non_blocking=True)[:, None, None, None]
        images = torch.where(flips, images.flip(-1), images)
        height, width = images.shape[-2:]
        padded = torch.nn.functional.pad(images, [crop] * 4, mode="reflect")
        shifts = processes.part(torch.randint(2 * crop + 1, (2, count), generator=self.rng).T)
        parts = zip(padded, *shifts.T.tolist(), strict=True)
        return torch.stack([p[:, y : y + height, x : x + width] for p, y, x in parts])

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "images": self.images, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("kept", "images"):
            images = state[name]
            setattr(self, name, None if images is None else images.to(self.device))
        self.position = state["position"]
