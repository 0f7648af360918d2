"""Range estimators: from observed values to the range that a grid covers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxquant.numerics import dequantize, quantize, scale_and_zero_point
from fxquant.ranges import ESTIMATORS, min_max, percentile, reaching, search
from fxquant.spec import QSpec


def normal(channels: int, count: int, *, positive: bool = False) -> Tensor:
    values = torch.randn(channels, count, generator=torch.Generator().manual_seed(0))
    return values.abs() if positive else values


def error(values: Tensor, low: Tensor, high: Tensor, spec: QSpec, norm: float) -> Tensor:
    """mean |x - fake_quantize(x)|^norm per channel."""
    scale, zero_point = scale_and_zero_point(low, high, spec.qmin, spec.qmax, symmetric=spec.signed)
    scale, zero_point = scale[:, None], zero_point[:, None]
    q = quantize(values, scale, zero_point, spec.qmin, spec.qmax)
    return (dequantize(q, scale, zero_point) - values).abs().pow(norm).mean(1)


def test_min_max_is_per_channel():
    low, high = min_max(torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 4.0]]), QSpec(4))
    assert low.tolist() == [-2, 0]
    assert high.tolist() == [3, 5]


def test_percentile_leaves_out_the_share_at_each_end():
    values = torch.arange(1001.0).flip(0)[None]
    low, high = percentile(values, QSpec(4), fraction=0.99)
    assert (low.item(), high.item()) == (10, 990)
    low, high = percentile(values, QSpec(4), fraction=1.0)
    assert (low.item(), high.item()) == (0, 1000)


@pytest.mark.parametrize("spec", [QSpec(2), QSpec(4), QSpec(3, signed=True)])
@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_search_finds_the_least_error_of_its_grid_of_ratios(spec, norm):
    values = normal(3, 400, positive=not spec.signed)
    low, high = search(values, spec, norm=norm, steps=20, smallest=0.3)
    least = torch.stack(
        [
            error(values, values.amin(1) * ratio, values.amax(1) * ratio, spec, norm)
            for ratio in torch.linspace(0.3, 1, 20)
        ]
    ).amin(0)
    assert (error(values, low, high, spec, norm) - least).abs().max() < 1e-6
    assert (error(values, *min_max(values, spec), spec, norm) > least).all()


def test_search_clips_an_outlier_at_four_bits_and_keeps_it_at_eight():
    values = normal(1, 20_000)
    values[0, 0] = 9.0
    assert search(values, QSpec(4, signed=True))[1] < 5
    assert search(values, QSpec(8, signed=True))[1] > 5


def test_search_treats_channels_apart():
    values = normal(4, 500) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    together = search(values, QSpec(4, signed=True))
    apart = [search(row[None], QSpec(4, signed=True)) for row in values]
    for index in range(2):
        assert torch.equal(together[index], torch.cat([pair[index] for pair in apart]))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("signed", [False, True])
def test_every_estimator_stays_within_the_values(name, signed):
    values = normal(5, 300)
    low, high = ESTIMATORS[name](values, QSpec(4, signed=signed))
    assert low.shape == high.shape == (5,)
    assert (low < high).all()
    assert (low >= values.amin(1)).all()
    assert (high <= values.amax(1)).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_takes_a_constant(name):
    low, high = ESTIMATORS[name](torch.zeros(2, 50), QSpec(4))
    assert low.tolist() == high.tolist() == [0, 0]
    low, high = ESTIMATORS[name](torch.full((1, 50), 3.0), QSpec(8))
    scale, zero_point = scale_and_zero_point(low, high, 0, 255, symmetric=False)
    found = dequantize(quantize(torch.tensor(3.0), scale, zero_point, 0, 255), scale, zero_point)
    assert (found - 3.0).abs() < 1e-5


def test_a_reach_covers_all_values_and_so_many_deviations():
    values, spec = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 8.0]]), QSpec(8)
    low, high = reaching(values, spec, deviations=3.0)
    assert torch.allclose(low, torch.tensor([-3.0 * 128 / 127, 2 - 3 * 12**0.5 * 128 / 127]))
    assert torch.allclose(high, torch.tensor([3.0, 2 + 3 * 12**0.5]))
    low, high = reaching(values, spec, deviations=0.5)
    assert (low.tolist(), high.tolist()) == ([-1, 0], [1, 8])


@pytest.mark.parametrize("change", [0.0, 1e-6, -1e-6])
def test_a_reach_around_zero_has_one_zero_point_whatever_the_last_digit(change):
    values, spec = torch.tensor([[-1.0, 1.0 + change]]), QSpec(8)
    scale, zero_point = scale_and_zero_point(
        *reaching(values, spec, deviations=3.0), spec.qmin, spec.qmax, symmetric=False
    )
    assert zero_point.item() == 128
    assert scale.item() == pytest.approx(3 / 127, rel=1e-5)
