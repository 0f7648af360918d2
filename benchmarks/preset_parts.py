"""What each part of a preset adds and costs: the preset without it, or with another in its place.

usage: preset_parts.py [--digits DIR] [--data DIR] [--only NETWORK ...] [--parts 'no *' ...]
                       [--preset fast] [--bits 3] [--seeds 0,1,2] [--output runs/preset_parts.jsonl]

NETWORK is one of digits_nets.py, in DIR of --digits (runs/digits) as digits_train.py wrote it, or
one of resnet20.py, in DIR of --data. Each run adds a line to --output; a run that has one is not
done again. The table comes out on stdout: every part beside the whole preset, seed by seed. Test
images are read after training, for the table alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import digits
import digits_nets
import resnet20
import torch
from digits import percent
from machine import machine
from torch import Tensor, nn

import fxquant
from fxquant.datafree.ablation import ablate
from fxquant.datafree.losses import output_divergence
from fxquant.datafree.recipe import Recipe
from fxquant.files import write_text

WHOLE = "the whole preset"
Change = Callable[[Recipe], Recipe]


def values(part: str, **changed: Any) -> Change:
    """Other values in one part of a recipe."""
    return lambda recipe: replace(recipe, **{part: replace(getattr(recipe, part), **changed)})


def undistilled(loss: str) -> Change:
    """The student's losses less one."""
    return lambda recipe: replace(
        recipe, student_terms=tuple(term for term in recipe.student_terms if term.loss != loss)
    )


def without(*switches: str) -> Change:
    """Less parts of the paper's method, as `fxquant.datafree.ablation` names them."""
    return lambda recipe: ablate(recipe, without=switches)


def both(one: Change, other: Change) -> Change:
    return lambda recipe: other(one(recipe))


no_reconstruction = values("reconstruction", steps=0)
no_fine_tuning = values("schedule", steps=0)
PARTS: dict[str, Change] = {
    WHOLE: lambda recipe: recipe,
    "ranges from min to max": values("schedule", ranges="min-max"),
    "ranges that leave out a share": values("schedule", ranges="percentile"),
    "input's range that of its images": values("schedule", input_reach=0.0),
    "no rounding for the layer's output": values("schedule", round_weights=False),
    "no bias correction": values("schedule", correct_biases=False),
    "no reconstruction": no_reconstruction,
    "no QDrop in reconstruction": values("reconstruction", drop=0.0),
    "no fine-tuning": no_fine_tuning,
    "no training, closed form alone": both(no_reconstruction, no_fine_tuning),
    "no learned scales": both(
        values("reconstruction", scale_lr=0.0), values("schedule", scale_lr=0.0)
    ),
    "no distillation of features": undistilled("features"),
    "no distillation of outputs": undistilled("output"),
    "no polish of images": values("polish", steps=0),
    "no warm-up of the generator": values("schedule", warmup=0),
    "no second discriminator": without("l_adv"),
    "no replay of images": values("schedule", replay=0),
    "no shifts of replayed images": values("schedule", crop=0),
    "no layer importance": without("x1", "x2"),
    "nothing undone": values("schedule", keep_closer=False),
}


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    for seed, part, network in product(args.seeds, chosen(args), args.only):
        if (network, part, seed) not in wanted(args, read(args.output)):
            print(f"{network}, {part}, seed {seed} ...", file=sys.stderr, flush=True)
            add(args.output, run(args, network, part, seed))
    print(table(args, wanted(args, read(args.output))), end="")
    return 0


