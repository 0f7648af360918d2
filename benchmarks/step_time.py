"""One training iteration against the same number of plain passes of the unquantized networks.

usage: step_time.py [MODEL] [--input-shape 3,32,32] [--batch 64] [--bits 4] [--preset paper]
                    [--device cpu] [--runs 10] [--json] [--profile]

An iteration is Algorithm 1's: a generator step, then a student step on a fresh draw, as the engine
takes them. The plain passes are those that no method could spare: generator, original and a second
original in the student's place, forward and backward for the one step, and for the other the
generator and the original forward, the second forward and backward; no losses, no optimisers. Both
are timed in turns in one run. MODEL is what fxquant takes; a zoo's comes with random weights.
Memory is the peak of a process of its own, over what it held before: of the iterations, and of
plain distillation (original forward, second forward and backward, Adam).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

from fxquant.datafree.engine import Engine
from fxquant.datafree.generator import Generator, UpsamplingConv2d
from fxquant.datafree.recipe import Recipe
from fxquant.datafree.recipes import find_recipe
from fxquant.datafree.watcher import Watcher
from fxquant.graph.prepare import prepare
from fxquant.inputs import flatten
from fxquant.models.load import load_model
from fxquant.spec import QConfig


def main() -> int:
    args = parse_args()
    facts = measure_time(args)
    facts["memory"] = {what: in_child(peak_of, what, args) for what in ("training", "distillation")}
    facts["machine"] = f"{machine()}, {torch.get_num_threads()} threads"
    print(json.dumps(facts, indent=1)) if args.json else print_facts(facts, args)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="pytorchcv:resnet20_cifar10")
    parser.add_argument("--input-shape", default="3,32,32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--parts", type=int, default=1, help="schedule.parts of the iterations")
    parser.add_argument(
        "--fused-generator", action="store_true", help="ours in the plain passes as well"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="list the operators that take most")
    args = parser.parse_args()
    args.input_shape = tuple(int(part) for part in args.input_shape.split(","))
    return args


def load(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return load_model(args.model, pretrained=False).module


def short(args: argparse.Namespace, steps: int) -> Recipe:
    """The preset with as little before its iterations as goes, each with both steps."""
    recipe = find_recipe("ddaq", args.preset)
    schedule = replace(
        recipe.schedule,
        batch=args.batch,
        parts=args.parts,
        warmup=1,
        steps=steps,
        calibration_images=args.batch,
    )
    return replace(
        recipe,
        schedule=replace(schedule, keep_closer=False, train_below=0.0, sampler_every=1, replay=0),
        polish=replace(recipe.polish, steps=0),
        reconstruction=replace(recipe.reconstruction, steps=0),
        importance=replace(recipe.importance, probes=2, images=8),
    )


def make_engine(args: argparse.Namespace, steps: int, watcher: Watcher) -> Engine:
    prepared = prepare(load(args), QConfig(args.bits, args.bits), args.input_shape)
    recipe, shape = short(args, steps), args.input_shape
    options = {"device": args.device, "watcher": watcher}
    return Engine(prepared.teacher, prepared.student, recipe, shape, **options)


@dataclass
class Plain:
    """The passes that any method of this kind takes, on networks that nothing was added to."""

    args: argparse.Namespace
    original: nn.Module = field(init=False)
    second: nn.Module = field(init=False)
    generator: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        channels_last = {"memory_format": torch.channels_last}
        self.original = load(self.args).to(self.args.device, **channels_last)
        self.second = load(self.args).to(self.args.device, **channels_last)
        self.original.requires_grad_(False)
        settings = find_recipe("ddaq", self.args.preset).sampler
        generator = Generator(self.args.input_shape, settings.latent, settings.width)
        if not self.args.fused_generator:
            as_published(generator)
        self.generator = generator.to(self.args.device, **channels_last)

    def iteration(self) -> None:
        self.second.requires_grad_(False)
        images = self.draw()
        self.backward(self.original(images), self.second(images))
        self.second.requires_grad_(True)
        with torch.no_grad():
            images = self.draw()
            self.original(images)
        self.backward(self.second(images))
        self.generator.zero_grad()
        self.second.zero_grad()

    def distillation(self, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
        with torch.no_grad():
            targets = flatten(self.original(images))
        pairs = zip(flatten(self.second(images)), targets, strict=True)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([(q - p).square().mean() for q, p in pairs]).sum().backward()
        optimizer.step()

    def draw(self) -> Tensor:
        latent = torch.randn(self.args.batch, self.generator.latent, device=self.args.device)
        return self.generator(latent)

    def backward(self, *outputs: Any) -> None:
        """From a sum, whose own cost is next to none."""
        torch.stack(
            [value.sum() for output in outputs for value in flatten(output)]
        ).sum().backward()


def as_published(generator: Generator) -> None:
    """Double images before a convolution, where ours does both at once."""
    for name, layer in generator.trunk.named_children():
        if isinstance(layer, UpsamplingConv2d):
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            setattr(generator.trunk, name, nn.Sequential(nn.Upsample(scale_factor=2), plain))


class Stopwatch(Watcher):
    """Times the engine's iterations, and after each one the plain passes."""

    def __init__(self, plain: Plain, wait: Callable[[], None]):
        self.plain, self.wait = plain, wait
        self.phase_name, self.start = "", 0.0
        self.training: list[float] = []
        self.passes: list[float] = []

    def phase(self, name: str, total: int) -> None:
        self.phase_name = name
        self.wait()
        self.start = time.perf_counter()

    def checkpoint(self, engine: Engine) -> None:
        if self.phase_name != "fine-tuning":
            return
        self.wait()
        self.training.append(time.perf_counter() - self.start)
        start = time.perf_counter()
        self.plain.iteration()
        self.wait()
        self.passes.append(time.perf_counter() - start)
        self.start = time.perf_counter()


