"""The benchmark of a preset's parts: each changes something, and no run is done twice."""

from __future__ import annotations

import sys
from dataclasses import replace

import digits_nets
import numpy as np
import preset_parts
import pytest
import torch
from preset_parts import PARTS, WHOLE

import fxquant
from fxquant.datafree.recipes import RECIPES


def tiny(name: str, preset: str):
    recipe = RECIPES[name][preset]
    return replace(
        recipe,
        sampler=replace(recipe.sampler, latent=8, width=8),
        schedule=replace(
            recipe.schedule, batch=4, warmup=2, steps=2, replay=8, calibration_images=8
        ),
        polish=replace(recipe.polish, steps=2, batches=1, batch=136),
        reconstruction=replace(recipe.reconstruction, steps=2),
        importance=replace(recipe.importance, probes=2, images=4),
    )


@pytest.mark.parametrize("preset", ["fast", "default", "best"])
def test_every_part_changes_the_recipe(preset):
    recipe = RECIPES["ddaq"][preset]
    changed = [part(recipe) for name, part in PARTS.items() if name != WHOLE]
    assert PARTS[WHOLE](recipe) == recipe
    assert len({repr(other) for other in [recipe, *changed]}) == len(PARTS)


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capsys):
    """Runs the benchmark on an untrained network of digits_nets.py; its table, and what it did."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "digits_test.npz", images=images, labels=rng.integers(0, 10, 12))
    torch.manual_seed(0)
    torch.save(digits_nets.NETWORKS["gated"]().state_dict(), tmp_path / "gated.pt")
    monkeypatch.setattr(fxquant, "find_recipe", tiny)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    fixed = ["--digits", str(tmp_path), "--output", str(tmp_path / "runs" / "parts.jsonl")]

    def bench(*arguments: str) -> tuple[list[str], list[str]]:
        words = ["preset_parts.py", *fixed, "--only", "gated", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        assert preset_parts.main() == 0
        printed = capsys.readouterr()
        return printed.out.splitlines(), printed.err.splitlines()

    return bench


def test_the_benchmark_compares_and_does_no_run_again(benchmark):
    table, done = benchmark("--parts", "no training*", "nothing undone")
    assert [line.split(", ", 1)[1] for line in done] == [
        "the whole preset, seed 0 ...",
        "no training, closed form alone, seed 0 ...",
        "nothing undone, seed 0 ...",
    ]
    whole, closed, undone = table[2:5]
    assert whole.endswith("| 1.00 | 0 of 1 | 1.00 |")
    assert closed.startswith("| no training, closed form alone | ")
    assert "not run" not in undone
    table, done = benchmark("--parts", "no fine-tuning", "no training*")
    assert [line.split(", ", 1)[1] for line in done] == ["no fine-tuning, seed 0 ..."]
    assert table[2] == whole
    _, done = benchmark("--parts", "nothing undone", "--bits", "4")
    assert len(done) == 2  # another width, other runs


def test_a_part_is_compared_seed_by_seed():
    def row(divergence: float, lost: float, seconds: float) -> dict:
        return {"divergence": divergence, "lost": lost, "cpu_seconds": seconds}

    whole, part = [row(0.1, 1.0, 10), row(0.2, 2.0, 10)], [row(0.2, 1.5, 5), row(0.1, 2.5, 5)]
    assert preset_parts.against(list(zip(part, whole, strict=True))) == ["1.00", "1 of 2", "0.50"]
    assert preset_parts.by_itself(part) == "0.1500 ± 0.0707, 2.00 ± 0.71"
    assert preset_parts.by_itself([]) == "not run"
