"""Everything that a finished run leaves in its folder: the ONNX file, the student, the reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file

from fxquant import __version__
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import make_session
from fxquant.files import write_atomic, write_text
from fxquant.pipeline import Result
from fxquant.report.evaluate import EvaluationData, accuracy
from fxquant.report.facts import build_report
from fxquant.report.html import render
from fxquant.run_folder import MODEL, PAGE, RECIPE, REPORT, STUDENT, model_hash
from fxquant.settings import to_toml


def export(
    result: Result,
    folder: str | Path,
    *,
    model: dict[str, Any] | None = None,
    evaluation: EvaluationData | None = None,
) -> dict[str, Any]:
    """Write model.onnx, student.safetensors, report.json and report.html; the report.

    `model` adds facts about the model (name, source, sha256) to report and metadata. The ONNX
    file is run in ONNX Runtime and compared with the student: the outcome is in
    `report["parity"]`, also where it failed. With `evaluation` the accuracy of teacher, student
    and ONNX file is measured. report.json is written last. Raises ExportError, OutputError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = build_report(result)
    report["model"] |= {"name": "model", "source": None, "sha256": None, **(model or {})}
    report["machine"]["onnxruntime"] = onnxruntime.__version__
    path = folder / MODEL
    export_onnx(
        result.student,
        path,
        input_shape=result.settings.input_shape,
        metadata=_metadata(result, report),
    )
    parity = check_parity(result.student, path, result.images)
    report["parity"] = parity.to_dict()
    report["size"]["onnx_bytes"] = path.stat().st_size
    report["accuracy"] = _accuracy(result, path, evaluation) if evaluation else None
    # Copies, as layers that share a weight would not be told apart from parts of one tensor.
    tensors = {k: v.detach().clone().contiguous() for k, v in _tensors(result).items()}
    write_atomic(folder / STUDENT, lambda file: save_file(tensors, file))
    if not (folder / RECIPE).exists():
        settings = {"fxquant": __version__, **result.settings.to_dict()}
        write_text(folder / RECIPE, to_toml(settings))
    write_text(folder / PAGE, render(report, result.images))
    write_text(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def _metadata(result: Result, report: dict[str, Any]) -> dict[str, str]:
    settings = result.settings
    return {
        "fxquant.version": __version__,
        "fxquant.model": str(report["model"]["name"]),
        "fxquant.teacher_sha256": model_hash(result.teacher),
        "fxquant.recipe": settings.recipe.name,
        "fxquant.settings": json.dumps(settings.to_dict(), sort_keys=True),
    }


def _tensors(result: Result) -> dict[str, torch.Tensor]:
    """The student's state without the flags that say whether a quantizer is enabled."""
    return {
        name: value
        for name, value in result.student.state_dict().items()
        if not name.endswith("_extra_state")
    }


def _accuracy(result: Result, path: Path, evaluation: EvaluationData) -> dict[str, Any]:
    images, labels = evaluation.load()
    session = make_session(path)

    def onnx_model(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {"input": batch})[0]

    # In double precision the student's sums are exact, as those of the integer kernels are.
    exact = copy.deepcopy(result.student).double()

    def teacher(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return result.teacher(torch.from_numpy(batch)).numpy()

    def student(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return exact(torch.from_numpy(batch).double()).numpy()

    return {
        "teacher": accuracy(teacher, images, labels),
        "student": accuracy(student, images, labels),
        "onnx": accuracy(onnx_model, images, labels),
        "images": len(images),
        "data": evaluation.path.name,
    }
