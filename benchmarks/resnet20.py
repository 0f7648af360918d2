"""Quantize two CIFAR-10 ResNet-20s by the command line, as a user would, and make a table of it.

usage: resnet20.py --data DIR [--output DIR] [--seeds 0,1,2] [--only NETWORK:SETTING ...]
                   [--preset fast|default|best|paper]

DIR of --data holds the weights, the test images and eval_onnx.py. Each run's folder in --output
(runs/resnet20) gets what fxquant writes and result.json; a run that has one is not done again.
The table and the raw results are results.md and results.json in --output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import numpy as np
import resnet20_option_a
import torch
from machine import machine
from pytorchcv.model_provider import get_model
from safetensors.torch import load_file
from torch import nn


@dataclass(frozen=True)
class Network:
    """A trained network, the images to measure it on, and how the command line is told of it."""

    build: Callable[[], nn.Module]
    weights: str
    images: str
    mean: str
    std: str
    flags: tuple[str, ...]
    pickled: bool = False


OPTION_A = Network(
    build=resnet20_option_a.resnet20,
    weights="option_a_resnet20_cifar10.safetensors",
    images="cifar10_test_first1017.npz",
    mean="0.485,0.456,0.406",
    std="0.229,0.224,0.225",
    flags=("--arch", "resnet20_option_a:resnet20"),
)
CLASSES = ("resnet20_option_a.OptionAResNet", "resnet20_option_a.BasicBlock")
NETWORKS = {
    "option-a": OPTION_A,
    "option-a-pickle": replace(
        OPTION_A,
        flags=tuple(word for name in CLASSES for word in ("--trust-class", name)),
        pickled=True,
    ),
    "pytorchcv": Network(
        build=lambda: get_model("resnet20_cifar10", pretrained=False),
        weights="pytorchcv_resnet20_cifar10_jpeg.safetensors",
        images="cifar10_jpeg_test.npz",
        mean="0.4914,0.4822,0.4465",
        std="0.2470,0.2435,0.2616",
        flags=("--arch", "pytorchcv:resnet20_cifar10"),
    ),
}
SETTINGS = {
    "w8a8": ("--bits", "8"),
    "w6a6": ("--bits", "6"),
    "w4a4": ("--bits", "4"),
    "w3a3": ("--bits", "3"),
    "w3a4": ("--weight-bits", "3", "--act-bits", "4"),
    "w3a4-mixed": ("--weight-bits", "3", "--act-bits", "4", "--mixed"),
    "w2a4": ("--weight-bits", "2", "--act-bits", "4"),
    "w4a4-no-finetune": ("--bits", "4", "--no-finetune"),
}
# One short run shows that the whole-module route gives the same network as the state dict.
DEFAULT_RUNS = ("option-a:*", "pytorchcv:*", "option-a-pickle:w4a4-no-finetune")


def main() -> int:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    failures = 0
    for network, setting in product(NETWORKS, SETTINGS):
        if any(fnmatchcase(f"{network}:{setting}", pattern) for pattern in args.only):
            failures += sum(not run(args, network, setting, seed) for seed in args.seeds)
            write_results(args.output)
    return 1 if failures else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/resnet20"))
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--only", action="append", metavar="NETWORK:SETTING", help="a pattern")
    args = parser.parse_args()
    args.only = args.only or DEFAULT_RUNS
    return args


def run(args: argparse.Namespace, network: str, setting: str, seed: int) -> bool:
    """Do one run unless its result exists; False where fxquant failed."""
    folder = args.output / f"{network}-{setting}-{args.preset}-seed{seed}"
    if (folder / "result.json").exists():
        return True
    print(f"{folder.name} ...", file=sys.stderr, flush=True)
    spec = NETWORKS[network]
    command = quantize_command(args, spec, setting, seed, folder)
    start = time.perf_counter()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if not (folder / "report.json").exists() or done.returncode not in (0, 4):
        print(f"failed with {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
        return False
    result = {
        "network": network,
        "setting": setting,
        "preset": args.preset,
        "seed": seed,
        "command": shown(command, args),
        "machine": machine(),
        "exit_code": done.returncode,
        "wall_seconds": seconds,
        **measure(args.data, spec, setting, folder),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return True


def quantize_command(
    args: argparse.Namespace, spec: Network, setting: str, seed: int, folder: Path
) -> list[str]:
    model = pickle_model(args, spec) if spec.pickled else args.data / spec.weights
    evaluation = ["--eval-data", str(args.data / spec.images)]
    evaluation += ["--eval-mean", spec.mean, "--eval-std", spec.std]
    return [
        *("fxquant", "quantize", str(model), *spec.flags, *SETTINGS[setting]),
        *("--input-shape", "3,32,32", "--preset", args.preset, "--seed", str(seed)),
        *(*evaluation, "--output", str(folder), "--json"),
    ]


def shown(command: list[str], args: argparse.Namespace) -> str:
    """The command with DATA and OUTPUT for the folders, which differ from machine to machine."""
    text = " ".join(command).replace(str(args.data), "DATA")
    return text.replace(str(args.output), "OUTPUT")


def pickle_model(args: argparse.Namespace, spec: Network) -> Path:
    """The network as a whole module in a .pt file."""
    path = args.output / "whole_module.pt"
    torch.save(load(args.data, spec), path)
    return path


def environment() -> dict[str, str]:
    """This interpreter's `fxquant` first, and `resnet20_option_a` where Python finds it."""
    folders = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path(__file__).resolve().parent}
    joined = {
        name: os.pathsep.join(filter(None, (str(folder), os.environ.get(name))))
        for name, folder in folders.items()
    }
    return {**os.environ, **joined}


