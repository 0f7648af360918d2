"""What a pickle would do, found by reading its instructions without following them.

torch's restricted unpickler looks at what a file names. It lets a file call whatever it names,
with any arguments: a layer's constructor that allocates all memory there is, a module's forward.
So a file is first read here, where a call makes a marker and nothing else.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from fxquant.errors import ModelLoadError

# Far above what the largest networks need: a megabyte or two, a few hundred thousand steps.
MOST_BYTES = 1 << 24
MOST_STEPS = 1 << 23
MOST_OBJECTS = 1 << 20
MOST_TEXT = 1 << 20
# A tuple inside a tuple counts as often as it occurs: hashing or printing it takes that long.
MOST_VALUES = 1 << 24

# Names of Python 2, which pickles of protocol 2 use.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

_ITEM_BYTES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}


class MalformedError(ModelLoadError):
    """A pickle's instructions make no sense, or ask for more than any network would."""


@dataclass(frozen=True)
class Named:
    """A class or function by its dotted name."""

    name: str


@dataclass(frozen=True)
class Made:
    """What a call or a creation would give: the name of what is called or created."""

    name: str


@dataclass
class Pickle:
    """What the instructions of a pickle would do.

    `called`, `created` and `filled` are the names of what would be called, made without a call,
    and given a state. `storages` are the bytes that each storage of tensors should have, by key.
    `value` is the pickled value as far as it is plain: text, numbers, lists and tuples.
    """

    called: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)
    filled: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    value: object = None


def read_instructions(file: BinaryIO | bytes) -> Pickle:
    """Read one pickle, up to and with its STOP; raises MalformedError."""
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    reader = _Reader(file)
    try:
        return reader.run()
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise MalformedError(
            f"its pickle is damaged: {type(error).__name__} after {reader.steps} instructions"
        ) from error


class _Tuple(tuple):
    """A pickled tuple, which knows how many values are in it, counted as often as they occur."""

    values: int


