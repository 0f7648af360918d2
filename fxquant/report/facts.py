"""The content of report.json: what was quantized, what was not and why, and how close it stays."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, replace
from typing import Any

import torch

from fxquant import __version__
from fxquant.datafree.recipes import nothing_to_match
from fxquant.graph.regions import value_name
from fxquant.pipeline import Result
from fxquant.report.closeness import Closeness, measure_closeness
from fxquant.report.layers import Layer, describe, list_layers
from fxquant.report.trust import judge


def build_report(result: Result) -> dict[str, Any]:
    """All facts about a run that come from the run itself, as plain JSON values.

    Whoever exports, evaluates or loaded the model adds `model.name`, `parity`, `accuracy` and
    the like to it.
    """
    settings = result.settings
    closeness = measure_closeness(result.teacher, result.student, result.images)
    trained = replace(result.prepared, teacher=result.teacher, student=result.student)
    layers = list_layers(trained)
    _add_measured(layers, result, closeness.layer_sqnr)
    return {
        "fxquant": __version__,
        "settings": {
            "config": settings.config.to_dict(),
            "recipe": settings.recipe.to_dict(),
            "seed": settings.seed,
            "device": settings.device,
            "mixed": settings.mixed.to_dict() if settings.mixed else None,
        },
        "machine": describe_machine(),
        **describe(trained, layers),
        "quality": {
            "images": len(result.images),
            "agreement": closeness.agreement,
            "divergence": closeness.divergence,
            "output_sqnr_db": closeness.output_sqnr,
            "trust": _trust(result, closeness),
            "kept": result.kept,
        },
        "importance": _importance(result),
        "mixed": result.widths.to_dict() if result.widths else None,
        "curves": result.curves,
    }


def _add_measured(layers: list[Layer], result: Result, sqnr: dict[str, float]) -> None:
    """Add to each layer's row what the run measured of it."""
    h = result.importance
    importance = dict(zip(h.layers, h.trace, strict=True)) if h else {}
    for layer in layers:
        value = None if layer.node is None else value_name(layer.node)
        layer.row["importance"] = importance.get(layer.row["name"])
        layer.row["sqnr_db"] = sqnr.get(value)


def _trust(result: Result, closeness: Closeness) -> dict[str, str] | None:
    """How far to trust a classifier; nothing is known of other outputs, nor of other images."""
    on_patches = nothing_to_match(result.settings.recipe, result.teacher) is not None
    known = closeness.agreement is not None and not on_patches
    return asdict(judge(closeness.output_sqnr)) if known else None


def _importance(result: Result) -> dict[str, Any] | None:
    h, settings = result.importance, result.settings.recipe.importance
    if h is None:
        return None
    return {
        "method": settings.method,
        "probes": settings.probes,
        "normalize": settings.normalize,
        "layers": list(h.layers),
        "trace": list(h.trace),
        "standard_error": list(h.standard_error),
    }


def describe_machine() -> dict[str, Any]:
    """The processor or GPU, cores and versions that figures of a run depend on."""
    return {
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
