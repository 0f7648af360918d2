"""Sweeps over shapes, widths and ranges, from the largest numbers down to subnormal ones.

Whatever finite numbers go in, finite ones come out, on the grid, and as close as it allows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from fxquant.numerics import fake_quantize, quantize, scale_and_zero_point
from fxquant.quantizer import Quantizer
from fxquant.ranges import ESTIMATORS
from fxquant.rounding import round_weights
from fxquant.spec import QSpec

LARGEST = torch.finfo(torch.float32).max
bits = st.integers(2, 8)
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Of one size each: values that differ by 76 powers of ten say little about a grid.
sizes = st.sampled_from([1e-45, 1e-40, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e38])


@st.composite
def tensors(draw, dims: int | None = None) -> Tensor:
    """Any shape of two to four axes; any finite numbers, or numbers of about one size."""
    shape = draw(array_shapes(min_dims=dims or 2, max_dims=dims or 4, max_side=6))
    if draw(st.booleans()):
        return torch.from_numpy(draw(arrays(np.float32, shape, elements=any_float)))
    unit = st.floats(-1, 1, width=32)
    values = draw(arrays(np.float32, shape, elements=unit)).astype(np.float64)
    return torch.from_numpy((values * draw(sizes)).astype(np.float32))


def sweep(examples: int):
    """As many examples in CI as take seconds; the same ones each time."""
    return settings(max_examples=examples, deadline=None, derandomize=True)


@sweep(300)
@example(low=-LARGEST, high=LARGEST, bits=8, signed=False)
@example(low=-LARGEST, high=LARGEST, bits=2, signed=True)
@example(low=-1e-45, high=1e-45, bits=8, signed=False)
@given(low=any_float, high=any_float, bits=bits, signed=st.booleans())
def test_any_range_has_a_scale(low, high, bits, signed):
    spec = QSpec(bits, signed=signed)
    ends = (torch.tensor([min(low, high)]), torch.tensor([max(low, high)]))
    scale, zero_point = scale_and_zero_point(*ends, spec.qmin, spec.qmax, symmetric=signed)
    assert torch.isfinite(scale).all()
    assert scale >= torch.finfo(torch.float32).tiny
    assert spec.qmin <= zero_point <= spec.qmax
    assert zero_point == zero_point.round()
    zero = torch.zeros(1)
    assert torch.equal(fake_quantize(zero, scale, zero_point, spec.qmin, spec.qmax), zero)


@sweep(300)
@given(x=tensors(), log_scale=st.floats(-73, 80, width=32), bits=bits, signed=st.booleans())
def test_fake_quantization_and_its_gradient_are_finite(x, log_scale, bits, signed):
    spec = QSpec(bits, signed=signed)
    scale = torch.tensor(log_scale).exp().requires_grad_(True)
    zero_point = torch.tensor(0.0 if signed else float(spec.qmax // 2))
    x = x.clone().requires_grad_(True)
    y = fake_quantize(x, scale, zero_point, spec.qmin, spec.qmax)
    assert torch.isfinite(y).all()
    q = quantize(x.detach(), scale.detach(), zero_point, spec.qmin, spec.qmax)
    assert ((q >= spec.qmin) & (q <= spec.qmax)).all()
    y.backward(torch.ones_like(y))
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(scale.grad).all()


@pytest.mark.parametrize("name", ESTIMATORS)
@sweep(120)
@given(values=tensors(dims=2), bits=bits, signed=st.booleans())
def test_estimators_find_finite_ranges(name, values, bits, signed):
    spec = QSpec(bits, signed=signed)
    low, high = ESTIMATORS[name](values, spec)
    assert low.shape == high.shape == values.shape[:1]
    assert torch.isfinite(low).all()
    assert torch.isfinite(high).all()
    assert (low <= high).all()


@sweep(200)
@given(x=tensors(), bits=bits, axis=st.none() | st.integers(0, 3))
def test_a_calibrated_quantizer_keeps_values_within_half_a_step_of_its_range(x, bits, axis):
    axis = None if axis is None else axis % x.dim()
    spec = QSpec(bits, signed=axis is not None, channel_axis=axis)
    quantizer = Quantizer(spec, None if axis is None else x.shape[axis])
    quantizer.observe()
    quantizer(x)
    quantizer.calibrate(ESTIMATORS["min-max"])
    with torch.no_grad():
        y, q = quantizer(x), quantizer.quantize(x)
    assert torch.isfinite(quantizer.log_scale).all()
    assert torch.isfinite(y).all()
    assert int(q.min()) >= spec.qmin
    assert int(q.max()) <= spec.qmax
    step = quantizer._broadcast(quantizer.scale.detach(), x).double()
    # Ranges end at half of the largest number, so that their width is one.
    half = torch.finfo(x.dtype).max / 2
    x = x.clamp(-half, half)
    assert ((y.double() - x.double()).abs() <= 0.51 * step + 1e-6 * x.double().abs()).all()


@sweep(60)
@given(weight=tensors(dims=2), size=sizes, bits=bits)
def test_rounded_weights_are_finite_and_on_the_grid(weight, size, bits):
    quantizer = Quantizer(QSpec(bits, signed=True, channel_axis=0), len(weight))
    quantizer.set_range(*ESTIMATORS["search"](weight, quantizer.spec))
    inputs = torch.arange(1.0, 8 * weight.shape[1] + 1).sin().reshape(8, -1).double() * size
    rounded = round_weights(weight[None], (inputs.T @ inputs)[None], quantizer)[0]
    assert torch.isfinite(rounded).all()
    with torch.no_grad():
        assert torch.equal(quantizer(rounded), rounded)
