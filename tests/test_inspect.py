"""`fxquant inspect`: what it tells people, machines and pictures, and what wrong input gets."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from small_runs import shrunk
from torch import nn

from fxquant.cli import tables
from fxquant.cli.main import run
from fxquant.settings import Settings, to_toml
from fxquant.spec import QConfig

SHAPE = ["--input-shape", "3,16,16"]
NET = ["inspect", "nets:Residual", *SHAPE]


def inspected(capsys, *arguments: str) -> dict:
    """The facts that a call prints as JSON."""
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys, *arguments: str) -> str:
    assert run(list(arguments)) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_json_has_the_facts_that_the_page_lists(capsys):
    facts = inspected(capsys, *NET, "--bits", "3", "--layer", "layer1.*=6")
    page = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text(encoding="utf-8")
    for key in keys_of(facts):
        assert f"`{key}`" in page, key
    bits = {layer["name"]: layer["weight_bits"] for layer in facts["layers"]}
    assert bits == {"conv1": 3, "linear": 3} | {
        f"layer{i}.conv{j}": (6 if i == 1 else 3) for i in (1, 2) for j in (1, 2)
    }
    assert facts["model"]["name"] == "Residual"
    assert facts["summary"]["layers_integer"] == len(facts["layers"]) == 6
    assert facts["taps"]["batchnorm_names"][0] == "bn1"
    assert facts["settings"]["config"]["act_bits"] == 3


def keys_of(facts: dict) -> set[str]:
    keys = set()
    for key, value in facts.items():
        keys.add(key)
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if isinstance(entry, dict) and key != "settings":
                keys |= set(entry)
    return keys


def test_report_and_inspect_agree(tmp_path, capsys):
    recipe = shrunk("ddaq", "fast").without_fine_tuning()
    config = tmp_path / "small.toml"
    config.write_text(to_toml(Settings((3, 16, 16), QConfig(3, 5), recipe).to_dict()))
    arguments = ["nets:SqueezeExcite", "--config", str(config)]
    facts = inspected(capsys, "inspect", *arguments)
    report = inspected(capsys, "quantize", *arguments, "--output", str(tmp_path / "run"))
    for key in ("summary", "size", "bitops", "float", "left_out", "notes", "taps"):
        assert (
            facts[key].items() <= report[key].items()
            if isinstance(facts[key], dict)
            else (facts[key] == report[key])
        )
    for told, measured in zip(facts["layers"], report["layers"], strict=True):
        assert told.items() <= measured.items()
    linears = report["parity"]["linears_integer"] + report["parity"]["convolutions_integer"]
    assert facts["summary"]["layers_integer"] == linears


def test_settings_file_is_read_and_options_override_it(tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    settings = Settings((3, 24, 24), QConfig(2, 6, first_last_bits=8))
    path.write_text(to_toml(settings.to_dict()))
    facts = inspected(capsys, "inspect", "nets:Plain", "--config", str(path), *SHAPE)
    assert facts["model"]["input_shape"] == [3, 16, 16]
    assert [layer["weight_bits"] for layer in facts["layers"]] == [8, 2, 2, 8]
    facts = inspected(
        capsys, "inspect", "nets:Plain", "--config", str(path), *SHAPE, "--first-last-bits", "4"
    )
    assert [layer["weight_bits"] for layer in facts["layers"]] == [4, 2, 2, 4]


class LongNames(nn.Sequential):
    """A network whose layers have names of 60 characters and more."""

    def __init__(self):
        super().__init__()
        inner = self
        for word in ("features", "denseblock_of_many_layers", "denselayer_with_a_long_name"):
            inner.add_module(word, nn.Sequential())
            inner = getattr(inner, word)
        for i in range(12):
            inner.add_module(f"conv{i}", nn.Conv2d(3, 3, 1))
            inner.add_module(f"act{i}", nn.GELU())


NAMES = [
    f"features.denseblock_of_many_layers.denselayer_with_a_long_name.{what}{i}"
    for i in range(12)
    for what in ("conv", "act")
]


def test_a_pipe_gets_every_name_whole_and_columns_in_line(capsys):
    text = printed(capsys, "inspect", "test_inspect:LongNames", *SHAPE, "--layer", "*.conv3=float")
    lines = text.splitlines()
    assert all(name in text for name in NAMES)
    header = lines[1]
    rows = [line for line in lines if line.startswith("features.") and " conv " in line]
    assert len(rows) == 12
    for row in rows:
        assert row.index("conv ", 70) == header.index("kind")
    assert rows[3].endswith("float: a layer rule keeps it float")
    assert rows[4].endswith("yes")
    assert "\x1b" not in text
    assert "quantized           11 of 12 layers, 91.7 % of MACs" in lines


def in_terminal(columns: int, monkeypatch, *arguments: str) -> list[str]:
    """What a call prints in a terminal of this width, without the codes for colours."""
    main, side = pty.openpty()
    chunks = []

    def read() -> None:
        with suppress(OSError):  # a terminal that nobody writes to any more
            while chunk := os.read(main, 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()  # at once, as a terminal takes little that nobody reads
    with monkeypatch.context() as patch, open(side, "w") as terminal:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", terminal)
        code = run(list(arguments))
    reader.join()
    os.close(main)
    assert code == 0
    text = b"".join(chunks).decode()
    for code in ("\x1b[1m", "\x1b[0m", "\x1b[3m"):
        text = text.replace(code, "")
    assert "\x1b" not in text
    return text.replace("\r", "").splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_lines_that_fit(columns, monkeypatch):
    call = ["inspect", "test_inspect:LongNames", *SHAPE, "--layer", "*.conv3=float"]
    lines = in_terminal(columns, monkeypatch, *call)
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "float 1" in text
    assert "1: a layer rule keeps it float" in lines
    assert "and 5 more" in " ".join(text.split())
    # Names are folded at their dots and underscores and lose nothing.
    squeezed = "".join(line.split("  ")[0] for line in lines[2:60]).replace(" ", "")
    assert NAMES[0] in squeezed


def test_folding_keeps_all_letters():
    folded = tables.fold("features.denseblock3.denselayer24.conv1", 22)
    assert folded.split("\n") == ["features.denseblock3.", " denselayer24.conv1"]
    assert tables.fold("a" * 50, 20).replace("\n ", "") == "a" * 50
    assert max(map(len, tables.fold("ab." * 40, 17).split("\n"))) <= 17


def test_graph_is_drawn_and_said_on_stderr_alone(tmp_path, capsys):
    picture = tmp_path / "graph.svg"
    assert run([*NET, "--graph", str(picture), "--json"]) == 0
    output = capsys.readouterr()
    json.loads(output.out)
    assert str(picture) in output.err
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert "layer2.conv1" in [element.text for element in root.iter() if element.tag[-4:] == "text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.svg"]


def test_zoo_networks_are_built_without_their_weights(capsys, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    facts = inspected(capsys, "inspect", "torchvision:mobilenet_v3_small", *SHAPE)
    assert facts["model"]["parameters"] == 2_542_856


class Unseen(nn.Module):
    """A layer that traces, before a module that does not."""

    def __init__(self):
        super().__init__()
        self.body, self.odd = nn.Conv2d(3, 4, 3), Odd()

    def forward(self, x):
        return self.odd(self.body(x))


class Odd(nn.Module):
    """Depends on the batch, and multiplies by weights that no graph shows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight) * sum(1 for _ in x.unbind(0))


