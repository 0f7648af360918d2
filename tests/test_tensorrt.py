"""The tensorrt layout: int8 around zero and nothing else, or a word on what stands in the way."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import SHAPE, array, exported, initializers, make_student, noise
from nets import ALL
from onnx import TensorProto

from fxquant.errors import ExportError
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.tensorrt import require_tensorrt
from fxquant.spec import QConfig

QDQ = ("QuantizeLinear", "DequantizeLinear")
# Symmetric activations of 8 bits; asymmetric ones of fewer, which fit into int8 too.
CONFIGS = {
    "8 bits": QConfig(8, 8, symmetric_activations=True),
    "4 bits": QConfig(4, 4, symmetric_activations=True),
    "7 bits with zero points": QConfig(7, 7, sum_bits=7, input_bits=7),
    "4 bits with zero points": QConfig(4, 4, sum_bits=7, input_bits=7),
}


def assert_fits_tensorrt(model: onnx.ModelProto) -> None:
    stored = initializers(model)
    made = {name: node for node in model.graph.node for name in node.output}
    layers = 0
    for node in model.graph.node:
        if node.op_type not in QDQ:
            assert node.op_type != "Cast"
            read = [stored[name] for name in node.input if name in stored]
            assert all(t.data_type in (TensorProto.FLOAT, TensorProto.INT64) for t in read)
            continue
        for name in node.input[2:]:
            assert stored[name].data_type == TensorProto.INT8
            assert not array(stored[name]).any()
        scale, source = array(stored[node.input[1]]), node.input[0]
        if node.op_type == "QuantizeLinear":
            assert len(node.input) == 3  # without a zero point it would give uint8
            assert scale.ndim == 0
        elif source in stored:
            assert stored[source].data_type == TensorProto.INT8
            assert scale.shape == array(stored[source]).shape[:1]
            layers += 1
        else:
            assert made[source].op_type == "QuantizeLinear"
    assert layers == sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node) > 0


@pytest.mark.parametrize("config", CONFIGS)
def test_only_what_tensorrt_takes_and_the_same_numbers(config, tmp_path):
    for name in ("plain", "inverted_residual"):
        student = make_student(ALL[name](), CONFIGS[config])
        path = export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, layout="tensorrt")
        model = onnx.load(path)
        assert_fits_tensorrt(model)
        assert model.opset_import[0].version == 18
        assert check_parity(student, path, noise(64)).passed


def test_biases_are_the_students_in_floating_point(tmp_path):
    student = make_student(ALL["plain"](), CONFIGS["8 bits"])
    path = export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, layout="tensorrt")
    stored = initializers(onnx.load(path))
    (name,) = [name for name in stored if name.startswith("features.0.bias")]
    expected = student.get_parameter("features.0.bias").numpy()
    np.testing.assert_allclose(array(stored[name]), expected, rtol=1e-6)


def test_zero_points_that_leave_int8_are_named_with_what_to_do(tmp_path):
    student = exported("plain", 8, 8).student
    with pytest.raises(ExportError, match=r"quantizers\.x' has -?\d+ to \d+ steps") as caught:
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, layout="tensorrt")
    assert "--layout tensorrt" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_opsets_that_could_not_be_checked_are_refused(tmp_path):
    student = make_student(ALL["plain"](), CONFIGS["4 bits"])
    with pytest.raises(ExportError, match=r"opset 21 .*tensorrt; expected 18 to 20"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, layout="tensorrt", opset=21)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)", "not an int8 zero"),
        ("q = QuantizeLinear(x, s, z) r = Identity(q) y = DequantizeLinear(r, s, z)", "follows"),
        ("d = DequantizeLinear(w, t, v) y = Add(x, d)", "its weight is UINT8"),
    ],
)
def test_the_check_finds_what_does_not_fit(body, why):
    text = (
        '<ir_version: 9, opset_import: ["" : 19]> g (float[N,2] x) => (float[N,2] y) '
        "<float s = {0.5}, int8 z = {0}, uint8 u = {3}, uint8[2] w = {1, 2}, float t = {1.0}, "
        f"int8 v = {{0}}> {{ {body} }}"
    )
    with pytest.raises(ExportError, match=why):
        require_tensorrt(ir.from_onnx_text(text))
