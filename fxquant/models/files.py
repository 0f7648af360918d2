"""What kind of file the user gave, told by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fxquant.errors import ModelLoadError
from fxquant.models.archives import open_archive
from fxquant.models.pickles import read_legacy_pickle, read_pickle
from fxquant.models.wording import did_you_mean, reason_of

_EXPECTED = (
    "expected a .pt or .pth file of torch.save, or a .safetensors state dict, or one of "
    "torchvision:NAME, pytorchcv:NAME, timm:NAME, package.module:callable"
)
_ZIP = b"PK\x03\x04"
# pickle protocol 2 and the magic number that opens a file of torch.save before 1.6
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
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


def read_model_file(path: Path, trust_classes: Sequence[str] = ()) -> object:
    """Read a module, a state dict or whatever else a model file holds, with tensors on the CPU.

    Raises UntrustedClassError and ModelLoadError.
    """
    head = _read_head(path)
    if head.startswith(_ZIP):
        with path.open("rb") as file:
            archive = open_archive(file, path, _EXPECTED)
        return read_pickle(path, archive, trust_classes)
    if head.startswith(_LEGACY_TORCH):
        return read_legacy_pickle(path)
    if path.suffix == ".safetensors" or _is_safetensors(head):
        return _read_safetensors(path)
    raise _not_a_model(path, head)


def is_file(path: Path) -> bool:
    """Whether something is at the path; False for what can't be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelLoadError(f"'{path}' is a directory; expected a model file")
        if not path.exists():
            siblings = path.parent.iterdir() if path.parent.is_dir() else ()
            close = did_you_mean(path.name, (sibling.name for sibling in siblings))
            raise ModelLoadError(f"there is no file '{path}'", close or _EXPECTED)
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"'{path}' can't be opened: {reason_of(error)}") from error
    if not head:
        raise ModelLoadError(f"'{path}' is empty", "the copy or download may have failed")
    return head


def _is_safetensors(head: bytes) -> bool:
    """Whether it starts like safetensors: the length of a header of sane size, and its '{'."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except Exception as error:
        raise ModelLoadError(
            f"'{path}' can't be read as safetensors: {reason_of(error)}",
            "the file may be truncated or damaged: compare its size with the original's",
        ) from error


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
        hint or _EXPECTED,
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
