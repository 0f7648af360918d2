"""A pickle's instructions, turned into inert records.

A pickle is a program for a stack machine, whose usual interpreters import what it names and call
what it says. This one has no way to do either: names become `Global`, calls become `Call`. It
knows the instructions of pickle protocol 2, which torch.save writes, and refuses all others.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fxquant.models.records import (
    Call,
    DictRecord,
    Global,
    Instance,
    ListRecord,
    MalformedError,
    Storage,
    describe,
)

# Far above what the largest of 330 networks needs: 0.8 MB, 335,573 instructions that make
# 140,521 objects, 42 names.
MOST_BYTES = 1 << 24
MOST_STEPS = 1 << 21
MOST_OBJECTS = 1 << 20
MOST_NAMES = 1000
MOST_TEXT = 1 << 20
MOST_NAME = 500

# Names of Python 2, which pickles of protocol 2 use.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class Pickle:
    """One pickle: the record of its value, all names in it, its storages, and where it ends."""

    value: object
    names: frozenset[Global]
    called: frozenset[Global]
    storages: dict[str, Storage]
    end: int


def read_records(
    data: bytes, start: int = 0, references: Mapping[str, object] | None = None
) -> Pickle:
    """Read the pickle that begins at `start`, up to and with its STOP; raises MalformedError.

    `references` is what the file has outside the pickle, by key, in the one format that refers
    to tensors so.
    """
    machine = _Machine(data, start, references or {})
    try:
        return machine.run()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise MalformedError(
            f"its pickle is damaged: {type(error).__name__} after {machine.steps:,} instructions"
        ) from error


class _Machine:
    """The stack machine; each of its methods is one instruction or a piece of several."""

    def __init__(self, data: bytes, start: int, references: Mapping[str, object]):
        self.data, self.start, self.at = data, start, start
        self.references = references
        self.steps = self.objects = 0
        self.stack: list[object] = []
        self.outer: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.names: dict[str, Global] = {}
        self.storages: dict[str, Storage] = {}
        self.called: set[Global] = set()

    def run(self) -> Pickle:
        data, steps = self.data, _STEPS
        while True:
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                break
            self.steps += 1
            if code not in steps:
                raise MalformedError(
                    f"its pickle has an unexpected instruction {bytes([code])!r}, which is none "
                    "of pickle protocol 2 as torch.save writes it"
                )
            steps[code](self)
            if self.steps > MOST_STEPS or self.at - self.start > MOST_BYTES:
                raise MalformedError(
                    f"its pickle has more than {MOST_STEPS:,} instructions or "
                    f"{MOST_BYTES >> 20} MB, which no network needs"
                )
        value = self.stack.pop()
        if self.stack or self.outer:
            raise MalformedError("its pickle leaves something behind that it doesn't use")
        names, called = frozenset(self.names.values()), frozenset(self.called)
        return Pickle(value, names, called, self.storages, self.at)

    def read(self, count: int) -> bytes:
        if count > MOST_TEXT:
            raise MalformedError(f"its pickle has a text of {count:,} bytes")
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise MalformedError("its pickle ends too early")
        self.at += count
        return piece

    def number(self, form: struct.Struct) -> int | float:
        value = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MOST_NAME + 1)
        if end < 0:
            raise MalformedError(f"its pickle has a name of more than {MOST_NAME} bytes")
        piece, self.at = self.data[self.at : end], end + 1
        return piece.decode("utf-8", "backslashreplace")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def new(self, value: object) -> None:
        self.objects += 1
        if self.objects > MOST_OBJECTS:
            raise MalformedError(f"its pickle makes more than {MOST_OBJECTS:,} objects")
        self.stack.append(value)

    def mark(self) -> None:
        self.objects += 1
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[object]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def tuple_of_last(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.new(items)

    def name(self) -> None:
        module, name = self.line(), self.line()
        found = Global(_OLD_MODULES.get(module, module), name)
        self.new(self.names.setdefault(found.dotted, found))
        if len(self.names) > MOST_NAMES:
            raise MalformedError(f"its pickle names more than {MOST_NAMES:,} classes")

    def create(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.new(Instance(kind, _as_tuple(args)))

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Global):
            self.called.add(function)
        self.new(Call(function, _as_tuple(args)))

    def build(self) -> None:
        """Give a state to what was made, once."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Call | Instance):
            raise MalformedError(f"its pickle would fill {describe(target)}")
        if target.state is not None:
            raise MalformedError(f"its pickle gives two states to {describe(target)}")
        target.state = state

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, ListRecord):
            raise MalformedError(f"its pickle would append to {describe(target)}")
        target.items += items

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, DictRecord | Call) or len(items) % 2:
            raise MalformedError(f"its pickle would set items of {describe(target)}")
        self.objects += len(items) // 2
        target.pairs += zip(items[::2], items[1::2], strict=True)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def storage(self) -> None:
        """A storage of tensors, or in the format before 1.6 a class with its source."""
        reference = self.stack.pop()
        if isinstance(reference, str | int) and str(reference) in self.references:
            self.push(self.references[str(reference)])
            return
        word, kind, *rest = _as_tuple(reference)
        if not isinstance(kind, Global):
            raise MalformedError("its pickle refers to something that is no storage of a tensor")
        if word == "module":
            self.push(kind)
            return
        key, _place, count = rest[:3]
        if word != "storage" or type(count) is not int or not 0 <= count < 1 << 48:
            raise MalformedError("its pickle refers to something that is no storage of a tensor")
        if not isinstance(key, str) or len(key) > 100:
            raise MalformedError("its pickle has a storage without a name")
        found = self.storages.setdefault(key, Storage(key, kind.dotted, count, 0, count))
        if (found.kind, found.count) != (kind.dotted, count):
            raise MalformedError(f"its pickle gives storage {key!a} two sizes or kinds")
        self.new(found if len(rest) < 4 or rest[3] is None else _view(found, rest[3]))

    def put(self, form: struct.Struct) -> None:
        self.memo[self.number(form)] = self.stack[-1]

    def get(self, form: struct.Struct) -> None:
        self.stack.append(self.memo[self.number(form)])

    def text(self) -> None:
        self.new(self.read(self.number(_UINT)).decode("utf-8", "surrogatepass"))

    def old_text(self, form: struct.Struct) -> None:
        """A `str` of Python 2."""
        self.new(self.read(self.number(form)).decode("utf-8"))

    def long(self) -> None:
        size = self.number(_BYTE)
        if size > 9:
            raise MalformedError("its pickle has a whole number of more than 64 bits")
        self.push(pickle.decode_long(self.read(size)))


