"""Writing ONNX files so that a reader never sees half of one, and marking them afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx

from fxquant.errors import ExportError


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a file beside `path`, then rename it; an ExportError leaves no trace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"'{path}' can't be written: {error.strerror or error}") from error


def mark(path: Path, entries: Mapping[str, str]) -> None:
    """Set entries of an ONNX file's `metadata_props`, keeping the others."""
    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **entries})
    write_atomically(path, model.SerializeToString(deterministic=True))
