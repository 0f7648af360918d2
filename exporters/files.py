"""One file of a student in a chosen format and layout, compared with it and marked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxquant import __version__
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import Parity, check_parity
from fxquant.settings import Settings


@dataclass(frozen=True)
class Form:
    """How a file is written: its layout, and its opset where that is not the oldest that fits."""

    layout: str = "runtime"
    opset: int | None = None


RUNTIME = Form()


def write_onnx(
    student: nn.Module,
    path: Path,
    settings: Settings,
    images: Tensor,
    *,
    form: Form,
    model: dict[str, Any],
    teacher_hash: str,
) -> Parity:
    """Write a calibrated student as ONNX and run the file against it on `images`.

    `model` is what is known of the model that was quantized. The file says in its metadata what
    it was made from, and whether it computes what the student does. Raises ExportError.
    """
    metadata = {
        "fxquant.version": __version__,
        "fxquant.model": str(model.get("name")),
        "fxquant.teacher_sha256": teacher_hash,
        "fxquant.recipe": settings.recipe.name,
        "fxquant.settings": json.dumps(settings.to_dict(), sort_keys=True),
    }
    export_onnx(
        student,
        path,
        input_shape=settings.input_shape,
        metadata=metadata,
        layout=form.layout,
        opset=form.opset,
    )
    return check_parity(student, path, images)
