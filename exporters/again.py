"""Another file of a run that has finished."""

from __future__ import annotations

from pathlib import Path

from fxquant.errors import OutputError
from fxquant.exporters.files import RUNTIME, Form, Origin, write_onnx, write_pt2
from fxquant.exporters.float_onnx import export_float
from fxquant.exporters.parity import Difference, Parity
from fxquant.restore import Restored
from fxquant.run_folder import MODEL, model_hash


def export_again(run: Restored, path: str | Path, form: Form = RUNTIME) -> Parity:
    """Write the student of a finished run as ONNX to `path`; how close the file is to it.

    Raises OutputError where there is no such folder, ExportError where it can't be written so.
    """
    return write_onnx(run.student, _writable(Path(path)), run.images, _origin(run), form)


def export_program_again(run: Restored, path: str | Path) -> Difference:
    """Write the student of a finished run as a torch.export program; how close that is to it.

    Raises OutputError, ExportError, and ParityError where the program computes something else.
    """
    return write_pt2(run.student, _writable(Path(path)), run.images, _origin(run))


def export_float_again(run: Restored, path: str | Path) -> Path:
    """Write the model that a finished run quantized as ONNX, in floating point; the path."""
    shape = run.settings.input_shape
    return export_float(run.prepared.teacher, _writable(Path(path)), input_shape=shape)


def _origin(run: Restored) -> Origin:
    teacher_hash = run.model.get("sha256") or model_hash(run.prepared.teacher)
    return Origin(run.settings, run.model, teacher_hash)


def _writable(path: Path) -> Path:
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder '{path.parent}' to write {path.name} to")
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder; expected a file", f"--output {path / MODEL}")
    return path
