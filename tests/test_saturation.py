"""Which layers could leave 16 bits, and that weights stored as uint8 compute the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import SHAPE, array, exported, initializers, make_student, noise
from nets import ALL

import fxquant
from fxquant.errors import ExportError
from fxquant.exporters.capture import capture
from fxquant.exporters.freeze import freeze
from fxquant.exporters.layouts import apply_layout, layout_passes
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.runtime import make_session
from fxquant.exporters.saturation import (
    name_of,
    saturating_layers,
    saturating_names,
    saturation_note,
)
from fxquant.exporters.unsign_weights import unsign_weights
from fxquant.graph.snap_biases import snap_biases
from fxquant.report.layers import list_layers
from fxquant.spec import LayerRule, QConfig

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
X = np.random.default_rng(0).normal(2, 4, (5, 2, 6, 6)).astype(np.float32)


def graph(weights: str, body: str, quantized: str = "q") -> ir.Model:
    return ir.from_onnx_text(
        f"{HEAD} g (float[N,2,6,6] x) => (float[A,B,C,D] y) <float s = {{0.5}}, uint8 z = {{3}}, "
        f"float[2] t = {{0.1, 0.2}}, {weights}> {{ q = QuantizeLinear(x, s, z) "
        f"d = DequantizeLinear({quantized}, s, z) w = DequantizeLinear <axis = 0> (v, t) {body} }}"
    )


def conv(numbers: str, top: int | None = None) -> ir.Model:
    """A convolution of 2 x 2 weights, on activations up to `top`."""
    if top is None:
        return graph(f"int8[2,2,1,1] v = {{{numbers}}}", "y = Conv(d, w)")
    model = graph(
        f"int8[2,2,1,1] v = {{{numbers}}}, uint8 top = {{{top}}}, uint8 low = {{0}}",
        "y = Conv(d, w)",
        "k",
    )
    (quantize,) = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    constants = [model.graph.initializers[name] for name in ("low", "top")]
    clip = ir.node("Clip", [quantize.outputs[0], *constants])
    model.graph.insert_after(quantize, clip)
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        if node.inputs[0].name == "k":
            node.replace_input_with(0, clip.outputs[0])
    return model


@pytest.mark.parametrize(
    ("numbers", "top", "saturates"),
    [
        ("64, 64, 0, 0", None, False),  # 255 * 128 is 32,640
        ("65, 64, 0, 0", None, True),
        ("127, 1, -128, 0", None, False),  # of one channel, in each direction
        ("1, 0, -64, -65", None, True),
        ("127, -127, -127, 127", None, False),  # they take from each other
        ("127, 127, 0, 0", 129, False),
        ("127, 127, 0, 0", 130, True),
    ],
)
def test_two_weights_of_a_channel_and_the_largest_activation_decide(numbers, top, saturates):
    assert bool(saturating_layers(conv(numbers, top))) == saturates


def test_depthwise_convolutions_add_up_in_32_bits():
    weights = "int8[2,1,1,2] v = {127, 127, 127, 127}"
    assert not saturating_layers(graph(weights, "y = Conv <group = 2> (d, w)"))


@pytest.mark.parametrize(
    "body",
    [
        "f = Transpose <perm = [0, 1, 3, 2]> (d) y = Conv(f, w)",
        "f = Relu(d) y = Conv(f, w)",
        "f = MaxPool <kernel_shape = [2, 2]> (d) y = Conv(f, w)",
    ],
)
def test_kernels_reach_through_what_moves_numbers(body):
    assert len(saturating_layers(graph("int8[2,2,1,1] v = {127, 127, 0, 0}", body))) == 1


def test_floats_don_t_saturate():
    assert not saturating_layers(graph("int8[2,2,1,1] v = {127, 127, 0, 0}", "y = Conv(x, w)"))


@pytest.mark.parametrize(
    ("op", "transposed", "count"),
    [("Gemm <transB = 1>", True, 1), ("Gemm", False, 0), ("MatMul", False, 0)],
)
def test_channels_lie_along_the_axis_of_the_outputs(op, transposed, count):
    model = ir.from_onnx_text(
        f"{HEAD} g (float[N,2] x) => (float[N,2] y) <float s = {{0.5}}, uint8 z = {{3}}, "
        "float[2] t = {0.1, 0.2}, int8[2,2] v = {127, 127, 0, 0}> { q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) "
        f"w = DequantizeLinear <axis = {0 if transposed else 1}> (v, t) y = {op} (d, w) }}"
    )
    assert len(saturating_layers(model)) == count


@pytest.mark.parametrize(("integers", "saturates"), [("int8", True), ("uint8", False)])
def test_a_product_of_activations_saturates_where_the_second_is_signed(integers, saturates):
    model = ir.from_onnx_text(
        f"{HEAD} g (float[N,2] x, float[2,2] x2) => (float[N,2] y) <float s = {{0.5}}, "
        f"{integers} z = {{3}}> {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "r = QuantizeLinear(x2, s, z) e = DequantizeLinear(r, s, z) y = MatMul(d, e) }"
    )
    assert bool(saturating_layers(model)) == saturates
    assert unsign_weights(model) == saturates
    assert not saturating_layers(model)


def run(model: ir.Model, *, optimize: bool) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return make_session(proto.SerializeToString(), optimize=optimize).run(None, {"x": X})[0]


def test_unsigned_weights_are_the_same_numbers_and_shared_ones_are_shifted_once():
    model = graph(
        "int8[2,2,1,1] v = {127, 127, -100, 3}",
        "a = Conv(d, w) b = QuantizeLinear(a, s, z) c = DequantizeLinear(b, s, z) "
        "u = DequantizeLinear <axis = 0> (v, t) y = Conv(c, u)",
    )
    before = run(model, optimize=False)
    assert unsign_weights(model) == 2
    weight = model.graph.initializers["v"].const_value.numpy()
    assert weight.dtype == np.uint8
    assert weight.ravel().tolist() == [255, 255, 28, 131]
    np.testing.assert_array_equal(run(model, optimize=False), before)
    assert unsign_weights(model) == 0


def dtypes(path) -> dict[str, set[str]]:
    tensors = initializers(onnx.load(path)).items()
    found: dict[str, set[str]] = {}
    for name, tensor in tensors:
        if name.endswith(".weight"):
            found.setdefault(array(tensor).dtype.name, set()).add(name.removesuffix(".weight"))
    return found


def test_files_hold_int8_where_nothing_saturates_and_uint8_elsewhere(tmp_path):
    student = make_student(ALL["inverted_residual"](), QConfig(8, 8))
    free = export_onnx(student, tmp_path / "any.onnx", input_shape=SHAPE)
    bound = export_onnx(student, tmp_path / "vnni.onnx", input_shape=SHAPE, processor="vnni")
    assert free.saturating == () == saturating_names(free)
    assert free.processor_note is None
    assert bound.saturating == saturating_names(bound)
    assert "6 layers" in bound.processor_note
    assert dtypes(free)["uint8"] == set(bound.saturating)
    assert dtypes(bound).keys() == {"int8"}
    assert dtypes(free)["int8"] == dtypes(bound)["int8"] - set(bound.saturating) != set()
    for file, where in ((free, "any"), (bound, "vnni")):
        said = {e.key: e.value for e in onnx.load(file).metadata_props}
        assert said["fxquant.processor"] == where
        assert said.get("fxquant.processor_note") == file.processor_note


@pytest.mark.parametrize(("weights", "activations"), [(7, 8), (4, 4), (4, 8)])
def test_fewer_bits_need_nothing(weights, activations):
    student = make_student(ALL["plain"](), QConfig(weights, activations))
    assert not saturating_layers(captured(student))


def captured(student) -> ir.Model:
    """What is written of a student where its weights stay int8."""
    model = capture(freeze(student), SHAPE, 21)
    apply_layout(model, layout_passes("runtime", "vnni"))
    return model


@pytest.mark.parametrize("name", ["inverted_residual", "residual", "squeeze_excite"])
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (7, 8), (8, 4)])
def test_inspect_foretells_which_layers(name, weights, activations):
    config = QConfig(weights, activations, layers=(LayerRule("linear", 8),))
    prepared = fxquant.prepare(ALL[name](), config, SHAPE)
    rows = [layer.row for layer in list_layers(prepared)]
    foretold = {row["name"] for row in rows if row["may_saturate"]}
    fxquant.calibrate(prepared.student, noise(16))
    snap_biases(prepared.student)
    assert foretold == set(map(name_of, saturating_layers(captured(prepared.student))))


def test_nothing_is_said_of_files_that_are_right_everywhere():
    assert saturation_note(0) is None
    assert "1 layer holds" in saturation_note(1)
    assert "(as here)" in saturation_note(2, here=True)
    assert "(not here)" in saturation_note(2, here=False)


def test_unknown_processors_are_named(tmp_path):
    student = exported("plain", 4, 4).student
    with pytest.raises(ExportError, match="processor 'avx2' is unknown"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, processor="avx2")
