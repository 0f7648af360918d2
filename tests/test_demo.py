"""The demo's path in small: train on real digits, forget them, quantize, measure."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from small_runs import shrunk

from fxquant.cli.main import run
from fxquant.settings import Settings, to_toml

ROOT = Path(__file__).parents[1]


def test_digits_from_training_to_the_onnx_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "digits"))
    import train

    monkeypatch.setattr(train, "EPOCHS", 3)
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path)])
    threads = torch.get_num_threads()
    train.main()
    torch.set_num_threads(threads)
    recipe = shrunk("ddaq", "fast")
    recipe = replace(recipe, schedule=replace(recipe.schedule, warmup=30, batch=32, steps=0))
    recipe = replace(recipe, polish=replace(recipe.polish, steps=20, batches=2, batch=64))
    config = tmp_path / "small.toml"
    config.write_text(to_toml(Settings((1, 8, 8), recipe=recipe).to_dict()))
    capsys.readouterr()
    model = [str(tmp_path / "digits.pt"), "--arch", "examples.digits.net:DigitsNet"]
    data = ["--eval-data", str(tmp_path / "digits_test.npz")]
    data += ["--eval-mean", "0.3", "--eval-std", "0.38"]
    options = ["--config", str(config), "--output", str(tmp_path / "run"), "--json"]
    assert run(["quantize", *model, *options, *data]) == 0
    report = json.loads(capsys.readouterr().out)
    accuracy = report["accuracy"]
    assert accuracy["images"] == 450
    assert accuracy["teacher"] > 90
    assert accuracy["student"] > accuracy["teacher"] - 15
    assert abs(accuracy["onnx"] - accuracy["student"]) < 0.5
    assert report["parity"]["convolutions_integer"] == 6
