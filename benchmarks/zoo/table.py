"""The benchmark's results as a Markdown page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from machine import machine

from zoo.networks import LEFT_OUT

ENOUGH_QUANTIZED, ENOUGH_DB, ROUNDING, MOST_SECONDS = 0.99, 20.0, 1e-4, 60.0
STEADY_DB = 30.0
ZOOS = ("torchvision", "pytorchcv", "timm")

INTRODUCTION = """# Whole model zoos

What fxquant makes of the networks of torchvision, pytorchcv and timm: is each traced, how much of
it is quantized, do the passes change anything but the rounding, how close is the 8-bit network,
and does its ONNX file compute the same in ONNX Runtime?

Weights are random: layers are scaled to outputs of unit variance, batch norms get random gammas
and betas and statistics near those of their inputs, and nothing that a zoo starts at zero stays
there. Inputs are random images, at the smallest of a few sizes that the network takes.
"""

COLUMNS = """
- *traced*: whole, or how many modules were left out of the graphs; *s*: seconds of one core to
  trace the network and insert everything.
- *quantized*: share of the multiply-accumulates of convolutions and linear layers that the student
  does with quantized weights, counted by PyTorch's dispatcher while it runs, so what wasn't traced
  counts as not quantized. Not in it are layers whose results the network itself doesn't use, and
  products of two activations, as in attention; *products* is their share of all.
- *unrounded*: largest difference between the student without rounding and the teacher, relative
  to the output's largest value.
- *SQNR*: of the 8-bit student's worst output against the teacher, with ranges and corrected biases
  from eight other images and no training. *noise*: what is left of 40 dB when noise is added to
  the teacher's input. Where less than 30 dB are left, random weights make the network amplify any
  error, and its SQNR says little of the quantization; goals leave these networks out.
- *parity*: SQNR of ONNX Runtime's output with integer kernels against the student's; *integer*:
  convolutions and linear layers in integer kernels, of all in the file.
