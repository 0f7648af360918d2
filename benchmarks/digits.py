"""Quantize the networks of digits_nets.py at presets and widths: what is lost, what a run foresees.

usage: digits.py [--data DIR] [--output DIR] [--presets fast,default] [--bits 4,3] [--seeds 0]
                 [--only NETWORK ...]

DIR of --data (runs/digits) is what digits_train.py wrote. Each run's result is a JSON file in
--output (runs/digits); a run that has one is not done again. results.md there is a table of all,
and says how the run's own signals, from generated images alone, rank the runs' losses.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from digits_nets import NETWORKS
from digits_train import normalize
from torch import Tensor, nn

import fxquant
from fxquant.report.closeness import measure_closeness

SIGNALS = ("agreement", "output_sqnr", "divergence")


def main() -> int:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, preset, bits, seed in product(args.only, args.presets, args.bits, args.seeds):
        path = args.output / f"{name}-{preset}-w{bits}a{bits}-seed{seed}.json"
        if not path.exists():
            result = run(args.data, name, preset, bits, seed)
            path.write_text(json.dumps(result, indent=2) + "\n")
            print(row(result), file=sys.stderr, flush=True)
    results = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-seed*.json"))]
    (args.output / "results.md").write_text(table(results))
    return 0


def parse_args() -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/digits"))
    parser.add_argument("--output", type=Path, default=Path("runs/digits"))
    parser.add_argument("--presets", type=listed, default=["fast"])
    parser.add_argument("--bits", type=numbers, default=[4, 3])
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    return parser.parse_args()


def run(data: Path, name: str, preset: str, bits: int, seed: int) -> dict:
    """Quantize one network; its accuracy on test digits, and what the run could see itself."""
    model = load(data, name)
    start = time.perf_counter()
    result = fxquant.quantize(model, bits, input_shape=(1, 16, 16), preset=preset, seed=seed)
    seconds = time.perf_counter() - start
    closeness = measure_closeness(result.teacher, result.student, result.images)
    images, labels = test_set(data)
    teacher, student = classes(result.teacher, images), classes(result.student, images)
    return {
        "network": name,
        "preset": preset,
        "bits": bits,
        "seed": seed,
        "float_top1": percent(teacher == labels),
        "student_top1": percent(student == labels),
        "test_agreement": percent(student == teacher),
        "kept": result.kept,
        "seconds": seconds,
        **{signal: getattr(closeness, signal) for signal in SIGNALS},
    }


def load(data: Path, name: str) -> nn.Module:
    """A network as digits_train.py left it."""
    model = NETWORKS[name]()
    model.load_state_dict(torch.load(data / f"{name}.pt"))
    return model.eval()


def test_set(data: Path) -> tuple[Tensor, Tensor]:
    """Test digits as the networks take them, (n, 1, 16, 16), and their labels."""
    archive = np.load(data / "digits_test.npz")
    images = normalize(torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).float() / 255)
    return images, torch.from_numpy(archive["labels"])


@torch.no_grad()
def classes(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(256)])


def percent(right: Tensor) -> float:
    return 100 * float(right.float().mean())


def table(results: list[dict]) -> str:
    lines = [
        "| network | preset | bits | seed | float | student | lost | same class as float | "
        "agreement, generated | SQNR, generated | KL, generated | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(row, results),
        "",
    ]
    agreement = [r["test_agreement"] for r in results]
    for signal in SIGNALS:
        rank = rank_correlation([r[signal] for r in results], agreement)
        lines.append(f"Rank correlation of {signal} with agreement on test digits: {rank:.2f}.")
    return "\n".join(lines) + "\n"


def row(result: dict) -> str:
    lost = result["float_top1"] - result["student_top1"]
    cells = [
        *(result[key] for key in ("network", "preset", "bits", "seed")),
        *(f"{result[key]:.2f}" for key in ("float_top1", "student_top1")),
        f"{lost:.2f}",
        *(f"{result[key]:.1f}" for key in ("test_agreement", "agreement", "output_sqnr")),
        f"{result['divergence']:.3f}",
        f"{result['seconds']:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's: the correlation of ranks."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    sys.exit(main())