class _Reader:
    """Follows the stack of the unpickler with markers in place of what would be made."""

    def __init__(self, file: BinaryIO):
        self.file, self.steps, self.objects = file, 0, 0
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.found = Pickle()

    def run(self) -> Pickle:
        start = self.file.tell()
        while (code := self.file.read(1)) != pickle.STOP:
            self.steps += 1
            if code not in _STEPS:
                what = f"instruction {code!r}" if code else "end"
                raise MalformedError(f"its pickle has an unexpected {what}")
            _STEPS[code](self)
            if self.steps > MOST_STEPS or self.file.tell() - start > MOST_BYTES:
                raise MalformedError(
                    f"its pickle has more than {MOST_STEPS:,} instructions or "
                    f"{MOST_BYTES >> 20} MB, which no network needs"
                )
        self.found.value = self.stack.pop()
        return self.found

    def read(self, count: int) -> bytes:
        if count > MOST_TEXT:
            raise MalformedError(f"its pickle has a text of {count:,} bytes")
        data = self.file.read(count)
        if len(data) < count:
            raise MalformedError("its pickle ends too early")
        return data

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        data = self.file.readline(MOST_TEXT)
        if not data.endswith(b"\n"):
            raise MalformedError("its pickle ends inside a name")
        return data[:-1].decode("utf-8", "replace")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def new(self, value: object = None) -> None:
        self.objects += 1
        if self.objects > MOST_OBJECTS:
            raise MalformedError(f"its pickle makes more than {MOST_OBJECTS:,} objects")
        self.push(value)

    def since_mark(self) -> list[object]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def tuple_of(self, items: list[object]) -> None:
        made = _Tuple(items)
        made.values = 1 + sum(getattr(item, "values", 1) for item in items)
        if made.values > MOST_VALUES:
            raise MalformedError(f"its pickle has a tuple of more than {MOST_VALUES:,} values")
        self.push(made)

    def tuple_of_last(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.tuple_of(items[::-1])

    def name(self) -> None:
        module, name = self.line(), self.line()
        self.push(Named(f"{_OLD_MODULES.get(module, module)}.{name}"))

    def create(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.new(Made(_name_of(kind)))
        self.found.created.add(_name_of(kind))
        if args != ():
            self.found.called.add(_name_of(kind))

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        name = _name_of(function)
        self.new(Made(name))
        self.found.called.add(name)
        if name == "torch._tensor._rebuild_from_type_v2":  # calls its own first argument
            self.found.called.add(_name_of(args[0]))
        if name == "_codecs.encode" and args[1:] != ("latin1",):  # how bytes are pickled
            raise MalformedError("its pickle encodes text in another way than pickles do")

    def fill(self) -> None:
        self.stack.pop()
        target = self.stack[-1]
        self.found.filled.add(target.name if isinstance(target, Made) else _name_of(target))

    def storage(self) -> None:
        word, kind, key, _place, *rest = self.stack.pop()
        if word == "module":  # a class in the format before 1.6
            self.found.created.add(_name_of(kind))
            self.push(kind)
            return
        count = rest[0]
        if word != "storage" or not isinstance(count, int) or count < 0:
            raise MalformedError("its pickle refers to something that is no storage of a tensor")
        if _name_of(kind) not in _ITEM_BYTES:
            raise MalformedError(f"its pickle has a storage of kind {_name_of(kind)}")
        size = count * _ITEM_BYTES[_name_of(kind)]
        if not isinstance(key, str) or self.found.storages.setdefault(key, size) != size:
            raise MalformedError(f"its pickle gives storage {key!r} two sizes or no name")
        self.push(None)

    def put(self, form: str) -> None:
        self.memo[self.number(form)] = self.stack[-1]

    def get(self, form: str) -> None:
        self.push(self.memo[self.number(form)])

    def text(self) -> None:
        self.push(self.read(self.number("<I")).decode("utf-8", "surrogatepass"))

    def short_bytes(self) -> None:
        self.push(self.read(self.number("<B")))

    def long(self) -> None:
        self.push(pickle.decode_long(self.read(self.number("<B"))))

    def append(self, items: list[object]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1] += items

    def set_items(self, items: list[object]) -> None:
        self.stack[-1]  # there must be something to take them


def _name_of(value: object) -> str:
    if isinstance(value, Named):
        return value.name
    if isinstance(value, Made):
        return f"an instance of {value.name}"
    return f"a {type(value).__name__.strip('_').lower()}"


_Step = Callable[[_Reader], object]
_STEPS: dict[bytes, _Step] = {
    pickle.PROTO: lambda r: r.read(1),
    pickle.GLOBAL: _Reader.name,
    pickle.NEWOBJ: _Reader.create,
    pickle.REDUCE: _Reader.call,
    pickle.BUILD: _Reader.fill,
    pickle.BINPERSID: _Reader.storage,
    pickle.MARK: _Reader.mark,
    pickle.APPEND: lambda r: r.append([r.stack.pop()]),
    pickle.APPENDS: lambda r: r.append(r.since_mark()),
    pickle.SETITEM: lambda r: r.set_items([r.stack.pop(), r.stack.pop()]),
    pickle.SETITEMS: lambda r: r.set_items(r.since_mark()),
    pickle.TUPLE: lambda r: r.tuple_of(r.since_mark()),
    pickle.EMPTY_TUPLE: lambda r: r.tuple_of([]),
    pickle.TUPLE1: lambda r: r.tuple_of_last(1),
    pickle.TUPLE2: lambda r: r.tuple_of_last(2),
    pickle.TUPLE3: lambda r: r.tuple_of_last(3),
    pickle.EMPTY_LIST: lambda r: r.new([]),
    pickle.EMPTY_DICT: _Reader.new,
    pickle.EMPTY_SET: _Reader.new,
    pickle.NONE: lambda r: r.push(None),
    pickle.NEWTRUE: lambda r: r.push(True),
    pickle.NEWFALSE: lambda r: r.push(False),
    pickle.BININT: lambda r: r.push(r.number("<i")),
    pickle.BININT1: lambda r: r.push(r.number("<B")),
    pickle.BININT2: lambda r: r.push(r.number("<H")),
    pickle.BINFLOAT: lambda r: r.push(r.number(">d")),
    pickle.LONG1: _Reader.long,
    pickle.BINUNICODE: _Reader.text,
    pickle.SHORT_BINSTRING: _Reader.short_bytes,
    pickle.BINPUT: lambda r: r.put("<B"),
    pickle.LONG_BINPUT: lambda r: r.put("<I"),
    pickle.BINGET: lambda r: r.get("<B"),
    pickle.LONG_BINGET: lambda r: r.get("<I"),
}
