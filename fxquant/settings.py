"""All settings of a run, and the recipe.toml that holds them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from fxquant.datafree.recipe import Recipe
from fxquant.datafree.recipes import find_recipe
from fxquant.errors import SettingError
from fxquant.files import read_regular
from fxquant.inputs import require_one_input
from fxquant.mixed.budget import Mixed
from fxquant.spec import LayerRule, QConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# A settings file of this project has three thousand.
MOST_BYTES = 1 << 20
# Parsers take time and memory that grow with the square of a key's parts.
MOST_DOTS = 200
_TEXTS = re.compile(r"""\"[^"\n]*\"|'[^'\n]*'""")
# Numbers in one image: 16 times those of a colour image of 1024 x 1024 pixels.
MOST_VALUES = 3 << 24


@dataclass(frozen=True)
class Settings:
    """All that decides a run beside the model: fed back, they give the same run.

    `input_shape` is (channels, height, width); `device` a name that torch knows. `mixed` lets the
    weights of each layer have a width of their own.
    """

    input_shape: tuple[int, ...]
    config: QConfig = field(default_factory=QConfig)
    recipe: Recipe = field(default_factory=lambda: find_recipe("ddaq", "default"))
    seed: int = 0
    device: str = "cpu"
    mixed: Mixed | None = None

    def __post_init__(self) -> None:
        shape = self.input_shape
        require_one_input(shape)
        if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise SettingError(
                f"input shape is {','.join(map(str, shape)) or 'empty'}; "
                "expected positive whole numbers",
                "channels first, without the batch: --input-shape 3,32,32",
            )
        if math.prod(shape) > MOST_VALUES:
            raise SettingError(
                f"input shape {','.join(map(str, shape))} has {math.prod(shape):,} numbers; "
                f"expected at most {MOST_VALUES:,}"
            )
        seed = self.seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise SettingError(f"seed is {seed}; expected 0 to 2^63 - 1")

    @property
    def applied_config(self) -> QConfig:
        """`config` with the widths that mixed precision chose, which its own rules go over."""
        chosen = self.mixed.layers if self.mixed else ()
        return replace(self.config, layers=(*chosen, *self.config.layers))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for TOML and JSON."""
        mixed = {"mixed": self.mixed.to_dict()} if self.mixed else {}
        return {
            "input_shape": list(self.input_shape),
            "seed": self.seed,
            "device": self.device,
            "config": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            **mixed,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`; raises SettingError for what can't be used."""
        known = {"input_shape", "seed", "device", "config", "recipe", "mixed"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingError(f"unknown key '{unknown[0]}'", f"one of {', '.join(sorted(known))}")
        for key, kind in (("input_shape", list), ("seed", int), ("device", str)):
            if key in values and not isinstance(values[key], kind):
                raise SettingError(f"{key} is {values[key]!r}; expected {kind.__name__}")
        parts: dict[str, Any] = dict(values)
        parts["input_shape"] = tuple(values.get("input_shape", ()))
        if "config" in values:
            parts["config"] = _config_from_dict(values["config"])
        if "recipe" in values:
            parts["recipe"] = Recipe.from_dict(values["recipe"])
        if "mixed" in values:
            parts["mixed"] = Mixed.from_dict(values["mixed"])
        return cls(**parts)


def _config_from_dict(values: dict[str, Any]) -> QConfig:
    if not isinstance(values, dict):
        raise SettingError(f"config is {values!r}; expected a table")
    known = [item.name for item in fields(QConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(f"unknown key config.{unknown[0]}", f"one of {', '.join(known)}")
    layers = values.get("layers", [])
    if not isinstance(layers, list) or not all(isinstance(rule, str) for rule in layers):
        raise SettingError(f"config.layers is {layers!r}; expected a list of 'NAME=BITS'")
    return QConfig(**{**values, "layers": tuple(LayerRule.parse(rule) for rule in layers)})


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe.toml; raises SettingError where it can't be read."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in _TEXTS.sub("", text).splitlines()):
            raise SettingError(f"settings file {path} has a line of more than {MOST_DOTS} dots")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise SettingError(f"no such settings file: {path}") from error
    except OSError as error:
        reason = error.strerror or error
        raise SettingError(f"settings file {path} can't be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"settings file {path} can't be read: {str(error)[:200]}") from error
    # What TOML promises to hold, and what can be shown in a message.
    if any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in _leaves(values)):
        raise SettingError(f"settings file {path} holds a whole number of more than 64 bits")
    return values


def _leaves(values: Any) -> Iterator[Any]:
    """All values in tables and lists that may be nested as deep as a parser goes."""
    queue = [values]
    while queue:
        value = queue.pop()
        if isinstance(value, dict | list):
            queue += value.values() if isinstance(value, dict) else value
        else:
            yield value


def read_settings(path: Path) -> Settings:
    """Settings of a recipe.toml, whose `model` table, about the model itself, is left out."""
    return settings_of(read_toml(path), path)


def settings_of(tables: dict[str, Any], path: Path) -> Settings:
    """The same from the tables that `read_toml` has read from a path."""
    values = {key: value for key, value in tables.items() if key not in ("model", "fxquant")}
    try:
        return Settings.from_dict(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error.message}", error.hint) from error


def to_toml(values: dict[str, Any]) -> str:
    """TOML text of plain values."""
    return tomli_w.dumps(values, multiline_strings=False)
