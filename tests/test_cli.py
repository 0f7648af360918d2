"""The command line: a whole run on a small network, and what wrong input gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
import torch
from interruptible import interruptible
from small_runs import shrunk

from fxquant.cli.main import run
from fxquant.settings import Settings, to_toml

ARCH = "nets:Residual"


@pytest.fixture
def state_dict(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.save(nets.ALL["residual"]().state_dict(), path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(to_toml(Settings((3, 16, 16), recipe=shrunk("ddaq", "default")).to_dict()))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "test.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=rng.integers(0, 10, 20))
    return path


def test_quantize_writes_everything(tmp_path, state_dict, config, labelled, capsys):
    out = tmp_path / "run"
    arguments = ["quantize", str(state_dict), "--arch", ARCH, "--config", str(config)]
    evaluation = ["--eval-data", str(labelled), "--eval-mean", "0.5", "--eval-std", "0.3"]
    assert run([*arguments, "--output", str(out), *evaluation, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["parity"]["passed"]
    assert report["summary"]["layers_float"] == 0
    assert report["accuracy"]["images"] == 20
    assert {layer["weight_bits"] for layer in report["layers"]} == {4}
    found = {path.name for path in out.iterdir()}
    assert found == {
        "model.onnx",
        "report.json",
        "report.html",
        "recipe.toml",
        "student.safetensors",
        "images.safetensors",
        "timing.json",
        "run.log",
        ".lock",
    }
    properties = {p.key: p.value for p in onnx.load(out / "model.onnx").metadata_props}
    assert properties["fxquant.recipe"] == "ddaq"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[list[str], Path]:
    """The command line of a run that has finished, but for `--output`, and its folder."""
    here = tmp_path_factory.mktemp("finished")
    torch.save(nets.ALL["residual"]().state_dict(), here / "net.pt")
    settings = Settings((3, 16, 16), recipe=shrunk("ddaq", "default"))
    (here / "small.toml").write_text(to_toml(settings.to_dict()))
    arguments = ["quantize", str(here / "net.pt"), "--arch", ARCH, "--bits", "3", "--seed", "5"]
    arguments += ["--config", str(here / "small.toml")]
    assert run([*arguments, "--output", str(here / "run")]) == 0
    return arguments, here / "run"


def test_recipe_file_repeats_the_run_byte_for_byte(tmp_path, finished):
    (_, model, *_), first = finished
    again = ["quantize", model, "--arch", ARCH, "--config", str(first / "recipe.toml")]
    assert run([*again, "--output", str(tmp_path / "second")]) == 0
    for name in ("model.onnx", "student.safetensors"):
        assert (first / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_layer_rules_and_widths_reach_the_graph(tmp_path, state_dict, config, capsys):
    rules = ["--layer", "layer*=6", "--layer", "linear=float", "--weight-bits", "3"]
    arguments = ["quantize", str(state_dict), "--arch", ARCH, "--config", str(config), *rules]
    assert run([*arguments, "--output", str(tmp_path / "run"), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    bits = {row["name"]: row["weight_bits"] for row in layers}
    assert bits["conv1"] == 3
    assert bits["layer1.conv1"] == 6
    assert bits["linear"] is None


def test_finished_run_is_told_and_not_repeated(finished, capsys):
    arguments, out = finished
    written = (out / "model.onnx").stat().st_mtime_ns
    assert run([*arguments, "--output", str(out)]) == 0
    assert "already finished" in capsys.readouterr().err
    assert (out / "model.onnx").stat().st_mtime_ns == written


def test_folder_of_another_run_is_refused(finished, capsys):
    arguments, out = finished
    before = (out / "model.onnx").read_bytes()
    assert run([*arguments, "--output", str(out), "--bits", "5"]) == 2
    assert "holds another run: its config.act_bits is 3, not 5" in capsys.readouterr().err
    assert (out / "model.onnx").read_bytes() == before


def refused(capsys, *arguments: str) -> str:
    """Standard error of a call that must end with exit code 2 and print nothing else."""
    assert run(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--bits", "1"], "2<=x<=8"),
        (["--bits", "9"], "2<=x<=8"),
        (["--input-shape", "3,16"], "does not take an input of shape 3,16"),
        (["--input-shape", "1,16,16"], "does not take an input of shape 1,16,16"),
        (["--input-shape", "three"], "is not a list of numbers"),
        (["--input-shape", "0,16,16"], "expected positive whole numbers"),
        (["--layer", "conv1"], "layer rule 'conv1' can't be read"),
        (["--layer", "conv1=12"], "expected a whole number from 2 to 8"),
        (["--recipe", "magic"], "unknown recipe 'magic'"),
        (["--preset", "magic"], "unknown preset 'magic'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--eval-data", "nowhere.npz"], "no such evaluation data: nowhere.npz"),
        (["--config", "nowhere.toml"], "no such settings file: nowhere.toml"),
    ],
)
def test_wrong_options(tmp_path, state_dict, capsys, extra, expected):
    out = tmp_path / "run"
    base = ["quantize", str(state_dict), "--arch", ARCH, "--output", str(out)]
    shape = [] if "--input-shape" in extra else ["--input-shape", "3,16,16"]
    assert expected in refused(capsys, *base, *shape, *extra)
    assert not (out / "model.onnx").exists()
    assert not (out / "recipe.toml").exists()


def test_missing_input_shape_is_asked_for(state_dict, capsys):
    assert "--input-shape C,H,W" in refused(capsys, "quantize", str(state_dict), "--arch", ARCH)


def test_missing_file_and_state_dict_without_arch(state_dict, capsys):
    assert "there is no file 'nowhere.pt'" in refused(capsys, "quantize", "nowhere.pt")
    assert "--arch" in refused(capsys, "quantize", str(state_dict))


class Branches(torch.nn.Module):
    """Asks for a number while it is traced."""

    def __init__(self):
        super().__init__()
        self.inner = nets.Residual()

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class WithoutBatchNorm(torch.nn.Sequential):
    """A convolution and a linear layer."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(784, 10))


