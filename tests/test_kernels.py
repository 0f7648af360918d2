"""What is told of integer kernels before a run, against what ONNX Runtime makes of the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import constructs
import pytest
import torch
from exports import SHAPE, exported
from nets import ALL
from pytorchcv.model_provider import get_model
from torch import nn

from fxquant.calibration import calibrate
from fxquant.exporters.kernels import integer_layers
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.graph.insert_quantizers import is_activation_quantizer
from fxquant.graph.prepare import Prepared, prepare
from fxquant.report import kernels
from fxquant.report.layers import list_layers
from fxquant.spec import LayerRule, QConfig

CONSTRUCTS = (
    *("norms_1d", "norms_3d", "transposed_norms", "dense_block", "clip_forms", "smooth", "leaky"),
    *("view_changed_in_place", "arithmetic", "products", "attention_extra_key", "moves", "pads"),
    *("resized", "transposed", "sequences", "functional", "dynamic", "two_inputs"),
    "unknown_tuple",
)
# Those of which `test_zoo_sample` has no file.
ZOO = {"seresnet20_cifar10": lambda: get_model("seresnet20_cifar10")}


def predicted(prepared: Prepared) -> Counter[str]:
    """Calls of each layer that shall run in integer kernels; products of two values under ''."""
    rows = [layer.row for layer in list_layers(prepared)]
    return Counter(
        "" if row["kind"] == "matmul" else row["name"] for row in rows if row["integer_kernel"]
    )


def reasons(prepared: Prepared) -> dict[str, str]:
    rows = [layer.row for layer in list_layers(prepared)]
    return {row["name"]: row["kernel_reason"] for row in rows if row["kernel_reason"]}


def real(prepared: Prepared, folder: Path, images: int = 8) -> Counter[str]:
    """What ONNX Runtime runs in integer kernels of the exported student, which is calibrated."""
    inputs = constructs.noise(prepared.input_shape, images)
    calibrate(prepared.student, inputs if len(inputs) > 1 else inputs[0])
    path = export_onnx(prepared.student, folder / "m.onnx", input_shape=prepared.input_shape)
    return integer_layers(path)


@pytest.mark.parametrize("name", ALL)
def test_small_networks(name):
    prepared = prepare(ALL[name](), QConfig(4, 4), SHAPE)
    assert predicted(prepared) == integer_layers(exported(name, 4, 4).path)


@pytest.mark.soak  # `test_constructs` does the same at 8 bits, of files that it has
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs(name, tmp_path):
    shape = constructs.CONSTRUCTS[name].shape
    prepared = prepare(constructs.build(name), QConfig(4, 4), shape)
    assert predicted(prepared) == real(prepared, tmp_path)


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoos(name, tmp_path):
    prepared = prepare(ZOO[name]().eval(), QConfig(8, 8), (3, 32, 32))
    found = predicted(prepared)
    assert found == real(prepared, tmp_path, images=2)
    assert found.total() == len(list_layers(prepared)) > 20


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_every_width(bits, tmp_path):
    prepared = prepare(ALL["plain"](), QConfig(bits, bits), SHAPE)
    assert (
        predicted(prepared)
        == real(prepared, tmp_path)
        == Counter(["features.0", "features.4", "classifier.1", "classifier.3"])
    )


def test_layers_kept_float(tmp_path):
    rules = (LayerRule("layer1.conv2", None), LayerRule("linear", None))
    prepared = prepare(ALL["residual"](), QConfig(4, 4, layers=rules), SHAPE)
    assert set(reasons(prepared)) == {"layer1.conv2", "linear"}
    assert predicted(prepared) == real(prepared, tmp_path)


def _without_quantizer(prepared: Prepared, value: str) -> Prepared:
    """A student that reads the value of this name in floating point."""
    graph = prepared.student.graph
    for node in list(graph.nodes):
        if is_activation_quantizer(node) and node.args[0].name == value:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    prepared.student.recompile()
    return prepared


def test_a_layer_without_a_quantized_input(tmp_path):
    prepared = _without_quantizer(prepare(ALL["plain"](), QConfig(4, 4), SHAPE), "classifier_2")
    # ONNX Runtime gives up the layer before it as well, for its ReLU is quantized no more.
    assert reasons(prepared) == {"classifier.1": kernels.OUTPUT, "classifier.3": kernels.INPUT}
    assert predicted(prepared) == real(prepared, tmp_path)


def test_a_convolution_without_a_quantized_output(tmp_path):
    prepared = _without_quantizer(prepare(ALL["concat"](), QConfig(4, 4), SHAPE), "head")
    assert reasons(prepared) == {"head": kernels.OUTPUT}
    assert predicted(prepared) == real(prepared, tmp_path)


BEHIND_RELU = {
    "view": (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Unflatten(1, (2, 4))), (16,)),
    "clip": (nn.Sequential(nn.Linear(16, 8), nn.ReLU6(), nn.Unflatten(1, (2, 4))), (16,)),
    "float": (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8)), (16,)),
    "sequence": (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8)), (5, 16)),
    "output": (nn.Sequential(nn.Linear(16, 8), nn.ReLU()), (16,)),
    "no_relu": (nn.Sequential(nn.Linear(16, 8), nn.Unflatten(1, (2, 4))), (16,)),
    "conv": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), (3, 8, 8)),
}


@pytest.mark.parametrize("name", BEHIND_RELU)
def test_a_layer_whose_relu_is_read_in_float(name, tmp_path):
    model, shape = BEHIND_RELU[name]
    config = QConfig(4, 4, layers=(LayerRule("2", None),))
    prepared = prepare(model.eval(), config, shape)
    expected = set() if name in ("view", "clip", "float") else {"0"}
    assert set(predicted(prepared)) == set(real(prepared, tmp_path)) == expected


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_transposed_convolutions_are_quantized_and_run_in_float(layer, tmp_path):
    dimensions = 1 if layer is nn.ConvTranspose1d else 2
    first = (nn.Conv1d, nn.Conv2d)[dimensions - 1](3, 4, 1)
    model = nn.Sequential(first, nn.ReLU(), layer(4, 4, 2, stride=2)).eval()
    prepared = prepare(model, QConfig(4, 4), (3, *dimensions * (8,)))
    rows = {row.row["name"]: row.row for row in list_layers(prepared)}
    assert rows["2"]["weight_bits"] == rows["2"]["act_bits"] == 4
    assert "transposed" in rows["2"]["kernel_reason"]
    assert rows["2"]["float_reason"] is None
    assert predicted(prepared) == real(prepared, tmp_path)


@pytest.mark.parametrize("function", [torch.sigmoid, nn.LeakyReLU(0.1), nn.Softmax(1)])
def test_activations_with_integer_kernels_are_not_called_float(function, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), _Applied(function), nn.Conv2d(4, 4, 1)).eval()
    prepared = prepare(model, QConfig(4, 4), SHAPE)
    nodes = prepared.student.graph.nodes
    assert sum(kernels.is_fused(node) for node in nodes) == 1
    real(prepared, tmp_path)
    ops = [node.op_type for node in kernels_of(tmp_path / "m.onnx")]
    assert sum(op in ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax") for op in ops) == 1


class _Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def kernels_of(path: Path) -> list:
    """The nodes that ONNX Runtime runs."""
    import onnx

    from fxquant.exporters.runtime import make_session

    optimized = path.with_name("optimized.onnx")
    make_session(path, optimized_to=optimized)
    return list(onnx.load(optimized).graph.node)
