"""Entries of an ONNX file's metadata that are written after the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from fxquant.exporters.external import load_model_without_data
from fxquant.files import write_atomic


def mark(path: Path, entries: Mapping[str, str]) -> None:
    """Set entries of the file's `metadata_props`, keeping the others."""
    model = load_model_without_data(path)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **entries})
    content = model.SerializeToString(deterministic=True)
    write_atomic(path, lambda file: file.write_bytes(content))