def test_model_that_cannot_be_traced_names_file_and_line(tmp_path, config, capsys):
    out = ["--output", str(tmp_path / "run"), "--config", str(config)]
    error = refused(capsys, "quantize", "test_cli:Branches", *out)
    assert "test_cli.py:" in error
    assert "if x.sum() > 0" in error
    assert "hint:" in error


def test_model_without_batch_norm_is_told_what_works(tmp_path, capsys):
    out = ["--output", str(tmp_path / "run"), "--input-shape", "3,16,16"]
    error = refused(capsys, "quantize", "test_cli:WithoutBatchNorm", *out)
    assert "no batch norm" in error
    assert "fxquant.calibrate" in error


def test_interrupt_ends_with_3_and_the_run_continues(tmp_path, state_dict):
    config, out = tmp_path / "long.toml", tmp_path / "run"
    recipe = shrunk("ddaq", "default")
    recipe = replace(recipe, schedule=replace(recipe.schedule, warmup=100_000))
    settings = Settings((3, 16, 16), recipe=recipe)
    config.write_text(to_toml(settings.to_dict()))
    command = [sys.executable, "-m", "fxquant.cli", "quantize", str(state_dict), "--arch", ARCH]
    command += ["--config", str(config), "--output", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(nets.__file__).parent)}
    with interruptible():
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "recipe.toml").exists() and "warm-up" in (process.stderr.readline()))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 3
    assert "run the same command again" in error
    assert "Traceback" not in error
    assert not (out / "model.onnx").exists()
    assert not (out / "report.json").exists()


def wait_for(condition, seconds: float = 600) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_help_does_not_import_torch():
    code = (
        "import sys; from fxquant.cli.main import run; run(['-h']); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.endswith("False\n")