def parse_args() -> argparse.Namespace:
    known = (*digits_nets.NETWORKS, *resnet20.NETWORKS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=Path, default=Path("runs/digits"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=known, default=["inverted", "dense"])
    parser.add_argument("--parts", nargs="+", default=["*"], help="patterns")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/preset_parts.jsonl"))
    args = parser.parse_args()
    if args.data is None and not digits_nets.NETWORKS.keys() >= set(args.only):
        parser.error("--data, the folder of weights and test images, is needed for resnet20.py's")
    return args


def chosen(args: argparse.Namespace) -> list[str]:
    """The whole preset, and the parts that were asked for."""
    return [
        part for part in PARTS if part == WHOLE or any(fnmatchcase(part, p) for p in args.parts)
    ]


def run(args: argparse.Namespace, network: str, part: str, seed: int) -> dict[str, Any]:
    """One student, and how far it is from its teacher on test images."""
    model, images, labels = subject(args, network)
    recipe = PARTS[part](fxquant.find_recipe("ddaq", args.preset))
    shape, start = tuple(images.shape[1:]), time.process_time()
    result = fxquant.quantize(model, args.bits, input_shape=shape, recipe=recipe, seed=seed)
    seconds = time.process_time() - start
    expected, found = outputs(result.teacher, images), outputs(result.student, images)
    return {
        "network": network,
        "part": part,
        "preset": args.preset,
        "bits": args.bits,
        "seed": seed,
        "divergence": float(output_divergence(found, expected, temperature=1.0)),
        "agreement": percent(expected.argmax(1) == found.argmax(1)),
        "lost": percent(expected.argmax(1) == labels) - percent(found.argmax(1) == labels),
        "kept": result.kept,
        "cpu_seconds": seconds,
        "machine": machine(),
    }


def subject(args: argparse.Namespace, network: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, test images as it takes them, and their labels."""
    if network in digits_nets.NETWORKS:
        return digits.load(args.digits, network), *digits.test_set(args.digits)
    spec = resnet20.NETWORKS[network]
    images, labels = resnet20.test_set(args.data, spec)
    return resnet20.load(args.data, spec), images, torch.from_numpy(labels)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(250)])


def wanted(args: argparse.Namespace, rows: list[dict]) -> dict[tuple[str, str, int], dict]:
    """Results at the preset and width asked for, by network, part and seed."""
    return {
        (row["network"], row["part"], row["seed"]): row
        for row in rows
        if (row["preset"], row["bits"]) == (args.preset, args.bits)
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text() if path.exists() else ""
    write_text(path, lines + json.dumps(row) + "\n")


def table(args: argparse.Namespace, found: dict[tuple[str, str, int], dict]) -> str:
    """A row for each part: each network by itself, and all of them against the whole preset."""
    heads = [f"W{args.bits}A{args.bits}", *args.only, "KL, of the whole's", "worse", "CPU time"]
    lines = [heads, ["---"] * len(heads)]
    for part in chosen(args):
        alone = [
            [found[network, part, seed] for seed in args.seeds if (network, part, seed) in found]
            for network in args.only
        ]
        pairs = [
            (found[key], found[key[0], WHOLE, key[2]])
            for key in product(args.only, [part], args.seeds)
            if key in found and (key[0], WHOLE, key[2]) in found
        ]
        lines.append([part, *map(by_itself, alone), *against(pairs)])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    machines = sorted({f"Machine: {row['machine']}.\n" for row in found.values()})
    return f"{text}\n{''.join(machines)}"


def by_itself(rows: list[dict[str, Any]]) -> str:
    """KL(teacher || student) and points lost, mean ± standard deviation over seeds."""
    if not rows:
        return "not run"
    divergence = [row["divergence"] for row in rows]
    lost = [row["lost"] for row in rows]
    return f"{resnet20.spread(divergence, '.4f')}, {resnet20.spread(lost)}"


def against(pairs: list[tuple[dict, dict]]) -> list[str]:
    """Geometric mean of the ratio of KLs, how often it is above 1, and the ratio of CPU times."""
    if not pairs:
        return ["", "", ""]
    ratios = [part["divergence"] / whole["divergence"] for part, whole in pairs]
    seconds = [part["cpu_seconds"] / whole["cpu_seconds"] for part, whole in pairs]
    worse = f"{sum(ratio > 1 for ratio in ratios)} of {len(pairs)}"
    return [f"{geometric(ratios):.2f}", worse, f"{geometric(seconds):.2f}"]


def geometric(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


if __name__ == "__main__":
    sys.exit(main())