def test_what_tracing_could_not_look_into_is_told(capsys):
    facts = inspected(capsys, "inspect", "test_inspect:Unseen", *SHAPE)
    part = next(part for part in facts["left_out"] if part["hidden"])
    assert (part["name"], part["type"], part["hidden"]) == ("odd", "Odd", ["odd"])
    assert [row["name"] for row in facts["layers"]] == ["body", "odd"]
    row = facts["layers"][-1]
    assert (row["kind"], row["weight_bits"]) == ("Odd", None)
    assert row["macs"] == 14 * 14 * 8
    body = 14 * 14 * 4 * 27
    assert facts["summary"]["macs_quantized"] == body / (body + row["macs"])
    text = printed(capsys, "inspect", "test_inspect:Unseen", *SHAPE)
    assert f"odd (Odd)\n    {part['reason']}" in text
    assert "hides 1 layer:" in text


def refused(capsys, *arguments: str) -> str:
    """Standard error of a call that must end with exit code 2 and print nothing else."""
    assert run(["inspect", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.pt"], "there is no file 'nowhere.pt'"),
        (["nets:Nothing", *SHAPE], "Nothing"),
        (["torchvision:resnet19", *SHAPE], "torchvision has no network 'resnet19'"),
        (["nets:Residual"], "--input-shape C,H,W"),
        (["nets:Residual", "--input-shape", "3,16"], "does not take an input of shape 3,16"),
        (["nets:Residual", "--input-shape", "3,0,16"], "expected positive whole numbers"),
        (["nets:Residual", *SHAPE, "--bits", "1"], "2<=x<=8"),
        (["nets:Residual", *SHAPE, "--layer", "conv1"], "layer rule 'conv1' can't be read"),
        (["nets:Plain", *SHAPE, "--layer", "*=float"], "there is nothing to quantize"),
        (["nets:Residual", *SHAPE, "--config", "no.toml"], "no such settings file: no.toml"),
        (["nets:Residual", *SHAPE, "--graph", "g.png"], "name a file that ends in .svg"),
        (["nets:Residual", *SHAPE, "--graph", "/nowhere/g.svg"], "can't write /nowhere/g.svg"),
        (["nets:Residual", *SHAPE, "--recipe", "ddaq"], "No such option"),
        ([], "Missing argument"),
    ],
)
def test_wrong_input(capsys, arguments, expected):
    assert expected in refused(capsys, *arguments)


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m fxquant.cli {' '.join(NET)} | head -2"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "Layers"
    assert "Traceback" not in done.stderr


def test_help_lists_the_command(capsys):
    run(["--help"])
    assert "inspect" in capsys.readouterr().out
