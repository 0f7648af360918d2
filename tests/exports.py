"""Students ready for export, and what their files hold: shared by the tests of the exporters."""

from __future__ import annotations

import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from nets import ALL
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.calibration import calibrate
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.graph.ops import module_of
from fxquant.graph.prepare import prepare
from fxquant.graph.regions import all_nodes, region_of
from fxquant.graph.snap_biases import snap_biases
from fxquant.quantizer import Quantizer
from fxquant.spec import QConfig, QSpec

SHAPE = (3, 16, 16)


def noise(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.2


@dataclass(frozen=True)
class Kind:
    """How the grids of a student differ from those that `prepare` makes."""

    symmetric_weights: bool = True
    channels: bool = True
    symmetric_activations: bool = False


def make_student(
    model: nn.Module,
    config: QConfig,
    shape: tuple[int, ...] = SHAPE,
    *,
    snap: bool = True,
    kind: Kind | None = None,
) -> GraphModule:
    """A calibrated student of `model` in eval mode."""
    student = prepare(model, config, shape).student.eval()
    if kind is not None:
        regrid(student, kind)
    calibrate(student, noise(64, shape, seed=1))
    if snap:
        snap_biases(student)
    return student.requires_grad_(False)


def regrid(student: GraphModule, kind: Kind) -> None:
    """Give an uncalibrated student other kinds of grids of the same widths."""
    for node in all_nodes(student):
        quantizer = module_of(node)
        if not isinstance(quantizer, Quantizer):
            continue
        spec, channels = QSpec(quantizer.spec.bits, kind.symmetric_activations), None
        if quantizer.spec.signed:
            axis, channels = (0, len(quantizer.log_scale)) if kind.channels else (None, None)
            spec = QSpec(quantizer.spec.bits, kind.symmetric_weights, axis)
        region_of(node).set_submodule(node.target, Quantizer(spec, channels))


def quantizer_nodes(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The nodes of a file, in order, that quantize and dequantize the named activation."""
    nodes = list(model.graph.node)
    (quantize,) = [
        n for n in nodes if n.op_type == "QuantizeLinear" and n.input[1] == f"{name}.scale"
    ]
    before = [n for n in nodes if n.output[0] == quantize.input[0] and f"{name}.scale." in str(n)]
    after = [n for n in nodes if quantize.output[0] in n.input and n.op_type == "Clip"]
    end = (after or [quantize])[0].output[0]
    dequantize = next(
        n for n in nodes if n.op_type == "DequantizeLinear" and n.input[1] == quantize.input[1]
    )
    dequantize = copy.deepcopy(dequantize)
    dequantize.input[0] = end
    return [*before, quantize, *after, dequantize]


@dataclass(frozen=True)
class Exported:
    """A student and its file."""

    student: GraphModule
    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def exported(
    name: str,
    weight_bits: int,
    act_bits: int,
    layout: str = "runtime",
    opset: int | None = None,
    kind: Kind | None = None,
) -> Exported:
    """One of the test networks as student and file; neither may be changed."""
    student = make_student(ALL[name](), QConfig(weight_bits, act_bits), kind=kind)
    what = hash((name, weight_bits, act_bits, layout, opset, kind))
    path = Path(_folder().name) / f"{name}-{what:x}.onnx"
    export_onnx(
        student,
        path,
        input_shape=SHAPE,
        metadata={"fxquant.recipe": "none"},
        layout=layout,
        opset=opset,
    )
    return Exported(student, path)


# A float sum on the border between two grid values goes to either side, another one on another
# processor; that leaves some 50 dB of a small network's output, a wrong number below 20 dB.
BORDER_DB = 40


def stored_integers(model: onnx.ModelProto, weight: str) -> np.ndarray:
    """The integers of a weight around zero, whatever they are stored as."""
    tensors = initializers(model)
    integers = array(tensors[weight]).astype(int)
    (reader,) = [n for n in model.graph.node if weight in n.input]
    if reader.op_type == "Cast":
        (reader,) = [n for n in model.graph.node if reader.output[0] in n.input]
    offset = array(tensors[reader.input[2]]).astype(int) if len(reader.input) > 2 else 0
    return integers - np.unique(offset).item()


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)
