"""report.html: a run's outcome on one self-contained page, for whoever deploys the network."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChainableUndefined, Environment, Template
from markupsafe import Markup
from torch import Tensor

from fxquant.report import formats, pictures
from fxquant.report.floating import grouped
from fxquant.report.formats import (
    amount,
    cell,
    count,
    db,
    is_number,
    number,
    percent,
    size,
    times,
    words,
)
from fxquant.report.frontier import frontier_chart
from fxquant.wording import shown

LOW_SQNR_DB = 10.0  # below it, noise has more than 32 % of the signal's amplitude
BAR_DB = 40.0  # a full bar in the table of layers
FILTERS = ("number", "whole", "amount", "size", "db", "percent", "words", "times", "breakable")

LOSSES = {
    "bn_statistics": "distance of the activations' mean and deviation from those in the original's "
    "batch norms",
    "input_statistics": "distance of the images from mean 0 and deviation 1",
    "patch_similarity": "entropy of how alike an image's patches are to the original, taken "
    "negative",
    "classes": "original's doubt about each image, and its preference of some classes",
    "features": "distance between original and student at the feature taps",
    "output": "divergence of the student's output from the original's",
}
WEIGHTINGS = {
    "layer": "each layer weighted by 1 + its importance (X2)",
    "sample": "each layer weighted by 1 + its importance for one sample in turn (X1)",
}


def render(report: dict[str, Any], images: Tensor) -> str:
    """The page for the content of report.json, with no link, script or font from elsewhere.

    `images` are generated ones, (n, channels, height, width), in normalised space. What a report
    lacks is said to be not measured.
    """
    return _template().render(r=report, v=_view(report, images))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=_finalize,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formats, name) for name in FILTERS})
    text = files("fxquant.report").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _finalize(value: Any) -> Any:
    """Whatever is put into the page, but for what is HTML already."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _view(report: dict[str, Any], images: Tensor) -> dict[str, Any]:
    """What the page shows beside the report's own values."""
    importance = report.get("importance")
    rows = _layer_rows(report.get("layers") or [])
    return {
        "title": f"{_at(report, 'model', 'name') or 'Network'}, quantized",
        "widths": _widths(_at(report, "settings", "config") or {}, report.get("mixed") or {}),
        "headline": _headline(report),
        "attention": _attention(report),
        "ratio": {"size": _size_ratio(report), "bitops": _bitops_ratio(report)},
        "float": grouped(report.get("float") or []),
        "layers": rows,
        "terms": _terms(_at(report, "settings", "recipe") or {}),
        "parity_extra": _extra(report.get("parity") or {}),
        "command": _command(report),
        "grid": pictures.image_grid(images),
        "curves": pictures.curve_panels(report.get("curves") or {}),
        "importance": pictures.importance_chart(importance) if importance else None,
        "frontier": frontier_chart(report.get("mixed") or {}),
        "mixed": _mixed(report.get("mixed") or {}),
        "images": _images(report),
        "low_db": LOW_SQNR_DB,
    }


