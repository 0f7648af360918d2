"""Layer importance as a function and as a command: images, cache, table, JSON and plot."""

from __future__ import annotations

import json

import nets
import pytest
import torch
from small_runs import RECIPES, SHAPE
from torch import nn

import fxquant
from fxquant.cli import importance_job
from fxquant.cli.main import run
from fxquant.datafree.importance import Importance, measure_importance
from fxquant.datafree.recipes import find_recipe
from fxquant.errors import SettingError
from fxquant.graph.prepare import prepare
from fxquant.importance_cache import ImportanceCache, cache_key
from fxquant.report.importance_plot import plot_importance
from fxquant.settings import Settings
from fxquant.spec import QConfig


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importance_job, "find_recipe", lambda name, preset: RECIPES["ddaq"])
    torch.save(nets.ALL["residual"]().state_dict(), tmp_path / "net.pt")
    arguments = ["--arch", "nets:Residual", "--input-shape", "3,16,16", "--device", "cpu"]
    few = ["--probes", "3", "--images", "8"]
    return ["importance", str(tmp_path / "net.pt"), *arguments, *few]


def small(model: nn.Module, **options) -> dict[str, Importance]:
    few = {"probes": 4, "count": 8, "recipe": RECIPES["ddaq"], "device": "cpu"} | options
    return fxquant.layer_importance(model, input_shape=SHAPE, **few)


def test_both_methods_on_generated_images_leave_the_model_alone():
    model = nets.ALL["residual"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = small(model, methods=("gauss-newton", "hessian"))
    assert list(found) == ["gauss-newton", "hessian"]
    for importance in found.values():
        assert importance.layers == found["hessian"].layers
        assert set(importance.layers) == {
            name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
        }
        assert all(error > 0 for error in importance.standard_error)
    assert found["gauss-newton"] != found["hessian"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found == small(model, methods=("gauss-newton", "hessian"))
    assert found != small(model, methods=("gauss-newton", "hessian"), seed=1)


def test_images_and_labels_of_the_users_own():
    model = nets.ALL["residual"]()
    images, labels = torch.randn(6, *SHAPE), torch.arange(6)
    found = small(model, methods=("hessian",), images=images, labels=labels, probes=5)
    teacher = prepare(model, QConfig(), SHAPE).teacher
    expected = measure_importance(teacher, images, method="hessian", probes=5, labels=labels)
    assert found == {"hessian": expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("fisher",)}, "unknown method 'fisher'"),
        ({"labels": torch.arange(6)}, "labels without the images"),
        ({"recipe": "ddaq", "preset": "quick"}, "unknown preset 'quick'"),
    ],
)
def test_what_can_not_be_used_is_refused(options, message):
    with pytest.raises(SettingError, match=message):
        small(nets.ALL["residual"](), **options)


def test_the_command_prints_each_layer_and_measures_once(command, capsys, tmp_path):
    assert run(command) == 0
    first = capsys.readouterr()
    assert "warm-up" in first.err
    assert "Hessian trace of each layer" in first.out
    assert "gauss-newton" in first.out
    assert run([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert not printed.err  # nothing was measured
    facts = json.loads(printed.out)
    assert facts["images"] == 8
    for layer in facts["layers"]:
        assert layer["name"] in first.out
        assert layer["gauss-newton"]["trace"] > 0
        assert f"{layer['hessian']['trace']:.3g} ± " in first.out
    assert len(list((tmp_path / "cache" / "fxquant" / "importance").iterdir())) == 2
    assert run([*command, "--no-cache", "--json"]) == 0
    again = capsys.readouterr()
    assert "warm-up" in again.err
    assert json.loads(again.out) == facts
    assert run([*command, "--method", "hessian", "--seed", "1", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert set(other["layers"][0]) == {"name", "parameters", "hessian"}
    assert other["layers"][0]["hessian"] != facts["layers"][0]["hessian"]


@pytest.mark.parametrize(("name", "begins"), [("plot.svg", b"<?xml"), ("plot.PNG", b"\x89PNG")])
def test_the_command_draws(name, begins, command, tmp_path, capsys):
    assert run([*command, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert run([*command, "--plot", str(tmp_path / "plot.pdf")]) == 2
    assert "SVG or PNG" in capsys.readouterr().err


def test_a_plot_names_layers_repeats_and_takes_negative_estimates(tmp_path):
    names = tuple(f"stage{i}.conv" for i in range(130))
    rising = Importance(names, tuple((i + 1) / 130 for i in range(130)), (0.02,) * 130)
    noisy = Importance(names, tuple((i - 20) / 130 for i in range(130)), (0.05,) * 130)
    importance = {"gauss-newton": rising, "hessian": noisy}
    for name in ("one.svg", "two.svg"):
        plot_importance(tmp_path / name, importance, "a $net")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert b"<!-- stage0.conv -->" in drawn
    assert b"<!-- stage1.conv -->" not in drawn  # too many to name all
    assert b"Hessian of the cross-entropy" in drawn


def test_outputs_that_are_no_logits_take_gauss_newton_alone(command, capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nets.ALL["residual"]()
    model.linear = nn.Unflatten(1, (-1, 1, 1))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    (tmp_path / "maps.py").write_text(
        "import nets\nfrom torch import nn\n\n\ndef net():\n    model = nets.ALL['residual']()\n"
        "    model.linear = nn.Unflatten(1, (-1, 1, 1))\n    return model\n"
    )
    command[command.index("nets:Residual")] = "maps:net"
    assert run([*command, "--method", "hessian"]) == 2
    assert "the model's output is not logits" in capsys.readouterr().err
    assert run([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert "gauss-newton alone" in printed.err
    assert "hessian" not in json.loads(printed.out)["layers"][0]


def test_the_cache_goes_by_weights_settings_and_graph(tmp_path):
    one, other = nets.ALL["residual"](), nets.ALL["residual"]()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    teacher = prepare(one, QConfig(), SHAPE).teacher
    plain = prepare(nets.ALL["shared_relu"](), QConfig(), SHAPE).teacher
    settings = Settings(SHAPE, recipe=find_recipe("ddaq", "fast"))
    seeded = Settings(SHAPE, recipe=find_recipe("ddaq", "fast"), seed=1)
    keys = {
        cache_key(one, teacher, settings, "hessian", probes=3),
        cache_key(other, teacher, settings, "hessian", probes=3),
        cache_key(one, plain, settings, "hessian", probes=3),
        cache_key(one, teacher, seeded, "hessian", probes=3),
        cache_key(one, teacher, settings, "gauss-newton", probes=3),
        cache_key(one, teacher, settings, "hessian", probes=4),
    }
    assert len(keys) == 6
    assert cache_key(one, teacher, settings, "hessian", probes=3) in keys


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"layers": ["a"]}',
        '{"layers": ["a"], "trace": [], "standard_error": []}',
        '{"layers": ["a"], "trace": ["x"], "standard_error": [1]}',
    ],
)
def test_a_damaged_cache_counts_as_none(tmp_path, content):
    cache = ImportanceCache(tmp_path / "new")
    assert cache.read("key") is None
    found = Importance(("a",), (1.5,), (0.25,))
    cache.write("key", found)
    assert cache.read("key") == found
    (tmp_path / "new" / "key.json").write_text(content)
    assert cache.read("key") is None


def test_a_cache_that_can_not_be_written_is_no_failure(tmp_path, caplog):
    (tmp_path / "file").touch()
    ImportanceCache(tmp_path / "file").write("key", Importance(("a",), (1.0,), (0.1,)))
    assert "not cached" in caplog.text
