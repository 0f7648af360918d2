"""Files of named tensors in the safetensors format, of which nothing is believed unchecked.

A file is opened once, and what is checked is what is read; the library for the format opens paths
only. Each tensor has as many bytes in the file as its shape says, so that none is larger than that.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fxquant.files import open_regular
from fxquant.json_files import parse_json
from fxquant.schema import table, text, whole

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
# Python takes up to forty bytes for one of JSON; a ResNet-152 has a header of 100 kB.
MOST_HEADER = 1 << 23
MOST_DIMENSIONS = 64
_PIECE = 1 << 26


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, on the CPU; raises OSError, and ValueError for a bad file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _read_header(file, size)
        metadata = header.pop(_METADATA, {})
        _require_texts(metadata)
        places = _check_places(header, size - start)
        file.seek(start)
        return {name: _read(file, name, *places[name]) for name in places}, metadata


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors one after another, so that no second copy of them is in memory."""
    header: dict[str, Any] = {_METADATA: metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for tensor in tensors.values():
            file.write(bytes_of(tensor.detach().cpu()))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header's table, and where the tensors begin."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, MOST_HEADER):
        raise ValueError("its header is cut off or too large")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, 8 + length


def _require_texts(metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise ValueError("its metadata is no table of texts")


def _a_list(value: Any, where: str) -> None:
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        raise ValueError(f"{where} is no list of sizes")
    for item in value:
        whole(item, where)


_ENTRY = table({"dtype": text, "shape": _a_list, "data_offsets": _a_list})


def _check_places(header: dict[str, Any], size: int) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Kind and shape of each tensor in the order of the file, which they fill without a gap."""
    for name, entry in header.items():
        _ENTRY(entry, repr(name[:40]))
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name[:40]!r} is of the kind {entry['dtype'][:20]!r}")
    places, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        length = dtype.itemsize
        for side in shape:
            length *= side
        if entry["data_offsets"] != [end, end + length]:
            raise ValueError(f"{name[:40]!r} is not where, or not as large as, it claims")
        places[name], end = (dtype, shape), end + length
    if end != size:
        raise ValueError("its tensors are not as large as the file")
    return places


def _read(file: BinaryIO, name: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    memory = bytes_of(tensor)
    for start in range(0, len(memory), _PIECE):
        piece = memory[start : start + _PIECE]
        if file.readinto(piece) != len(piece):
            raise ValueError(f"{name[:40]!r} is cut off")
    if dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
        raise ValueError(f"{name[:40]!r} is neither true nor false")
    return tensor
