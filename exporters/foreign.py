"""A model file from elsewhere, as a checked copy in a folder of its own that nobody else changes.

Each file is opened once: what is checked is what is copied, and what is copied is what is run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from fxquant.errors import ExportError
from fxquant.exporters.onnx_bounds import data_ends, require_bounded
from fxquant.files import open_regular, read_within
from fxquant.wording import shown

MOST_BYTES = 2**31 - 1  # protobuf's own limit
_PLAIN = "model.onnx"
_PIECE = 1 << 24


def open_model(path: str | Path) -> BinaryIO:
    """Open a model's file; raises ExportError where it is no regular file, or too large for one."""
    try:
        file = open_regular(path)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"'{shown(path, 200)}' can't be opened: {reason}") from error
    if os.fstat(file.fileno()).st_size > MOST_BYTES:
        file.close()
        raise ExportError(f"'{shown(path, 200)}' is larger than a model's file can be, 2 GiB")
    return file


def admit(file: BinaryIO, path: Path, folder: Path) -> Path:
    """Check what `file`, opened at `path`, claims, and copy it and its weights to `folder`.

    Weights are looked for where ONNX Runtime does: beside the path as it was given. Raises
    ExportError for what is no ONNX file, what claims more than is there, and for weights in
    anything but a file in the same folder.
    """
    model = onnx.ModelProto()
    try:
        content = read_within(file, MOST_BYTES)
        model.ParseFromString(content)
    except (DecodeError, OSError, ValueError, RecursionError) as error:
        reason = shown(error, 200)
        raise ExportError(f"'{shown(path, 200)}' can't be read as ONNX: {reason}") from error
    require_bounded(model, str(path))
    ends = data_ends(model, str(path))
    copy = folder / _name(path)
    copy.write_bytes(content)
    for name, end in ends.items():
        if name == copy.name or not _copy_data(path, name, folder, end):
            raise ExportError(
                f"'{shown(path, 200)}' has weights in '{shown(name, 200)}', which is no file in "
                "its folder that has them all",
                "keep a model and the file of its weights together",
            )
    return copy


def _name(path: Path) -> str:
    """A name that onnx takes for that of an ONNX file, the same where it is one."""
    name = path.name
    return name if name.endswith(".onnx") and name.isascii() and name.isprintable() else _PLAIN


def _copy_data(path: Path, name: str, folder: Path, end: int) -> bool:
    """Copy the first bytes of a file of weights; whether it is there and has as many."""
    if not name or Path(name).name != name:
        return False
    try:
        with open_regular(path.parent / name, follow_links=False) as file:
            if os.fstat(file.fileno()).st_size < end:
                return False
            with (folder / name).open("xb") as copy:
                while end > 0 and (piece := file.read(min(end, _PIECE))):
                    copy.write(piece)
                    end -= len(piece)
    except (OSError, ValueError):
        return False
    return end == 0
