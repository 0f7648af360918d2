"""Every width in every layout: the student's integers, and quantizers that agree to the bit."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import onnx
import pytest
import torch
from exports import (
    BORDER_DB,
    SHAPE,
    Exported,
    Kind,
    array,
    exported,
    initializers,
    noise,
    quantizer_nodes,
    stored_integers,
)
from nets import ALL
from onnx import TensorProto

from fxquant.errors import ExportError
from fxquant.exporters.freeze import freeze
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import make_session
from fxquant.graph.insert_quantizers import is_activation_quantizer
from fxquant.graph.ops import kind, module_of
from fxquant.graph.regions import all_nodes
from fxquant.quantizer import Quantizer
from fxquant.spec import QSpec

LAYOUTS = ("runtime", "portable")
SIGNED = {2: TensorProto.INT2, 3: TensorProto.INT4, 4: TensorProto.INT4}
UNSIGNED = {2: TensorProto.UINT2, 3: TensorProto.UINT4, 4: TensorProto.UINT4}
KINDS = {
    "asymmetric weights": Kind(symmetric_weights=False),
    "one scale a tensor": Kind(channels=False),
    "asymmetric weights, one scale a tensor": Kind(symmetric_weights=False, channels=False),
    "symmetric activations": Kind(symmetric_activations=True),
}


def quantizers(file: Exported) -> dict[str, Quantizer]:
    return {n: m for n, m in file.student.named_modules() if isinstance(m, Quantizer)}


def assert_same_weights(file: Exported) -> None:
    stored = initializers(file.model)
    for name, quantizer in quantizers(file).items():
        if name.endswith("weight_quantizer"):
            weight, bits = name.removesuffix("_quantizer"), quantizer.spec.bits
            expected = quantizer.quantize(file.student.get_parameter(weight)).numpy()
            types, wide = SIGNED, {TensorProto.INT8}
            if quantizer.spec.signed:
                integers = stored_integers(file.model, weight)
            else:
                integers = array(stored[weight]).astype(int)
                types, wide = UNSIGNED, {TensorProto.UINT8}
            np.testing.assert_array_equal(integers, expected)
            if bits == 2 and file.model.opset_import[0].version < 25:
                bits = 4
            if bits == 8:  # as uint8 where sums could leave 16 bits
                wide = {TensorProto.INT8, TensorProto.UINT8}
            assert stored[weight].data_type in ({types[bits]} if bits in types else wide)
            assert len(np.unique(expected)) > 2


def assert_same_quantizers(file: Exported) -> None:
    """Each activation quantizer of the file is the student's, on ties and far outside as well."""
    model = file.model
    for node in all_nodes(file.student):
        quantizer, name = module_of(node), str(node.target)
        if not isinstance(quantizer, Quantizer) or not is_activation_quantizer(node):
            continue
        x = reachable(node.args[0], inputs_of(quantizer))
        nodes = quantizer_nodes(model, name.removeprefix("activation_quantizers."))
        out = run_nodes(model, nodes, x.numpy())
        np.testing.assert_array_equal(out, quantizer(x).detach().numpy())


def inputs_of(quantizer: Quantizer) -> torch.Tensor:
    """Borders between grid values, noise, and numbers far outside."""
    far = torch.tensor([1e30, -1e30, -0.0])
    steps = torch.cat([torch.arange(-600, 600) / 2, noise(1).flatten() * 100, far])
    return steps * quantizer.scale.detach()


def reachable(source: torch.fx.Node, x: torch.Tensor) -> torch.Tensor:
    """What of x the quantizer can see: a ReLU or ReLU6 before it may be folded into its Clip."""
    if kind(source) == "relu":
        return x.relu()
    return x.clamp(0, 6) if isinstance(module_of(source), torch.nn.ReLU6) else x


def run_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto], x: np.ndarray) -> np.ndarray:
    """What a chain of nodes of a file makes of x."""
    stored = initializers(model)
    read = [stored[n] for n in {n for node in nodes for n in node.input if n in stored}]
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
        for name in (nodes[0].input[0], nodes[-1].output[0])
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], read)
    part = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    session = make_session(part.SerializeToString(), optimize=False)
    return session.run(None, {ends[0].name: x})[0]


# Those of 5 to 8 bits have the same types, and a Clip but for 8.
WIDE = {(5, "runtime"), (7, "runtime"), (6, "portable")}


@pytest.mark.parametrize(
    ("bits", "layout"),
    [
        pytest.param(bits, layout, marks=[pytest.mark.soak] * ((bits, layout) in WIDE))
        for bits in range(2, 9)
        for layout in LAYOUTS
    ],
)
def test_a_file_of_any_width_holds_the_numbers_of_the_student(bits, layout):
    # Max-pooling and linear layers; depthwise convolutions, ReLU6 and signed sums.
    name = "plain" if (bits % 2 == 0) == (layout == "portable") else "inverted_residual"
    file = exported(name, bits, bits, layout)
    assert_same_weights(file)
    assert_same_quantizers(file)
    assert check_parity(file.student, file.path, noise(64)).passed


