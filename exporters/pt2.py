"""Write a student as a torch.export program that runs wherever torch does, without fxquant."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxquant.errors import ExportError, ParityError
from fxquant.exporters.capture import to_program
from fxquant.exporters.custom_ops import (
    DEQUANTIZE,
    QUANTIZE_DEQUANTIZE,
    dequantize,
    quantize_dequantize,
)
from fxquant.exporters.freeze import freeze
from fxquant.exporters.parity import Difference, compare
from fxquant.exporters.runtime import BATCH
from fxquant.files import write_atomic
from fxquant.graph.snap_biases import snap_biases
from fxquant.inputs import Shapes, flatten

FACTS = "fxquant.json"
# What torch.export notes of each node that only its own developers read.
_NEEDLESS = ("stack_trace", "from_node", "torch_fn")


def export_pt2(
    student: nn.Module,
    path: str | Path,
    *,
    input_shape: Shapes,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `student` to `path` as an exported program of aten operators; the path.

    `torch.export.load(path).module()` computes what the student does for any number of images of
    `input_shape`, as export_onnx takes it. Weights are int8 whatever their width. `metadata` is
    the extra file `fxquant.json`. Biases are first put on their grid, in place. Raises
    ExportError where the student is not calibrated or can't be exported.
    """
    path = Path(path)
    snap_biases(student)
    program = to_program(freeze(student), input_shape).run_decompositions(_DECOMPOSITIONS)
    _require_no_custom_ops(program)
    for node in program.graph.nodes:
        for key in _NEEDLESS:
            node.meta.pop(key, None)
    program.example_inputs = None
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={FACTS: json.dumps(dict(metadata or {}))})
    write_atomic(path, lambda file: file.write_bytes(content.getvalue()))
    return path


@torch.no_grad()
def check_pt2(student: nn.Module, path: str | Path, images: Tensor) -> Difference:
    """How far the program in a file is from `student` on `images`, (n, channels, height, width).

    Raises ExportError where torch can't load it, ParityError where it computes something else.
    """
    try:
        module = torch.export.load(str(path)).module()
    except Exception as error:
        raise ExportError(f"torch can't load '{path}': {error}") from error
    difference = compare(*(_outputs(model, images) for model in (student, module)))
    if not difference.passed:
        raise ParityError(
            f"'{path}' does not compute what the student does: its output has an SQNR of "
            f"{difference.sqnr_db:.1f} dB"
        )
    return difference


def _outputs(model: Callable[[Tensor], object], images: Tensor) -> list[np.ndarray]:
    parts = [[value.numpy() for value in flatten(model(x))] for x in images.split(BATCH)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _require_no_custom_ops(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        namespace = getattr(node.target, "namespace", "aten")
        if node.op == "call_function" and namespace == "fxquant":
            raise ExportError(f"operator {node.target} of '{node.name}' needs fxquant to run")


_DECOMPOSITIONS = {DEQUANTIZE: dequantize, QUANTIZE_DEQUANTIZE: quantize_dequantize}