def _at(values: Any, *keys: str) -> Any:
    """The value down a path of keys; None where a key is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _widths(config: dict[str, Any], mixed: dict[str, Any]) -> str:
    """The widths of a configuration in a few words."""
    bits = sorted({layer["bits"] for layer in mixed.get("layers") or []})
    if bits:
        average = number(_at(mixed, "chosen", "average_bits"), 2)
        span = f"{bits[0]}" if bits[0] == bits[-1] else f"{bits[0]}- to {bits[-1]}"
        text = f"{span}-bit weights, {average} on average"
        text += f", and {config.get('act_bits')}-bit activations"
        return f"{text}, with exceptions" if _has_exceptions(config) else text
    weight, act = config.get("weight_bits"), config.get("act_bits")
    if weight is None and act is None:
        return "Widths not on record"
    text = f"{weight}-bit weights and activations"
    if weight != act:
        text = f"{weight}-bit weights, {act}-bit activations"
    return f"{text}, with exceptions" if _has_exceptions(config) else text


def _mixed(mixed: dict[str, Any]) -> list[str]:
    """How mixed precision chose, in sentences; none where it wasn't asked for."""
    if not mixed:
        return []
    by_size = mixed["measure"] == "size"
    budget = size(mixed["budget"]) if by_size else f"{amount(mixed['budget'])} bit operations"
    chosen = mixed["chosen"]
    text = [f"The budget was {budget}; the widths chosen take {size(chosen['size'])} for all "]
    text[0] += f"parameters and {amount(chosen['bitops'])} bit operations an image."
    flat = next((p for p in mixed["flat"] if p["criterion"] and _fits(p, mixed)), None)
    if flat and chosen["criterion"]:
        ratio = number(flat["criterion"] / chosen["criterion"], 1)
        text.append(f"{flat['bits']} bits everywhere has {ratio} times the criterion.")
    if not mixed["exact"]:
        text.append("The choice is near the least, not proven to be it: see docs/mixed.md.")
    return text


def _fits(point: dict[str, Any], mixed: dict[str, Any]) -> bool:
    """Whether a flat point is the widest within the budget."""
    fits = [p["bits"] for p in mixed["flat"] if p[mixed["measure"]] <= mixed["budget"]]
    return bool(fits) and point["bits"] == max(fits)


def _has_exceptions(config: dict[str, Any]) -> bool:
    return bool(config.get("layers")) or config.get("first_last_bits") is not None


def _headline(report: dict[str, Any]) -> str:
    """How close the student stays to the original, by the best evidence there is."""
    accuracy, quality = report.get("accuracy") or {}, report.get("quality") or {}
    before, after = accuracy.get("teacher"), accuracy.get("student")
    if is_number(before) and is_number(after):
        gap = round(before - after, 2)
        side = "as accurate as the original" if gap == 0 else None
        side = side or f"{abs(gap):.2f} points {'below' if gap > 0 else 'above'} the original"
        return f"{percent(after, 2)} accurate, {side}"
    if is_number(quality.get("agreement")):
        return f"Agrees with the original on {percent(quality['agreement'])} of generated images"
    if is_number(quality.get("output_sqnr_db")):
        return f"Output SQNR {db(quality['output_sqnr_db'])} dB on generated images"
    return "How close it stays to the original was not measured"


