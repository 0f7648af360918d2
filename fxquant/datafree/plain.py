"""Dataclasses from the plain values of TOML and JSON, with errors that name the key."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fxquant.errors import SettingError

# Beyond any use, and still a number that arithmetic can take.
LARGEST = 10**9


def require(condition: bool, message: str, hint: str | None = None) -> None:
    """Raise SettingError unless something holds."""
    if not condition:
        raise SettingError(message, hint)


def check_numbers(part: object, where: str) -> None:
    """Raise SettingError for a field that is not finite or absurdly large."""
    for item in fields(part):
        value = getattr(part, item.name)
        if isinstance(value, int | float):  # NaN is not below anything
            require(
                abs(value) <= LARGEST, f"{where}.{item.name} is {value}; expected at most {LARGEST}"
            )


def build(kind: type, values: Any, where: str) -> Any:
    """Make a dataclass of plain values, with errors that name the key."""
    require(isinstance(values, dict), f"{where} is {values!r}; expected a table")
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"unknown key {where}.{unknown[0]}" if unknown else "", ", ".join(known))
    checked = {
        key: _coerce(value, known[key].type, f"{where}.{key}") for key, value in values.items()
    }
    try:
        return kind(**checked)
    except TypeError as error:
        raise SettingError(f"{where}: {error}") from error


def _coerce(value: Any, annotation: str, where: str) -> Any:
    """Check a TOML value against a field's annotation; an integer is a valid float."""
    expected = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(annotation)
    if expected is None:
        return tuple(value) if isinstance(value, list) else value
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
    require(not wrong, f"{where} is {value!r}; expected {annotation}")
    return float(value) if annotation == "float" else value
