"""Each part of a method switched off: what is left, that it runs, and what can't be switched."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import ablation
import ablation_tables
import nets
import numpy as np
import pytest
import torch
from small_cli import small_command
from small_runs import RECIPES, make, same, snapshot

from fxquant.cli.main import run
from fxquant.datafree.ablation import ablate
from fxquant.datafree.recipe import Recipe
from fxquant.errors import SettingError

PAPER = RECIPES["paper"]
FULL = [("bn_statistics", "sample"), ("features", "layer")]


def terms(recipe: Recipe) -> list[tuple[str, str]]:
    return [(term.loss, term.weighting) for term in recipe.sample_terms]


@pytest.mark.parametrize(
    ("switches", "sample", "student"),
    [
        ({}, FULL, "layer"),
        ({"without": ["l_adv"]}, FULL[:1], "layer"),
        ({"without": ["l_bn"]}, FULL[1:], "layer"),
        ({"without": ["l_bn", "l_adv"]}, [], "layer"),
        ({"without": ["x1"]}, [("bn_statistics", "none"), FULL[1]], "layer"),
        ({"without": ["x2"]}, [FULL[0], ("features", "none")], "none"),
        ({"without": ["x2", "x1"]}, [("bn_statistics", "none"), ("features", "none")], "none"),
        ({"swap": ["l_bn"]}, [("bn_statistics", "layer"), FULL[1]], "layer"),
        ({"swap": ["l_adv"]}, [FULL[0], ("features", "sample")], "layer"),
        (
            {"swap": ["l_bn", "l_adv"]},
            [("bn_statistics", "layer"), ("features", "sample")],
            "layer",
        ),
    ],
)
@pytest.mark.parametrize("finetune", [True, False])
def test_every_row_of_the_papers_tables_runs(switches, sample, student, finetune):
    recipe = ablate(PAPER, **switches)
    assert terms(recipe) == sample
    assert [(t.loss, t.weighting) for t in recipe.student_terms] == [("features", student)]
    recipe = recipe if finetune else recipe.without_fine_tuning()
    engine = make(recipe)
    before = snapshot(engine.sampler.network)
    engine.run()
    losses = {loss for loss, _ in sample}
    seen = {name.partition(".")[2] for name in engine.history.curves if "/sampler." in name}
    assert seen == losses
    parameters = dict(engine.sampler.network.named_parameters())
    moved = any(not torch.equal(before[name], value) for name, value in parameters.items())
    assert moved == bool(sample)
    assert (engine.importance is None) == (switches.get("without") == ["x2", "x1"])
    assert engine.held_back.isfinite().all()


def test_each_switch_changes_the_student():
    variants = [{}, {"without": ["l_adv"]}, {"without": ["l_bn"]}, {"without": ["l_bn", "l_adv"]}]
    variants += [{"without": ["x1"]}, {"without": ["x2"]}, {"swap": ["l_bn"]}, {"swap": ["l_adv"]}]
    states = []
    for switches in variants:
        engine = make(ablate(PAPER, **switches))
        engine.run()
        states.append(snapshot(engine.student))
    for index, state in enumerate(states):
        assert not any(same(state, other) for other in states[:index])


def test_polish_goes_with_the_last_loss_that_needs_no_student():
    recipe = ablate(RECIPES["ddaq"], without=["l_bn"])
    assert recipe.schedule.warmup == recipe.polish.steps == 0
    assert recipe.name == "ddaq without l_bn"
    engine = make(recipe)
    engine.run()
    assert engine.polisher is None


def test_names_say_what_is_missing_in_one_order():
    assert ablate(PAPER) == PAPER
    recipe = ablate(PAPER, without=["x2", "l_bn"], swap=["l_adv"])
    assert recipe.name == "ddaq without l_bn, x2 with l_adv swapped"
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("name", "switches", "message", "hint"),
    [
        ("zeroq", {"without": ["l_adv"]}, "has no l_adv", "it has l_bn"),
        ("zeroq", {"without": ["x1"]}, "has no x1", "it has l_bn"),
        ("paper", {"without": ["x3"]}, "unknown part 'x3' of --without", "one of l_bn"),
        ("paper", {"swap": ["x1"]}, "unknown part 'x1' of --swap", "one of l_bn, l_adv"),
    ],
)
def test_what_a_recipe_has_not_got_is_refused(name, switches, message, hint):
    with pytest.raises(SettingError, match=message) as caught:
        ablate(RECIPES[name], **switches)
    assert hint in caught.value.hint


def test_optimised_images_can_not_do_without_their_only_losses():
    recipe = replace(RECIPES["zeroq"], sample_terms=RECIPES["zeroq"].sample_terms[:1])
    with pytest.raises(SettingError, match="no sample terms"):
        ablate(recipe, without=["l_bn"])


def test_the_command_line_takes_the_switches(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    command = [*small_command(tmp_path), str(tmp_path / "out")]
    assert run([*command, "--without", "X1", "--swap", "L_adv", "--json"]) == 0
    recipe = json.loads(capsys.readouterr().out)["settings"]["recipe"]
    assert recipe["name"] == "ddaq without x1 with l_adv swapped"
    weightings = {term["loss"]: term["weighting"] for term in recipe["sample_terms"]}
    assert weightings == {"bn_statistics": "none", "features": "sample"}
    assert run([*command, "--without", "x1", "--swap", "l_adv"]) == 0  # the same run
    assert run([*command, "--without", "x1"]) == 2
    assert "holds another run" in capsys.readouterr().err


TINY = ["schedule.warmup=2", "schedule.adversarial=2", "schedule.steps=2", "schedule.batch=4"]
TINY += ["schedule.calibration_images=8", "sampler.latent=8", "sampler.width=8"]
TINY += ["importance.probes=2", "importance.images=4"]


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capsys):
    """Runs benchmarks/ablation.py on a tiny network; its tables and what it said it did."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=rng.integers(0, 10, 12))
    torch.save(nets.ALL["residual"]().state_dict(), tmp_path / "net.pt")
    fixed = [str(tmp_path / "net.pt"), "--arch", "nets:Residual", "--input-shape", "3,16,16"]
    fixed += ["--eval-data", str(tmp_path / "test.npz"), "--device", "cpu"]
    fixed += ["--output", str(tmp_path / "runs" / "ablation.jsonl")]
    fixed += [word for value in TINY for word in ("--set", value)]

    for table, (title, heads, rows) in ablation_tables.TABLES.items():
        fewer = (title, heads, (rows[0], rows[3 if table == "4" else 1]))
        monkeypatch.setitem(ablation_tables.TABLES, table, fewer)

    def bench(*arguments: str) -> tuple[str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["ablation.py", *fixed, *arguments])
        assert ablation.main() == 0
        printed = capsys.readouterr()
        return printed.out, printed.err.splitlines()

    return bench


