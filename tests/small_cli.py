"""A quantization that takes a second, as a command line, and what its folder must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nets
import torch
from small_runs import SHAPE, shrunk

from fxquant.datafree.recipe import Recipe
from fxquant.files import is_leftover
from fxquant.run_folder import (
    CHECKPOINT,
    IMAGES,
    LOCK,
    LOG,
    MODEL,
    PAGE,
    RECIPE,
    REPORT,
    STUDENT,
    TIMING,
)
from fxquant.settings import Settings, to_toml

# What is the same, byte for byte, however often a run was stopped.
ARTIFACTS = {MODEL, STUDENT, IMAGES, REPORT, PAGE, RECIPE}


def small_recipe(steps: int = 4) -> Recipe:
    """All phases of the default recipe, warm-up and fine-tuning of `steps` steps."""
    recipe = shrunk("ddaq", "default")
    return replace(recipe, schedule=replace(recipe.schedule, warmup=steps, steps=steps))


def small_command(folder: Path, steps: int = 4) -> list[str]:
    """Write a network and its settings into `folder`; the command line but for `--output`."""
    torch.save(nets.ALL["residual"]().state_dict(), folder / "net.pt")
    settings = Settings(SHAPE, recipe=small_recipe(steps))
    (folder / "small.toml").write_text(to_toml(settings.to_dict()))
    arch = ["--arch", "nets:Residual", "--config", str(folder / "small.toml")]
    return ["quantize", str(folder / "net.pt"), *arch, "--output"]


def artifacts(out: Path) -> dict[str, bytes]:
    """The artifacts that are in the folder of a run, by name."""
    return {name: (out / name).read_bytes() for name in ARTIFACTS if (out / name).exists()}


def others(out: Path) -> set[str]:
    """Whatever else is in it, but for what a run may leave at any moment."""
    known = {*ARTIFACTS, TIMING, LOCK, CHECKPOINT}
    return {
        path.name
        for path in out.iterdir()
        if path.name not in known and not path.name.startswith(LOG) and not is_leftover(path)
    }
