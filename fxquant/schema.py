"""What plain values of a file may be: kinds, bounds, and the keys of tables.

A check is a function of a value and the words for where it stands; it raises ValueError with those.
A library for schemas would bring a language of its own for the few kinds that are needed, and
neither bounds on what is printed later nor messages of one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Check = Callable[[Any, str], None]

LARGEST = 2**63 - 1
# Of a name or a reason; whatever is longer is not one.
LONGEST = 4096
DEEPEST = 12


def _refuse(where: str, expected: str, value: Any) -> None:
    kind = type(value).__name__
    raise ValueError(f"{where or 'it'} is {kind if value is not None else 'none'}, not {expected}")


def text(value: Any, where: str) -> None:
    """Text of bounded length."""
    if not isinstance(value, str):
        _refuse(where, "text", value)
    if len(value) > LONGEST:
        raise ValueError(f"{where} is text of {len(value):,} characters")


def flag(value: Any, where: str) -> None:
    """True or False."""
    if not isinstance(value, bool):
        _refuse(where, "true or false", value)


def number(value: Any, where: str) -> None:
    """A finite number, and one that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(where, "a number", value)
    if not (abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value)):
        raise ValueError(f"{where} is no finite number")


def whole(value: Any, where: str) -> None:
    """A whole number from 0 that 63 bits can hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(where, "a whole number", value)
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{where} is no whole number from 0 to 2^63 - 1")


def maybe(check: Check) -> Check:
    """What the check takes, or none."""

    def check_maybe(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_maybe


def one_of(*known: str) -> Check:
    """One of these texts."""

    def check_known(value: Any, where: str) -> None:
        text(value, where)
        if value not in known:
            raise ValueError(f"{where} is none of {', '.join(known)}")

    return check_known


def many(check: Check, kind: type = list) -> Check:
    """A list of what the check takes; a tuple where that is the `kind`."""

    def check_many(value: Any, where: str) -> None:
        if type(value) is not kind:
            _refuse(where, f"a {kind.__name__}", value)
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_many


def mapping(check: Check) -> Check:
    """A table of any names, each with what the check takes."""

    def check_mapping(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(where, "a table", value)
        for key, item in value.items():
            text(key, f"a key of {where}")
            check(item, f"{where}.{key[:40]}")

    return check_mapping


def table(required: dict[str, Check], others: Check | None = None, **optional: Check) -> Check:
    """A table with these keys; any others are refused, or must be what `others` takes."""
    known = {**required, **optional}

    def check_table(value: Any, where: str) -> None:
        mapping(_anything)(value, where)
        inside = f"{where}." if where else ""
        for key in required:
            if key not in value:
                raise ValueError(f"it has no '{inside}{key}'")
        for key, item in value.items():
            check = known.get(key, others)
            if check is None:
                raise ValueError(f"it has an unknown key '{inside}{key[:40]}'")
            check(item, f"{inside}{key}"[:200])

    return check_table


def _anything(value: Any, where: str) -> None:
    """Whatever it is, another check looks at it."""


def plain(value: Any, where: str) -> None:
    """Texts, finite numbers, flags, nothing, and lists and tables of them, not nested deep."""
    _check_plain(value, where, DEEPEST)


def _check_plain(value: Any, where: str, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"{where} is nested deeper than anything that is written")
    if isinstance(value, dict):
        mapping(lambda item, inside: _check_plain(item, inside[:200], depth - 1))(value, where)
    elif isinstance(value, list):
        many(lambda item, inside: _check_plain(item, inside[:200], depth - 1))(value, where)
    elif isinstance(value, str):
        text(value, where)
    elif value is not None and not isinstance(value, bool):
        number(value, where)
