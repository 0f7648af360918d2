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
from fxquant.exporters.external import save_model
from fxquant.exporters.freeze import freeze
from fxquant.exporters.layouts import LAYOUTS, apply_layout
from fxquant.exporters.opsets import IR_VERSIONS, choose_opset
from fxquant.exporters.runtime import make_session
from fxquant.graph.snap_biases import snap_biases
from fxquant.inputs import Shapes

logger = logging.getLogger(__name__)


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
    `output_0`, ... or the keys of a dict. `metadata` becomes the file's `metadata_props`.
    `layout` is `runtime`, made for ONNX Runtime's integer kernels, `portable`, ONNX's own types
    for any reader, or `tensorrt`; `opset` the oldest that has the types needed (see
    `choose_opset`). Raises ExportError where the student is not calibrated, can't be translated
    or doesn't fit the layout, or where ONNX Runtime can't load the outcome with or without its
    optimisations, and OutputError where the file can't be written; then nothing is written.
    """
    path = Path(path)
    passes = _layout(layout)
    snap_biases(student)
    model = capture(freeze(student), input_shape, choose_opset(student, layout, opset))
    apply_layout(model, passes)
    _label(model, {**(metadata or {}), "fxquant.layout": layout})
    save_model(ir.to_proto(model), path, _check)
    return path


def _check(path: Path) -> None:
    """Raise ExportError unless the file is valid ONNX that ONNX Runtime loads."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        raise ExportError(f"the model is no valid ONNX: {error}") from error
    for optimize in (False, True):
        make_session(path, optimize=optimize)


def _layout(name: str):
    if name not in LAYOUTS:
        raise ExportError(f"layout '{name}' is unknown", f"known layouts: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _label(model: ir.Model, metadata: Mapping[str, str]) -> None:
    model.producer_name, model.producer_version = "fxquant", _version()
    model.graph.name = "fxquant"
    model.ir_version = IR_VERSIONS[model.opset_imports[""]]
    model.metadata_props.update({str(key): str(value) for key, value in metadata.items()})


def _version() -> str:
    try:
        return version("fxquant")
    except PackageNotFoundError:
        return "unknown"
