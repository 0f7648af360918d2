"""The arithmetic of quantization: bit-equal to ONNX Runtime, with straight-through gradients."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from fxquant.numerics import dequantize, fake_quantize, quantize, scale_and_zero_point
from fxquant.spec import QSpec

SCALES = (0.1, 1 / 3, 0.0371, 2.0**-4, 1e-5, 7.3)
# Type, its grid, and zero points at both ends and inside.
GRIDS = {
    "uint8": (TensorProto.UINT8, 0, 255, (0, 3, 128, 255)),
    "int8": (TensorProto.INT8, -128, 127, (-128, 0, 17)),
    "uint4": (TensorProto.UINT4, 0, 15, (0, 7, 15)),
    "int4": (TensorProto.INT4, -8, 7, (-8, 0)),
}


def samples(scale: float, qmin: int, qmax: int) -> np.ndarray:
    """Spread values, ties and their neighbours over and beyond the grid, extremes, subnormals."""
    rng = np.random.default_rng(0)
    reach = 2 * (qmax - qmin)
    step = np.float32(scale)
    ties = (np.arange(-reach, reach, dtype=np.float32) + np.float32(0.5)) * step
    edges = np.concatenate([ties, np.arange(-reach, reach, dtype=np.float32) * step])
    neighbours = [np.nextafter(edges, np.float32(way)) for way in (-np.inf, np.inf)]
    spread = rng.uniform(-reach, reach, 50_000).astype(np.float32) * step
    largest = np.finfo(np.float32).max
    extremes = np.array([0.0, -0.0, largest, -largest, 1e30, -1e30, np.inf, -np.inf], np.float32)
    subnormals = np.array([1e-45, -1e-45, 1e-40, -1e-40, 1.1754942e-38], np.float32)
    return np.concatenate([edges, *neighbours, spread, extremes, subnormals])


def onnx_round_trip(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, kind: int, axis: int = 0
) -> np.ndarray:
    """What ONNX Runtime's QuantizeLinear and DequantizeLinear make of `x`, unoptimised."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], axis=axis),
    ]
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.flatten()),
            helper.make_tensor("zero_point", kind, zero_point.shape, zero_point.flatten()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("grid", GRIDS)
def test_quantize_and_dequantize_are_bit_equal_to_onnx_runtime(grid, scale):
    kind, qmin, qmax, zero_points = GRIDS[grid]
    x = samples(scale, qmin, qmax)
    for zero_point in zero_points:
        expected = onnx_round_trip(x, np.array(scale, np.float32), np.array(zero_point), kind)
        s, z = torch.tensor(scale), torch.tensor(float(zero_point))
        q = quantize(torch.from_numpy(x), s, z, qmin, qmax)
        assert len(q.unique()) == qmax - qmin + 1
        assert np.array_equal(dequantize(q, s, z).numpy(), expected)


def test_scales_per_channel_are_bit_equal_to_onnx_runtime():
    x = np.stack([samples(s, -128, 127) for s in SCALES])
    scale, zero_point = np.array(SCALES, np.float32), np.zeros(len(SCALES), np.int8)
    expected = onnx_round_trip(x, scale, zero_point, TensorProto.INT8)
    s, z = torch.from_numpy(scale)[:, None], torch.zeros(len(SCALES), 1)
    q = quantize(torch.from_numpy(x), s, z, -128, 127)
    assert np.array_equal(dequantize(q, s, z).numpy(), expected)


def test_rounding_is_half_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    q = quantize(x, torch.tensor(1.0), torch.tensor(0.0), -8, 7)
    assert q.tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("grid", GRIDS)
def test_fake_quantize_is_dequantize_of_quantize(grid):
    _, qmin, qmax, zero_points = GRIDS[grid]
    for scale in SCALES:
        x, s = torch.from_numpy(samples(scale, qmin, qmax)), torch.tensor(scale)
        for zero_point in zero_points:
            z = torch.tensor(float(zero_point))
            expected = dequantize(quantize(x, s, z, qmin, qmax), s, z)
            assert torch.equal(fake_quantize(x, s, z, qmin, qmax), expected)


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Fake quantization as a formula that autograd differentiates, its rounding passed through."""
    v, low, high = x / scale, qmin - zero_point, qmax - zero_point
    inside = (v >= low) & (v <= high)
    q = torch.where(inside, v + (v.round() - v).detach(), v.detach().clamp(low, high))
    return q * scale


def gradients(function, x: Tensor, scale: Tensor, zero_point: Tensor, spec: QSpec, weights: Tensor):
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = function(x, scale, zero_point, spec.qmin, spec.qmax)
    return torch.autograd.grad((y * weights).sum(), (x, scale))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("signed", "shape"), [(False, ()), (True, (5, 1, 1)), (False, (1, 6, 1))])
def test_gradients_are_those_of_the_straight_through_formula(bits, signed, shape):
    rng = torch.Generator().manual_seed(bits)
    spec = QSpec(bits, signed=signed)
    scale = torch.rand(shape, generator=rng, dtype=torch.float64) + 0.5
    zero_point = torch.full_like(scale, 0 if signed else 2 ** (bits - 2))
    reach = 2**bits
    x = torch.empty(5, 6, 40, dtype=torch.float64).uniform_(-reach, reach, generator=rng)
    x[0, 0, 0] = (spec.qmax - zero_point.flatten()[0]) * scale.flatten()[0]  # on the very edge
    weights = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    found = gradients(fake_quantize, x, scale, zero_point, spec, weights)
    expected = gradients(straight_through, x, scale, zero_point, spec, weights)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-11
    outside = found[0] == 0
    assert outside.any()
    assert not outside.all()


def test_gradients_inside_and_outside_the_range():
    """One inside, x = 1.3: 1 and q - v; outside on either side: 0 and the bound."""
    x = torch.tensor([1.3, 9.0, -9.0], requires_grad=True)
    scale = torch.ones(3, requires_grad=True)
    fake_quantize(x, scale, torch.zeros(3), -4, 3).sum().backward()
    assert x.grad.tolist() == [1, 0, 0]
    assert (scale.grad - torch.tensor([-0.3, 3.0, -4.0])).abs().max() < 1e-6


def test_values_far_outside_pass_no_gradient_and_count_as_the_grids_end():
    x = torch.tensor([-torch.inf, -1e30, 0.3, 1e30, torch.inf], requires_grad=True)
    scale = torch.tensor(1e-10, requires_grad=True)
    zero = torch.tensor(0.0)
    fake_quantize(x, scale, zero, 0, 15).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]  # 0.3 / 1e-10 is outside, too
    assert scale.grad == 3 * 15


def test_fake_quantize_needs_no_gradient_of_the_scale():
    x = torch.linspace(-3, 3, 50, requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), -4, 3).sum().backward()
    assert x.grad.sum() == ((x / 0.5 >= -4) & (x / 0.5 <= 3)).sum()


bounds = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(bits=st.integers(2, 8), signed=st.booleans(), ends=st.tuples(bounds, bounds))
def test_a_grid_covers_its_range_and_holds_zero(bits, signed, ends):
    spec = QSpec(bits, signed=signed)
    low, high = (torch.tensor([end]) for end in sorted(ends))
    scale, zero_point = scale_and_zero_point(low, high, spec.qmin, spec.qmax, symmetric=signed)
    assert scale > 0
    assert torch.isfinite(scale).all()
    assert zero_point == zero_point.round()
    assert spec.qmin <= zero_point <= spec.qmax
    if signed:
        assert zero_point == 0
    zero = torch.zeros(1)
    assert torch.equal(fake_quantize(zero, scale, zero_point, spec.qmin, spec.qmax), zero)
    for end in (low.clamp(max=0), high.clamp(min=0)):
        error = fake_quantize(end, scale, zero_point, spec.qmin, spec.qmax) - end
        # Half a step, from rounding either the value or the zero point.
        assert error.abs() <= 0.5001 * scale


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bits=st.integers(2, 8), signed=st.booleans(), ends=st.tuples(bounds, bounds))
def test_no_finer_grid_covers_the_range(bits, signed, ends):
    spec = QSpec(bits, signed=signed)
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    scale, _ = scale_and_zero_point(
        torch.tensor([low]), torch.tensor([high]), spec.qmin, spec.qmax, symmetric=signed
    )
    finest = max(low / spec.qmin, high / spec.qmax) if signed else (high - low) / (2**bits - 1)
    assert math.isclose(scale.item(), finest, rel_tol=1e-6, abs_tol=1e-31)


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_empty_range_keeps_zero_at_zero(symmetric):
    zero = torch.zeros(3)
    scale, zero_point = scale_and_zero_point(zero, zero, -8, 7, symmetric=symmetric)
    assert (scale >= torch.finfo(torch.float32).tiny).all()
    assert torch.equal(fake_quantize(zero, scale, zero_point, -8, 7), zero)


def test_one_sided_ranges_put_zero_at_the_end_of_the_grid():
    low, high = torch.tensor([2.0, -5.0]), torch.tensor([5.0, -2.0])
    scale, zero_point = scale_and_zero_point(low, high, 0, 15, symmetric=False)
    assert zero_point.tolist() == [0, 15]
    assert (scale - 5 / 15).abs().max() < 1e-7
