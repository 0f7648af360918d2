"""What mixed precision is asked for, and what was chosen: part of a run's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fxquant.errors import SettingError
from fxquant.spec import MAX_BITS, MIN_BITS, LayerRule, check_bits

WIDTHS = tuple(range(MIN_BITS, MAX_BITS + 1))


@dataclass(frozen=True)
class Mixed:
    """Give each layer's weights a width of their own, under a budget for the whole network.

    The budget is `size` bytes of all parameters, `bitops` bit operations for one image, or,
    without either, the size that the network has at `QConfig.weight_bits` throughout. `widths`
    are those to choose from. `layers` are rules that were chosen before; where there are none
    yet, the run chooses.
    """

    size: float | None = None
    bitops: float | None = None
    widths: tuple[int, ...] = WIDTHS
    layers: tuple[LayerRule, ...] = ()

    def __post_init__(self) -> None:
        if self.size is not None and self.bitops is not None:
            raise SettingError(
                "mixed precision is given a target size and target bit operations",
                "give one of them",
            )
        for name in ("size", "bitops"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise SettingError(f"mixed.{name} is {value!r}; expected a number above 0")
        for width in self.widths:
            check_bits(width, "a width in mixed.widths")
        if not self.widths or len(set(self.widths)) != len(self.widths):
            raise SettingError(f"mixed.widths is {self.widths}; expected different widths")
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for TOML and JSON; rules as `NAME=wBITS`."""
        values: dict[str, Any] = {"widths": list(self.widths)}
        for name in ("size", "bitops"):
            if getattr(self, name) is not None:
                values[name] = float(getattr(self, name))
        return values | {"layers": [str(rule) for rule in self.layers]}

    @classmethod
    def from_dict(cls, values: Any) -> Mixed:
        """The inverse of `to_dict`; raises SettingError for what can't be used."""
        if not isinstance(values, dict):
            raise SettingError(f"mixed is {values!r}; expected a table")
        unknown = sorted(set(values) - {"size", "bitops", "widths", "layers"})
        if unknown:
            raise SettingError(f"unknown key mixed.{unknown[0]}", "size, bitops, widths, layers")
        widths, layers = values.get("widths", list(WIDTHS)), values.get("layers", [])
        if not isinstance(widths, list) or not all(isinstance(width, int) for width in widths):
            raise SettingError(f"mixed.widths is {widths!r}; expected a list of whole numbers")
        if not isinstance(layers, list) or not all(isinstance(rule, str) for rule in layers):
            raise SettingError(f"mixed.layers is {layers!r}; expected a list of 'NAME=wBITS'")
        rules = tuple(LayerRule.parse(rule) for rule in layers)
        return cls(values.get("size"), values.get("bitops"), tuple(widths), rules)
