"""Command lines and recipe files made at random: most of them wrong, some in ways nobody meant."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import nets
import numpy as np
import torch
from safetensors.torch import save_file
from small_runs import RECIPES, SHAPE
from torch import nn

from fxquant.cli import quantize_job
from fxquant.cli.main import run
from fxquant.settings import Settings, to_toml

EXIT_CODES = (0, 2, 3, 4, 5)
# A run of more steps is interrupted where it would begin.
MOST_STEPS = 40

NUMBERS = ("-1", "0", "1", "2", "4", "8", "9", "1.5", "1e3", "nan", "inf", "-inf", "9" * 5000)
TEXTS = (
    "",
    " ",
    "-",
    "--",
    "=",
    ".",
    "..",
    "~",
    "*",
    "[",
    "'\"`$(x)",
    "ü\u202e",
    "\udcff",
    "a" * 5000,
)
PATHS = ("net.pt", "gone.pt", "folder", "/dev/null", "/dev/full", "folder/deep/x", "text.txt", "..")
SHAPES = ("3,16,16", "3,16,16", "3,16", "1,16,16", "0,1,1", "3,-4,4", "3,x,3", "9999999,99,99", "3")
LAYERS = ("conv1=8", "*=4", "*=float", "layer1.*=2", "=4", "x", "conv1=1", "[=3", "a=b=5", "*=٣")
DEVICES = ("cpu", "cpu", "auto", "cuda", "cuda:0", "cuda:99999999999999999999", "cpu:0", "meta", "")
ARCHES = (
    *("nets:Residual", "nets:Residual", "nets:Plain", "nets:Gone", "gone:Net", "nets", "nets:"),
    *("torchvision:resnet18", "torchvision:gone", "pytorchcv:resnet20_cifar10", "math:sqrt"),
)
MODELS = (
    *("net.pt", "net.pt", "net.pt", "module.pt", "net.safetensors", "cut.pt", "text.txt"),
    *("data.npz", "folder", "gone.pt", "nets:Residual", "torchvision:gone", "pytorchcv:gone"),
    *("", ".", "-", "/dev/null", "/dev/zero", "small.toml", "a:b", "a" * 300, "\udcff"),
)
VALUES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--bits", "--weight-bits", "--act-bits", "--sum-bits"), NUMBERS),
    **dict.fromkeys(("--first-last-bits", "--seed"), NUMBERS),
    **dict.fromkeys(("--layer",), LAYERS),
    **dict.fromkeys(("--arch",), ARCHES),
    **dict.fromkeys(("--trust-class",), ("nets.Residual", "os.system", "x", "", "torch.nn.Linear")),
    **dict.fromkeys(("--input-shape",), SHAPES),
    **dict.fromkeys(("--recipe",), ("ddaq", "zeroq", "zaq", "")),
    **dict.fromkeys(("--preset",), ("fast", "default", "paper", "best", "")),
    **dict.fromkeys(("--device",), DEVICES),
    **dict.fromkeys(("--eval-data",), ("data.npz", "data.npz", "net.pt", "text.txt", "gone.npz")),
    **dict.fromkeys(("--eval-mean", "--eval-std"), ("0.5", "0.5,0.4,0.3", "nan", "0", "1,2", "x")),
    **dict.fromkeys(("--output",), ("out", "out", "out/deep", "net.pt", "", "a" * 300)),
    **dict.fromkeys(("--graph",), ("g.svg", "g.png", "folder", "gone/g.svg", "")),
    **dict.fromkeys(("--no-finetune", "--json"), ()),
}
OF_QUANTIZE = (
    *("--recipe", "--preset", "--no-finetune", "--device", "--seed", "--output"),
    *("--eval-data", "--eval-mean", "--eval-std"),
)
# Of each option what works on the network here: wrong values hide behind the first wrong one.
GOOD: dict[str, str] = {
    **dict.fromkeys(("--bits", "--weight-bits", "--act-bits", "--sum-bits"), "4"),
    **{"--first-last-bits": "8", "--seed": "1", "--layer": "conv1=8", "--input-shape": "3,16,16"},
    **{"--device": "cpu", "--eval-data": "data.npz", "--eval-mean": "0.5", "--output": "out"},
    **{"--eval-std": "0.5", "--trust-class": "nets.Residual", "--graph": "g.svg"},
}
ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2**31, 2**63 - 1, -(2**63), 0.0, -0.5, 1e-300, 1e300, True, False),
    *(float("nan"), float("inf"), "", "ddaq", "features", "x" * 500, "\x07", [], [1], [[]], {}),
    *({"a": 1}, [{}], [{"loss": "output"}], ["a", 1.5]),
)


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Run `count` command lines in `folder`; how many ended with which exit code.

    Raises AssertionError for a traceback, or an exit code that is not documented.
    """
    rng, ends = random.Random(seed), Counter()
    make_files(folder)
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _chdir(folder):
        for index in range(count):
            arguments = make_arguments(rng)
            ends[f"exit code {_run(arguments, index)}"] += 1
            if rng.random() < 0.2:
                shutil.rmtree("out", ignore_errors=True)
    return dict(sorted(ends.items()))


