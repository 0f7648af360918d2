"""The ablations of Li et al. (2022), Tables 3 to 5 and Fig. 4, on a network, beside the paper's.

usage: ablation.py MODEL --eval-data FILE.npz [--eval-mean ...] [--eval-std ...] [--arch ARCH]
                   [--input-shape 3,32,32] [--seeds 0,1,2] [--tables 3,4,5,fig4] [--preset paper]
                   [--set schedule.warmup=200 ...] [--output runs/ablation.jsonl]

Each run adds a line to --output; a run that has one is not done again, so a stopped benchmark goes
on. A run that several tables share is done once. The tables come out on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_tables import TABLES, Variant, print_tables, variants
from machine import machine
from torch import nn

from fxquant.datafree.ablation import ablate
from fxquant.datafree.recipe import Recipe
from fxquant.datafree.recipes import find_recipe
from fxquant.files import write_text
from fxquant.graph.prepare import prepare
from fxquant.models.load import LoadedModel, load_model
from fxquant.pipeline import resolve_device, run
from fxquant.report.evaluate import EvaluationData, accuracies
from fxquant.run_folder import model_hash
from fxquant.settings import Settings
from fxquant.spec import QConfig


def main() -> int:
    args = parse_args()
    loaded = load_model(args.model, arch=args.arch, trust_classes=args.trust_class)
    shape = args.input_shape or loaded.input_shape
    data = EvaluationData(args.eval_data, args.eval_mean, args.eval_std)
    data.check(shape)
    bench = Benchmark(loaded, tuple(shape), data, args)
    for variant, seed in bench.missing():
        bench.measure(variant, seed)
    print_tables(bench.rows(), args.tables, sys.stdout)
    return 0


def parse_args() -> argparse.Namespace:
    def numbers(kind: type):
        return lambda text: tuple(kind(part) for part in text.split(","))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--arch")
    parser.add_argument("--trust-class", action="append", default=[])
    parser.add_argument("--input-shape", type=numbers(int))
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--eval-mean", type=numbers(float), default=(0.0,))
    parser.add_argument("--eval-std", type=numbers(float), default=(1.0,))
    parser.add_argument("--seeds", type=numbers(int), default=(0, 1, 2))
    parser.add_argument("--tables", type=numbers(str), default=tuple(TABLES))
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--set", action="append", default=[], metavar="PART.KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation.jsonl"))
    return parser.parse_args()


def changed(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with values such as `schedule.steps=100` in place of its own."""
    values = recipe.to_dict()
    for assignment in assignments:
        where, _, value = assignment.partition("=")
        part, _, key = where.partition(".")
        try:
            values[part][key] = json.loads(value)
        except ValueError:
            values[part][key] = value
    return Recipe.from_dict(values)


@dataclass(frozen=True)
class Benchmark:
    """Runs on one network with one recipe, whose results are lines of one file."""

    loaded: LoadedModel
    shape: tuple[int, ...]
    data: EvaluationData
    args: argparse.Namespace

    @cached_property
    def recipe(self) -> Recipe:
        return changed(find_recipe("ddaq", self.args.preset), self.args.set)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two runs of one variant and seed must share to be the same."""
        return {
            "model": model_hash(self.loaded.module),
            "images": self.args.eval_data.name,
            "recipe": json.loads(json.dumps(self.recipe.to_dict())),
        }

    @cached_property
    def float_top1(self) -> float:
        """In percent, of the network as it was loaded."""
        prepared = prepare(self.loaded.module, QConfig(), self.shape)
        found, _ = accuracies({"float": predictor(prepared.teacher)}, self.data)
        return found["float"]

    def rows(self) -> list[dict[str, Any]]:
        """Results of this network, recipe and seeds."""
        output, identity = self.args.output, self.identity
        lines = output.read_text().splitlines() if output.exists() else []
        return [
            row
            for row in map(json.loads, lines)
            if row["seed"] in self.args.seeds and identity.items() <= row.items()
        ]

    def missing(self) -> Iterator[tuple[Variant, int]]:
        """Seed by seed, so that a benchmark that is stopped has whole tables of the first ones."""
        done = {(Variant.of(row), row["seed"]) for row in self.rows()}
        for seed in self.args.seeds:
            for variant in variants(self.args.tables):
                if (variant, seed) not in done:
                    yield variant, seed

    def measure(self, variant: Variant, seed: int) -> None:
        """One run: train, evaluate the last iteration, append a line."""
        print(f"{variant.words()}, seed {seed} ...", file=sys.stderr, flush=True)
        recipe = ablate(self.recipe, without=variant.without, swap=variant.swap)
        recipe = recipe if variant.finetune else recipe.without_fine_tuning()
        config = QConfig(variant.bits, variant.bits)
        device = resolve_device(self.args.device)
        settings = Settings(self.shape, config, recipe, seed, device)
        start = time.perf_counter()
        result = run(prepare(self.loaded.module, config, self.shape), settings)
        seconds = time.perf_counter() - start
        found, _ = accuracies({"student": predictor(result.student)}, self.data)
        row = {
            **self.identity,
            **asdict(variant),
            "seed": seed,
            "float_top1": self.float_top1,
            "top1": found["student"],
            "seconds": seconds,
            "preset": self.args.preset,
            "name": self.loaded.name,
            "machine": machine(),
        }
        self.args.output.parent.mkdir(parents=True, exist_ok=True)
        lines = self.args.output.read_text() if self.args.output.exists() else ""
        write_text(self.args.output, lines + json.dumps(row) + "\n")


def predictor(model: nn.Module):
    """The model as a function from float32 images to logits in numpy."""

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return predict


if __name__ == "__main__":
    sys.exit(main())
