"""Tensors of a file: described and checked as records, then made from bytes of checked size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fxquant.models.records import (
    Call,
    Global,
    MalformedError,
    OddError,
    Storage,
    describe,
    function_of,
    pairs_of,
)

# What tensors that share their bytes may add up to beyond those bytes.
MOST_SHARED = 1 << 26
MOST_DIMENSIONS = 16
_PLAIN_VALUES = (bool, int, float, str)

DTYPES: Mapping[str, torch.dtype] = {
    str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)
}
_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}
_QUANTIZED = frozenset(
    f"torch.{kind}Storage" for kind in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")
)
STORAGE_KINDS = _QUANTIZED | _STORAGE_DTYPES.keys()
# Those of tensors; the others are quantized, or parts of bytes.
_NEW_DTYPES = {n for n in DTYPES if n.startswith("torch.float8_")} | {
    *("torch.uint16", "torch.uint32", "torch.uint64"),
}

_V3 = "torch._utils._rebuild_tensor_v3"
_PLAIN = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", _V3})
_PARAMETERS = frozenset(
    {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
)
_OF_A_TYPE = "torch._tensor._rebuild_from_type_v2"
TENSOR_TYPES = ("torch._tensor.Tensor", "torch.Tensor", "torch.nn.parameter.Parameter")
TENSOR_CALLS = _PLAIN | _PARAMETERS | {_OF_A_TYPE}

# What files hold of tensors that are not read, in words.
UNREAD_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data, on the meta device,",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device's own format",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of a device's own format",
    "torch._utils._rebuild_xla_tensor": "a tensor of another device's own format",
    "torch.nn.parameter.UninitializedParameter": "a lazy parameter, whose shape is not known yet,",
    "torch.nn.parameter.UninitializedBuffer": "a lazy buffer, whose shape is not known yet,",
}


class StorageSource(Protocol):
    """Where the bytes of storages are: in the one opened file."""

    def size(self, storage: Storage) -> int | None:
        """The bytes that the file has for a storage, None where it has none."""

    def read_into(self, storage: Storage, target: memoryview) -> None:
        """Fill `target` with the whole storage; raises MalformedError for damage."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor: which items of a storage it is made of, in what shape.

    `parameter` is whether it is a parameter, `trained` whether it asks for gradients.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    trained: bool
    parameter: bool

    @property
    def numel(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def storage_dtype(kind: str) -> torch.dtype:
    """The type of a storage's items; raises MalformedError for kinds that are not read."""
    if kind in _QUANTIZED:
        raise OddError("it holds a quantized tensor, which can't be read")
    if kind not in _STORAGE_DTYPES:
        raise MalformedError(f"it has a storage of kind {kind!a}")
    return _STORAGE_DTYPES[kind]


def storage_bytes(storage: Storage) -> int:
    """The bytes that a whole storage should have in the file."""
    return storage.whole * storage_dtype(storage.kind).itemsize


def describe_tensor(call: Call) -> TensorRecord:
    """The tensor that a call of torch's rebuild functions means.

    Raises MalformedError and OddError. Calls are inside each other in two ways at most: a
    parameter made of a tensor, and either of them with attributes, which are left out.
    """
    function, args = function_of(call), call.args
    if call.pairs or call.state is not None:
        raise OddError("it gives attributes to a tensor")
    if function == _OF_A_TYPE:
        return _of_a_type(args)
    if function in _PARAMETERS:
        return _parameter(args, with_state=function.endswith("_with_state"))
    if function not in _PLAIN:
        raise MalformedError(f"it has {describe(call)} where a tensor belongs")
    return _plain(function, args)


def _of_a_type(args: tuple) -> TensorRecord:
    """A tensor with attributes, as torch writes it since 1.13: the attributes must be plain."""
    if len(args) != 4 or not isinstance(args[0], Global) or not isinstance(args[2], tuple):
        raise MalformedError("it has a tensor with attributes that makes no sense")
    function, kind, inner, state = args
    _require_plain(state)
    if function.dotted not in _PLAIN | _PARAMETERS:
        raise OddError(f"it would call {describe(function)} to make a tensor")
    if not isinstance(kind, Global) or kind.dotted not in TENSOR_TYPES:
        raise OddError(f"it has a tensor of the class {describe(kind)}")
    return describe_tensor(Call(function, inner))


def _parameter(args: tuple, *, with_state: bool) -> TensorRecord:
    if len(args) != 3 + with_state or type(args[1]) is not bool:
        raise MalformedError("it has a parameter that makes no sense")
    function = function_of(args[0])
    if function == _OF_A_TYPE and args[0].args and isinstance(args[0].args[0], Global):
        function = args[0].args[0].dotted
    if function not in _PLAIN:
        raise MalformedError(f"it has a parameter made of {describe(args[0])}")
    data = describe_tensor(args[0])
    _require_no_hooks(args[2])
    _require_plain(*args[3:])
    return TensorRecord(
        data.storage, data.dtype, data.offset, data.shape, data.stride, args[1], True
    )


def _plain(function: str, args: tuple) -> TensorRecord:
    least = {"torch._utils._rebuild_tensor": 4, _V3: 7}.get(function, 6)
    if not least <= len(args) <= least + (least > 4):
        raise MalformedError("it has a tensor that makes no sense")
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        raise MalformedError(f"it has a tensor made of {describe(storage)}")
    dtype = storage_dtype(storage.kind)
    trained = False
    if least > 4:
        trained = args[4]
        _require_no_hooks(args[5])
        dtype = _dtype(args[6]) if function == _V3 else dtype
        _require_no_metadata(args[least:])
    found = TensorRecord(
        storage, dtype, _whole(offset), _sides(shape), _sides(stride), trained is True, False
    )
    _require_inside(found)
    return found


def _require_inside(tensor: TensorRecord) -> None:
    """Raise MalformedError where a tensor has items beyond its storage."""
    if len(tensor.shape) != len(tensor.stride) or len(tensor.shape) > MOST_DIMENSIONS:
        raise MalformedError("it has a tensor whose shape and strides don't match")
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.offset + sum((side - 1) * step for side, step in steps)
    items = storage_dtype(tensor.storage.kind).itemsize * tensor.storage.count
    items //= tensor.dtype.itemsize
    if tensor.numel and last >= items:
        raise MalformedError(
            f"it has a tensor of shape {list(tensor.shape)} that reaches behind its storage of "
            f"{items:,} items"
        )


def _require_no_hooks(hooks: object) -> None:
    if hooks is not None and pairs_of(hooks) != []:
        raise OddError("it has a tensor with hooks, which are run")


def _require_plain(*states: object) -> None:
    """Raise OddError for attributes of a tensor that mean anything; plain ones are left out."""
    for state in states:
        for part in state if isinstance(state, tuple) else (state,):
            values = [value for _, value in pairs_of(part) or ()]
            if not all(value is None or type(value) in _PLAIN_VALUES for value in values) or (
                part is not None and pairs_of(part) is None
            ):
                raise OddError("it has a tensor with attributes that are not plain")


def _require_no_metadata(metadata: tuple) -> None:
    for value in metadata:
        if value is not None and pairs_of(value) != []:
            raise OddError("it has a tensor that is a conjugate or negative view")


def _dtype(record: object) -> torch.dtype:
    name = record.dotted if isinstance(record, Global) else ""
    if name not in _NEW_DTYPES and DTYPES.get(name) not in _STORAGE_DTYPES.values():
        raise MalformedError(f"it has a tensor of type {describe(record)}")
    return DTYPES[name]


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise MalformedError(f"it has a tensor with {ascii(value)[:40]} for a size or a stride")
    return value


def _sides(record: object) -> tuple[int, ...]:
    if isinstance(record, Call) and function_of(record) == "torch.Size" and len(record.args) == 1:
        record = record.args[0]
    if not isinstance(record, tuple):
        raise MalformedError(f"it has a tensor whose shape is {describe(record)}")
    return tuple(map(_whole, record))


class TensorMaker:
    """Makes tensors from the bytes of one file; tensors of one storage share their bytes."""

    def __init__(self, source: StorageSource):
        self.source = source
        self._storages: dict[str, torch.UntypedStorage] = {}

    def check(self, tensors: list[TensorRecord]) -> None:
        """Raise MalformedError unless the file has the bytes that all these claim to have."""
        sizes = {tensor.storage.key: self.source.size(tensor.storage) for tensor in tensors}
        for tensor in tensors:
            if sizes[tensor.storage.key] != storage_bytes(tensor.storage):
                raise MalformedError(
                    "a tensor's storage is missing or has another size than it claims"
                )
        there = sum(filter(None, sizes.values()))
        claimed = sum(tensor.nbytes for tensor in tensors)
        if claimed > there + MOST_SHARED:
            raise OddError(f"its tensors would take {claimed:,} bytes and are made of {there:,}")

    def make(self, record: TensorRecord) -> Tensor:
        """The tensor, and nothing with it: no attributes and no hooks."""
        start = record.storage.start * storage_dtype(record.storage.kind).itemsize
        offset = record.offset + start // record.dtype.itemsize
        tensor = torch.empty(0, dtype=record.dtype)
        tensor.set_(self._bytes_of(record.storage), offset, record.shape, record.stride)
        if not record.parameter:
            return tensor.requires_grad_(record.trained and _has_gradients(record.dtype))
        if record.trained and not _has_gradients(record.dtype):
            raise OddError(f"it has a parameter of {record.dtype} that asks for gradients")
        return nn.Parameter(tensor, requires_grad=record.trained)

    def _bytes_of(self, storage: Storage) -> torch.UntypedStorage:
        if storage.key not in self._storages:
            content = torch.empty(storage_bytes(storage), dtype=torch.uint8)
            if content.numel():
                self.source.read_into(storage, memoryview(content.numpy()))
            self._storages[storage.key] = content.untyped_storage()
        return self._storages[storage.key]


def _has_gradients(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