def _as_tuple(value: object) -> tuple:
    if not isinstance(value, tuple):
        raise MalformedError(f"its pickle has {describe(value)} where arguments belong")
    return value


def _view(storage: Storage, metadata: object) -> Storage:
    """A part of a storage, as torch wrote it before 1.0."""
    _key, start, count = _as_tuple(metadata)
    whole = all(type(number) is int and number >= 0 for number in (start, count))
    if not whole or start + count > storage.count:
        raise MalformedError("its pickle has a part of a storage that isn't inside it")
    return Storage(storage.key, storage.kind, count, start, storage.whole)


_BYTE, _SHORT, _INT, _UINT, _DOUBLE = map(struct.Struct, ("<B", "<H", "<i", "<I", ">d"))
_STOP = pickle.STOP[0]
_BY_NAME: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.GLOBAL: _Machine.name,
    pickle.NEWOBJ: _Machine.create,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.storage,
    pickle.MARK: _Machine.mark,
    pickle.APPEND: lambda m: m.append([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.append(m.since_mark()),
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.TUPLE: lambda m: m.new(tuple(m.since_mark())),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.tuple_of_last(1),
    pickle.TUPLE2: lambda m: m.tuple_of_last(2),
    pickle.TUPLE3: lambda m: m.tuple_of_last(3),
    pickle.EMPTY_LIST: lambda m: m.new(ListRecord()),
    pickle.EMPTY_DICT: lambda m: m.new(DictRecord()),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number(_INT)),
    pickle.BININT1: lambda m: m.push(m.number(_BYTE)),
    pickle.BININT2: lambda m: m.push(m.number(_SHORT)),
    pickle.BINFLOAT: lambda m: m.push(m.number(_DOUBLE)),
    pickle.LONG1: _Machine.long,
    pickle.BINUNICODE: _Machine.text,
    pickle.SHORT_BINSTRING: lambda m: m.old_text(_BYTE),
    pickle.BINSTRING: lambda m: m.old_text(_UINT),
    pickle.BINPUT: lambda m: m.put(_BYTE),
    pickle.LONG_BINPUT: lambda m: m.put(_UINT),
    pickle.BINGET: lambda m: m.get(_BYTE),
    pickle.LONG_BINGET: lambda m: m.get(_UINT),
}
_STEPS = {code[0]: step for code, step in _BY_NAME.items()}
