"""Pipes, sockets, devices, folders and links wherever a command reads or writes a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_modules import plain_net
from odd_files import ODD

from fxquant.cli.main import run
from fxquant.datafree.recipes import find_recipe
from fxquant.errors import OutputError
from fxquant.files import write_text
from fxquant.importance_cache import ImportanceCache
from fxquant.run_folder import (
    CHECKPOINT,
    EVENTS,
    IMAGES,
    LOCK,
    LOG,
    OLD_CHECKPOINT,
    RECIPE,
    REPORT,
    STUDENT,
    TIMING,
)
from fxquant.settings import Settings, to_toml

SETTINGS = to_toml(Settings((3, 8, 8), recipe=find_recipe("zeroq", "fast")).to_dict())
SETTINGS = SETTINGS.replace("warmup = 200", "warmup = 2").replace("batch = 64", "batch = 8")
QUANTIZE = ["quantize", "plain.pt", "--config", "small.toml"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a network, settings, data and a run that has finished."""
    folder = tmp_path_factory.mktemp("special")
    torch.save(plain_net(), folder / "plain.pt")
    (folder / "small.toml").write_text(SETTINGS)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.zeros(4, np.int64))
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert run([*QUANTIZE, "--output", "out"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def place(base, tmp_path, monkeypatch) -> Path:
    """A copy of that, to stand in."""
    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *arguments: str) -> str:
    """What a command says that ends with exit code 2."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert "Traceback" not in said
    return said


def put(path: Path, name: str) -> str:
    """Something odd in the place of a file; what is said of it."""
    path.unlink(missing_ok=True)
    make, says = ODD[name]
    make(path)
    return says


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "odd"],
        ["bench", "out/model.onnx", "--against", "odd"],
        ["verify", "odd", "--against", "out"],
        [*QUANTIZE[:2], "--config", "odd"],
        [*QUANTIZE, "--eval-data", "odd"],
        ["inspect", "plain.pt", "--config", "odd"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]}",
)
def test_where_a_command_reads(arguments, name, place, capsys):
    says = put(place / "odd", name)
    assert matches(says, refused(capsys, *arguments))


def matches(says: str, text: str) -> bool:
    return any(part in text for part in says.split("|"))


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("file", [RECIPE, STUDENT, IMAGES])
def test_what_export_reads_of_a_folder(file, name, place, capsys):
    says = put(place / "out" / file, name)
    assert matches(says, refused(capsys, "export", "out"))


@pytest.mark.parametrize("name", ODD)
def test_the_model_that_a_folder_names(name, place, capsys):
    says = put(place / "plain.pt", name)
    said = refused(capsys, "export", "out")
    assert matches(says, said)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("file", [RECIPE, REPORT, CHECKPOINT, OLD_CHECKPOINT, LOG, LOCK, TIMING])
def test_what_a_run_reads_and_writes(file, name, place, capsys):
    """Links are refused wherever the run would write."""
    if file in (CHECKPOINT, OLD_CHECKPOINT):
        (place / "out" / REPORT).unlink()
    put(place / "out" / file, name)
    said = refused(capsys, *QUANTIZE, "--output", "out")
    assert any(word in said for word in ("is a link", "is not a file", "is a pickle")), said


@pytest.mark.parametrize("name", [name for name in ODD if name != "a folder"])
def test_where_events_are_written(name, place, capsys):
    put(place / "out" / EVENTS, name)
    said = refused(capsys, *QUANTIZE, "--output", "out")
    assert "is a link" in said or "is not a folder" in said


@pytest.mark.parametrize("file", [LOG, LOCK])
def test_second_names_of_other_files_are_not_written_to(file, place, capsys):
    (place / "precious").write_text("all of it")
    (place / "out" / file).unlink(missing_ok=True)
    os.link(place / "precious", place / "out" / file)
    assert "second name" in refused(capsys, *QUANTIZE, "--output", "out")
    assert (place / "precious").read_text() == "all of it"


@pytest.mark.parametrize(
    "source", ["torchvision:resnet18", "pytorchcv:resnet20_cifar10", "os:abort"]
)
def test_what_a_folder_names_is_neither_run_nor_downloaded(source, place, capsys):
    recipe = place / "out" / RECIPE
    recipe.write_text(recipe.read_text().replace('"plain.pt"', f'"{source}"'))
    for arguments in (["export", "out"], ["export", "out", "--format", "float"]):
        said = refused(capsys, *arguments)
        assert "unasked" in said
        assert f"--model {source}" in said


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('source = "plain.pt"', "source = 1"),
        ('source = "plain.pt"', 'source = ["plain.pt"]'),
        ('source = "plain.pt"', 'source = "a\\u0000b"'),
        ('source = "plain.pt"', 'source = "' + "x" * 5000 + '"'),
        ('source = "plain.pt"', 'source = "plain.pt"\ntrust_classes = ["os.system"]'),
        ('source = "plain.pt"', 'source = "plain.pt"\narch = "os:abort"'),
        ('source = "plain.pt"', 'source = "plain.pt"\narch = 7'),
        ('source = "plain.pt"', 'source = "plain.pt"\nevil = "x"'),
        ("[model]", "[models]"),
        ("[model]", "[[model]]"),
    ],
)
def test_odd_facts_about_the_model(before, after, place, capsys):
    recipe = place / "out" / RECIPE
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after))
    refused(capsys, "export", "out")


@pytest.mark.parametrize("name", ["a pipe", "a socket", "zeros without end", "the null device"])
def test_what_is_no_file_is_not_replaced(name, tmp_path):
    put(tmp_path / "odd", name)
    before = (tmp_path / "odd").lstat()
    with pytest.raises(OutputError, match="not a file"):
        write_text(tmp_path / "odd", "x")
    assert (tmp_path / "odd").lstat() == before


@pytest.mark.parametrize("name", ODD)
def test_a_measurement_that_is_no_file_counts_as_none(name, tmp_path):
    put(tmp_path / "key.json", name)
    assert ImportanceCache(tmp_path).read("key") is None
