"""Another file of a run that has finished."""

from __future__ import annotations

from pathlib import Path

from fxquant.errors import OutputError
from fxquant.exporters.files import RUNTIME, Form, write_onnx
from fxquant.exporters.parity import Parity
from fxquant.restore import Restored
from fxquant.run_folder import MODEL, model_hash


def export_again(run: Restored, path: str | Path, form: Form = RUNTIME) -> Parity:
    """Write the student of a finished run as ONNX to `path`; how close the file is to it.

    Raises OutputError where there is no such folder, ExportError where it can't be written so.
    """
    path = _writable(Path(path))
    teacher_hash = run.model.get("sha256") or model_hash(run.prepared.teacher)
    return write_onnx(
        run.student,
        path,
        run.settings,
        run.images,
        form=form,
        model=run.model,
        teacher_hash=teacher_hash,
    )


def _writable(path: Path) -> Path:
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder '{path.parent}' to write {path.name} to")
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder; expected a file", f"--output {path / MODEL}")
    return path