def load(data: Path, spec: Network) -> nn.Module:
    model = spec.build()
    model.load_state_dict(load_file(data / spec.weights))
    return model.eval()


def measure(data: Path, spec: Network, setting: str, folder: Path) -> dict:
    """What the run's files say, and what is measured again without fxquant."""
    report = json.loads((folder / "report.json").read_text())
    model = load(data, spec)
    labels, teacher = predict(data, spec, model)
    onnx_top1, onnx = evaluate_onnx(data, spec, folder)
    parameters = sum(p.numel() for p in model.parameters())
    bits = int(SETTINGS[setting][1])
    return {
        "float_top1": 100 * float((teacher == labels).mean()),
        "student_top1": report["accuracy"]["student"],
        "onnx_top1": onnx_top1,
        "onnx_top1_by_fxquant": report["accuracy"]["onnx"],
        "agreement_with_float": 100 * float((onnx == teacher).mean()),
        "onnx_bytes": (folder / "model.onnx").stat().st_size,
        "bound_bytes": int(1.10 * parameters * bits / 8 + 40_000),
        "parity": report["parity"],
        "fxquant_seconds": json.loads((folder / "timing.json").read_text())["seconds"],
    }


@torch.no_grad()
def predict(data: Path, spec: Network, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the classes that the float network gives the test images."""
    images, labels = test_set(data, spec)
    classes = [model(part).argmax(1) for part in images.split(500)]
    return labels, torch.cat(classes).numpy()


def test_set(data: Path, spec: Network) -> tuple[torch.Tensor, np.ndarray]:
    """Test images as the network takes them, (n, 3, 32, 32), and their labels."""
    archive = np.load(data / spec.images)
    mean, std = (torch.tensor(parse(text)).reshape(3, 1, 1) for text in (spec.mean, spec.std))
    pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).float()
    return (pixels / 255 - mean) / std, archive["labels"]


def parse(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def evaluate_onnx(data: Path, spec: Network, folder: Path) -> tuple[float, np.ndarray]:
    """Top-1 by eval_onnx.py, which knows nothing of fxquant, and the predicted classes."""
    logits = folder / "logits.npy"
    command = [sys.executable, data / "eval_onnx.py", folder / "model.onnx", data / spec.images]
    command += ["--mean", spec.mean, "--std", spec.std, "--save-logits", logits]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"top1 ([\d.]+)", line)[1]), np.load(logits).argmax(1)


def write_results(output: Path) -> None:
    """All results found in `output`, raw as JSON and as a Markdown table over seeds."""
    files = sorted(output.glob("*/result.json"))
    results = [json.loads(file.read_text()) for file in files]
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for result in results:
        key = result["network"], result["setting"], result["preset"]
        groups.setdefault(key, []).append(result)
    ordered = sorted(groups, key=lambda k: ([*NETWORKS].index(k[0]), [*SETTINGS].index(k[1]), k[2]))
    lines = [
        "| network | setting | preset | seeds | float | student | ONNX | ONNX - float | "
        "same class as float | size, KB (bound) | integer layers | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(row(key, groups[key]) for key in ordered),
        "",
        "Top-1 accuracy in percent, mean ± standard deviation over seeds. ONNX: measured on the "
        "exported file by eval_onnx.py. Last iteration, never the best on test images; all layers "
        "have the width named, with `mixed` on average. "
        "Bound: 1.10 x parameters x bits / 8 + 40 KB.",
        "",
        *sorted({f"Machine: {result['machine']}." for result in results}),
        "",
        *(f"    {groups[key][0]['command']}" for key in ordered),
    ]
    (output / "results.md").write_text("\n".join(lines) + "\n")


def row(key: tuple[str, str, str], group: list[dict]) -> str:
    def column(name: str) -> list[float]:
        return [result[name] for result in group]

    network, setting, preset = key
    difference = [r["onnx_top1"] - round(r["float_top1"], 2) for r in group]
    failed = " (parity failed)" if any(column("exit_code")) else ""
    size, bound = max(column("onnx_bytes")), group[0]["bound_bytes"]
    cells = [
        network,
        setting,
        preset,
        ", ".join(str(result["seed"]) for result in group),
        f"{group[0]['float_top1']:.2f}",
        spread(column("student_top1")),
        spread(column("onnx_top1")) + failed,
        spread(difference, "+.2f"),
        spread(column("agreement_with_float")),
        f"{size / 1000:.0f} ({'within' if size <= bound else 'OVER'} {bound / 1000:.0f})",
        " ".join(sorted({integer_layers(result["parity"]) for result in group})),
        spread([seconds / 60 for seconds in column("wall_seconds")]),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], form: str = ".2f") -> str:
    """Mean ± standard deviation, the mean alone of a single value."""
    mean = format(statistics.fmean(values), form)
    deviation = form.removeprefix("+")
    return f"{mean} ± {statistics.stdev(values):{deviation}}" if len(values) > 1 else mean


def integer_layers(parity: dict) -> str:
    """Layers that ONNX Runtime runs in integer kernels, of all."""
    integer = parity["convolutions_integer"] + parity["linears_integer"]
    return f"{integer} of {parity['convolutions'] + parity['linears']}"


if __name__ == "__main__":
    sys.exit(main())