WARM_UP = 2


def measure_time(args: argparse.Namespace) -> dict[str, Any]:
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    watch = Stopwatch(Plain(args), wait)
    engine = make_engine(args, args.runs + WARM_UP, watch)
    engine.run()
    if args.profile:
        profile(engine)
    training, passes = watch.training[WARM_UP:], watch.passes[WARM_UP:]
    ratios = [a / b for a, b in zip(training, passes, strict=True)]
    return {
        "iteration_seconds": quartiles(training),
        "plain_seconds": quartiles(passes),
        "ratio": quartiles(ratios),
    }


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def profile(engine: Engine) -> None:
    """Two more iterations under torch's profiler, to stderr."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = engine.device.type == "cuda"
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    index = next(i for i, phase in enumerate(engine.phases()) if phase.name == "fine-tuning")
    total = engine.recipe.schedule.steps
    engine.phase_index, engine.step, engine.watcher = index, total - 2, Watcher()
    with torch.profiler.profile(activities=activities) as profiler:
        engine.run()
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=30), file=sys.stderr)


def in_child(function: Callable, *arguments: Any) -> float:
    """What a function gives in a process that has done nothing else, and frees what it leaves."""
    # Read by glibc as the process begins: else what was freed still counts as held.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        return pool.apply(function, arguments)
    finally:
        pool.close()
        pool.join()


def peak_of(what: str, args: argparse.Namespace) -> int:
    """Bytes that a few steps take at most, over what the process held with the networks loaded."""
    if what == "training":
        watcher = Meter(args.device)
        make_engine(args, 3, watcher).run()
        return watcher.peak
    plain = Plain(args)
    optimizer = torch.optim.Adam(plain.second.parameters())
    images = torch.randn(args.batch, *args.input_shape, device=args.device)
    before = begin_peak(args.device)
    for _ in range(3):
        plain.distillation(optimizer, images)
    return peak(args.device) - before


class Meter(Watcher):
    """The peak of fine-tuning's steps alone."""

    def __init__(self, device: str):
        self.device, self.before, self.peak, self.now = device, 0, 0, ""

    def phase(self, name: str, total: int) -> None:
        self.now = name
        if name == "fine-tuning":
            self.before = begin_peak(self.device)

    def checkpoint(self, engine: Engine) -> None:
        if self.now == "fine-tuning":
            self.peak = peak(self.device) - self.before


def begin_peak(device: str) -> int:
    """Begin to note the peak; bytes in use."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return process_bytes("VmRSS")


def peak(device: str) -> int:
    """Bytes that were in use at most since."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return process_bytes("VmHWM")


def process_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def print_facts(facts: dict[str, Any], args: argparse.Namespace) -> None:
    shape = "x".join(map(str, args.input_shape))
    print(f"{args.model}, {shape}, batch {args.batch}, W{args.bits}A{args.bits}, {args.preset}")
    for key in ("iteration_seconds", "plain_seconds", "ratio"):
        low, median, high = facts[key]
        print(f"{key.replace('_', ' '):<18} {median:8.4g}  ({low:.4g} to {high:.4g})")
    memory = facts["memory"]
    for what, number in memory.items():
        print(f"peak of {what:<12} {number / 1e6:6.0f} MB")
    print(f"memory ratio       {memory['training'] / max(memory['distillation'], 1):8.3g}")
    print(facts["machine"])


if __name__ == "__main__":
    sys.exit(main())
