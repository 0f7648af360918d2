"""Mixed precision on the command line: targets, what the folder keeps, and a repeated run."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from small_cli import small_command

from fxquant.cli.main import run
from fxquant.cli.options import Amount
from fxquant.run_folder import RECIPE, REPORT, STUDENT
from fxquant.settings import read_settings


def report_of(folder: Path) -> dict:
    return json.loads((folder / REPORT).read_text())


def test_a_mixed_run_and_the_one_that_repeats_it(tmp_path, capsys):
    command, first = small_command(tmp_path), tmp_path / "first"
    mixed = [*command, str(first), "--mixed", "--bits", "4"]
    assert run(mixed) == 0
    shown = capsys.readouterr().out
    assert "mixed, ddaq" in shown
    assert "bits of layers' weights" in shown
    report, kept = report_of(first), read_settings(first / RECIPE)
    widths = {row["name"]: row["weight_bits"] for row in report["layers"]}
    assert len(set(widths.values())) > 1
    assert {rule.pattern: rule.bits for rule in kept.mixed.layers} == widths
    assert {row["act_bits"] for row in report["layers"][1:]} == {4}
    assert report["size"]["weights_bytes"] <= report["mixed"]["budget"]
    assert len(report["mixed"]["frontier"]) > 5
    assert run(mixed) == 0
    assert "already finished" in capsys.readouterr().err
    again = tmp_path / "again"
    arguments = [*command[:-3], "--config", str(first / RECIPE), "--output", str(again)]
    assert run(arguments) == 0
    for name in (RECIPE, REPORT, STUDENT):
        assert (again / name).read_bytes() == (first / name).read_bytes(), name
    export = ["export", str(first), "--arch", "nets:Residual", "--layout", "portable"]
    assert run(export) == 0


def test_a_target_size_is_met_and_one_that_can_not_be_is_refused(tmp_path, capsys):
    command, out = small_command(tmp_path), tmp_path / "run"
    assert run([*command, str(out), "--target-size", "2.5kB", "--mixed-widths", "2,4,8"]) == 0
    report = report_of(out)
    assert report["size"]["weights_bytes"] <= 2500
    assert {row["weight_bits"] for row in report["layers"]} <= {2, 4, 8}
    capsys.readouterr()
    none = tmp_path / "none"
    assert run([*command, str(none), "--target-size", "1kB"]) == 2
    error = capsys.readouterr().err
    assert "the target size of 1,000 bytes can't be met: the least is" in error
    assert not none.exists()
    assert run([*command, str(none), "--target-size", "1MB", "--target-bitops", "1G"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_flat_width_takes_the_place_of_a_mixed_recipe(tmp_path):
    command, out = small_command(tmp_path), tmp_path / "run"
    toml = tmp_path / "small.toml"
    toml.write_text(toml.read_text() + '\n[mixed]\nlayers = ["*=w2"]\n')
    assert run([*command, str(out), "--bits", "5"]) == 0
    assert read_settings(out / RECIPE).mixed is None
    assert {row["weight_bits"] for row in report_of(out)["layers"]} == {5}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5MB", 5e5), ("500kB", 5e5), ("500 KB", 5e5), ("2GB", 2e9), ("512", 512.0), (".5M", 5e5)],
)
def test_amounts(text, value):
    assert Amount("B", "0.5MB").convert(text, None, None) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0MB", "1e6", "5 bytes", "nan"])
def test_what_is_no_amount(text):
    with pytest.raises(click.BadParameter, match=r"is not an amount above 0 such as 0\.5MB"):
        Amount("B", "0.5MB").convert(text, None, None)
