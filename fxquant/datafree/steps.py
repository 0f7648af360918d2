"""Optimiser steps on a recipe's terms: of what draws images, and of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxquant.datafree.history import History
from fxquant.datafree.objective import Objective, View
from fxquant.datafree.parts import check, pull, split
from fxquant.datafree.recipe import Term
from fxquant.datafree.samplers import GeneratorSampler, PixelSampler, take_step


class Steps:
    """Takes steps, and leaves the losses of each in `history`.

    The student is compared on a batch in so many `parts`, one after the other. `images` are those
    of the newest step of a sampler, (n, channels, height, width); `rates` the newest learning
    rates: the sampler's, and the share that the student's have of their full size.
    """

    def __init__(self, objective: Objective, history: History, parts: int = 1):
        self.objective, self.history, self.parts = objective, history, parts
        self.images: Tensor | None = None
        self.rates: dict[str, float] = {}

    def sampler(
        self,
        phase: str,
        sampler: GeneratorSampler | PixelSampler,
        terms: Sequence[Term],
        rate: float,
    ) -> Tensor:
        """One step of a sampler on what it draws; the images, as they were before it."""
        with torch.set_grad_enabled(self.parts == 1):
            drawn = sampler.draw()
        images = drawn.detach().requires_grad_()
        student = self.objective.student
        student.requires_grad_(False)
        self._descend(phase, "sampler", terms, images)
        student.requires_grad_(True)
        sampler.step(drawn, images.grad, rate)
        self.images, self.rates["sampler"] = images.detach(), sampler.settings.lr * rate
        return self.images

    def student(
        self,
        phase: str,
        optimizer: torch.optim.Optimizer,
        terms: Sequence[Term],
        images: Tensor,
        rate: float,
    ) -> None:
        """One step of the student at `rate` times the learning rate of each group."""
        optimizer.zero_grad(set_to_none=True)
        self._descend(phase, "student", terms, images)
        take_step(optimizer, lambda group: group["base_lr"] * rate)
        self.rates["student"] = rate

    def _descend(self, phase: str, who: str, terms: Sequence[Term], images: Tensor) -> None:
        """Add the gradient of the terms to whatever wants one: the images, or the student."""
        view = self.objective.view(images, teacher_grad=images.requires_grad)
        found = self.objective.losses([t for t in terms if not t.needs_student], view)
        own = _total(found) if found else None
        values = {name: value for name, (_, value) in found.items()}
        compared = [term for term in terms if term.needs_student]
        parts = split(view, self.parts) if compared else []
        for part in parts:
            share = len(part.images) / len(images)
            for name, value in self._compare(compared, part, share).items():
                values[name] = values.get(name, 0) + value * share
        pull(view, parts, own)
        total = torch.stack([term.weight * values[term.loss] for term in terms]).sum()
        values = {f"{who}.{term.loss}": values[term.loss] for term in terms}
        self.history.add(phase, values | {who: total})

    def _compare(self, terms: Sequence[Term], part: View, share: float) -> dict[str, Tensor]:
        """The terms on a part, a `share` of the batch, once their gradients are on their way."""
        part = self.objective.compare(part)
        if self.parts > 1:
            check(part)
        found = self.objective.losses(terms, part)
        (_total(found) * share).backward()
        return {name: value.detach() for name, (_, value) in found.items()}


def _total(found: dict[str, tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * value for weight, value in found.values()]).sum()
