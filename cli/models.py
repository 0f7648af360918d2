"""Options of commands that read the folder of a finished run, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fxquant.restore import Restored

_OPTIONS = (
    click.option(
        "--model", "source", help="The model that was quantized, where it has moved since."
    ),
    click.option("--arch", help="Architecture of a state dict, as for fxquant quantize."),
    click.option(
        "--trust-class",
        "trust_classes",
        multiple=True,
        metavar="CLASS",
        help="Class whose own code may run, of a pickled model: package.module.Class. Repeatable.",
    ),
)


def model_options(command: Callable) -> Callable:
    """Add the options that say where the model of a finished run is."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def restore_run(
    folder: Path, source: str | None, arch: str | None, trust_classes: tuple[str, ...]
) -> Restored:
    """The student of the finished run in `folder`."""
    from fxquant.restore import find_model, restore

    model = find_model(folder, source=source, arch=arch, trust_classes=trust_classes)
    return restore(folder, model)
