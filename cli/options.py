"""Kinds of option values that several commands take."""

from __future__ import annotations

from typing import Any

import click


class Numbers(click.ParamType):
    """Comma-separated numbers, as a tuple."""

    def __init__(self, kind: type, name: str):
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None):
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers such as {self.name}", param, ctx)


SHAPE = Numbers(int, "C,H,W")
CHANNEL_VALUES = Numbers(float, "R,G,B")
BITS = click.IntRange(2, 8)
LAYOUT = click.Choice(["runtime", "portable", "tensorrt"])
OPSET = click.IntRange(18, 25)
