"""Output folders that came from elsewhere: links, other people's checkpoints and reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_box import Case
from hostile_modules import plain_net
from hostile_pickles import MARK
from model_files import Reduced
from torch import nn

from fxquant.cli.quantize import quantize
from fxquant.cli.quantize_job import make_settings
from fxquant.models.load import load_model
from fxquant.run_folder import (
    CHECKPOINT,
    LOCK,
    LOG,
    OLD_CHECKPOINT,
    RECIPE,
    REPORT,
    RunFolder,
    model_hash,
)
from fxquant.state_files import write_state

ARGUMENTS = ["plain.pt", "--input-shape", "3,8,8", "--recipe", "zeroq", "--output", "out"]


def begun(spoil: Callable[[Path], object], says: str) -> Case:
    """The folder of a run that was begun and interrupted, which `spoil` then changes."""

    def make(folder: Path) -> list[str]:
        torch.save(plain_net(), folder / "plain.pt")
        loaded = load_model("plain.pt")
        facts = {"name": loaded.name, "source": loaded.source, "sha256": model_hash(loaded.module)}
        options = quantize.make_context("quantize", list(ARGUMENTS)).params
        with RunFolder(folder / "out", make_settings(loaded, options), facts):
            pass
        spoil(folder / "out")
        return ARGUMENTS

    return Case(make, says)


def pickled(content: object, name: str, says: str) -> Case:
    """A checkpoint that is a pickle, as earlier versions wrote it."""
    return begun(lambda out: torch.save(content, out / name), says)


def linked(name: str) -> Case:
    """A link to a file outside, where the run would write."""

    def spoil(out: Path) -> None:
        (out.parent / "precious").write_text("all of it")
        (out / name).unlink(missing_ok=True)
        os.symlink("../precious", out / name)

    return begun(spoil, "is a link, which would be written through")


CASES = {
    "an old checkpoint that runs a command": pickled(
        {"student": Reduced(os.system, f"touch {MARK}")}, OLD_CHECKPOINT, "is a pickle"
    ),
    "a checkpoint that runs a command": pickled(
        {"student": Reduced(os.system, f"touch {MARK}")}, CHECKPOINT, "can't be read"
    ),
    "a checkpoint that is a network": pickled(nn.Linear(1, 1), CHECKPOINT, "can't be read"),
    "a checkpoint of nothing": begun(
        lambda out: write_state({}, out / CHECKPOINT), "is not that of this run: ValueError"
    ),
    "a checkpoint of another kind": begun(
        lambda out: (out / CHECKPOINT).write_bytes(b"text"), "can't be read"
    ),
    "a report that is cut off": begun(
        lambda out: (out / REPORT).write_text('{"model": '), "report.json can't be read"
    ),
    "a report of nothing": begun(lambda out: (out / REPORT).write_text("{}"), "it has no 'model'"),
    "a report nested without end": begun(
        lambda out: (out / REPORT).write_text("[" * 100_000), "report.json can't be read"
    ),
    "settings of another run": begun(
        lambda out: (out / RECIPE).write_text("seed = '" + "x" * 9999 + "'"), "holds another run"
    ),
    "a log that is a link": linked(LOG),
    "a lock that is a link": linked(LOCK),
    "a checkpoint that is a link": linked(CHECKPOINT),
    "settings that are a link": linked(RECIPE),
}
