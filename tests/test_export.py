"""The file: exactly the student's integers, small, clean, and run by integer kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from exports import (
    BORDER_DB,
    SHAPE,
    array,
    exported,
    initializers,
    make_student,
    noise,
    stored_integers,
)
from nets import ALL
from pytorchcv.model_provider import get_model
from torch import nn

from fxquant.errors import ExportError
from fxquant.exporters.custom_ops import QUANTIZE_DEQUANTIZE
from fxquant.exporters.freeze import freeze
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import make_session, run_onnx
from fxquant.graph.prepare import prepare
from fxquant.numerics import fake_quantize
from fxquant.quantizer import Quantizer
from fxquant.spec import LayerRule, QConfig, QSpec

# Of weights and of activations.
WIDTHS = [(2, 3), (3, 5), (4, 4), (5, 8), (6, 2), (7, 7), (8, 6)]
TYPES = {2: onnx.TensorProto.INT2, 3: onnx.TensorProto.INT4, 4: onnx.TensorProto.INT4}


def weights(student: torch.fx.GraphModule) -> dict[str, np.ndarray]:
    """Integers of each quantized weight, by the name of the parameter."""
    return {
        f"{name.removesuffix('_quantizer')}": module.quantize(
            student.get_parameter(name.removesuffix("_quantizer"))
        ).numpy()
        for name, module in student.named_modules()
        if isinstance(module, Quantizer) and name.endswith("weight_quantizer")
    }


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_op_of_the_frozen_student_is_the_quantizer(bits):
    spec, scale = QSpec(bits), torch.tensor(0.07)
    zero_point = torch.tensor(spec.qmax // 3)
    ties = (torch.arange(-600, 600) + 0.5) * scale
    x = torch.cat([noise(1).flatten(), ties, torch.tensor([0.0, -0.0, 1e30, -1e30])])
    out = QUANTIZE_DEQUANTIZE(x, scale, zero_point.byte(), spec.qmin, spec.qmax, None)
    assert torch.equal(out, fake_quantize(x, scale, zero_point, spec.qmin, spec.qmax))


@pytest.mark.parametrize("name", ALL)
def test_the_frozen_student_computes_what_the_student_does(name):
    student, images = make_student(ALL[name](), QConfig(4, 4)), noise(16)
    frozen = freeze(student)
    assert torch.equal(frozen(images), student(images))
    kinds = {str(value.dtype) for key, value in frozen.state_dict().items() if "weight" in key}
    assert kinds <= {"torch.int8", "torch.float32"}
    assert not any(isinstance(module, Quantizer) for module in frozen.modules())


def test_a_student_that_is_not_ready_is_refused(tmp_path):
    raw = prepare(ALL["plain"](), QConfig(), SHAPE).student
    with pytest.raises(ExportError, match=r"'activation_quantizers\.x' is not cal"):
        freeze(raw)
    with pytest.raises(ExportError, match=r"bias of layer 'features\.0' is not on the grid"):
        freeze(make_student(ALL["plain"](), QConfig(), snap=False))
    with pytest.raises(ExportError, match="holds no quantizers"):
        freeze(torch.fx.symbolic_trace(nn.ReLU()))
    with pytest.raises(ExportError, match=r"layout 'tiny' is unknown"):
        export_onnx(raw, tmp_path / "m.onnx", input_shape=SHAPE, layout="tiny")


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_file_holds_the_integers_of_the_student(widths):
    file = exported("residual", *widths)
    stored, expected = initializers(file.model), weights(file.student)
    assert len(expected) == 6
    for name, integers in expected.items():
        np.testing.assert_array_equal(stored_integers(file.model, name), integers)
        # The input has 8 bits: times as many they leave the 16 bits that some processors add up in.
        saturates = widths[0] == 8 and name == "conv1.weight"
        wide = onnx.TensorProto.UINT8 if saturates else onnx.TensorProto.INT8
        assert stored[name].data_type == TYPES.get(widths[0], wide)
        assert len(np.unique(integers)) > 2


@pytest.mark.parametrize(
    ("name", "bits"), [*((name, 4) for name in ALL), ("concat", 8), ("inverted_residual", 8)]
)
def test_every_layer_runs_in_an_integer_kernel_and_nothing_is_lost(name, bits):
    file = exported(name, bits, bits)
    parity = check_parity(file.student, file.path, noise(96))
    convolutions = sum(node.op_type == "Conv" for node in file.model.graph.node)
    assert parity.convolutions == convolutions > 0
    assert parity.convolutions_integer == parity.convolutions
    assert parity.linears_integer == parity.linears
    assert parity.passed
    # Integer kernels add up exactly; with few bits their scales seldom lead to a border either.
    assert parity.optimized.sqnr_db > (100 if bits == 4 else 45)
    assert parity.unoptimized.sqnr_db > BORDER_DB


@pytest.mark.parametrize("widths", WIDTHS)
def test_all_widths_work_weights_and_activations_apart(widths):
    file = exported("residual", *widths)
    parity = check_parity(file.student, file.path, noise(96))
    assert parity.passed
    assert parity.convolutions_integer == parity.convolutions == 5


def test_a_layer_kept_float_stays_float():
    model = ALL["residual"]()
    config = QConfig(4, 4, layers=(LayerRule("layer1.conv1", None), LayerRule("linear", None)))
    student = make_student(model, config)
    parity = check_parity(student, export_to_temp(student), noise(64))
    assert parity.passed
    assert (parity.convolutions, parity.convolutions_integer) == (5, 4)
    assert (parity.linears, parity.linears_integer) == (1, 0)


def export_to_temp(student: torch.fx.GraphModule):
    path = exported("residual", 4, 4).path.parent / "other.onnx"
    return export_onnx(student, path, input_shape=SHAPE)


class Branches(nn.Module):
    """Ops that move numbers between layers, grouped and repeated layers, several outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="reflect")
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)
        self.tokens = nn.Linear(4, 8)

    def forward(self, x):
        x = torch.relu(self.grouped(self.shuffle(torch.relu(self.first(x)))))
        y = torch.relu(self.again(nn.functional.max_pool2d(x, 2)))
        y = torch.relu(self.again(nn.functional.interpolate(y, scale_factor=2)))
        left, right = torch.chunk(torch.cat([x, y], 1), 2, 1)
        y = self.last(torch.cat([right, left], 1))
        return {"map": y, "tokens": self.tokens(y.flatten(2).transpose(1, 2))}


