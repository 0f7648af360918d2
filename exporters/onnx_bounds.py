"""What an ONNX file claims, counted before anything is made from it: nodes, sizes, tensors.

ONNX Runtime inlines functions, takes memory for declared shapes and reads the files of weights that
a model names; none of that has a bound of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from fxquant.errors import ExportError
from fxquant.exporters.external import outside_entries, sparse_of, tensors_of
from fxquant.settings import MOST_VALUES
from fxquant.wording import shown

# The largest networks of the zoos have ten thousand once they are quantized.
MOST_NODES = 50_000
# Of values between layers, as many as 5,000 images of the largest size.
MOST_INNER = 1 << 31
_BITS = {
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64), 64),
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32), 32),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16), 16),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# Numbers that one entry of such a field may stand for: two of 4 bits, four of 2.
_MOST_PACKED = 4
MOST_DIMENSIONS = 64

Key = tuple[str, str, str]


def require_bounded(model: onnx.ModelProto, name: str) -> None:
    """Raise ExportError where a model claims more than a network of its size can need."""
    nodes = count_nodes(model)
    if nodes is None:
        raise _refused(name, "has functions that call themselves")
    if nodes > MOST_NODES:
        raise _refused(name, f"has more than {MOST_NODES:,} nodes, functions counted where called")
    for value in model.graph.input:
        _require_size(_declared(value), MOST_VALUES, f"input '{shown(value.name, 80)}'", name)
    for value in (*model.graph.output, *model.graph.value_info):
        _require_size(_declared(value), MOST_INNER, f"value '{shown(value.name, 80)}'", name)
    for graph in (model.graph, *model.functions):
        for sparse in _sparse_tensors(graph):
            _require_size(sparse.dims, MOST_VALUES, "a sparse tensor", name)
        for tensor in tensors_of(graph):
            _require_whole(tensor, name)


def declared_bytes(tensor: TensorProto) -> int | None:
    """Bytes that a tensor's numbers take as its shape has it, None where its kind has no width."""
    bits = _BITS.get(tensor.data_type)
    return None if bits is None else -(-math.prod(tensor.dims) * bits // 8)


def count_nodes(model: onnx.ModelProto) -> int | None:
    """Nodes once every function stands where it is called, `MOST_NODES` + 1 for any more.

    None for functions that call themselves.
    """
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    counts: dict[Key, int] = {}
    opened: set[Key] = set()
    waiting = list(bodies)
    while waiting:  # not by recursion: a chain of calls may be as long as a file
        key = waiting[-1]
        if key in counts:
            waiting.pop()
            continue
        called = {k for k in map(_key, _nodes(bodies[key])) if k in bodies}
        missing = called - counts.keys()
        if not missing:
            counts[key] = _total(bodies[key], counts)
        elif key in opened:
            return None
        else:
            opened.add(key)
            waiting += missing
    return _total(model.graph, counts)


def _total(graph: onnx.GraphProto | onnx.FunctionProto, counts: dict[Key, int]) -> int:
    total = 0
    for node in _nodes(graph):
        total += counts.get(_key(node), 1)
        if total > MOST_NODES:
            return MOST_NODES + 1
    return total


def _key(node: onnx.NodeProto) -> Key:
    return (node.domain, node.op_type, node.overload)


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, those of inner graphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _sparse_tensors(
    graph: onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[onnx.SparseTensorProto]:
    yield from getattr(graph, "sparse_initializer", ())
    for node in _nodes(graph):
        for attribute in node.attribute:
            yield from sparse_of(attribute)


def _declared(value: onnx.ValueInfoProto) -> list[int]:
    """The sizes that are fixed."""
    return [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]


def _require_size(sizes: Iterable[int], most: int, what: str, name: str) -> None:
    sizes = list(sizes)
    _require_few(sizes, what, name)
    if any(size < 0 for size in sizes) or math.prod(sizes) > most:
        shape = shown(" x ".join(map(str, sizes)), 80)
        raise _refused(name, f"has {what} of {shape} numbers; at most {most:,} are taken")


def _require_few(sizes: Sequence[int], what: str, name: str) -> None:
    if len(sizes) > MOST_DIMENSIONS:
        raise _refused(name, f"has {what} of {len(sizes):,} dimensions")


def _require_whole(tensor: TensorProto, name: str) -> None:
    """A tensor has the numbers that its shape claims, in the file or in the one that it names."""
    what = f"tensor '{shown(tensor.name, 80)}'"
    _require_few(tensor.dims, what, name)
    count = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims):
        raise _refused(name, f"has {what} of a negative size")
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        length = declared_bytes(tensor)
        most = 8 * len(tensor.raw_data)
        whole = count <= most if length is None else length == len(tensor.raw_data)
    else:
        entries = max(len(getattr(tensor, field)) for field in _FIELDS)
        whole = count <= _MOST_PACKED * entries
    if not whole:
        raise _refused(name, f"has {what} that is not as large as it claims")


def data_ends(model: onnx.ModelProto, name: str) -> dict[str, int]:
    """For each file of weights that a model names, how many of its bytes tensors claim."""
    ends: dict[str, int] = {}
    for graph in (model.graph, *model.functions):
        for tensor in tensors_of(graph):
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = outside_entries(tensor)
                location, length = entries.get("location", ""), declared_bytes(tensor)
                given = [entries.get(key, "0") for key in ("offset", "length")]
                if length is None or not all(n.isdecimal() and len(n) < 19 for n in given):
                    raise _refused(name, "has weights at no place of a file")
                offset, claimed = map(int, given)
                if claimed not in (0, length):
                    raise _refused(name, "has weights that are not as large as they claim")
                ends[location] = max(ends.get(location, 0), offset + length)
    return ends


def _refused(name: str | Path, what: str) -> ExportError:
    return ExportError(f"'{shown(name, 200)}' {what}")
