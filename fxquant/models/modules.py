"""What the attributes of a layer may be, in a file.

Attributes end up where they mean more than their value: torch.fx writes the names of layers and
tensors into source code that it compiles, hooks are called, what replaces a method is called, and
numbers say how often something is done.
"""

from __future__ import annotations

import re
from collections import Counter
from unicodedata import normalize

from torch import nn

from fxquant.models.layers import Classes, is_name, replaces_code
from fxquant.models.old_layers import weight_names
from fxquant.models.places import Content, Parts, Place
from fxquant.models.records import (
    Call,
    DictRecord,
    Global,
    Instance,
    MalformedError,
    OddError,
    describe,
    function_of,
    pairs_of,
)
from fxquant.models.tensors import TENSOR_CALLS
from fxquant.wording import first_few

# Names of children, parameters and buffers, which torch.fx puts between quotes, or writes as they
# are where they are identifiers, and then Python takes letters that look alike for one another.
_NAME = re.compile(r"[\w \-/:+@#]{1,200}")
TABLES = ("_modules", "_parameters", "_buffers")
# Of torch before 1.2, where it named the library that computes.
FORGOTTEN = "_backend"
# Recomputed from the parameters.
RECURRENT = ("_flat_weights", "_flat_weights_names", "_all_weights", "_flat_weight_refs")


def check_instance(record: Instance, place: Place, classes: Classes, found: Content) -> Parts:
    """Check an instance of a class; what its attributes are made of is still to be checked.

    Adds to what is `found` the tables that are looked into here.
    """
    if not isinstance(record.kind, Global) or record.args:
        raise OddError(f"it would call {describe(record.kind)} while it is read")
    kind = classes.find(record.kind)
    is_module = issubclass(kind, nn.Module)
    if is_module and not place.modules:
        raise OddError(f"{place} holds a module as '{place.key}' that is no child of it")
    if not is_module and place.path and not place.key:
        raise OddError(f"{place} is {describe(record)}, which is no module")
    if not isinstance(record.state, DictRecord):
        raise MalformedError(
            f"{place} is {describe(record)} with {describe(record.state)} for a state"
        )
    trusted = record.kind.dotted in classes.trusted
    parts: list[tuple[object, Place]] = []
    attributes = _attributes(record, place)
    for key, value in attributes.items():
        if is_module and key in TABLES:
            parts += _check_table(kind, key, value, place, found)
            found.needed.add(id(value))
        elif is_module and "_hooks" in key:
            if value is not None and pairs_of(value) != []:
                raise OddError(f"{place} has {key}, which are run with it")
        elif replaces_code(kind, key) and value is not None:
            raise OddError(f"{place} replaces {key} of its class {kind.__qualname__}")
        elif not (key == FORGOTTEN or (key in RECURRENT and _is_recurrent(kind))):
            parts.append((value, Place(place.path, key, trusted)))
    if is_module:
        _check_module(kind, attributes, place, found)
    return parts


def _attributes(record: Instance, place: Place) -> dict[str, object]:
    attributes = {}
    for key, value in record.state.pairs:
        if not is_name(key):
            raise OddError(f"{place} has an attribute called {first_few([ascii(key)])}")
        if key in attributes:
            raise OddError(f"{place} has two attributes called {key}")
        attributes[key] = value
    return attributes


def _check_table(kind: type, table: str, record: object, place: Place, found: Content) -> Parts:
    """Check the names of children, parameters or buffers, and that they are such."""
    pairs = pairs_of(record)
    if pairs is None or (isinstance(record, Call) and record.state is not None):
        raise OddError(f"{place} has {describe(record)} for {table}")
    for key, value in pairs:
        if not isinstance(key, str) or not _NAME.fullmatch(key) or normalize("NFKC", key) != key:
            raise OddError(f"a part of {place} is called {first_few([ascii(key)])}")
        if replaces_code(kind, key):
            raise OddError(f"a part of {place} replaces {key} of its class {kind.__qualname__}")
        if value is None:
            continue
        if not _fits(table, value, found):
            raise OddError(f"'{key}' of {place} is {describe(value)}")
        yield value, Place(f"{place.path}.{key}".strip("."), "", table == "_modules")


def _fits(table: str, value: object, found: Content) -> bool:
    if table == "_modules":
        return isinstance(value, Instance)
    if function_of(value) not in TENSOR_CALLS:
        return False
    return table == "_buffers" or found.tensor(value).parameter


def _check_module(kind: type, attributes: dict[str, object], place: Place, found: Content) -> None:
    names = [key for key in attributes if key not in TABLES]
    for table in TABLES:
        if table not in attributes:
            raise OddError(f"{place} has no {table}")
        names += [key for key, _ in pairs_of(attributes[table])]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise OddError(f"{place} has two things called {first_few(twice)}")
    for key in ("training", "_is_full_backward_hook"):
        if attributes.get(key) not in (None, False, True):
            raise OddError(f"{key} of {place} is {describe(attributes[key])}")
    kept = attributes.get("_non_persistent_buffers_set")
    if kept is not None and function_of(kept) != "builtins.set":
        raise OddError(f"_non_persistent_buffers_set of {place} is {describe(kept)}")
    if _is_recurrent(kind):
        _check_recurrent(attributes, place)
    if issubclass(kind, nn.modules.conv._ConvNd):
        _check_convolution(attributes, place, found)


def _is_recurrent(kind: type) -> bool:
    return issubclass(kind, nn.modules.rnn.RNNBase)


def _check_recurrent(attributes: dict[str, object], place: Place) -> None:
    """Check that a recurrent layer has the parameters that its numbers ask for, and no others."""
    kinds = {"num_layers": int, "proj_size": int, "bias": bool, "bidirectional": bool}
    for key, kind in kinds.items():
        value = attributes.get(key, kind())
        if type(value) is not kind:
            raise OddError(f"{key} of {place} is {describe(value)}")
    parameters = {key for key, value in pairs_of(attributes["_parameters"]) if value is not None}
    layers = attributes.get("num_layers", 0)
    if not 0 < layers <= len(parameters):
        raise OddError(f"{place} has {layers:,} layers and {len(parameters):,} parameters")
    if {name for layer in weight_names(attributes) for name in layer} != parameters:
        raise OddError(f"{place} has not the parameters of its {layers:,} layers")


def _check_convolution(attributes: dict[str, object], place: Place, found: Content) -> None:
    weight = dict(pairs_of(attributes["_parameters"])).get("weight")
    groups = attributes.get("groups", 1)
    channels = max(found.tensor(weight).shape, default=1) if isinstance(weight, Call) else 1
    if type(groups) is not int or not 1 <= groups <= max(channels, 1):
        raise OddError(
            f"groups of {place} is {describe(groups) if type(groups) is not int else groups}, "
            f"and its weight has {channels:,} channels"
        )