def test_moved_grouped_and_repeated_layers_are_integer_too():
    torch.manual_seed(0)
    student = make_student(Branches(), QConfig(4, 4))
    path = export_to_temp(student)
    assert [value.name for value in onnx.load(path).graph.output] == ["map", "tokens"]
    parity = check_parity(student, path, noise(32))
    assert parity.passed
    assert parity.unoptimized.agreement is None
    assert parity.convolutions_integer == parity.convolutions == 5
    assert parity.linears_integer == parity.linears == 1
    # Each call of the repeated layer has a bias on the grid of its own input.
    assert {"again.bias", "again.bias_1"} <= initializers(onnx.load(path)).keys()


def test_a_resnet20_is_small_and_all_integer(tmp_path):
    bits = 4
    model = get_model("resnet20_cifar10").eval()
    student = make_student(model, QConfig(bits, bits), (3, 32, 32))
    file = export_onnx(student, tmp_path / "m.onnx", input_shape=(3, 32, 32))
    parity = check_parity(student, file, noise(32, (3, 32, 32)))
    assert (parity.convolutions, parity.convolutions_integer, parity.linears_integer) == (21, 21, 1)
    parameters = sum(weight.size for weight in weights(student).values())
    assert file.path.stat().st_size <= 1.10 * parameters * bits / 8 + 40_000


def test_any_number_of_images():
    file = exported("inverted_residual", 4, 4)
    for count in (1, 3, 7):
        images = noise(count, seed=count)
        expected = file.student(images).numpy()
        np.testing.assert_allclose(run_onnx(file.path, images), expected, atol=1e-5)


def test_the_file_says_what_it_is():
    model = exported("residual", 4, 4).model
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["fxquant.recipe"] == "none"
    assert entries["fxquant.layout"] == "runtime"
    assert model.producer_name == "fxquant"
    assert model.producer_version
    onnx.checker.check_model(model, full_check=True)
    (value,) = model.graph.input
    assert value.name == "input"
    shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    assert shape == ["batch", *SHAPE]
    assert [value.name for value in model.graph.output] == ["output"]


def test_the_file_holds_nothing_that_no_runtime_needs():
    model = exported("residual", 4, 4).model
    stored, channels = initializers(model), 16
    floats = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(array(tensor).size for tensor in floats) <= channels
    read = {name for node in model.graph.node for name in node.input}
    assert stored.keys() <= read
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(tensor.metadata_props or tensor.doc_string for tensor in stored.values())
    assert b"/site-packages/" not in model.SerializeToString()
    assert b"pkg.torch" not in model.SerializeToString()


def test_names_are_those_of_the_modules():
    file = exported("residual", 4, 4)
    nodes = {node.name: node for node in file.model.graph.node}
    assert nodes["layer1.conv2"].op_type == "Conv"
    assert nodes["linear"].op_type == "Gemm"
    stored = initializers(file.model)
    assert stored["layer1.conv2.bias"].data_type == onnx.TensorProto.INT32
    computed = {name for node in nodes.values() for name in node.output}
    for name, module in file.student.activation_quantizers.named_children():
        assert name in computed
        assert array(stored[f"{name}.scale"]) == module.scale.detach().numpy()


def test_a_failed_export_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_text("the old one")

    def refuse(*_, **__):
        raise onnx.checker.ValidationError("no")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match="no valid ONNX"):
        export_onnx(exported("plain", 4, 4).student, path, input_shape=SHAPE)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_for_one_batch_size_is_refused(tmp_path):
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))
    student = make_student(model, QConfig(4, 4))
    last = next(node for node in student.graph.nodes if node.op == "output")
    with student.graph.inserting_before(last):
        two = student.graph.call_method("reshape", (last.args[0], 2, 10))
    last.args = (two,)
    student.recompile()
    with pytest.raises(ExportError, match="free batch size"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


def test_an_op_that_onnx_has_not_is_named(tmp_path):
    class Eigen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.linalg.eigvals(self.conv(x).mean(1)).real

    student = make_student(Eigen(), QConfig(4, 4))
    with pytest.raises(ExportError, match=r"No ONNX function found for .*linalg_eig"):
        export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE)


def test_export_prints_nothing(tmp_path, capfd):
    export_onnx(exported("plain", 4, 4).student, tmp_path / "m.onnx", input_shape=SHAPE)
    make_session(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
