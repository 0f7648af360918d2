"""Whether training is asked for, and which student is kept."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxquant.datafree.choice import COPIES, NOISE, Choice, disturbed
from fxquant.datafree.objective import output_distances
from fxquant.datafree.recipe import Schedule

IMAGES = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """A linear classifier whose weights are `by` away from another's."""

    def __init__(self, by: float):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.offset = nn.Parameter(torch.full((3, 4), by))

    def forward(self, x: Tensor) -> Tensor:
        direction = torch.tensor([1.0, -1.0, 0.0])[:, None]
        return self.linear(x) + x @ (self.offset * direction).mT


def choice(by: float, **changes) -> Choice:
    schedule = replace(Schedule(steps=1, batch=16), **changes)
    return Choice(Shifted(0.0), Shifted(by), schedule)


def move(chosen: Choice, by: float) -> None:
    with torch.no_grad():
        chosen.student.offset.fill_(by)


@pytest.mark.parametrize(
    ("before", "after", "keep_closer", "kept"),
    [
        (0.5, 0.1, True, "trained"),
        (0.1, 0.5, True, "calibrated"),
        (0.5, 0.505, True, "trained"),
        (0.1, math.nan, True, "calibrated"),
        (0.1, 0.5, False, "trained"),
    ],
    ids=["closer", "farther", "a little farther", "not a number", "in any case"],
)
def test_the_student_that_is_kept(before, after, keep_closer, kept):
    chosen = choice(before, keep_closer=keep_closer)
    chosen.before_training()
    move(chosen, after)
    chosen.after_training("trained", IMAGES)
    assert chosen.kept == kept
    assert torch.all(chosen.student.offset == (after if kept == "trained" else before))


def test_disturbed_images_are_the_same_each_time_and_each_copy_its_own():
    images = 5 * IMAGES + 3
    found = disturbed(images)
    assert torch.equal(found, disturbed(images))
    copies = found.reshape(COPIES, *images.shape)
    assert not torch.equal(copies[0], copies[1])
    assert (copies - images).std() == pytest.approx(5 * NOISE, rel=0.1)


def test_a_student_that_is_closer_on_what_it_saw_alone_goes_back():
    """It sits on the images, to each of which it answers right, and nowhere else."""

    class ByHeart(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = Shifted(0.0)
            self.by_heart = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            seen = (x[:, None] == IMAGES).all(2).any(1)[:, None].float()
            return self.teacher(x) * (0.7 + 0.3 * self.by_heart * seen - 0.2 * self.by_heart)

    chosen = Choice(Shifted(0.0), ByHeart(), Schedule(steps=1, batch=16))
    chosen.before_training()
    with torch.no_grad():
        chosen.student.by_heart.fill_(1.0)
    chosen.after_training("trained", IMAGES)
    assert chosen.kept == "calibrated"


def test_choices_continue_from_their_state():
    chosen, other = choice(0.1), choice(0.5)
    chosen.before_training()
    other.load_state_dict(copy.deepcopy(chosen.state_dict()))
    other.after_training("fine-tuned", IMAGES)
    assert other.kept == "calibrated"
    assert torch.all(other.student.offset == 0.1)


@pytest.mark.parametrize(("by", "trains"), [(0.001, False), (0.5, True)])
def test_a_close_student_needs_no_training(by, trains):
    chosen = choice(by, train_below=25.0)
    chosen.after_calibration(IMAGES)
    assert chosen.trains is trains


def test_the_divergence_of_what_are_no_logits_is_their_relative_error():
    class Map(nn.Module):
        def __init__(self, factor: float):
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x[:, :, None]

    error, divergence = output_distances(Map(1.0), Map(0.9), IMAGES, 16)
    assert error == divergence == pytest.approx(0.01, rel=1e-3)


def test_a_divergence_is_never_below_zero():
    """Of outputs that differ in their last digits, rounding makes the divergence what it likes."""
    raw = []
    for by in torch.linspace(1e-8, 1e-6, 50).tolist():
        chosen = choice(by)
        p, q = (net(IMAGES).log_softmax(1) for net in (chosen.teacher, chosen.student))
        raw.append(float((p.exp() * (p - q)).sum(1).mean().detach()))
        assert output_distances(chosen.teacher, chosen.student, IMAGES, 16)[1] >= 0
    assert min(raw) < 0
