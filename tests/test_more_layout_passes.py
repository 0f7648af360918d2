"""Layout passes that architectures called for: counts, equal numbers, refusals, second runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from test_layout_passes import graph, ops, parse, run

from fxquant.exporters.fold_clips import fold_clips
from fxquant.exporters.sink_dequantize import sink_dequantize
from fxquant.exporters.transpose_weights import transpose_weights


@pytest.mark.parametrize(
    ("op", "kept"), [("Max(x, b)", "Clip"), ("Min(b, x)", "Clip"), ("Max(b, x)", "Clip")]
)
def test_the_larger_or_smaller_of_a_value_and_a_number_is_a_clip(op, kept):
    body = f"c = {op} q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)"
    model = graph("float b = {1.3}", body)
    before = run(model)
    assert fold_clips(model) == 1
    assert ops(model) == ["QuantizeLinear", kept, "DequantizeLinear"]
    np.testing.assert_array_equal(run(model), before)
    assert fold_clips(model) == 0


@pytest.mark.parametrize("op", ["Max(x, m)", "Max(x, b, m)", "Min(x, x)", "Max(x)"])
def test_the_larger_of_two_values_stays(op):
    body = f"m = Neg(x) c = {op} q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)"
    model = graph("float b = {1.3}", body)
    before = ops(model)
    assert fold_clips(model) == 0
    assert ops(model) == before


HALVES = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a, b = Split <axis = 1> (d, n) "


def test_parts_of_one_grid_are_joined_as_integers():
    model = graph("int64[2] n = {1, 3}", HALVES + "y0 = Concat <axis = 1> (b, a) y = Neg(y0)")
    before = run(model)
    assert sink_dequantize(model) == 2
    assert ops(model) == ["QuantizeLinear", "Split", "Concat", "DequantizeLinear", "Neg"]
    np.testing.assert_array_equal(run(model), before)
    assert sink_dequantize(model) == 0


@pytest.mark.parametrize(
    "join",
    [
        "r = QuantizeLinear(x, t, z) e = DequantizeLinear(r, t, z) c = Concat <axis = 1> (d, e)",
        "c = Concat <axis = 1> (d, x)",
    ],
    ids=["two grids", "a float part"],
)
def test_parts_of_other_grids_are_joined_as_they_were(join):
    body = f"q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {join} y = Neg(c)"
    model = graph("float t = {0.3}", body)
    before = ops(model)
    assert sink_dequantize(model) == 0
    assert ops(model) == before


def matrix(scale: str, axis: str, readers: str) -> ir.Model:
    """A stored matrix of 4 rows and 6 columns, and what reads it beside the input."""
    numbers = ", ".join(map(str, range(-12, 12)))
    return parse(
        f"g (float[N,4,6,6] x) => (float[A,B,C,D] y) <int8[4,6] w = {{{numbers}}}, {scale}> "
        f"{{ v = DequantizeLinear {axis} (w, s) {readers} }}"
    )


ROWS = "float[4] s = {0.1, 0.2, 0.3, 0.4}"
PRODUCT = "t = Transpose <perm = [1, 0]> (v) y = MatMul(x, t)"


@pytest.mark.parametrize(
    ("scale", "axis"), [(ROWS, "<axis = 0>"), (ROWS, "<axis = -2>"), ("float s = {0.1}", "")]
)
def test_a_transposed_weight_is_stored_so(scale, axis):
    model = matrix(scale, axis, PRODUCT)
    before = run(model)
    assert transpose_weights(model) == 1
    assert ops(model) == ["DequantizeLinear", "MatMul"]
    assert model.graph.initializers["w"].const_value.shape == (6, 4)
    np.testing.assert_array_equal(run(model), before)
    assert transpose_weights(model) == 0


@pytest.mark.parametrize(
    "readers",
    [
        "t = Transpose <perm = [1, 0]> (v) y0 = MatMul(x, t) u = MatMul(v, t) "
        "r = ReduceSum <keepdims = 0> (u) y = Add(y0, r)",
        "t = Transpose <perm = [0, 1]> (v) p = Transpose <perm = [1, 0]> (t) y = MatMul(x, p)",
    ],
    ids=["read as it is, too", "not transposed"],
)
def test_other_weights_are_stored_as_they_were(readers):
    model = matrix(ROWS, "<axis = 0>", readers)
    before = ops(model)
    assert transpose_weights(model) == 0
    assert ops(model) == before
