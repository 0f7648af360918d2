"""The float model as an ONNX file, to measure quantized ones against."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from fxquant.exporters.capture import capture
from fxquant.exporters.external import save_model
from fxquant.exporters.opsets import IR_VERSIONS, OLDEST
from fxquant.exporters.strip import strip


def export_float(model: nn.Module, path: str | Path, *, input_shape: tuple[int, ...]) -> Path:
    """Write a float model as ONNX, unquantized, with the ends that its quantized files have.

    `input_shape` is (channels, height, width). Batch norms that follow a convolution are folded by
    ONNX Runtime when it loads the file. Raises ExportError where it can't be translated.
    """
    path, opset = Path(path), OLDEST
    exported = capture(model.eval(), input_shape, opset)
    strip(exported)
    exported.producer_name, exported.graph.name = "fxquant", "fxquant"
    exported.ir_version = IR_VERSIONS[opset]
    save_model(ir.to_proto(exported), path, lambda file: onnx.checker.check_model(file))
    return path