def _attention(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader should look at before deploying: text and the section that tells more."""
    notes, parity = [], report.get("parity") or {}
    if parity and not parity.get("passed"):
        notes.append(("The ONNX file does not compute what the trained student does", "parity"))
    if parity.get("processor_note"):
        notes.append(("Not right on every processor: 8-bit weights are stored as int8", "parity"))
    for kind, what in (("convolutions", "convolutions"), ("linears", "linear layers")):
        total, integer = parity.get(kind), parity.get(f"{kind}_integer")
        if is_number(total) and is_number(integer) and integer < total:
            what = f"{total - integer} of {total} {what} not in integer kernels of ONNX Runtime"
            notes.append((what, "parity"))
    low = [row for row in report.get("layers") or [] if _is_low(row.get("sqnr_db"))]
    if low:
        worst = min(low, key=lambda row: row["sqnr_db"])
        what = f"{count(len(low), 'layer')} below {LOW_SQNR_DB:g} dB SQNR"
        notes.append((f"{what}, lowest {worst['name']} at {db(worst['sqnr_db'])} dB", "layers"))
    kept = report.get("float") or []
    if kept:
        notes.append((f"In floating point: {count(len(kept), 'part')} of the network", "float"))
    if report.get("fixed_size"):
        notes.append(("Right at this input size alone", "float"))
    return notes


def _images(report: dict[str, Any]) -> str:
    n = _at(report, "quality", "images")
    return count(n, "generated image") if isinstance(n, int) else "generated images"


def _is_low(value: Any) -> bool:
    return is_number(value) and value < LOW_SQNR_DB


def _size_ratio(report: dict[str, Any]) -> float | None:
    sizes = report.get("size") or {}
    return _ratio(sizes.get("float_bytes"), sizes.get("onnx_bytes") or sizes.get("weights_bytes"))


def _bitops_ratio(report: dict[str, Any]) -> float | None:
    bitops = report.get("bitops") or {}
    return _ratio(bitops.get("float"), bitops.get("quantized"))


def _ratio(before: Any, after: Any) -> float | None:
    return before / after if is_number(before) and is_number(after) and after > 0 else None


def _layer_rows(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of the table of layers as text, with the unit of each column and the totals."""
    rows, units = [dict(layer) for layer in layers], {}
    totals = {}
    for key, most in (("parameters", 1e7), ("macs", 1e4), ("bitops", 1e4)):
        known = [layer.get(key) for layer in layers if is_number(layer.get(key))]
        largest = max(known, default=0)
        scale, units[key] = next(
            (u for u in reversed(formats.UNITS) if largest / u[0] < most), formats.UNITS[0]
        )
        digits = 1 if scale > 1 else 0
        totals[key] = cell(sum(known) if known else None, scale, digits)
        for row in rows:
            row[key] = cell(row.get(key), scale, digits)
    traces = [layer.get("importance") for layer in layers if is_number(layer.get("importance"))]
    power = math.floor(math.log10(max(map(abs, traces), default=1) or 1)) // 3 * 3
    for row in rows:
        row["importance"] = cell(row.get("importance"), 10.0**power, 2)
        row["shape"] = times(row.get("weight_shape"))
        row["low"] = _is_low(row.get("sqnr_db"))
        sqnr = row["sqnr_db"] if is_number(row.get("sqnr_db")) else None
        row["bar"] = None if sqnr is None else round(100 * min(max(sqnr / BAR_DB, 0), 1))
    return {"rows": rows, "units": units, "totals": totals, "power": power, "has_h": bool(traces)}


def _terms(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's losses in words: who is trained on what, and how much."""
    whose = {"sample_terms": "images", "student_terms": "student"}
    return [
        {"who": who, "loss": term.get("loss"), "weight": term.get("weight"), "text": _explain(term)}
        for key, who in whose.items()
        for term in recipe.get(key) or []
    ]


def _explain(term: dict[str, Any]) -> str:
    loss, weight, weighting = term.get("loss"), term.get("weight"), term.get("weighting")
    aim = "Maximise" if is_number(weight) and weight < 0 else "Minimise"
    parts = [f"{aim} the {LOSSES.get(loss, words(loss))}"]
    if loss == "features":
        parts.append(f"by {words(term.get('distance'))}")
    if loss == "output":
        parts.append(f"at temperature {words(term.get('temperature'))}")
    if term.get("per_sample"):
        parts.append("image by image")
    if weighting not in (None, "none"):
        parts.append(WEIGHTINGS.get(weighting, words(weighting)))
    return ", ".join(parts) + "."


PARITY_SHOWN = {
    *("passed", "unoptimized", "optimized", "precise", "diverges_at", "file_bytes"),
    *("processor_note", "saturating_layers", "saturates_here"),
    *("convolutions", "convolutions_integer", "linears", "linears_integer"),
}


def _extra(parity: dict[str, Any]) -> dict[str, str]:
    """Whatever else the parity check tells in plain values."""
    return {
        key.replace("_", " "): words(value)
        for key, value in parity.items()
        if key not in PARITY_SHOWN and isinstance(value, (str, int, float, bool))
    }


def _command(report: dict[str, Any]) -> str:
    source = str(_at(report, "model", "source") or "MODEL")
    if not source.isprintable():
        source = "MODEL"  # escaped it would be the name of another file
    return f"fxquant quantize {shlex.quote(source)} --config recipe.toml --output NEW_FOLDER"
