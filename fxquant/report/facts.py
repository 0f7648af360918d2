"""The content of report.json: what was quantized, what was not and why, and how close it stays."""

from __future__ import annotations

import math
import os
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant import __version__
from fxquant.graph.insert_quantizers import (
    is_activation_quantizer,
    layer_name,
    quantized_layers,
)
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS, count_taps, tap_names
from fxquant.graph.ops import WEIGHTED, kind, module_of
from fxquant.graph.regions import all_nodes, qualify, region_of, value_name
from fxquant.pipeline import Result
from fxquant.quantizer import Quantizer
from fxquant.report.closeness import measure_closeness

FLOAT_BITS = 32

# What is computed in floating point although numbers of a grid go in and come out.
_FLOAT_KINDS = {
    "activation": "an activation that integer kernels don't fuse",
    "other": "an operation without a known integer form",
}


def build_report(result: Result) -> dict[str, Any]:
    """All facts about a run that come from the run itself, as plain JSON values.

    Whoever exports, evaluates or loaded the model adds `model.name`, `parity`, `accuracy` and
    the like to it.
    """
    closeness = measure_closeness(result.teacher, result.student, result.images)
    layers = _layers(result, closeness.layer_sqnr)
    # A layer that is called twice is stored once.
    once = list({layer["name"]: layer for layer in layers}.values())
    settings = result.settings
    return {
        "fxquant": __version__,
        "model": {
            "input_shape": list(settings.input_shape),
            "parameters": sum(layer["parameters"] for layer in once),
            "macs": sum(layer["macs"] for layer in layers),
        },
        "settings": {
            "config": settings.config.to_dict(),
            "recipe": settings.recipe.to_dict(),
            "seed": settings.seed,
            "device": settings.device,
        },
        "machine": describe_machine(),
        "summary": _summary(layers, result),
        "size": {
            "float_bytes": sum(layer["parameters"] for layer in once) * FLOAT_BITS // 8,
            "weights_bytes": sum(
                layer["parameters"] * (layer["weight_bits"] or FLOAT_BITS) / 8 for layer in once
            ),
        },
        "bitops": {
            "float": sum(layer["macs"] for layer in layers) * FLOAT_BITS**2,
            "quantized": sum(layer["bitops"] for layer in layers),
        },
        "layers": layers,
        "float": _float_parts(result.student, layers),
        "taps": {
            "batchnorm": count_taps(result.teacher, BN_TAPS),
            "features": tap_names(result.teacher, FEATURE_TAPS),
        },
        "quality": {
            "images": len(result.images),
            "agreement": closeness.agreement,
            "output_sqnr_db": closeness.output_sqnr,
            "kept": result.kept,
        },
        "importance": _importance(result),
        "curves": result.curves,
        "seconds": result.seconds,
    }


def _layers(result: Result, sqnr: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each convolution and linear call, in graph order."""
    quantized = set(quantized_layers(result.student))
    h = result.importance
    importance = dict(zip(h.layers, h.trace, strict=True)) if h else {}
    rows = []
    for node in all_nodes(result.student):
        if kind(node) in WEIGHTED:
            row = _layer(node, node in quantized)
            row["importance"] = importance.get(row["name"])
            row["sqnr_db"] = sqnr.get(value_name(node))
            rows.append(row)
    return rows


def _layer(node: Node, quantized: bool) -> dict[str, Any]:
    weight_bits = act_bits = None
    if quantized:
        weight_bits = module_of(node.args[1]).spec.bits
        act_bits = _input_bits(node)
    layer = module_of(node)
    if quantized:
        layer = region_of(node).get_submodule(node.meta["layer"])
    weight = getattr(layer, "weight", None)
    bias = getattr(layer, "bias", None)
    macs = 0 if weight is None else _macs(node, weight.shape)
    return {
        "name": layer_name(node),
        "kind": kind(node),
        "weight_shape": [] if weight is None else list(weight.shape),
        "parameters": sum(p.numel() for p in (weight, bias) if p is not None),
        "macs": macs,
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "bitops": macs * (weight_bits or FLOAT_BITS) * (act_bits or FLOAT_BITS),
        "float_reason": node.meta.get("float_reason"),
    }


def _macs(node: Node, weight_shape: torch.Size) -> int:
    """Multiply-accumulates for one image: outputs times the weights that each output reads."""
    shape = node.meta.get("shape")
    if shape is None:
        return 0
    return math.prod(shape[1:]) * math.prod(weight_shape[1:])


def _input_bits(node: Node) -> int | None:
    """Width of the values that enter the layer, looked for back along the graph."""
    source = node.args[0]
    while isinstance(source, Node):
        module = module_of(source)
        if isinstance(module, Quantizer):
            return module.spec.bits
        source = source.args[0] if source.args else None
    return None


def _summary(layers: list[dict], result: Result) -> dict[str, Any]:
    quantized = [layer for layer in layers if layer["weight_bits"]]
    macs = sum(layer["macs"] for layer in layers)
    return {
        "layers_quantized": len(quantized),
        "layers_float": len(layers) - len(quantized),
        "activations_quantized": sum(is_activation_quantizer(n) for n in all_nodes(result.student)),
        "macs_quantized": sum(layer["macs"] for layer in quantized) / macs if macs else 0.0,
        "batchnorms_folded": result.prepared.rewrites["fold_batchnorm"],
    }


def _float_parts(student: nn.Module, layers: list[dict]) -> list[dict[str, str]]:
    """What computes in floating point, with the reason in a person's words."""
    parts = [
        {"name": layer["name"], "what": layer["kind"], "reason": layer["float_reason"]}
        for layer in layers
        if layer["float_reason"]
    ]
    for node in all_nodes(student):
        name = str(node.target) if node.op == "call_module" else node.name
        name = qualify(region_of(node), name)
        if kind(node) == "batchnorm":
            reason = node.meta.get("not_folded", "it was not folded")
            parts.append({"name": name, "what": "batch norm", "reason": reason})
        elif kind(node) in _FLOAT_KINDS and _computes(node):
            reason = _FLOAT_KINDS[kind(node)]
            parts.append({"name": name, "what": _operation(node), "reason": reason})
    return parts


def _computes(node: Node) -> bool:
    module = module_of(node)
    ours = type(module).__module__.startswith("fxquant.")
    clips = isinstance(module, torch.nn.Hardtanh) or node.target in (F.relu6, F.hardtanh)
    return "shape" in node.meta and not ours and not clips


def _operation(node: Node) -> str:
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))


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
