"""Each pass of a layout on a small graph: its count, equal numbers, refusals, a second run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common as passes

from fxquant.exporters.constants import share_scalars
from fxquant.exporters.fold_clips import fold_clips
from fxquant.exporters.pack_weights import pack_weights
from fxquant.exporters.pool_means import pool_means
from fxquant.exporters.runtime import make_session
from fxquant.exporters.shield_float import shield_float
from fxquant.exporters.sink_dequantize import sink_dequantize
from fxquant.exporters.weight_zero_points import weight_zero_points

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
GRID = "float s = {0.5}, uint8 z = {3}"
X = np.random.default_rng(0).normal(2, 4, (5, 4, 6, 6)).astype(np.float32)


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(HEAD + text)


def graph(constants: str, body: str) -> ir.Model:
    return parse(f"g (float[N,4,6,6] x) => (float[A,B,C,D] y) <{GRID}, {constants}> {{ {body} }}")


def run(model: ir.Model) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = make_session(proto.SerializeToString(), optimize=False)
    return session.run(None, {"x": X})[0]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


CLIP = "c = Clip(x, lo, hi) q = QuantizeLinear(c, s, z)"


@pytest.mark.parametrize("bounds", ["0.0}, float hi = {6.0", "-1.0}, float hi = {2.3"])
@pytest.mark.parametrize(
    "rest", ["k = Clip(q, low, top) y = DequantizeLinear(k, s, z)", "y = DequantizeLinear(q, s, z)"]
)
def test_a_float_clip_becomes_a_clip_of_integers(bounds, rest):
    constants = f"float lo = {{{bounds}}}, uint8 low = {{1}}, uint8 top = {{14}}"
    model = graph(constants, f"{CLIP} {rest}")
    before = run(model)
    assert fold_clips(model) == 1
    assert ops(model) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    np.testing.assert_array_equal(run(model), before)
    assert fold_clips(model) == 0


def test_a_clip_that_changes_nothing_on_the_grid_goes():
    model = graph("float lo = {-9.0}, float hi = {900.0}", f"{CLIP} y = DequantizeLinear(q, s, z)")
    before = run(model)
    assert fold_clips(model) == 1
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.parametrize(
    "body",
    [
        "c = Clip(x, lo, hi) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) "
        "y = Add(c, d)",
        "c = Clip(x, lo, hi) y = Neg(c)",
        "p = QuantizeLinear(x, s, z) d = DequantizeLinear(p, s, z) c = Clip(d, lo, hi) "
        "q = QuantizeLinear(c, t, z) y = DequantizeLinear(q, t, z)",
    ],
    ids=["read elsewhere", "no quantizer", "just dequantized"],
)
def test_other_clips_stay(body):
    model = graph("float lo = {0.0}, float hi = {6.0}, float t = {0.3}", body)
    before = ops(model)
    assert fold_clips(model) == 0
    assert ops(model) == before


MOVES = {
    "MaxPool": "MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]> (d)",
    "Transpose": "Transpose <perm = [0, 2, 3, 1]> (d)",
    "Reshape": "Reshape(d, shape)",
    "Slice": "Slice(d, starts, ends)",
    "Pad": "Pad(d, pads)",
    "Resize": 'Resize <mode = "nearest"> (d, , sizes)',
    "DepthToSpace": "DepthToSpace <blocksize = 2> (d)",
}
DEQUANTIZED = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
MOVE_CONSTANTS = (
    "int64[4] shape = {5, 2, 12, 6}, int64[2] starts = {0, 1}, int64[2] ends = {5, 3}, "
    "int64[8] pads = {0, 1, 1, 0, 0, 0, 0, 2}, float[4] sizes = {1, 1, 2, 2}, float one = {1}"
)


@pytest.mark.parametrize("op", MOVES)
def test_what_only_moves_numbers_moves_integers(op):
    model = graph(MOVE_CONSTANTS, f"{DEQUANTIZED} m = {MOVES[op]} y = Neg(m)")
    before = run(model)
    assert sink_dequantize(model) == 1
    assert ops(model) == ["QuantizeLinear", op, "DequantizeLinear", "Neg"]
    np.testing.assert_array_equal(run(model), before)
    assert sink_dequantize(model) == 0


def test_a_relu_goes_where_zero_is_the_smallest_number():
    model = graph("uint8 o = {0}", DEQUANTIZED.replace("z)", "o)") + " m = Relu(d) y = Neg(m)")
    before = run(model)
    assert sink_dequantize(model) == 1
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "Neg"]
    np.testing.assert_array_equal(run(model), before)


@pytest.mark.parametrize(
    "body",
    [
        f"{DEQUANTIZED} m = Relu(d) y = Neg(m)",
        f"{DEQUANTIZED} m = Pad(d, pads, one) y = Neg(m)",
        f'{DEQUANTIZED} m = Resize <mode = "linear"> (d, , sizes) y = Neg(m)',
        f"{DEQUANTIZED} y = Transpose(d)",
        "m = Transpose(x) y = Neg(m)",
    ],
    ids=["relu of signed", "pads with one", "interpolates", "is the output", "float"],
)
def test_what_is_not_on_the_grid_is_not_moved(body):
    model = graph(MOVE_CONSTANTS, body)
    before = ops(model)
    assert sink_dequantize(model) == 0
    assert ops(model) == before


def test_a_value_that_is_read_twice_is_dequantized_twice():
    model = graph(
        MOVE_CONSTANTS,
        f"{DEQUANTIZED} m = Reshape(d, shape) n = Reshape(d, shape) "
        "e = Reshape(m, shape) y = Add(e, n)",
    )
    before = run(model)
    assert sink_dequantize(model) == 3
    assert Counter(ops(model))["DequantizeLinear"] == 2
    np.testing.assert_array_equal(run(model), before)


WEIGHTS = "int8[2] w = {%s}, float[2] t = {0.1, 0.2}"


@pytest.mark.parametrize(
    ("numbers", "opset", "dtype"),
    [
        ("-2, 1", 25, ir.DataType.INT2),
        ("-2, 1", 21, ir.DataType.INT4),
        ("-3, 1", 25, ir.DataType.INT4),
        ("-8, 7", 21, ir.DataType.INT4),
        ("-8, 8", 21, ir.DataType.INT8),
        ("-9, 7", 25, ir.DataType.INT8),
    ],
)
def test_weights_are_stored_in_the_narrowest_type(numbers, opset, dtype):
    text = (
        f"g () => (float[2] y) <{WEIGHTS % numbers}> {{ y = DequantizeLinear <axis = 0> (w, t) }}"
    )
    model = parse(text)
    model.opset_imports[""], model.ir_version = opset, 13 if opset == 25 else 10
    packed = dtype != ir.DataType.INT8
    assert pack_weights(model) == int(packed)
    assert model.graph.initializers["w"].dtype == dtype
    assert ops(model) == ["Cast"] * packed + ["DequantizeLinear"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    out = make_session(proto.SerializeToString()).run(None, {})[0]
    expected = np.array([int(n) for n in numbers.split(",")]) * np.float32([0.1, 0.2])
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    assert pack_weights(model) == 0


def layer(op: str, weight: str, attributes: str = "") -> ir.Model:
    return parse(
        f"g (float[N,4,6,6] x) => (float[A,B,C,D] y) <{GRID}, {weight}, float[2] b = {{0.1, 0.2}}> "
        f"{{ {DEQUANTIZED} c = {op} {attributes} (d, w, b) r = QuantizeLinear(c, s, z) "
        "y = DequantizeLinear(r, s, z) }"
    )


def kernels(model: ir.Model, tmp_path) -> list[str]:
    path = tmp_path / "optimized.onnx"
    make_session(ir.to_proto(model).SerializeToString(), optimized_to=path)
    return [node.op_type for node in onnx.load(path).graph.node]


def test_float_layers_stay_float_in_the_runtime(tmp_path):
    rng = np.random.default_rng(1)
    numbers = ", ".join(map(str, rng.normal(0, 1, 4).round(3)))
    text = f"float[2,2,1,1] w = {{{numbers}}}"
    model = layer("Conv", text, "<group = 2>")
    before = run(model)
    assert "QLinearConv" in kernels(model, tmp_path)  # what the pass is there to prevent
    assert shield_float(model) == 1
    assert "QLinearConv" not in kernels(model, tmp_path)
    np.testing.assert_array_equal(run(model), before)
    assert shield_float(model) == 0


def test_linear_weights_get_a_zero_point_and_share_it():
    model = parse(
        "g (float[N,2] x) => (float[N,2] y) <float s = {0.5}, uint8 z = {3}, "
        "int8[2,2] w = {1, -2, 3, 4}, float[2] t = {0.1, 0.2}, int8[2,2] v = {1, 0, 3, 4}> { "
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "e = DequantizeLinear <axis = 0> (w, t) m = Gemm <transB = 1> (d, e) "
        "f = DequantizeLinear <axis = 0> (v, t) y = Gemm <transB = 1> (m, f) }"
    )
    assert weight_zero_points(model) == 2
    assert [n for n in model.graph.initializers if "zeros" in n] == ["int8_zeros_2"]
    assert weight_zero_points(model) == 0
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_equal_scalars_become_one():
    model = graph(
        "uint8 a = {3}, uint8 top = {15}",
        "q = QuantizeLinear(x, s, z) k = Clip(q, a, top) y = DequantizeLinear(k, s, a)",
    )
    before = run(model)
    assert share_scalars(model) == 3
    assert sorted(model.graph.initializers) == ["s", "uint8_15", "uint8_3"]
    np.testing.assert_array_equal(run(model), before)
    assert share_scalars(model) == 0


MEAN = "int64[2] axes = {%s}", "%s m = ReduceMean <keepdims = %d> (%s, axes) %s"


@pytest.mark.parametrize("axes", ["2, 3", "-1, -2"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_over_a_feature_map_is_a_pooling_with_an_integer_kernel(axes, keep, tmp_path):
    rest = "p = QuantizeLinear(m, s, z) f = DequantizeLinear(p, s, z) "
    rest += "y = Neg(f)" if keep else "u = Unsqueeze(f, axes) y = Neg(u)"
    model = graph(MEAN[0] % axes, MEAN[1] % (DEQUANTIZED, keep, "d", rest))
    passes.ShapeInferencePass()(model)
    before = run(model)
    assert pool_means(model) == 1
    expected = ["GlobalAveragePool"] + ["Squeeze"] * (not keep)
    assert ops(model)[2 : 2 + len(expected)] == expected
    np.testing.assert_allclose(run(model), before, atol=1e-6)
    assert "QLinearGlobalAveragePool" in kernels(model, tmp_path)
    assert pool_means(model) == 0


@pytest.mark.parametrize("axes", ["1, 2", "0, 3"])
def test_other_means_stay(axes):
    model = graph(MEAN[0] % axes, MEAN[1] % ("", True, "x", "y = Neg(m)"))
    passes.ShapeInferencePass()(model)
    assert pool_means(model) == 0
    assert ops(model) == ["ReduceMean", "Neg"]
