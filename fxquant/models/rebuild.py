"""Values out of records, made by functions of this package alone.

What a file says is looked up in the tables here, and means what is written here: no function,
class or method that a file names is called. Classes are given instances without a call.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxquant.models.interpreter import Pickle
from fxquant.models.layers import ENUMS, FUNCTIONS, Classes, find_in_package
from fxquant.models.modules import FORGOTTEN, RECURRENT
from fxquant.models.old_layers import missing_attributes
from fxquant.models.order import in_order
from fxquant.models.places import check_key
from fxquant.models.records import (
    ORDERED_DICT,
    Call,
    DictRecord,
    Global,
    Instance,
    ListRecord,
    MalformedError,
    OddError,
    describe,
    function_of,
    pairs_of,
)
from fxquant.models.states import DEFAULT_DICT, PARTIAL, check_content
from fxquant.models.tensors import (
    DTYPES,
    STORAGE_KINDS,
    TENSOR_CALLS,
    TENSOR_TYPES,
    UNREAD_TENSORS,
    StorageSource,
    TensorMaker,
)
from fxquant.wording import first_few

MOST_RANGE = 1 << 24


def rebuild(pickle: Pickle, source: StorageSource, path: Path, trusted: Sequence[str]) -> object:
    """What a pickle of the file at `path` means, its tensors made of the bytes in `source`.

    Raises UntrustedClassError for names of other classes than layers and `trusted` ones,
    MalformedError and OddError for all else that no network's file holds.
    """
    classes = Classes(path, trusted)
    classes.check_names(pickle.names, _KNOWN)
    _check_calls(pickle, classes)
    order = in_order(pickle.value)
    content = check_content(pickle.value, classes)
    builder = _Builder(classes, TensorMaker(source))
    builder.tensors.check(list(content.tensors.values()))
    for record in order:
        if id(record) in content.needed:
            made = content.tensors.get(id(record))
            builder.values[id(record)] = (
                builder.build(record) if made is None else builder.tensors.make(made)
            )
    return builder.value(pickle.value)


def _check_calls(pickle: Pickle, classes: Classes) -> None:
    names = {found.dotted for found in pickle.called}
    unread = sorted(names & UNREAD_TENSORS.keys())
    if unread:
        raise OddError(f"it holds {UNREAD_TENSORS[unread[0]]} which can't be read")
    odd = names - _MAKERS.keys() - TENSOR_CALLS - ENUMS - {PARTIAL} - classes.trusted
    if odd:
        raise OddError(
            f"it would call {first_few(sorted(ascii(name)[1:-1] for name in odd))} while it is "
            "read, which no network does that torch.save wrote"
        )


class _Builder:
    """Builds one record after the other, parts first."""

    def __init__(self, classes: Classes, tensors: TensorMaker):
        self.classes, self.tensors = classes, tensors
        self.values: dict[int, object] = {}

    def value(self, record: object) -> Any:
        """The value of a record that was built before, or that needs no building."""
        if isinstance(record, tuple | ListRecord | DictRecord | Call | Instance):
            return self.values[id(record)]
        return self._named(record) if isinstance(record, Global) else record

    def build(self, record: object) -> object:
        if isinstance(record, tuple):
            return tuple(map(self.value, record))
        if isinstance(record, ListRecord):
            return list(map(self.value, record.items))
        if isinstance(record, DictRecord):
            return dict(self._pairs(record.pairs))
        if isinstance(record, Instance):
            return self._instance(record)
        return self._call(record)

    def _pairs(self, pairs: list[tuple[object, object]]) -> list[tuple[Any, Any]]:
        return [(_key(key), self.value(value)) for key, value in pairs]

    def _named(self, named: Global) -> object:
        if named.dotted in DTYPES:
            return DTYPES[named.dotted]
        if named.dotted in FUNCTIONS:
            return find_in_package(self.classes.path, named)
        return self.classes.find(named)

    def _instance(self, record: Instance) -> object:
        """An object without a call of its class, with the state that was checked."""
        kind = self.classes.find(record.kind)
        try:
            made = object.__new__(kind)
            attributes = made.__dict__
        except (TypeError, AttributeError) as error:
            raise OddError(f"no bare {describe(record.kind)} can be made") from error
        is_module = isinstance(made, nn.Module)
        recurrent = is_module and issubclass(kind, nn.modules.rnn.RNNBase)
        for key, value in record.state.pairs:
            dropped = key == FORGOTTEN or "_hooks" in key or (recurrent and key in RECURRENT)
            if not (is_module and dropped):
                attributes[key] = self.value(value)
        if is_module:
            attributes.update(list(missing_attributes(kind, attributes)))
        return made

    def _call(self, record: Call) -> object:
        name = function_of(record)
        if name in ENUMS or name in self.classes.trusted:
            return self._enum(record)
        if name == PARTIAL:
            settings = dict(self._pairs(pairs_of(record.state[2])))
            return functools.partial(self.classes.find(record.args[0]), **settings)
        if name == ORDERED_DICT:
            return self._ordered(record)
        if name == DEFAULT_DICT:
            return dict(self._pairs(record.pairs))
        if record.pairs or record.state is not None:
            raise OddError(f"it gives attributes to {describe(record)}")
        if name not in _MAKERS:
            raise OddError(f"it would call {describe(record.function)} while it is read")
        try:
            return _MAKERS[name](*map(self.value, record.args))
        except (TypeError, ValueError, RuntimeError) as error:
            raise MalformedError(f"it has {describe(record)} for odd arguments") from error

    def _ordered(self, record: Call) -> OrderedDict:
        pairs = pairs_of(record)
        if pairs is None:
            raise OddError("it has an OrderedDict of something else than pairs")
        made = OrderedDict(self._pairs(pairs))
        state = self.value(record.state)
        if state is not None:
            metadata = state.get("_metadata") if isinstance(state, dict) else None
            if not isinstance(metadata, dict) or len(state) > 1:
                raise OddError("it has an OrderedDict with attributes")
            made._metadata = metadata
        return made

    def _enum(self, record: Call) -> object:
        """The member of an enumeration that has a value; nothing is called to find it."""
        kind = self.classes.find(record.function)
        plain = len(record.args) == 1 and type(record.args[0]) in (str, int)
        if issubclass(kind, Enum) and plain and not record.pairs and record.state is None:
            for member in kind.__members__.values():
                if type(member._value_) is type(record.args[0]) and (
                    member._value_ == record.args[0]
                ):
                    return member
        raise OddError(
            f"it would call {describe(record.function)} while it is read; of a trusted class only "
            "instances without a call are made, and members of enumerations by their value"
        )


def _key(key: object) -> object:
    check_key(key)
    return key


def _set_of(items: list) -> set:
    if not isinstance(items, list):
        raise TypeError
    return {_key(item) for item in items}


def _counter(counts: dict) -> Counter:
    if not isinstance(counts, dict):
        raise TypeError
    made = Counter()
    dict.update(made, counts)
    return made


def _bytes(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise OddError("it encodes text in another way than pickles do")
    return text.encode("latin1")


def _size(sides: tuple) -> torch.Size:
    if not isinstance(sides, tuple) or any(type(side) is not int for side in sides):
        raise TypeError
    return torch.Size(sides)


def _device(kind: str, index: int = 0) -> torch.device:
    if not re.fullmatch(r"[a-z]{1,20}", kind) or not (type(index) is int and 0 <= index < 128):
        raise ValueError
    return torch.device(kind, index) if index or kind != "cpu" else torch.device(kind)


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise OddError("it names a layout of sparse tensors, which can't be read")
    return torch.strided


def _range(*ends: int) -> range:
    if not all(type(end) is int and abs(end) <= MOST_RANGE for end in ends):
        raise ValueError
    return range(*ends)


def _slice(*ends: int | None) -> slice:
    if not all(end is None or type(end) is int for end in ends):
        raise ValueError
    return slice(*ends)


def _complex(real: float, imaginary: float) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError
    return complex(real, imaginary)


# What files may call, and what that means here.
_MAKERS: dict[str, Callable[..., object]] = {
    "_codecs.encode": _bytes,
    "builtins.complex": _complex,
    "builtins.frozenset": lambda items: frozenset(_set_of(items)),
    "builtins.range": _range,
    "builtins.set": _set_of,
    "builtins.slice": _slice,
    "builtins.xrange": _range,
    "collections.Counter": _counter,
    DEFAULT_DICT: dict,
    ORDERED_DICT: OrderedDict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,
    "torch.serialization._get_layout": _layout,
}
_FACTORIES = {f"builtins.{kind}" for kind in ("dict", "float", "int", "list")}
# What quantized tensors name beside the function that they are refused for.
_SCHEMES = {str(value) for value in vars(torch).values() if isinstance(value, torch.qscheme)}
_KNOWN = frozenset(
    {*_MAKERS, *_FACTORIES, *TENSOR_CALLS, *TENSOR_TYPES, *UNREAD_TENSORS, *STORAGE_KINDS}
    | {*DTYPES, *FUNCTIONS, *ENUMS, *_SCHEMES, PARTIAL}
)
