"""What a pickle describes, as inert records: nothing here has a method that a file could reach.

Text, numbers, None and tuples stand for themselves; everything else that a pickle makes or names
is one of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fxquant.errors import ModelLoadError
from fxquant.wording import first_few

ORDERED_DICT = "collections.OrderedDict"


class MalformedError(ModelLoadError):
    """A pickle's instructions make no sense, or ask for more than any network would."""


class OddError(ModelLoadError):
    """A file holds what no plain network and no state dict holds."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class, function or constant by its module and its name there."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class ListRecord:
    """A list."""

    items: list[object] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class DictRecord:
    """A dict as pairs in the order of the file; keys are neither hashed nor compared."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Call:
    """A call that a file asks for: what it calls, with what, and what it does to the result."""

    function: object
    args: tuple
    pairs: list[tuple[object, object]] = field(default_factory=list)
    state: object = None


@dataclass(eq=False, slots=True)
class Instance:
    """An object that a file asks for without a call: its class, and the state that it is given."""

    kind: object
    args: tuple
    state: object = None


@dataclass(eq=False, slots=True)
class Storage:
    """The bytes of tensors: `count` items of a kind such as 'torch.FloatStorage'.

    They begin at item `start` of the `whole` items that the file has under the `key`.
    """

    key: str
    kind: str
    count: int
    start: int
    whole: int


def parts_of(record: object) -> Iterator[object]:
    """The records and values directly inside a record, classes of instances left out."""
    if isinstance(record, tuple):
        yield from record
    elif isinstance(record, ListRecord):
        yield from record.items
    elif isinstance(record, DictRecord):
        for pair in record.pairs:
            yield from pair
    elif isinstance(record, Call):
        yield from record.args
        for pair in record.pairs:
            yield from pair
        yield record.state
    elif isinstance(record, Instance):
        yield from record.args
        yield record.state


def pairs_of(record: object) -> list[tuple[object, object]] | None:
    """The pairs of a dict or OrderedDict, None for anything else.

    Python 2 wrote an OrderedDict as a call with a list of lists.
    """
    if isinstance(record, DictRecord):
        return record.pairs
    if not isinstance(record, Call) or function_of(record) != ORDERED_DICT:
        return None
    if not record.args:
        return record.pairs
    listed = record.args[0] if len(record.args) == 1 and not record.pairs else None
    if not isinstance(listed, ListRecord):
        return None
    pairs = [tuple(item.items) for item in listed.items if isinstance(item, ListRecord)]
    fits = len(pairs) == len(listed.items) and all(len(pair) == 2 for pair in pairs)
    return pairs if fits else None


def function_of(record: object) -> str:
    """The dotted name of what a call calls; '' where it is no name, or no call."""
    if isinstance(record, Call) and isinstance(record.function, Global):
        return record.function.dotted
    return ""


def describe(record: object) -> str:
    """What a record is, in words that are fit to be shown."""
    if isinstance(record, Global):
        return first_few([ascii(record.dotted)[1:-1]])
    if isinstance(record, Instance):
        return f"an instance of {describe(record.kind)}"
    if isinstance(record, Call):
        return f"what {describe(record.function)} returns"
    if isinstance(record, Storage):
        return "a storage of tensors"
    kinds = {ListRecord: "list", DictRecord: "dict"}
    return f"a {kinds.get(type(record), type(record).__name__)}"
