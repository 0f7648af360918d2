"""Write a student as an ONNX file of QuantizeLinear, DequantizeLinear and float operators."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from fxquant.errors import ExportError
from fxquant.exporters.capture import capture
from fxquant.exporters.freeze import freeze
from fxquant.exporters.layouts import LAYOUTS, apply_layout
from fxquant.files import write_atomic
from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.snap_biases import snap_biases
from fxquant.inputs import Shapes

logger = logging.getLogger(__name__)

OPSET = 21  # the first with int4; every ONNX Runtime since 1.20 reads it
OPSET_INT2 = 25  # the first with int2
# The IR version that onnx released along with each opset; runtimes refuse newer ones.
_IR_VERSIONS = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


def export_onnx(
    student: nn.Module,
    path: str | Path,
    *,
    input_shape: Shapes,
    metadata: Mapping[str, str] | None = None,
    layout: str = "runtime",
    opset: int | None = None,
) -> Path:
    """Write `student` to `path` as ONNX; the path.

    Its biases are first put on the int32 grid of the integer kernels, in place (`snap_biases`).

    `input_shape` is (channels, height, width), or a tuple of such shapes where the model takes
    several inputs. The file's input is `input`, (batch, channels, height, width) with any batch
    size, or those that forward names where there are several; its output is `output`, or
    `output_0`, ... or the keys of a dict. `metadata` becomes the file's `metadata_props`. `opset`
    is the oldest that has the types needed: 21, or 25 where weights have 2 bits. Raises
    ExportError where the student is not calibrated, can't be translated, or the file can't be
    written; then nothing is written.
    """
    path = Path(path)
    passes = _layout(layout)
    snap_biases(student)
    model = capture(freeze(student), input_shape, opset or _opset_for(student))
    apply_layout(model, passes)
    _label(model, {**(metadata or {}), "fxquant.layout": layout})
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the model is no valid ONNX: {error}") from error
    content = proto.SerializeToString(deterministic=True)
    write_atomic(path, lambda file: file.write_bytes(content))
    return path


def _layout(name: str):
    if name not in LAYOUTS:
        raise ExportError(f"layout '{name}' is unknown", f"known layouts: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _opset_for(student: nn.Module) -> int:
    widths = [module_of(layer.args[1]).spec.bits for layer in quantized_layers(student)]
    return OPSET_INT2 if 2 in widths else OPSET


def _label(model: ir.Model, metadata: Mapping[str, str]) -> None:
    model.producer_name, model.producer_version = "fxquant", _version()
    model.graph.name = "fxquant"
    model.ir_version = _IR_VERSIONS.get(model.opset_imports[""], model.ir_version)
    model.metadata_props.update({str(key): str(value) for key, value in metadata.items()})


def _version() -> str:
    try:
        return version("fxquant")
    except PackageNotFoundError:
        return "unknown"
