"""The folder of a run: whose it is, what stands in it, and that nothing in it is ever half."""

from __future__ import annotations

import io
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import RECIPES, make, same, snapshot
from torch import nn

from fxquant.errors import OutputError
from fxquant.files import write_atomic, write_text
from fxquant.run_folder import (
    CHECKPOINT,
    LOCK,
    LOG,
    OLD_CHECKPOINT,
    RECIPE,
    REPORT,
    RunFolder,
    first_difference,
    model_hash,
)
from fxquant.settings import Settings, read_settings
from fxquant.spec import LayerRule, QConfig

SETTINGS = Settings((3, 16, 16), QConfig(4, 4, layers=(LayerRule("head", 8),)), seed=7)
MODEL = {"name": "net", "sha256": "abc"}


def folder(path: Path, settings: Settings = SETTINGS, model: dict | None = None) -> RunFolder:
    return RunFolder(path, settings, model or MODEL)


def small_report() -> dict:
    """A report of what is shown, and no more."""
    difference = dict.fromkeys(("max_difference", "sqnr_db", "agreement"), 1.0)
    difference |= {"decisions_changed": None, "images": 4}
    kernels = ("convolutions", "convolutions_integer", "linears", "linears_integer")
    return {
        "model": {"name": "net"},
        "settings": {"config": {"weight_bits": 4, "act_bits": 4}, "recipe": {"name": "zeroq"}},
        "summary": {"layers_quantized": 2, "layers_float": 0},
        "size": {"float_bytes": 8, "weights_bytes": 1.5, "onnx_bytes": 9},
        "bitops": {"float": 10, "quantized": 1},
        "quality": {"agreement": 100.0, "output_sqnr_db": 30.0, "trust": None},
        "float": [{"name": "a", "what": "add", "reason": "it is"}],
        "parity": {
            **{"passed": True, "unoptimized": difference, "optimized": difference},
            **{**dict.fromkeys(kernels, 1), "file_bytes": 9, "images": 4, "diverges_at": None},
        },
        "accuracy": None,
        "mixed": None,
    }


def names(path: Path) -> list[str]:
    """What is in a folder beside the lock, which stays."""
    return sorted(p.name for p in path.iterdir() if p.name != LOCK)


def test_a_new_folder_is_made_and_its_recipe_can_be_fed_back(tmp_path):
    path = tmp_path / "deep" / "run"
    with folder(path) as run:
        assert not run.finished
        assert run.load_checkpoint() is None
    assert names(path) == [RECIPE]
    assert read_settings(path / RECIPE) == SETTINGS


def test_the_same_run_may_come_back(tmp_path):
    with folder(tmp_path / "run"):
        pass
    with folder(tmp_path / "run") as run:
        report = small_report()
        write_text(run.path / REPORT, json.dumps(report))
        assert run.finished
        assert run.read_report() == report


@pytest.mark.parametrize(
    ("settings", "model", "difference"),
    [
        (replace(SETTINGS, seed=8), MODEL, "its seed is 7, not 8"),
        (replace(SETTINGS, config=QConfig(3, 4)), MODEL, "its config.layers is"),
        (
            replace(SETTINGS, config=replace(SETTINGS.config, weight_bits=3)),
            MODEL,
            "its config.weight_bits is 4, not 3",
        ),
        (replace(SETTINGS, recipe=RECIPES["zeroq"]), MODEL, "its recipe.name is 'ddaq'|recipe"),
        (SETTINGS, MODEL | {"sha256": "abd"}, "its model.sha256 is 'abc', not 'abd'"),
    ],
)
def test_another_run_is_refused_by_its_first_difference(settings, model, difference, tmp_path):
    with folder(tmp_path):
        pass
    before = (tmp_path / RECIPE).read_bytes()
    with pytest.raises(OutputError, match=f"holds another run: .*{difference}") as caught:
        folder(tmp_path, settings, model).__enter__()
    assert "--output" in caught.value.hint
    assert (tmp_path / RECIPE).read_bytes() == before
    with folder(tmp_path):  # the lock is free again
        pass


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(OutputError, match=r"not empty: it holds thesis\.tex"):
        folder(tmp_path).__enter__()
    assert "thesis.tex" in names(tmp_path)
    assert RECIPE not in names(tmp_path)


