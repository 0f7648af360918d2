"""AdaRound's parametrisation against the formulas of its paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxquant.quantizer import Quantizer
from fxquant.ranges import search
from fxquant.soft_rounding import TRUST, SoftRounding, undecided
from fxquant.spec import QSpec


def make(bits: int = 4, axis: int = 0) -> tuple[Tensor, Quantizer, SoftRounding]:
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(QSpec(bits, signed=True, channel_axis=axis), weight.shape[axis])
    quantizer.set_range(*search(weight.transpose(0, axis).flatten(1), quantizer.spec))
    return weight, quantizer, SoftRounding(weight, quantizer)


def grid(quantizer: Quantizer, axis: int) -> Tensor:
    return quantizer.scale.reshape([-1 if i == axis else 1 for i in range(4)])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_starts_between_the_weight_and_its_nearest_grid_value(bits, axis):
    weight, quantizer, soft = make(bits, axis)
    scale = grid(quantizer, axis)
    spec = quantizer.spec
    inside = (weight > spec.qmin * scale) & (weight < spec.qmax * scale)
    middle = (1 - TRUST) * weight + TRUST * quantizer(weight)
    assert inside.float().mean() > 0.5
    assert ((soft() - middle)[inside]).abs().max() < 1e-5
    assert (soft() - quantizer(weight))[~inside].abs().max() < 1e-5


def test_it_starts_from_a_given_rounding_with_the_weight_on_the_other_side():
    weight, quantizer, _ = make()
    scale = grid(quantizer, 0)
    given = quantizer(weight) + scale * (torch.arange(weight.numel()).reshape(weight.shape) % 3 - 1)
    soft = SoftRounding(weight, quantizer, given)
    inside = (given / scale).round().abs() < 7
    assert (soft.hard() - given)[inside].abs().max() < 1e-5
    step = (soft() - given) / scale
    towards = (weight - given) / scale
    assert (step[inside] * towards[inside] >= -1e-5).all()
    assert ((step.abs() - (towards.abs().clamp(max=1) * (1 - TRUST)))[inside]).abs().max() < 1e-4


def test_hard_rounding_starts_at_the_nearest_and_lies_on_the_grid():
    weight, quantizer, soft = make()
    assert (soft.hard() - quantizer(weight)).abs().max() < 1e-6
    assert (quantizer(soft.hard()) - soft.hard()).abs().max() < 1e-6


def test_weight_and_share_are_those_of_the_papers_formulas():
    weight, quantizer, soft = make()
    with torch.no_grad():
        soft.logits.copy_(torch.linspace(-4, 4, weight.numel()).reshape(weight.shape))
        quantizer.log_scale += 0.1
    h = torch.clamp(1.2 / (1 + torch.exp(-soft.logits)) - 0.1, 0, 1)
    assert (soft.up() - h).abs().max() < 1e-6
    old = (quantizer.log_scale - 0.1).exp().reshape(-1, 1, 1, 1)
    inside = (weight / old).abs() < 7
    assert torch.equal(soft.floor[inside], torch.floor(weight / old)[inside])
    q = torch.clamp(soft.floor + h, -8, 7)
    assert (soft() - q * quantizer.scale.reshape(-1, 1, 1, 1)).abs().max() < 1e-5
    assert h.min() == 0
    assert h.max() == 1


def test_gradients_reach_logits_and_scale():
    _, quantizer, soft = make()
    soft().square().sum().backward()
    assert soft.logits.grad.abs().sum() > 0
    assert quantizer.log_scale.grad.abs().min() > 0


def test_undecided_is_the_papers_regulariser_and_vanishes_at_0_and_1():
    h = torch.tensor([0.0, 0.2, 0.5, 1.0])
    expected = (1 - 0.6**3) + 1
    assert abs(float(undecided(h, 3.0)) - expected) < 1e-6
    assert float(undecided(torch.tensor([0.0, 1.0]), 2.0)) == 0
