"""Writing models, with their weights in a file beside them where they are too large for one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from fxquant.errors import ExportError
from fxquant.files import staged, told_as

# Protobuf ends at 2 GiB; what isn't weights needs some room.
LARGEST = 2**31 - 2**24
_SMALLEST_OUTSIDE = 1024


def save_model(model: onnx.ModelProto, path: Path, check: Callable[[Path], object]) -> None:
    """Write `model` to `path`, and its weights to `path`.data where they exceed `LARGEST` bytes.

    `check` gets the path of the finished file before it is moved to its place; whatever it raises,
    nothing is left and what was there before stays. Weights that move out are taken from `model`.
    Raises OutputError where the folder can't be written.
    """
    with told_as(path), staged(path.parent, last=path.name) as place:
        _write(model, place / path.name)
        check(place / path.name)
        fits = not data_file(place / path.name).exists()
    if fits:
        data_file(path).unlink(missing_ok=True)


def data_file(path: Path) -> Path:
    """Where the weights of a model at `path` are if they don't fit into it."""
    return path.with_name(f"{path.name}.data")


def load_model_without_data(path: str | Path) -> onnx.ModelProto:
    """The model in a file; weights that lie outside stay there.

    Raises ExportError for what is no ONNX file.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ExportError(f"'{path}' can't be read as ONNX: {error}") from error


def _outside(model: onnx.ModelProto) -> set[str]:
    """The files that hold tensors of a model."""
    return {
        location
        for graph in (model.graph, *model.functions)
        for tensor in tensors_of(graph)
        if tensor.data_location == TensorProto.EXTERNAL
        and (location := outside_entries(tensor).get("location"))
    }


def outside_entries(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says of where its numbers lie outside: `location`, `offset`, `length`."""
    return {entry.key: entry.value for entry in tensor.external_data}


def tensors_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[TensorProto]:
    """All tensors of a graph or function, those in attributes and inner graphs included."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        yield from _of_sparse(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            yield from _of_sparse(sparse_of(attribute))
            for inner in (attribute.g, *attribute.graphs):
                yield from tensors_of(inner)


def sparse_of(attribute: onnx.AttributeProto) -> list[onnx.SparseTensorProto]:
    """The sparse tensors of an attribute."""
    own = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    return [*own, *attribute.sparse_tensors]


def _of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


@contextmanager
def edited_copy(model: onnx.ModelProto, path: Path) -> Iterator[Path]:
    """A file for the block, of `model`, that was read from `path` without data and then changed."""
    with tempfile.TemporaryDirectory() as folder:
        if data_file(path).exists():
            shutil.copy(data_file(path), folder)
        copy = Path(folder) / path.name
        onnx.save(model, copy)
        yield copy


def size_on_disk(path: str | Path) -> int:
    """Bytes of a model's file and of its external data, if it has any."""
    path = Path(path)
    outside = _outside(load_model_without_data(path))
    return os.path.getsize(path) + sum(os.path.getsize(path.parent / name) for name in outside)


def _write(model: onnx.ModelProto, path: Path) -> None:
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST:
        with data_file(path).open("wb") as stream:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) >= _SMALLEST_OUTSIDE:
                    _move_out(tensor, stream)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _move_out(tensor: TensorProto, stream) -> None:
    where = {
        "location": Path(stream.name).name,
        "offset": stream.tell(),
        "length": len(tensor.raw_data),
    }
    stream.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
