"""What kind of file the user gave, told by its content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from fxquant.errors import ModelLoadError
from fxquant.models.archives import open_archive
from fxquant.models.legacy import MAGIC as LEGACY_MAGIC
from fxquant.models.pickles import read_legacy, read_pickle, read_tar
from fxquant.models.tars import is_tar
from fxquant.wording import reason_of

EXPECTED = (
    "expected a .pt or .pth file of torch.save, or a .safetensors state dict, or one of "
    "torchvision:NAME, pytorchcv:NAME, timm:NAME, package.module:callable"
)
MOST_HEADER = 100_000_000  # of safetensors, as they say themselves
_ZIP = b"PK\x03\x04"
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # what follows ir_version in a ModelProto

# how a file starts, what it looks like, and what to do
_LOOKS_LIKE = (
    (b"\x80", "a pickle that torch.save did not write", "load it and save it with torch.save"),
    (b"\x89HDF", "an HDF5 file", None),
    (b"\x93NUMPY", "a NumPy array", None),
    (b"\x1f\x8b", "a gzip-compressed file", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer", "get the file itself with 'git lfs pull'"),
    (b"<", "a web page or XML", "the download may have failed"),
)


def read_model_file(file: BinaryIO, path: Path, trust_classes: Sequence[str] = ()) -> object:
    """Read a module, a state dict or whatever else an open model file holds, on the CPU.

    `path` is what messages call it. Raises UntrustedClassError and ModelLoadError.
    """
    head = _read_head(file, path)
    if head.startswith(_ZIP):
        archive = open_archive(file, path, EXPECTED)
        return read_pickle(path, archive, trust_classes)
    if head.startswith(LEGACY_MAGIC):
        return read_legacy(path, file, trust_classes)
    if is_tar(head):
        return read_tar(path, file, trust_classes)
    if path.suffix == ".safetensors" or _is_safetensors(head):
        return _read_safetensors(file, path)
    raise _not_a_model(path, head)


def is_file(path: Path) -> bool:
    """Whether something is at the path; False for what can't be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _read_head(file: BinaryIO, path: Path) -> bytes:
    try:
        head = file.read(512)
    except OSError as error:
        raise ModelLoadError(f"'{path}' can't be read: {reason_of(error)}") from error
    if not head:
        raise ModelLoadError(f"'{path}' is empty", "the copy or download may have failed")
    return head


def _is_safetensors(head: bytes) -> bool:
    """Whether it starts like safetensors: the length of a header of sane size, and its '{'."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MOST_HEADER


def _read_safetensors(file: BinaryIO, path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        return load(_safetensors_content(file))
    except Exception as error:
        raise ModelLoadError(
            f"'{path}' can't be read as safetensors: {reason_of(error)}",
            "the file may be truncated or damaged: compare its size with the original's",
        ) from error


def _safetensors_content(file: BinaryIO) -> bytes:
    """All of a file if its header speaks of all of it, else as much as says what is wrong."""
    total = file.seek(0, 2)
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > min(total, MOST_HEADER):
        return start + file.read(1)
    header = file.read(length)
    try:
        tensors = [value for key, value in json.loads(header).items() if key != "__metadata__"]
        claimed = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return start + header
    if 8 + length + claimed != total:
        raise ValueError(
            f"its header speaks of {8 + length + claimed:,} bytes, and it has {total:,}"
        )
    return start + header + file.read()


def _not_a_model(path: Path, head: bytes) -> ModelLoadError:
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] and head[2:3] in _ONNX_FIELDS):
        return ModelLoadError(
            f"'{path}' is an ONNX file, which is already exported",
            "give the PyTorch network that it was made from",
        )
    known = (row[1:] for row in _LOOKS_LIKE if head.lstrip().startswith(row[0]))
    looks_like, hint = next(known, (_describe_unknown(head), None))
    return ModelLoadError(
        f"'{path}' is neither a torch nor a safetensors file; it looks like {looks_like}",
        hint or EXPECTED,
    )


def _describe_unknown(head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character is merely cut in two
            return f"binary data that starts with bytes {head[:8].hex(' ')}"
        text = head[: error.start].decode("utf-8")
    if not all(char.isprintable() or char.isspace() for char in text):
        return f"binary data that starts with bytes {head[:8].hex(' ')}"
    return f"text that starts with {text.strip()[:40]!r}"