def test_an_empty_folder_or_one_with_only_a_log_is_taken(tmp_path):
    (tmp_path / LOG).write_text("a start that failed")
    with folder(tmp_path):
        assert RECIPE in names(tmp_path)


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"x = 1"])
def test_an_odd_recipe_is_another_run(content, tmp_path):
    (tmp_path / RECIPE).write_bytes(content)
    with pytest.raises(OutputError, match="holds another run"):
        folder(tmp_path).__enter__()
    assert (tmp_path / RECIPE).read_bytes() == content


def test_a_folder_can_not_be_where_a_file_is(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="can't write to"):
        folder(tmp_path / "run").__enter__()


def test_two_runs_do_not_share_a_folder_at_a_time(tmp_path):
    with folder(tmp_path), pytest.raises(OutputError, match="another fxquant works in"):
        folder(tmp_path).__enter__()
    with folder(tmp_path):  # the lock's file stays, and locks nobody out
        assert (tmp_path / LOCK).exists()


def test_a_checkpoint_continues_an_engine(tmp_path):
    engine = make(RECIPES["zeroq"], seed=1)
    engine.run()
    with folder(tmp_path) as run:
        run.save_checkpoint(engine)  # too early: less than half a minute since the start
        assert run.load_checkpoint() is None
        run.save_checkpoint(engine, now=True)
        state = run.load_checkpoint()
        other = make(RECIPES["zeroq"], seed=2)
        other.load_state_dict(state)
        assert same(snapshot(other.student), snapshot(engine.student))
        assert torch.equal(other.held_back, engine.held_back)
        run.drop_checkpoint()
        run.drop_checkpoint()
    assert names(tmp_path) == [RECIPE]


def test_checkpoints_are_saved_every_half_minute(tmp_path, monkeypatch):
    class Counter:
        saved = 0

        def state_dict(self) -> dict:
            self.saved += 1
            return {}

    now = [100.0]
    monkeypatch.setattr("fxquant.run_folder.time.monotonic", lambda: now[0])
    engine = Counter()
    with folder(tmp_path) as run:
        for now[0] in (110.0, 129.0, 131.0, 140.0, 162.0):
            run.save_checkpoint(engine)
    assert engine.saved == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    with folder(tmp_path) as run:
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(OutputError, match=r"checkpoint\.safetensors can't be read"):
            run.load_checkpoint()


def test_a_checkpoint_of_an_earlier_version_is_not_read(tmp_path):
    with folder(tmp_path) as run:
        torch.save({}, tmp_path / OLD_CHECKPOINT)
        with pytest.raises(OutputError, match="is a pickle") as caught:
            run.load_checkpoint()
    assert "begins anew" in caught.value.hint


class Failed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("error", [Failed, KeyboardInterrupt, OSError(28, "No space left")])
def test_a_failed_write_leaves_nothing_and_the_old_file(error, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        write_atomic(path, write)
    assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "old"


def test_a_write_replaces_the_file_and_follows_the_umask(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    before = os.umask(0o027)
    try:
        write_text(path, "grün")
    finally:
        os.umask(before)
    assert path.read_bytes() == "grün".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["report.json"]


def test_writing_where_no_folder_is_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=r"can't write .*absent/report\.json"):
        write_text(tmp_path / "absent" / "report.json", "x")


def test_the_hash_of_a_model_is_of_its_names_shapes_and_bytes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    before = model_hash(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    assert model_hash(other) != before
    other.load_state_dict(torch.load(file, weights_only=True))
    assert model_hash(other) == before
    assert model_hash(other.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        other[1].running_mean[0] += 1e-6
    assert model_hash(other) != before
    assert model_hash(nn.Sequential(*model, nn.ReLU())) == before
    assert model_hash(nn.ModuleDict({"a": model[0], "b": model[1]})) != before


def test_first_difference():
    one = {"a": 1, "b": {"c": [1, 2], "d": "x"}}
    assert first_difference(one, {"a": 1, "b": {"c": [1, 2], "d": "x"}}) is None
    assert first_difference(one, {"a": 1, "b": {"c": [1, 3], "d": "y"}}) == (
        "its b.c is [1, 2], not [1, 3]"
    )
    assert first_difference(one, {"a": 1, "b": {"c": [1, 2]}}) == "its b.d is 'x', not None"
    assert first_difference({}, {"a": 0}) == "its a is None, not 0"
