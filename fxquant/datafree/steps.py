"""Optimiser steps on a recipe's terms: of what draws images, and of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxquant.datafree import processes
from fxquant.datafree.history import History
from fxquant.datafree.objective import Objective, View
from fxquant.datafree.recipe import Term
from fxquant.datafree.samplers import GeneratorSampler, PixelSampler


class Steps:
    """Takes steps, and leaves the losses of each in `history`.

    `images` are those of the newest step of a sampler, (n, channels, height, width); `rates` the
    newest learning rates: the sampler's, and the share that the student's have of their full size.
    """

    def __init__(self, objective: Objective, history: History):
        self.objective, self.history = objective, history
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
        images = sampler.draw()
        with_student = any(term.needs_student for term in terms)
        student = self.objective.student
        student.requires_grad_(False)
        view = self.objective.view(images, with_student=with_student, teacher_grad=True)
        sampler.step(self._add_up(phase, "sampler", terms, view), rate)
        student.requires_grad_(True)
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
        view = self.objective.view(images, with_student=True, teacher_grad=False)
        loss = self._add_up(phase, "student", terms, view)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_gradients(p for group in optimizer.param_groups for p in group["params"])
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        optimizer.step()
        self.rates["student"] = rate

    def _add_up(self, phase: str, who: str, terms: Sequence[Term], view: View) -> Tensor:
        parts = self.objective.losses(terms, view)
        total = torch.stack([weight * value for weight, value in parts.values()]).sum()
        values = {f"{who}.{name}": value for name, (_, value) in parts.items()}
        self.history.add(phase, values | {who: total})
        return total
