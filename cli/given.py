"""What a person gave on the command line: a recipe.toml, and options over it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxquant.errors import SettingError
from fxquant.mixed.budget import Mixed
from fxquant.models.load import LoadedModel
from fxquant.settings import Settings, read_settings
from fxquant.spec import LayerRule, QConfig


def given_settings(options: dict[str, Any]) -> Settings | None:
    """The settings of the recipe.toml that was given; None where there was none."""
    file = options["config_file"]
    return read_settings(file) if file else None


def given_shape(
    loaded: LoadedModel, base: Settings | None, options: dict[str, Any]
) -> tuple[int, ...]:
    """(channels, height, width) as given, or as the network itself says; raises SettingError."""
    shape = options["input_shape"] or (base and base.input_shape) or loaded.input_shape
    if not shape:
        raise SettingError(
            f"the model {loaded.name} does not say what input it takes",
            "give it as --input-shape C,H,W, for example --input-shape 3,32,32",
        )
    return tuple(shape)


def given_widths(base: Settings | None, options: dict[str, Any]) -> QConfig:
    """The widths of a recipe.toml, else the defaults, with options over them."""
    given = {
        "weight_bits": options["weight_bits"] or options["bits"],
        "act_bits": options["act_bits"] or options["bits"],
        "sum_bits": options["sum_bits"],
        "first_last_bits": options["first_last_bits"],
        "symmetric_activations": options["symmetric"],
        "per_tensor_weights": options["per_tensor_weights"],
        "layers": tuple(LayerRule.parse(text) for text in options["layers"]),
    }
    config = base.config if base else QConfig()
    given = {name: value for name, value in given.items() if value}
    if options["equalize"] is not None:
        given["equalize"] = options["equalize"]
    return replace(config, **given)


def given_mixed(base: Settings | None, options: dict[str, Any]) -> Mixed | None:
    """Mixed precision as asked for; else that of a recipe.toml, if its widths still hold."""
    asked = {
        "size": options.get("target_size"),
        "bitops": options.get("target_bitops"),
        "widths": options.get("mixed_widths"),
    }
    asked = {name: value for name, value in asked.items() if value}
    if asked or options.get("mixed"):
        return Mixed(**asked)
    if options["bits"] or options["weight_bits"]:
        return None
    return base.mixed if base else None
