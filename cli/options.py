"""Options that several commands take, and the kinds of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Callable], Callable]


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


class Amount(click.ParamType):
    """A number with a decimal prefix and, if wanted, a unit: 0.5MB, 500kB, 2G."""

    name = "amount"

    def __init__(self, unit: str, example: str):
        self.unit, self.example = unit, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None):
        if isinstance(value, float):
            return value
        match = re.fullmatch(rf"([0-9]*\.?[0-9]+)\s*([kKMGT]?){self.unit}?", value.strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"'{value}' is not an amount above 0 such as {self.example}", param, ctx)
        return float(match[1]) * 1000 ** " kMGT".index(match[2].replace("K", "k") or " ")


SHAPE = Numbers(int, "C,H,W")
LIST_OF_BITS = Numbers(int, "2,4,8")
CHANNEL_VALUES = Numbers(float, "R,G,B")
BITS = click.IntRange(2, 8)
LAYOUT = click.Choice(["runtime", "portable", "tensorrt"])
OPSET = click.IntRange(18, 25)
PROCESSOR: Option = click.option(
    "--processor",
    type=click.Choice(["any", "vnni"]),
    help="Where the ONNX file shall be right: any; vnni, faster at 8 bits, and wrong on x86 "
    "processors without VNNI.  [default: any]",
)

WIDTHS: tuple[Option, ...] = (
    click.option(
        "--bits", type=BITS, help="Width of weights and activations, 2 to 8.  [default: 4]"
    ),
    click.option("--weight-bits", type=BITS, help="Width of weights alone."),
    click.option("--act-bits", type=BITS, help="Width of activations that enter a layer alone."),
    click.option(
        "--sum-bits",
        type=BITS,
        help="Width of what is added or pooled.  [default: 8]",
    ),
    click.option("--first-last-bits", type=BITS, help="Width of the first and the last layer."),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME=BITS",
        help="Width of the layers that a pattern names, 'float', or 'w3' for weights alone. "
        "Repeatable, last match wins.",
    ),
    click.option(
        "--per-tensor-weights", is_flag=True, help="One scale for a weight, not one a channel."
    ),
    click.option(
        "--equalize/--no-equalize",
        default=None,
        help="Move scale between layers so that their channels have like ranges.  [default: "
        "with --per-tensor-weights]",
    ),
    click.option(
        "--symmetric", is_flag=True, help="Activations on signed grids, without a zero point."
    ),
)
EVALUATION: tuple[Option, ...] = (
    click.option(
        "--eval-mean", type=CHANNEL_VALUES, default="0", help="Their mean, pixels in 0..1."
    ),
    click.option("--eval-std", type=CHANNEL_VALUES, default="1", help="Their standard deviation."),
)
MIXED: tuple[Option, ...] = (
    click.option(
        "--mixed",
        is_flag=True,
        help="Give each layer's weights a width of their own, within the size at --bits.",
    ),
    click.option(
        "--target-size",
        type=Amount("B", "0.5MB"),
        metavar="SIZE",
        help="Mixed, with all parameters in so many bytes: 0.5MB.",
    ),
    click.option(
        "--target-bitops",
        type=Amount("", "2G"),
        metavar="COUNT",
        help="Mixed, with so many bit operations for an image: 2G.",
    ),
    click.option(
        "--mixed-widths",
        type=LIST_OF_BITS,
        metavar="BITS,...",
        help="Widths that mixed precision may give.  [default: 2,3,4,5,6,7,8]",
    ),
)
ABLATION: tuple[Option, ...] = (
    click.option(
        "--without",
        type=click.Choice(["l_bn", "l_adv", "x1", "x2"], case_sensitive=False),
        multiple=True,
        help="Leave out a loss of the generator (l_bn, l_adv) or a weighting (x1, x2). Repeatable.",
    ),
    click.option(
        "--swap",
        type=click.Choice(["l_bn", "l_adv"], case_sensitive=False),
        multiple=True,
        help="Weigh a loss of the generator as the paper weighs the other one. Repeatable.",
    ),
)
NETWORK: tuple[Option, ...] = (
    click.option(
        "--arch",
        help="Architecture of a state dict: torchvision:NAME, pytorchcv:NAME, timm:NAME or "
        "package.module:callable.",
    ),
    click.option(
        "--trust-class",
        "trust_classes",
        multiple=True,
        metavar="CLASS",
        help="Class whose own code may run, of a pickled model: package.module.Class. Repeatable.",
    ),
    click.option("--input-shape", type=SHAPE, metavar="C,H,W", help="Shape of one input image."),
)
LIMITS: tuple[Option, ...] = (
    click.option(
        "--time-limit",
        type=click.FloatRange(1, 1e7),
        metavar="SECONDS",
        help="How long the file may take.  [default: an hour, and as its size has it for the "
        "first call]",
    ),
    click.option(
        "--memory-limit",
        type=Amount("B", "8GB"),
        metavar="SIZE",
        help="How much memory the file may take: 8GB.  [default: as its size has it]",
    ),
)
NMS: Option = click.option(
    "--with-nms",
    "nms",
    is_flag=True,
    help="Let a RetinaNet's ONNX file give detections in place of raw predictions.",
)
CONFIG: Option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="recipe.toml of another run; other options override it.",
)


def require_file(path: Path) -> None:
    """Raise SettingError at once for a path where no regular file is, or one that can't be read."""
    from fxquant.errors import SettingError
    from fxquant.files import open_regular

    try:
        open_regular(path).close()
    except FileNotFoundError as error:
        raise SettingError(f"there is no file '{path}'") from error
    except OSError as error:
        raise SettingError(f"'{path}' can't be opened: {error.strerror or error}") from error


def takes(*options: Option) -> Option:
    """Decorate a command with options, in the order in which its help shall list them."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
