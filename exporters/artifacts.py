"""Everything that a finished run leaves in its folder: the ONNX file, the student, the reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save

from fxquant import __version__
from fxquant.exporters.files import RUNTIME, Form, Origin, write_onnx, write_pt2
from fxquant.exporters.runtime import make_session
from fxquant.files import staged, write_text
from fxquant.pipeline import Result
from fxquant.report.evaluate import EvaluationData, accuracies
from fxquant.report.facts import build_report
from fxquant.report.html import render
from fxquant.restore import images_to_keep
from fxquant.run_folder import (
    IMAGES,
    MODEL,
    PAGE,
    PROGRAM,
    RECIPE,
    REPORT,
    STUDENT,
    TIMING,
    model_hash,
)
from fxquant.settings import to_toml

# What recipe.toml says of the model.
_FACTS = ("name", "source", "sha256", "arch")


def export(
    result: Result,
    folder: str | Path,
    *,
    model: dict[str, Any] | None = None,
    evaluation: EvaluationData | None = None,
    form: Form = RUNTIME,
    program: bool = False,
) -> dict[str, Any]:
    """Write model.onnx, student.safetensors, timing.json, report.html, report.json; the report.

    `model` adds facts about the model (name, source, sha256) to report and metadata. The ONNX
    file has the layout of `form`; it is run in ONNX Runtime and compared with the student: the
    outcome is in `report["parity"]`, also where it failed. With `program` the student is written
    as model.pt2 as well. With `evaluation` the accuracy of teacher, student and ONNX file is
    measured. The files appear together once all are done, report.json last. Raises ExportError,
    OutputError, DataError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"name": "model", "source": None, "sha256": None, **(model or {})}
    recipe = _recipe(result, facts)
    if not (folder / RECIPE).exists():
        write_text(folder / RECIPE, recipe)
    with staged(folder, last=REPORT) as place:
        report = build_report(result)
        report["model"] |= facts
        report["machine"]["onnxruntime"] = onnxruntime.__version__
        origin = Origin(result.settings, report["model"], model_hash(result.teacher))
        parity = write_onnx(result.student, place / MODEL, result.images, origin, form)
        if program:
            write_pt2(result.student, place / PROGRAM, result.images, origin)
        report["parity"] = parity.to_dict()
        report["size"]["onnx_bytes"] = parity.file_bytes
        report["accuracy"] = _accuracy(result, place / MODEL, evaluation) if evaluation else None
        _write_state(result, place)
        if result.widths is not None:  # what was chosen belongs to it
            write_text(place / RECIPE, recipe)
        write_text(place / PAGE, render(report, result.images))
        write_text(place / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def _recipe(result: Result, facts: dict[str, Any]) -> str:
    """The content of recipe.toml."""
    known = {key: value for key, value in facts.items() if key in _FACTS and value}
    return to_toml({"fxquant": __version__, "model": known, **result.settings.to_dict()})


def _write_state(result: Result, folder: Path) -> None:
    """Write the student, the images that it is compared on, and how long the run took."""
    # Copies, as layers that share a weight would not be told apart from parts of one tensor.
    tensors = {k: v.detach().clone().contiguous() for k, v in _tensors(result).items()}
    for name, values in (
        (STUDENT, tensors),
        (IMAGES, {"images": images_to_keep(result.images)}),
    ):
        # As bytes: safetensors hides what the operating system says when it writes a file itself.
        (folder / name).write_bytes(save(values))
    # Times apart from all else, so that the same run leaves the same bytes.
    write_text(folder / TIMING, json.dumps({"seconds": result.seconds}, indent=1) + "\n")


def _tensors(result: Result) -> dict[str, torch.Tensor]:
    """The student's state without the flags that say whether a quantizer is enabled."""
    return {
        name: value
        for name, value in result.student.state_dict().items()
        if not name.endswith("_extra_state")
    }


def _accuracy(result: Result, path: Path, evaluation: EvaluationData) -> dict[str, Any]:
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

    models = {"teacher": teacher, "student": student, "onnx": onnx_model}
    measured, count = accuracies(models, evaluation)
    return {**measured, "images": count, "data": evaluation.path.name}
