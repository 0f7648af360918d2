"""What a file may hold: plain values, tensors, layers, and nothing that acts.

All of it is checked on records, before any of it is made. `fxquant.models.modules` checks what a
layer's own attributes may be.
"""

from __future__ import annotations

from fxquant.models.layers import FUNCTIONS, Classes, is_name
from fxquant.models.modules import check_instance
from fxquant.models.places import Content, Parts, Place, check_pairs, check_plain
from fxquant.models.records import (
    Call,
    DictRecord,
    Global,
    Instance,
    ListRecord,
    MalformedError,
    OddError,
    Storage,
    describe,
    function_of,
    pairs_of,
    parts_of,
)
from fxquant.models.tensors import DTYPES, TENSOR_CALLS

PARTIAL, DEFAULT_DICT = "functools.partial", "collections.defaultdict"
_BRANCHES = (tuple, ListRecord, DictRecord, Call, Instance, Global, Storage)


def check_content(root: object, classes: Classes) -> Content:
    """Check everything in `root`, which contains itself nowhere.

    Raises MalformedError and OddError; UntrustedClassError for classes that are no layers.
    """
    found = Content()
    checked: set[tuple[int, tuple[bool, int, bool]]] = set()
    stack = [(root, Place())]
    while stack:
        record, place = stack.pop()
        if not isinstance(record, _BRANCHES):
            check_plain(record, place)
            continue
        # A list in two places is looked at again where other rules hold.
        now = id(record), place.rules
        if now not in checked:
            checked.add(now)
            found.needed.add(id(record))
            stack += _check(record, place, classes, found)
    return found


def _check(record: object, place: Place, classes: Classes, found: Content) -> Parts:
    if isinstance(record, Instance):
        return check_instance(record, place, classes, found)
    if isinstance(record, Call):
        return _check_call(record, place, classes, found)
    if isinstance(record, Global):
        return _check_global(record, place, classes)
    if isinstance(record, Storage):
        raise OddError("it holds a storage without a tensor; save the tensor itself")
    if isinstance(record, DictRecord):
        return check_pairs(record.pairs, place)
    return [(part, place) for part in parts_of(record)]


def _check_global(record: Global, place: Place, classes: Classes) -> Parts:
    """Names as values: types of numbers, a few functions, classes that are kept and not called."""
    if record.dotted in DTYPES or (record.dotted in FUNCTIONS and place.key):
        return ()
    if not place.keeps_classes:
        where = f"as {place.key} of {place}" if place.key else "outside a network"
        raise OddError(f"it holds the class or function {describe(record)} {where}")
    classes.find(record)
    return ()


def _check_call(record: Call, place: Place, classes: Classes, found: Content) -> Parts:
    name = function_of(record)
    if name in TENSOR_CALLS:
        found.tensor(record)
        return ()
    if name == PARTIAL:
        return _check_partial(record, place, classes)
    pairs = pairs_of(record)
    if pairs is not None:
        return (*check_pairs(pairs, place), (record.state, Place(modules=False)))
    args = () if name == DEFAULT_DICT else record.args
    return (*check_pairs(record.pairs, place), *((p, place) for p in (*args, record.state)))


def _check_partial(record: Call, place: Place, classes: Classes) -> Parts:
    """The class that a layer's parts were made with, and plain settings by name."""
    named = record.args[0] if len(record.args) == 1 else None
    state = record.state if isinstance(record.state, tuple) else ()
    if len(state) != 4 or not isinstance(named, Global) or record.pairs:
        raise MalformedError("it has a functools.partial that makes no sense")
    function, args, settings, more = state
    pairs = pairs_of(settings) or []
    plain = all(is_name(k) and type(v) in (bool, int, float, str) for k, v in pairs)
    if function is not named or args != () or not plain or (more is not None and pairs_of(more)):
        raise OddError(f"it has a functools.partial as {place.key} of {place} that isn't plain")
    if not place.keeps_classes:
        raise OddError(f"it has a functools.partial as '{place.key}' of {place}")
    classes.find(named)
    return [(value, place) for _key, value in pairs]
