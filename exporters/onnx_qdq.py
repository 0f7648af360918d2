"""Write a student as an ONNX file of QuantizeLinear, DequantizeLinear and float operators."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from fxquant.errors import ExportError
from fxquant.exporters.capture import capture
from fxquant.exporters.external import save_model
from fxquant.exporters.freeze import freeze
from fxquant.exporters.layouts import apply_layout, layout_passes
from fxquant.exporters.opsets import IR_VERSIONS, choose_opset
from fxquant.exporters.runtime import make_session
from fxquant.exporters.saturation import name_of, saturating_layers, saturation_note
from fxquant.graph.snap_biases import snap_biases
from fxquant.inputs import Shapes

logger = logging.getLogger(__name__)

PROCESSOR, PROCESSOR_NOTE = "fxquant.processor", "fxquant.processor_note"


@dataclass(frozen=True)
class OnnxFile(os.PathLike):
    """A file that was written; it stands for its path wherever one is taken.

    `saturating` names the layers that come out wrong on x86 processors without VNNI, unless ONNX
    Runtime's session option `session.x64quantprecision` is 1.
    """

    path: Path
    saturating: tuple[str, ...]

    @property
    def processor_note(self) -> str | None:
        """What a deployer must know of processors; None where the file is right on every one."""
        return saturation_note(len(self.saturating))

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__


def export_onnx(
    student: nn.Module,
    path: str | Path,
    *,
    input_shape: Shapes,
    metadata: Mapping[str, str] | None = None,
    layout: str = "runtime",
    opset: int | None = None,
    processor: str = "any",
) -> OnnxFile:
    """Write `student` to `path` as ONNX; the file, which stands for its path.

    Its biases are first put on the int32 grid of the integer kernels, in place (`snap_biases`).

    `input_shape` is (channels, height, width), or a tuple of such shapes where the model takes
    several inputs. The file's input is `input`, (batch, channels, height, width) with any batch
    size, or those that forward names where there are several; its output is `output`, or
    `output_0`, ... or the keys of a dict. `metadata` becomes the file's `metadata_props`.
    `layout` is `runtime`, made for ONNX Runtime's integer kernels, `portable`, ONNX's own types
    for any reader, or `tensorrt`; `opset` the oldest that has the types needed (see
    `choose_opset`). A file for processor `any` is right on every one; for `vnni` its 8-bit weights
    stay int8, which is faster on processors with VNNI and wrong on x86 ones without (`saturating`
    of what is returned; those of layout `tensorrt` always are int8). Raises ExportError where the
    student is not calibrated, can't be translated or doesn't fit the layout, or where ONNX Runtime
    can't load the outcome with or without its optimisations, and OutputError where the file can't
    be written; then nothing is written.
    """
    path = Path(path)
    passes = layout_passes(layout, processor)
    snap_biases(student)
    model = capture(freeze(student), input_shape, choose_opset(student, layout, opset))
    apply_layout(model, passes)
    file = OnnxFile(path, tuple(map(name_of, saturating_layers(model))))
    _label(model, {**(metadata or {}), "fxquant.layout": layout, **_processor_facts(file)})
    save_model(ir.to_proto(model), path, _check)
    return file


def _processor_facts(file: OnnxFile) -> dict[str, str]:
    """What the file's metadata say of the processors that it is right on."""
    note = file.processor_note
    return {PROCESSOR: "vnni", PROCESSOR_NOTE: note} if note else {PROCESSOR: "any"}


def _check(path: Path) -> None:
    """Raise ExportError unless the file is valid ONNX that ONNX Runtime loads."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        raise ExportError(f"the model is no valid ONNX: {error}") from error
    for optimize in (False, True):
        make_session(path, optimize=optimize)


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
