"""Where in a file's content a record is, and what plain values may be there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from fxquant.models.records import Call, OddError, describe
from fxquant.models.tensors import TensorRecord, describe_tensor
from fxquant.wording import first_few

# Far above what networks hold: the largest number of 330 of them is 32,896, the longest text 149
# characters, the longest list 44 items.
MOST_NUMBER = 1 << 24
MOST_TEXT = 10_000
# What says how often something is done, in layers of the packages that are trusted.
_COUNTERS = re.compile(
    r"(num_)?(layers|levels|stages|scales|branches|conv_branches|columns|feature_blocks)"
    r"|iters|steps|depth|n_clusters|top_n|stage_num\d|focal_level|filt_size|embed_len_decoder"
)
MOST_TIMES = 1024
# What makes an output larger than its input.
_GROWTH = re.compile(
    r"padding|output_padding|dilation|stride|kernel_size|size|output_size|scale_factor"
    r"|(up|down)scale_factor|_reversed_padding_repeated_twice"
)
MOST_GROWTH = 4096
# Where layers keep the class that their parts were made with.
_CLASS_KEYS = re.compile(r"\w*_layer")

_HASHABLE = (str, int, bool, type(None))
MOST_IN_KEY = 16


@dataclass
class Content:
    """What a checked value is made of: the records needed for it, and its tensors by call."""

    needed: set[int] = field(default_factory=set)
    tensors: dict[int, TensorRecord] = field(default_factory=dict)

    def tensor(self, call: Call) -> TensorRecord:
        """The tensor that a call means; raises MalformedError and OddError where it means none."""
        if id(call) not in self.tensors:
            self.tensors[id(call)] = describe_tensor(call)
        return self.tensors[id(call)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is: in which attribute of which layer, '' for neither.

    `modules` is whether layers may be there: outside layers, and in those of a trusted class,
    whose numbers are its own affair.
    """

    path: str = ""
    key: str = ""
    modules: bool = True

    def __str__(self) -> str:
        return f"'{first_few([ascii(self.path)[1:-1]])}'" if self.path else "the network itself"

    @property
    def keeps_classes(self) -> bool:
        """Whether a layer keeps the class there that its parts were made with."""
        return bool(self.key) and (self.modules or _rules_of(self.key)[1])

    @property
    def most(self) -> int:
        """The largest number that may be there, 0 where any may."""
        return 0 if self.modules else _rules_of(self.key)[0]

    @property
    def rules(self) -> tuple[bool, int, bool]:
        """All of a place that decides what may be there."""
        return self.modules, self.most, self.keeps_classes


@lru_cache(maxsize=4096)
def _rules_of(key: str) -> tuple[int, bool]:
    """The largest number that a layer's attribute may be, 0 for no layer's; if it keeps a class."""
    if not key:
        return 0, False
    if _COUNTERS.fullmatch(key):
        return MOST_TIMES, False
    if _GROWTH.fullmatch(key):
        return MOST_GROWTH, False
    return MOST_NUMBER, bool(_CLASS_KEYS.fullmatch(key))


Parts = Iterable[tuple[object, Place]]


def check_plain(value: object, place: Place) -> None:
    """Check text and numbers: they are bounded where a layer acts upon them."""
    most = place.most
    if not most:
        return
    grows = most == MOST_GROWTH and type(value) is float
    if (type(value) is int or grows) and not abs(value) <= most:
        raise OddError(f"{place.key} of {place} is {value:,}, which is more than {most:,}")
    if isinstance(value, str | bytes) and len(value) > MOST_TEXT:
        raise OddError(
            f"{place.key} of {place} is a text of {len(value):,} characters, which is more than "
            f"{MOST_TEXT:,}"
        )


def check_pairs(pairs: list[tuple[object, object]], place: Place) -> Parts:
    """Check the keys of a dict; its values are still to be checked."""
    for key, value in pairs:
        check_key(key)
        if isinstance(key, str | int):
            check_plain(key, place)
        yield value, place


def check_key(key: object) -> None:
    """Keys are hashed and compared: they must be plain, or short tuples of plain values."""
    parts = key if isinstance(key, tuple) and len(key) <= MOST_IN_KEY else (key,)
    for part in parts:
        if type(part) not in _HASHABLE or (type(part) is int and abs(part) >> 63):
            raise OddError(f"it has a dict or set with {describe(key)} as a key")
