"""The facts about a prepared model that need no run: layers, widths, size, operations, taps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from fxquant.graph.insert_quantizers import (
    is_activation_quantizer,
    layer_name,
    quantized_layers,
)
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS, count_taps, tap_names
from fxquant.graph.ops import WEIGHTED, kind, module_of
from fxquant.graph.prepare import Prepared
from fxquant.graph.regions import all_nodes, region_of
from fxquant.graph.snap_biases import input_quantizer
from fxquant.quantizer import Quantizer
from fxquant.report.floating import float_parts
from fxquant.report.kernels import predict_kernel
from fxquant.report.macs import count_macs

FLOAT_BITS = 32


def describe(prepared: Prepared) -> dict[str, Any]:
    """What quantizing will do to each layer, what stays float and why, size and operations.

    Plain JSON values; docs/report.md lists the keys.
    """
    layers = layer_rows(prepared)
    macs = sum(layer["macs"] for layer in layers)
    return {
        "model": {
            "input_shape": list(prepared.input_shape),
            "parameters": sum(p.numel() for p in prepared.teacher.parameters()),
            "macs": macs,
        },
        "summary": _summary(layers, prepared),
        "size": _size(prepared),
        "bitops": {
            "float": macs * FLOAT_BITS**2,
            "quantized": sum(layer["bitops"] for layer in layers),
        },
        "layers": layers,
        "float": float_parts(prepared.student, layers),
        "left_out": [asdict(part) for part in prepared.left_out],
        "notes": list(prepared.notes),
        "fixed_size": list(prepared.fixed_size),
        "taps": {
            "batchnorm": count_taps(prepared.teacher, BN_TAPS),
            "batchnorm_names": tap_names(prepared.teacher, BN_TAPS),
            "features": tap_names(prepared.teacher, FEATURE_TAPS),
        },
    }


def layer_nodes(student: nn.Module) -> list[Node]:
    """Nodes of a student that compute a convolution or linear layer, in graph order."""
    return [node for node in all_nodes(student) if kind(node) in WEIGHTED]


def layer_rows(prepared: Prepared) -> list[dict[str, Any]]:
    """One row for each call of a layer in graph order, then one for each layer no graph shows."""
    hidden = {name: part for part in prepared.left_out for name in part.hidden}
    macs = count_macs(prepared.student, prepared.input_shape, hidden)
    quantized = set(quantized_layers(prepared.student))
    rows = [
        _row(node, macs[node], quantized=node in quantized)
        for node in layer_nodes(prepared.student)
    ]
    for name, part in hidden.items():
        reason = f"inside {part.name or 'the model'}, which could not be traced"
        module = prepared.student.get_submodule(name)
        rows.append(_hidden_row(name, module, macs[name], reason))
    return rows


def _row(node: Node, macs: int, *, quantized: bool) -> dict[str, Any]:
    bits = module_of(node.args[1]).spec.bits if quantized else None
    source = input_quantizer(node) if quantized else None
    layer = module_of(node)
    if quantized:
        layer = region_of(node).get_submodule(node.meta["layer"])
    verdict = predict_kernel(node, quantized=quantized)
    widths = (bits, source.spec.bits if source else None)
    return {
        "name": layer_name(node),
        "kind": kind(node),
        **_weights(layer, macs, *widths),
        "float_reason": node.meta.get("float_reason"),
        "integer_kernel": verdict is None,
        "kernel_reason": verdict,
    }


def _hidden_row(name: str, layer: nn.Module, macs: int, reason: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": _kind_of_module(layer),
        **_weights(layer, macs, None, None),
        "float_reason": reason,
        "integer_kernel": False,
        "kernel_reason": reason,
    }


def _kind_of_module(layer: nn.Module) -> str:
    if isinstance(layer, _ConvNd):
        return "conv"
    return "linear" if isinstance(layer, nn.Linear) else type(layer).__name__


def _weights(
    layer: nn.Module | None, macs: int, weight_bits: int | None, act_bits: int | None
) -> dict[str, Any]:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    return {
        "weight_shape": [] if weight is None else list(weight.shape),
        "parameters": sum(p.numel() for p in (weight, bias) if p is not None),
        "macs": macs,
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "bitops": macs * (weight_bits or FLOAT_BITS) * (act_bits or FLOAT_BITS),
    }


def _summary(layers: list[dict[str, Any]], prepared: Prepared) -> dict[str, Any]:
    quantized = [layer for layer in layers if layer["weight_bits"]]
    macs = sum(layer["macs"] for layer in layers)
    activations = sum(is_activation_quantizer(node) for node in all_nodes(prepared.student))
    return {
        "layers_quantized": len(quantized),
        "layers_float": len(layers) - len(quantized),
        "layers_integer": sum(layer["integer_kernel"] for layer in layers),
        "activations_quantized": activations,
        "macs_quantized": sum(layer["macs"] for layer in quantized) / macs if macs else 0.0,
        "batchnorms_folded": prepared.rewrites["fold_batchnorm"],
    }


def _size(prepared: Prepared) -> dict[str, float]:
    """Bytes of all parameters: quantized weights at their widths, biases and the rest at 32 bits.

    The scales of quantizers are not counted: a few thousandths of the weights.
    """
    widths = {
        id(_weight_of(node)): module_of(node.args[1]).spec.bits
        for node in quantized_layers(prepared.student)
    }
    scales = [m.log_scale for m in prepared.student.modules() if isinstance(m, Quantizer)]
    widths |= {id(scale): 0 for scale in scales}
    bits = sum(p.numel() * widths.get(id(p), FLOAT_BITS) for p in prepared.student.parameters())
    floats = sum(p.numel() for p in prepared.teacher.parameters())
    return {"float_bytes": floats * FLOAT_BITS // 8, "weights_bytes": bits / 8}


def _weight_of(node: Node) -> nn.Parameter:
    return region_of(node).get_submodule(node.meta["layer"]).weight