def test_the_benchmark_shares_runs_and_does_none_again(benchmark, tmp_path):
    table, done = benchmark("--tables", "4", "--seeds", "0")
    assert len(done) == 4
    assert "W4A4, without x1, without x2, not fine-tuned, seed 0 ..." in done
    (row,) = [line for line in table.splitlines() if line.startswith("| yes | yes |")]
    assert row.endswith("| 58.44 | 62.91 |")
    assert not row.startswith("| yes | yes | not run")
    _, done = benchmark("--tables", "4,fig4", "--seeds", "0")
    assert len(done) == 2  # another width: 4 bits is there
    tables, done = benchmark("--tables", "4,fig4", "--seeds", "0")
    assert not done
    assert "not run" not in tables
    lines = (tmp_path / "runs" / "ablation.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert len(results) == 6
    assert {result["float_top1"] for result in results} == {results[0]["float_top1"]}
    _, done = benchmark("--tables", "4", "--seeds", "0", "--set", "schedule.steps=1")
    assert len(done) == 4  # another recipe, other runs


def test_the_papers_tables_are_the_papers():
    assert len(ablation_tables.variants("345")) == 20
    assert len(ablation_tables.variants(ablation_tables.TABLES)) == 26
    for variant in ablation_tables.variants(ablation_tables.TABLES):
        ablate(PAPER, without=variant.without, swap=variant.swap)
    rows = [row for table in "345" for row in ablation_tables.TABLES[table][2]]
    by_variant = {}
    for row in rows:  # what two tables hold is the same in both
        assert by_variant.setdefault(row.variant, row.paper) == row.paper


def test_spread_is_over_seeds():
    results = [
        {"without": [], "swap": [], "bits": 4, "finetune": True, "seed": seed, "top1": top1}
        | {"seconds": 30, "name": "net", "float_top1": 92.0, "preset": "paper", "machine": "one"}
        for seed, top1 in enumerate((90.0, 91.0, 92.0))
    ]
    file = io.StringIO()
    ablation_tables.print_tables(results, ["5"], file)
    assert "| L_bn | L_adv | not run | 91.00 ± 1.00 | 58.44 | 62.91 |" in file.getvalue()
    assert "seeds 0, 1, 2; 2 minutes in all" in file.getvalue()
