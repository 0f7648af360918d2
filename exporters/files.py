"""One file of a student in a chosen format and layout, compared with it and marked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxquant import __version__
from fxquant.exporters.detections import add_detections, retinanet_of
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import Difference, Parity, check_parity
from fxquant.exporters.pt2 import check_pt2, export_pt2
from fxquant.settings import Settings


@dataclass(frozen=True)
class Form:
    """How a file is written: its layout, and its opset where that is not the oldest that fits.

    With `nms` a RetinaNet's file gives detections in place of raw predictions. `processor` is
    that of `export_onnx`.
    """

    layout: str = "runtime"
    opset: int | None = None
    nms: bool = False
    processor: str = "any"


RUNTIME = Form()


@dataclass(frozen=True)
class Origin:
    """What a file was made from: the run's settings, the model, and its weights' SHA-256."""

    settings: Settings
    model: dict[str, Any]
    teacher_hash: str

    def to_metadata(self) -> dict[str, str]:
        """Entries of a file's metadata."""
        return {
            "fxquant.version": __version__,
            "fxquant.model": str(self.model.get("name")),
            "fxquant.teacher_sha256": self.teacher_hash,
            "fxquant.recipe": self.settings.recipe.name,
            "fxquant.settings": json.dumps(self.settings.to_dict(), sort_keys=True),
        }


def write_onnx(
    student: nn.Module, path: Path, images: Tensor, origin: Origin, form: Form = RUNTIME
) -> Parity:
    """Write a calibrated student as ONNX and run the file against it on `images`.

    The file says in its metadata what it was made from, and whether it computes what the student
    does. Raises ExportError.
    """
    if form.nms:
        retinanet_of(student)
    export_onnx(
        student,
        path,
        input_shape=origin.settings.input_shape,
        metadata=origin.to_metadata(),
        layout=form.layout,
        opset=form.opset,
        processor=form.processor,
    )
    if form.nms:
        add_detections(student, path, origin.settings.input_shape)
    return check_parity(student, path, images)


def write_pt2(student: nn.Module, path: Path, images: Tensor, origin: Origin) -> Difference:
    """Write a calibrated student as an exported program and compare the two on `images`.

    Raises ExportError, and ParityError where the program computes something else.
    """
    shape = origin.settings.input_shape
    export_pt2(student, path, input_shape=shape, metadata=origin.to_metadata())
    return check_pt2(student, path, images)