"""

HEADER = (
    "| network | input | MMACs | traced | s | quantized, % | products, % | unrounded | SQNR, dB | "
    "noise, dB | parity, dB | integer | MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def write_table(results_file: Path, page: Path) -> None:
    """Write the page on all that `results_file` has."""
    results = [json.loads(line) for line in results_file.read_text().splitlines()]
    by_zoo = {zoo: [r for r in results if r["name"].startswith(zoo)] for zoo in ZOOS}
    by_zoo = {zoo: sorted(group, key=lambda r: r["name"]) for zoo, group in by_zoo.items() if group}
    lines = [
        INTRODUCTION,
        f"Machine: {machine()}.",
        "Zoos: " + ", ".join(f"{zoo} {version(zoo)}" for zoo in by_zoo) + ".",
        "Command: `make zoo`. Networks that a later commit touches were measured again, by "
        "themselves (`--only`).",
        "",
        *_summary(by_zoo),
        "",
        *_goals(by_zoo),
        "",
        "## What falls short",
        "",
        *_shortcomings(results),
        "",
        "Left out: " + "; ".join(f"{name} ({why})" for name, why in LEFT_OUT.items()) + ".",
        "",
        "## Every network",
        COLUMNS,
    ]
    for zoo, group in by_zoo.items():
        lines += [f"### {zoo}", "", HEADER, *map(_row, group), ""]
    page.write_text("\n".join(lines).rstrip() + "\n")


def _summary(by_zoo: dict[str, list[dict]]) -> Iterator[str]:
    yield "| | " + " | ".join(by_zoo) + " |"
    yield "|---" * (len(by_zoo) + 1) + "|"
    for title, cell in _SUMMARY.items():
        yield f"| {title} | " + " | ".join(str(cell(group)) for group in by_zoo.values()) + " |"


def _count(test: Callable[[dict], bool]) -> Callable[[list[dict]], int]:
    return lambda group: sum(map(test, group))


def _worst(key: str) -> Callable[[list[dict]], str]:
    return lambda group: f"{max((r[key] for r in group if key in r), default=0):.1e}"


def _quantiles(group: list[dict]) -> str:
    """Minimum, 10th percentile and median of the 8-bit student's SQNR."""
    values = sorted(r["sqnr_db"] for r in group if "sqnr_db" in r)
    picked = (values[0], values[len(values) // 10], statistics.median(values)) if values else ()
    return ", ".join(f"{value:.1f}" for value in picked)


def _integer(group: list[dict]) -> str:
    counts = [_kernels(result["parity"]) for result in group if "parity" in result]
    return f"{sum(n for n, _ in counts)} of {sum(total for _, total in counts)}"


_SUMMARY: dict[str, Callable[[list[dict]], object]] = {
    "networks": len,
    "traced whole": _count(lambda r: _traced(r) == "whole"),
    "traced in part": _count(lambda r: _traced(r) not in ("whole", "failed")),
    "failed": _count(lambda r: _traced(r) == "failed"),
    "at least 99 % of MACs quantized": _count(lambda r: is_quantized(r)),
    "student without rounding equals teacher": _count(lambda r: is_equal(r)),
    "SQNR at least 20 dB": _count(lambda r: r.get("sqnr_db", 0) >= ENOUGH_DB),
    "SQNR, dB: least, 10th percentile, median": _quantiles,
    "exported": _count(lambda r: "file_bytes" in r),
    "parity passed": _count(lambda r: r.get("parity", {}).get("passed", False)),
    "layers in integer kernels": _integer,
    "most seconds to trace and insert": lambda group: f"{max(map(_seconds, group)):.1f}",
}


def _goals(by_zoo: dict[str, list[dict]]) -> Iterator[str]:
    results = [result for group in by_zoo.values() for result in group]
    cnns = {zoo: [r for r in group if is_cnn(r)] for zoo, group in by_zoo.items()}
    yield "| goal | met |"
    yield "|---|---|"
    yield _goal("none failed without a named reason", results, lambda r: not is_unnamed(r))
    for zoo, group in cnns.items():
        share = ENOUGH_QUANTIZED_PCV if zoo == "pytorchcv" else 1.0
        of = f"{share:.0%} of {zoo}'s CNNs" if share < 1 else f"every CNN of {zoo}"
        yield _goal(f"{of} with at least 99 % of MACs quantized", group, is_quantized, share)
    steady = [r for r in results if r.get("input_noise_db", STEADY_DB) >= STEADY_DB]
    close = "8-bit output SQNR at least 20 dB, of networks that don't amplify noise"
    yield _goal(close, steady, lambda r: r.get("sqnr_db", 0) >= ENOUGH_DB)
    yield _goal("student without rounding equals teacher", results, is_equal)
    yield _goal("traced within 60 s", results, lambda r: _seconds(r) <= MOST_SECONDS)


ENOUGH_QUANTIZED_PCV = 0.98


def _goal(text: str, group: list[dict], test: Callable[[dict], bool], share: float = 1.0) -> str:
    good = sum(map(test, group))
    verdict = "yes" if good >= share * len(group) else "no"
    return f"| {text} | {verdict}: {good} of {len(group)} |"


def is_cnn(result: dict) -> bool:
    """Whether it works by convolution: no products of activations, or mostly convolutions."""
    macs = result.get("macs", 0)
    return result.get("matmul_macs", 0) == 0 or result["convolution_macs"] > macs / 2


def is_unnamed(result: dict) -> bool:
    """Whether something went wrong that fxquant has no words for."""
    reasons = result.get("failures", {})
    return "process" in reasons or any(why.startswith("crash") for why in reasons.values())


def is_quantized(result: dict) -> bool:
    """Whether 99 % of its layers' multiply-accumulates are quantized."""
    return result.get("share_quantized", 0.0) >= ENOUGH_QUANTIZED


def is_equal(result: dict) -> bool:
    """Whether the passes changed nothing but the rounding, within that of floating point."""
    errors = [result.get("pass_through_error", 1.0), result.get("teacher_error", 0.0)]
    return max(errors) <= ROUNDING


def _traced(result: dict) -> str:
    if "rewrites" not in result:
        return "failed"
    return f"{result['left_out_count']} left out" if result["left_out_count"] else "whole"


def _seconds(result: dict) -> float:
    return result.get("seconds", {}).get("prepare", 0.0)


def _kernels(parity: dict) -> tuple[int, int]:
    integer = parity["convolutions_integer"] + parity["linears_integer"]
    return integer, parity["convolutions"] + parity["linears"]


def _shortcomings(results: Iterable[dict]) -> Iterator[str]:
    for result in sorted(results, key=lambda r: r["name"]):
        said = [f"{step}: {why}" for step, why in result.get("failures", {}).items()]
        if "share_quantized" in result and not is_quantized(result):
            named = ", ".join(f"{k} ({v:.0%})" for k, v in result["float_layers"].items())
            said.append(f"{result['share_quantized']:.1%} of MACs quantized; float: {named}")
        if "pass_through_error" in result and not is_equal(result):
            said.append(f"changed by more than rounding: {result['pass_through_error']:.1e}")
        if result.get("sqnr_db", ENOUGH_DB) < ENOUGH_DB:
            said.append(f"SQNR {result['sqnr_db']:.1f} dB")
        if "parity" in result and not result["parity"]["passed"]:
            said.append(f"parity failed from {result['parity']['diverges_at']} on")
        if said:
            yield f"- **{result['name']}**: " + "; ".join(said).replace("|", "\\|")


def _row(result: dict) -> str:
    def number(key: str, form: str, scale: float = 1.0) -> str:
        return format(result[key] * scale, form) if key in result else ""

    parity = result.get("parity")
    total = result.get("macs", 0) + result.get("matmul_macs", 0)
    cells = [
        result["name"].partition(":")[2],
        "x".join(map(str, result.get("input_shape", ()))),
        number("macs", ".0f", 1e-6),
        _traced(result),
        f"{_seconds(result):.1f}",
        number("share_quantized", ".1f", 100),
        f"{100 * result['matmul_macs'] / total:.0f}" if total else "",
        number("pass_through_error", ".0e"),
        number("sqnr_db", ".1f"),
        number("input_noise_db", ".1f"),
        f"{parity['optimized']['sqnr_db']:.1f}" if parity else "",
        "{} of {}".format(*_kernels(parity)) if parity else "",
        number("file_bytes", ".2f", 1e-6),
    ]
    return f"| {' | '.join(cells)} |"
