"""The same run leaves the same bytes: not hashes, clocks, key orders or other draws matter."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nets
import pytest
import torch
from small_cli import ARTIFACTS, artifacts, small_command, small_recipe
from small_runs import SHAPE

import fxquant
from fxquant.cli.main import run
from fxquant.settings import Settings, to_toml

PACKAGE = Path(fxquant.__file__).parent


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def command(base) -> list[str]:
    return small_command(base)


@pytest.fixture(scope="module")
def expected(base, command) -> dict[str, bytes]:
    assert run([*command, str(base / "first")]) == 0
    return artifacts(base / "first")


@pytest.mark.parametrize("hash_seed", ["1", pytest.param("2", marks=pytest.mark.soak)])
def test_hashes_of_strings_change_nothing(hash_seed, command, expected, tmp_path):
    """Sets of names come in another order for each seed, in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(nets.__file__).parent)
    full = [sys.executable, "-m", "fxquant.cli", *command, str(tmp_path / "run")]
    subprocess.run(full, env=environment, check=True, capture_output=True)
    assert artifacts(tmp_path / "run") == expected
    assert set(expected) == ARTIFACTS


def test_other_draws_and_another_clock_change_nothing(command, expected, tmp_path, monkeypatch):
    """Before and during the run: the clock jumps back and forth at each look."""
    jumps = itertools.cycle([0.0, 1e9, -1e9, 4e9])
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(jumps) / 4)
    torch.manual_seed(12345)
    torch.rand(100)
    assert run([*command, str(tmp_path / "run")]) == 0
    assert artifacts(tmp_path / "run") == expected


def reversed_tables(value):
    """The same plain values with the keys of every table in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_tables(value[key]) for key in reversed(value)}
    return [reversed_tables(item) for item in value] if isinstance(value, list | tuple) else value


def test_the_order_of_keys_in_files_changes_nothing(base, command, expected, tmp_path):
    state = torch.load(base / "net.pt", weights_only=True)
    settings = Settings(SHAPE, recipe=small_recipe()).to_dict()
    before = [(base / name).read_bytes() for name in ("net.pt", "small.toml")]
    torch.save(dict(reversed(state.items())), base / "net.pt")
    (base / "small.toml").write_text(to_toml(reversed_tables(settings)))
    assert [(base / name).read_bytes() for name in ("net.pt", "small.toml")] != before
    try:
        assert run([*command, str(tmp_path / "run")]) == 0
    finally:
        for name, content in zip(("net.pt", "small.toml"), before, strict=True):
            (base / name).write_bytes(content)
    assert artifacts(tmp_path / "run") == expected


def test_nothing_reads_the_clock_that_can_be_set():
    folders = [PACKAGE, PACKAGE.parent / "cli", PACKAGE.parent / "exporters"]
    for path in itertools.chain.from_iterable(folder.rglob("*.py") for folder in folders):
        assert not re.search(r"\btime\.time\(|\bdatetime\b|\bdate\.today", path.read_text()), path
