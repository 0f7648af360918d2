"""The Quantizer module: calibration, training of its scale, and what is saved of it."""

from __future__ import annotations

import io

import pytest
import torch

from fxquant.errors import SettingError
from fxquant.numerics import fake_quantize
from fxquant.quantizer import SAMPLES_PER_BATCH, Quantizer
from fxquant.ranges import min_max
from fxquant.spec import QSpec


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(spec: QSpec, values: torch.Tensor, channels: int | None = None) -> Quantizer:
    quantizer = Quantizer(spec, channels)
    quantizer.observe()
    quantizer(values)
    quantizer.calibrate(min_max)
    return quantizer


def test_passes_through_until_calibrated():
    quantizer, x = Quantizer(QSpec(4)), noise(2, 3)
    assert not quantizer.enabled
    assert quantizer(x) is x
    quantizer.observe()
    assert quantizer(x) is x
    quantizer.calibrate(min_max)
    assert quantizer.enabled
    assert not torch.equal(quantizer(x), x)
    quantizer.enabled = False
    assert quantizer(x) is x


def test_calibrate_covers_what_was_observed_since_observe():
    quantizer = calibrated(QSpec(4), torch.linspace(-100, 100, 50))
    quantizer.enabled = False
    quantizer.observe()
    quantizer(torch.linspace(-1.0, 0.5, 50))
    quantizer(torch.linspace(0.0, 2.0, 70))
    quantizer.calibrate(min_max)
    assert abs(quantizer.scale.item() - 3 / 15) < 1e-6
    assert quantizer.zero_point == 5


def test_calibrate_without_observations_changes_nothing():
    quantizer = Quantizer(QSpec(4))
    quantizer.calibrate()
    assert not quantizer.enabled
    quantizer.observe()
    quantizer.calibrate()
    assert not quantizer.enabled
    assert quantizer.scale == 1


def test_nothing_is_kept_after_calibration():
    quantizer = calibrated(QSpec(4), noise(10))
    scale = quantizer.scale.clone()
    quantizer(100 * noise(10))
    quantizer.calibrate(min_max)
    assert torch.equal(quantizer.scale, scale)


def test_observing_samples_large_tensors_and_keeps_their_extremes():
    x = noise(5 * SAMPLES_PER_BATCH)
    x[12_345], x[70_001] = 50.0, -40.0
    quantizer = Quantizer(QSpec(8))
    quantizer.observe()
    quantizer(x)
    kept = quantizer._observed[0]
    assert kept.shape[0] == 1
    assert kept.numel() <= SAMPLES_PER_BATCH + 2
    assert (kept.max(), kept.min()) == (50, -40)
    assert abs(kept.std() - x.std()) < 0.15


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_per_channel(axis):
    x = noise(3, 3, 7) * torch.tensor([0.1, 1.0, 10.0]).reshape([-1] + [1] * (2 - axis))
    quantizer = calibrated(QSpec(4, signed=True, channel_axis=axis), x, channels=3)
    rows = x.transpose(0, axis).flatten(1)
    expected = torch.maximum(rows.amin(1) / -8, rows.amax(1) / 7)
    assert (quantizer.scale - expected).abs().max() < 1e-6
    y, q = quantizer(x), quantizer.quantize(x)
    shape = [3 if i == axis else 1 for i in range(3)]
    scale = quantizer.scale.reshape(shape)
    assert torch.equal(y, fake_quantize(x, scale, torch.zeros(shape), -8, 7))
    assert torch.equal(y, q * scale)


def test_quantize_gives_whole_numbers_of_the_grid():
    x = noise(1000)
    quantizer = calibrated(QSpec(3), x)
    q = quantizer.quantize(3 * x)
    assert q.dtype == torch.int32
    assert q.unique().tolist() == list(range(8))


def test_the_scale_stays_positive_whatever_the_optimiser_does():
    """Steps of 0.5 towards 0: a scale trained as such would be negative after one."""
    x = noise(100)
    quantizer = calibrated(QSpec(4), x)
    start = quantizer.scale.item()
    assert start < 0.5
    optimizer = torch.optim.Adam([quantizer.log_scale], lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        quantizer(x).square().sum().backward()
        optimizer.step()
        assert 0 < quantizer.scale < start


def test_the_gradient_of_the_log_scale_follows_the_chain_rule():
    x, spec = noise(200), QSpec(4)
    quantizer = calibrated(spec, 0.7 * x)
    quantizer(x).square().sum().backward()
    scale = quantizer.scale.detach().requires_grad_()
    fake_quantize(x, scale, quantizer.zero_point, spec.qmin, spec.qmax).square().sum().backward()
    assert (quantizer.log_scale.grad - scale * scale.grad).abs() < 1e-4


@pytest.mark.parametrize("enabled", [False, True])
def test_state_dict_round_trip_keeps_scale_zero_point_and_flag(enabled):
    x = noise(3, 50)
    quantizer = calibrated(QSpec(5), x - 0.3)
    quantizer.enabled = enabled
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    other = Quantizer(QSpec(5))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.enabled is enabled
    assert torch.equal(other.scale, quantizer.scale)
    assert torch.equal(other.zero_point, quantizer.zero_point)
    assert torch.equal(other(x), quantizer(x))


def test_half_precision_is_quantized_in_float32():
    x = noise(100).to(torch.bfloat16)
    quantizer = calibrated(QSpec(8), x)
    y = quantizer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, quantizer(x.float()).to(torch.bfloat16))


def test_printing_tells_the_grid():
    assert repr(Quantizer(QSpec(4))) == "Quantizer(4 bits, unsigned)"
    spec = QSpec(3, signed=True, channel_axis=0)
    assert repr(Quantizer(spec, 8)) == "Quantizer(3 bits, signed, channel axis 0)"


@pytest.mark.parametrize(
    ("bits", "signed", "ends"),
    [(2, False, (0, 3)), (2, True, (-2, 1)), (8, False, (0, 255)), (8, True, (-128, 127))],
)
def test_grids(bits, signed, ends):
    spec = QSpec(bits, signed=signed)
    assert (spec.qmin, spec.qmax) == ends


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4", None])
def test_other_widths_are_refused(bits):
    with pytest.raises(SettingError, match="expected a whole number from 2 to 8"):
        QSpec(bits)
