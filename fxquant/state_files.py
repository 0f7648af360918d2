"""Files of a state to go on from: tensors, and JSON that says how they are put together.

A state is nested dicts, lists and tuples of tensors and plain values, as `state_dict` gives them.
Reading one makes nothing else of a file, whatever it says.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxquant.json_files import parse_json
from fxquant.tensor_files import bytes_of, read_tensors, write_tensors

CHECKPOINT = "checkpoint.safetensors"
_STATE, _SUM = "fxquant.state", "fxquant.crc32"
DEEPEST = 16
MOST_STRIDE = 1 << 40
_PLAIN = (type(None), bool, int, float, str)


def write_state(state: Any, path: Path) -> None:
    """Write a state to a file; raises TypeError for what is neither plain nor a tensor."""
    writer = _Writer()
    outline = json.dumps(writer.outline(state), allow_nan=False)
    metadata = {_STATE: outline, _SUM: _checksum(outline, writer.tensors.values())}
    write_tensors(path, writer.tensors, metadata)


def read_state(path: Path) -> Any:
    """The state in a file, its tensors on the CPU; raises OSError, ValueError for a bad file."""
    tensors, metadata = read_tensors(path)
    if metadata.keys() - {_SUM} != {_STATE}:
        raise ValueError("it holds no state")
    if metadata.get(_SUM) not in (None, _checksum(metadata[_STATE], tensors.values())):
        raise ValueError("it is damaged: its checksum is another")
    reader = _Reader(tensors)
    state = reader.value(parse_json(metadata[_STATE]), DEEPEST)
    if reader.left:
        raise ValueError("it holds tensors that are no part of the state")
    return state


def _checksum(outline: str, tensors: Iterable[Tensor]) -> str:
    """Of all that a file holds, against damage: whoever writes one can write this, too."""
    total = zlib.crc32(outline.encode())
    for tensor in tensors:
        total = zlib.crc32(bytes_of(tensor.cpu()), total)
    return str(total)


class _Writer:
    """Outlines a state and gathers its tensors, each under its number."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def outline(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {"dict": [[self.outline(k), self.outline(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [self.outline(item) for item in value]}
        if isinstance(value, list):
            return [self.outline(item) for item in value]
        if type(value) not in _PLAIN:
            raise TypeError(f"a state can't hold a {type(value).__name__}")
        return value

    def _tensor(self, tensor: Tensor) -> dict[str, Any]:
        """The tensor in the order in which its numbers lie, so that it is laid out so again."""
        tensor = tensor.detach()
        order = sorted(range(tensor.dim()), key=lambda i: (-tensor.stride(i), i))
        if not tensor.permute(order).is_contiguous():
            tensor, order = tensor.contiguous(), list(range(tensor.dim()))
        name = str(len(self.tensors))
        self.tensors[name] = tensor.permute(order)
        if tensor.is_contiguous() and order == sorted(order):
            return {"tensor": name}
        return {"tensor": name, "order": order, "strides": list(tensor.stride())}


class _Reader:
    """Puts a state together again from its outline, each tensor in the one place it has."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.left = dict(tensors)

    def value(self, outline: Any, depth: int) -> Any:
        if depth == 0:
            raise ValueError("its state is nested too deep")
        if isinstance(outline, list):
            return [self.value(item, depth - 1) for item in outline]
        if not isinstance(outline, dict):
            return outline
        kinds = {
            ("dict",): self._dict,
            ("tuple",): self._tuple,
            ("tensor",): self._tensor,
            ("order", "strides", "tensor"): self._tensor,
        }
        make = kinds.get(tuple(sorted(outline)))
        if make is None:
            raise ValueError("its state has a part of an unknown kind")
        return make(outline, depth - 1)

    def _dict(self, outline: dict[str, Any], depth: int) -> dict:
        pairs = outline["dict"]
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise ValueError("its state has a table without names")
        found = {key: self.value(item, depth) for key, item in pairs}
        if len(found) < len(pairs):
            raise ValueError("its state has a name twice")
        return found

    def _tuple(self, outline: dict[str, Any], depth: int) -> tuple:
        if not isinstance(outline["tuple"], list):
            raise ValueError("its state has a tuple without values")
        return tuple(self.value(item, depth) for item in outline["tuple"])

    def _tensor(self, outline: dict[str, Any], depth: int) -> Tensor:
        name = outline["tensor"]
        if not isinstance(name, str) or name not in self.left:
            raise ValueError("its state has a tensor that the file lacks, or one twice")
        tensor = self.left.pop(name)
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise ValueError("its state has a tensor with values that are no numbers")
        return (
            _laid_out(tensor, outline["order"], outline["strides"]) if len(outline) > 1 else tensor
        )


def _laid_out(tensor: Tensor, order: Any, strides: Any) -> Tensor:
    """The axes put back where they were; strides of axes of one value are free, and matter."""
    axes = list(range(tensor.dim()))
    for numbers in (order, strides):
        if not isinstance(numbers, list) or not all(type(i) is int for i in numbers):
            raise ValueError("its state has a tensor whose axes are no numbers")
    if sorted(order) != axes or len(strides) != len(axes):
        raise ValueError("its state has a tensor whose axes are in no order")
    tensor = tensor.permute([order.index(i) for i in axes])
    sides = zip(tensor.shape, tensor.stride(), strides, strict=True)
    fits = (0 <= new <= MOST_STRIDE and (new == old or side <= 1) for side, old, new in sides)
    if not all(fits):
        raise ValueError("its state has a tensor that doesn't lie as it claims")
    return tensor.as_strided(tensor.shape, strides)


def _is_pair(pair: Any) -> bool:
    """Whether it is a name, or the number of a parameter, and a value."""
    return isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int)