@contextlib.contextmanager
def _chdir(folder: Path):
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_files(folder: Path) -> None:
    """What the command lines name."""
    net = nets.ALL["residual"]()
    torch.save(net.state_dict(), folder / "net.pt")
    save_file(net.state_dict(), folder / "net.safetensors")
    small = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)]
    torch.save(nn.Sequential(*small).eval(), folder / "module.pt")
    (folder / "cut.pt").write_bytes((folder / "net.pt").read_bytes()[:-200])
    (folder / "text.txt").write_text("hello")
    (folder / "folder").mkdir()
    (folder / "small.toml").write_text(to_toml(good_settings()))
    images = np.zeros((4, 16, 16, 3), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(4))


def good_settings() -> dict[str, Any]:
    return Settings(SHAPE, recipe=RECIPES["ddaq"]).to_dict()


def make_arguments(rng: random.Random) -> list[str]:
    """A command line; it may write a recipe file that it names."""
    command = rng.choice(["quantize"] * 30 + ["inspect"] * 9 + ["gone"])
    arguments = [command]
    if rng.random() < 0.97:
        arguments.append(rng.choice(MODELS) if rng.random() < 0.4 else "net.pt")
    if rng.random() < 0.9 and arguments[-1] in ("net.pt", "net.safetensors"):
        arguments += ["--arch", "nets:Residual"]
    if rng.random() < 0.8:
        arguments += ["--config", _make_config(rng)]
    else:
        arguments += ["--input-shape", "3,16,16"]
    known = [name for name in VALUES if command != "inspect" or name not in OF_QUANTIZE]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3, 6])):
        name = rng.choice(known if rng.random() < 0.98 else ["--gone", "--help", "--version"])
        arguments.append(name)
        if VALUES.get(name) and rng.random() < 0.97:
            kind = rng.random()
            odd = rng.choice(TEXTS + PATHS if kind < 0.1 else VALUES[name])
            arguments.append(odd if kind < 0.4 else GOOD.get(name, odd))
    if rng.random() < 0.05:
        rng.shuffle(arguments)
    return arguments


def _make_config(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return "small.toml"
    if kind < 0.3:
        return rng.choice(["small.toml", "small.toml", *PATHS])
    values = copy.deepcopy(good_settings())
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4])):
        _spoil(values, rng)
    try:
        text = to_toml(values)
    except (TypeError, ValueError):
        text = ""
    if kind > 0.85:
        text = _scramble(text, rng)
    Path("fuzzed.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    return "fuzzed.toml"


def _spoil(values: dict[str, Any], rng: random.Random) -> None:
    """Change, drop or add one value somewhere in nested tables."""
    place: Any = values.get("recipe")
    if rng.random() > 0.6 or not isinstance(place, dict) or not place:
        place = values
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        deeper = isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85
        if not deeper:
            break
        place = place[key]
    action = rng.random()
    if action < 0.8:
        place[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif action < 0.9:
        del place[key]
    elif isinstance(place, dict):
        name = rng.choice(["steps", "lr", "x", "kind", ""])
        place[name] = copy.deepcopy(rng.choice(ODD_VALUES))


def _scramble(text: str, rng: random.Random) -> str:
    """Drop, double or replace pieces of the text."""
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(text) + 1)
        end = start + rng.choice([1, 1, 5, 50])
        piece = rng.choice(
            ["", text[start:end] * 2, "\x00", "[[", "]", '"', "'''", "\ufeff", "=\n"]
        )
        text = text[:start] + piece + text[end:]
    return text


def _run(arguments: list[str], index: int) -> int:
    out, error = io.StringIO(), io.StringIO()
    guarded = mock.patch.object(quantize_job, "run", _guard(quantize_job.run))
    try:
        with guarded, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = run(arguments)
    except BaseException:
        raise AssertionError(f"{index}: {arguments!r:.2000}\n{traceback.format_exc()}") from None
    said = error.getvalue()
    assert code in EXIT_CODES, (index, arguments, code)
    assert "Traceback" not in said, (index, arguments, said)
    assert code != 2 or "rror: " in said or "Usage: " in said, (index, arguments, said)
    return code


def _guard(train: Callable) -> Callable:
    def guarded(prepared, settings, **how):
        recipe = settings.recipe
        steps = recipe.schedule.warmup * recipe.sampler.batches + recipe.schedule.adversarial
        steps += recipe.schedule.steps + recipe.polish.steps * recipe.polish.batches
        sizes = (recipe.schedule.batch, recipe.polish.batch, recipe.importance.images)
        sizes += (recipe.schedule.calibration_images, recipe.sampler.width, recipe.sampler.latent)
        large = steps > MOST_STEPS or max(sizes) > 256 or recipe.importance.probes > 20
        if large or recipe.schedule.replay > 1000:
            raise KeyboardInterrupt
        return train(prepared, settings, **how)

    return guarded