def in_turn(*axes: tuple) -> list:
    """All combinations, every second one left to `make soak`; any two values still meet."""
    places = itertools.product(*(range(len(axis)) for axis in axes))
    every = zip(itertools.product(*axes), places, strict=True)
    return [pytest.param(*v, marks=[pytest.mark.soak] * (sum(at) % 2)) for v, at in every]


@pytest.mark.parametrize(("grid", "bits", "layout"), in_turn(tuple(KINDS), (2, 4), LAYOUTS))
def test_any_kind_of_grid(grid, bits, layout):
    file = exported("concat", bits, bits, layout, kind=KINDS[grid])
    assert_same_weights(file)
    assert_same_quantizers(file)
    parity = check_parity(file.student, file.path, noise(64))
    assert parity.passed
    if layout == "runtime":
        assert parity.convolutions_integer == parity.convolutions


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("plain", "inverted_residual")])
def test_portable_files_of_every_network_are_right(name):
    file = exported(name, 4, 4, "portable")
    parity = check_parity(file.student, file.path, noise(64))
    assert parity.passed
    assert min(parity.unoptimized.sqnr_db, parity.optimized.sqnr_db) > BORDER_DB


def activation_types(file: Exported) -> dict[str, int]:
    stored = initializers(file.model)
    return {
        node.input[1].removesuffix(".scale"): stored[node.input[2]].data_type
        for node in file.model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_portable_activations_have_native_types_but_beside_max_pooling():
    types = activation_types(exported("plain", 4, 4, "portable"))
    assert types["features_2"] == types["features_6"] == TensorProto.UINT8  # max-pooling reads them
    assert types["classifier_2"] == TensorProto.UINT4
    clips = [n for n in exported("plain", 4, 4, "portable").model.graph.node if n.op_type == "Clip"]
    assert len(clips) == 2  # for the uint8 ones alone


def test_between_portable_quantizers_and_dequantizers_is_at_most_a_clip():
    for bits in (2, 4, 8):
        model = exported("residual", bits, bits, "portable").model
        made = {name: node for node in model.graph.node for name in node.output}
        stored = initializers(model)
        assert not any(node.op_type == "Cast" for node in model.graph.node)
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] not in stored:
                source = made[node.input[0]]
                if source.op_type == "Clip":
                    source = made[source.input[0]]
                assert source.op_type == "QuantizeLinear"


@pytest.mark.parametrize(
    ("layout", "bits", "opset"),
    [
        ("portable", 8, 18),
        ("portable", 4, 21),
        ("portable", 2, 21),
        ("runtime", 8, 18),
        ("runtime", 4, 21),
        ("runtime", 2, 25),
    ],
)
def test_the_opset_is_the_oldest_that_has_the_types(layout, bits, opset):
    model = exported("residual", bits, bits, layout).model
    assert model.opset_import[0].version == opset


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("opset", "weight", "activation"),
    [(18, "INT8", "UINT8"), (20, "INT8", "UINT8"), (23, "INT4", "UINT4"), (25, "INT4", "UINT4")],
)
def test_another_opset_has_the_types_it_has(layout, opset, weight, activation):
    file = exported("residual", 4, 4, layout, opset)
    model = file.model
    assert model.opset_import[0].version == opset
    assert initializers(model)["layer1.conv1.weight"].data_type == getattr(TensorProto, weight)
    expected = getattr(TensorProto, activation if layout == "portable" else "UINT8")
    assert activation_types(file)["relu_1"] == expected
    assert check_parity(file.student, file.path, noise(64)).passed


def test_a_scale_for_each_channel_of_an_activation_is_refused():
    student = copy.deepcopy(exported("plain", 4, 4).student)
    quantizer = Quantizer(QSpec(4, channel_axis=1), 3)
    quantizer.set_range(torch.zeros(3), torch.ones(3))
    student.set_submodule("activation_quantizers.x", quantizer)
    with pytest.raises(ExportError, match=r"izers\.x' has a scale for each channel"):
        freeze(student)


def test_two_bit_types_where_they_are_asked_for():
    file = exported("residual", 2, 2, "portable", 25)
    assert_same_weights(file)
    assert check_parity(file.student, file.path, noise(64)).passed


@pytest.mark.parametrize("opset", [0, 17, 26, -1])
def test_an_opset_that_is_not_there_is_refused(opset, tmp_path):
    student = exported("plain", 4, 4).student
    with pytest.raises(ExportError, match=f"opset {opset} can't be written in layout runtime"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_file_that_onnx_runtime_cannot_load_is_not_written(tmp_path, monkeypatch):
    # Without the rules uint4 ends up beside max-pooling, for which there is no kernel.
    monkeypatch.setattr("fxquant.exporters.native_types._is_unsafe", lambda *_, **__: False)
    student = exported("plain", 4, 4).student
    with pytest.raises(ExportError, match=r"ONNX Runtime can't load .*MaxPool"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, layout="portable")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weight_bits", [5, 8])
@pytest.mark.parametrize("name", ["residual", "inverted_residual"])
def test_portable_files_take_4_bit_activations_and_wider_weights(name, weight_bits):
    file = exported(name, weight_bits, 4, "portable")
    assert check_parity(file.student, file.path, noise(8)).passed
    assert_same_weights(file)
