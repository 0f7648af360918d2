"""The facts about a prepared model that need no run: layers, widths, size, operations, taps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from fxquant.graph.costs import (
    FLOAT_BITS,
    MATMUL,
    input_bits,
    parameter_bits,
    product_bits,
    product_is_quantized,
)
from fxquant.graph.insert_quantizers import is_activation_quantizer, layer_name, quantized_layers
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS, count_taps, tap_names
from fxquant.graph.macs import count_macs
from fxquant.graph.ops import WEIGHTED, kind, module_of
from fxquant.graph.prepare import Prepared
from fxquant.graph.reasons import float_reason
from fxquant.graph.regions import all_nodes, region_of
from fxquant.graph.trace import LeftOut
from fxquant.inputs import Shapes
from fxquant.quantizer import Quantizer
from fxquant.report.floating import float_parts, operation
from fxquant.report.kernels import INPUT, may_saturate, predict_kernel, predict_product
from fxquant.spec import QConfig


@dataclass(frozen=True)
class Layer:
    """What multiplies: a call of a layer, a product of two values, or a module with weights.

    `node` is that of the student, None where no graph shows it; `row` are its facts as plain JSON
    values, whose keys docs/inspect.md lists.
    """

    node: Node | None
    row: dict[str, Any]

    @property
    def quantized(self) -> bool:
        """Whether it multiplies numbers of grids."""
        row = self.row
        return bool(row["weight_bits"] or (row["kind"] == MATMUL and row["act_bits"]))


def describe(prepared: Prepared, layers: Sequence[Layer]) -> dict[str, Any]:
    """What quantizing does to the whole network: size, operations, what stays float, taps.

    `layers` are those of `list_layers`. Plain JSON values; docs/inspect.md lists the keys.
    """
    rows = [layer.row for layer in layers]
    macs = sum(row["macs"] for row in rows)
    return {
        "model": {
            "input_shape": _plain(prepared.input_shape),
            "parameters": sum(p.numel() for p in prepared.teacher.parameters()),
            "macs": macs,
        },
        "summary": _summary(layers, prepared),
        "size": _size(prepared),
        "bitops": {
            "float": macs * FLOAT_BITS**2,
            "quantized": sum(row["bitops"] for row in rows),
        },
        "layers": rows,
        "float": float_parts(prepared.student, layers),
        "left_out": [asdict(part) for part in prepared.left_out],
        "notes": [*prepared.notes, *_unused_rules(prepared.config, rows)],
        "fixed_size": list(prepared.fixed_size),
        "taps": {
            "batchnorm": count_taps(prepared.teacher, BN_TAPS),
            "batchnorm_names": tap_names(prepared.teacher, BN_TAPS),
            "features": tap_names(prepared.teacher, FEATURE_TAPS),
        },
    }


def list_layers(prepared: Prepared) -> list[Layer]:
    """Every call of what multiplies, in graph order, then the modules that no graph shows."""
    hidden = {name: part for part in prepared.left_out for name in part.hidden}
    macs = count_macs(prepared.student, prepared.input_shape, hidden)
    quantized = set(quantized_layers(prepared.student))
    layers: dict[Node | str, Layer] = {}
    for node in all_nodes(prepared.student):
        name = layer_name(node)
        if node.op == "call_module" and name in hidden:
            layers.setdefault(name, Layer(node, _hidden_row(name, prepared, hidden, macs)))
        elif kind(node) in WEIGHTED or macs[node] or _holds_weights(node, hidden):
            layers[node] = Layer(node, _row(node, macs[node], quantized=node in quantized))
    for name in hidden:
        layers.setdefault(name, Layer(None, _hidden_row(name, prepared, hidden, macs)))
    return list(layers.values())


def _holds_weights(node: Node, hidden: Collection[str]) -> bool:
    """Whether a node calls a module with weights that neither nodes nor `hidden` modules show."""
    module = module_of(node)
    if module is None or kind(node) != "other" or isinstance(module, Quantizer):
        return False
    inside = f"{layer_name(node)}."
    shown = any(isinstance(inner, GraphModule) for inner in module.modules())
    shown = shown or any(name.startswith(inside) for name in hidden)
    return not shown and any(p.dim() > 1 for p in module.parameters())


def _row(node: Node, macs: int, *, quantized: bool) -> dict[str, Any]:
    if quantized:
        layer = region_of(node).get_submodule(node.meta["layer"])
        bits = (module_of(node.args[1]).spec.bits, input_bits(node))
        reason = predict_kernel(node)
        saturates = reason is None and may_saturate(node)
        return _facts(node, layer, macs, bits, reason) | {"may_saturate": saturates}
    if product_is_quantized(node):
        bits = product_bits(node)
        row = _facts(node, None, macs, (None, max(bits)), predict_product(node))
        return row | {"bitops": macs * math.prod(bits)}
    reason = float_reason(node) or INPUT
    return _facts(node, module_of(node), macs, (None, None), reason) | {"float_reason": reason}


def _facts(
    node: Node,
    layer: nn.Module | None,
    macs: int,
    bits: tuple[int | None, int | None],
    kernel_reason: str | None,
) -> dict[str, Any]:
    return {
        "name": layer_name(node),
        "kind": kind(node) if kind(node) in (*WEIGHTED, MATMUL) else operation(node),
        **_weights(layer, macs, *bits),
        "float_reason": None,
        "integer_kernel": kernel_reason is None,
        "kernel_reason": kernel_reason,
        "may_saturate": False,
    }


def _hidden_row(
    name: str, prepared: Prepared, hidden: dict[str, LeftOut], macs: Counter[Node | str]
) -> dict[str, Any]:
    """Facts about a module with weights that no graph shows."""
    layer, part = prepared.student.get_submodule(name), hidden[name]
    reason = f"inside {part.name or part.type}, which could not be traced"
    return {
        "name": name,
        "kind": _kind_of_module(layer),
        **_weights(layer, macs[name], None, None),
        "parameters": sum(p.numel() for p in layer.parameters(recurse=False)),
        "float_reason": reason,
        "integer_kernel": False,
        "kernel_reason": reason,
        "may_saturate": False,
    }


def _kind_of_module(layer: nn.Module) -> str:
    if isinstance(layer, _ConvNd):
        return "conv"
    return "linear" if isinstance(layer, nn.Linear) else type(layer).__name__


def _weights(
    layer: nn.Module | None, macs: int, weight_bits: int | None, act_bits: int | None
) -> dict[str, Any]:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    own = [weight, bias] if weight is not None or layer is None else layer.parameters()
    return {
        "weight_shape": [] if weight is None else list(weight.shape),
        "parameters": sum(p.numel() for p in own if p is not None),
        "macs": macs,
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "bitops": macs * (weight_bits or FLOAT_BITS) * (act_bits or FLOAT_BITS),
    }


def _summary(layers: Sequence[Layer], prepared: Prepared) -> dict[str, Any]:
    quantized = [layer for layer in layers if layer.quantized]
    macs = sum(layer.row["macs"] for layer in layers)
    activations = sum(is_activation_quantizer(node) for node in all_nodes(prepared.student))
    return {
        "layers_quantized": len(quantized),
        "layers_float": len(layers) - len(quantized),
        "layers_integer": sum(layer.row["integer_kernel"] for layer in layers),
        "layers_saturating": sum(layer.row["may_saturate"] for layer in layers),
        "activations_quantized": activations,
        "macs_quantized": sum(layer.row["macs"] for layer in quantized) / macs if macs else 0.0,
        "batchnorms_folded": prepared.rewrites["fold_batchnorm"],
    }


def _size(prepared: Prepared) -> dict[str, float]:
    """Bytes of all parameters, as `parameter_bits` counts them."""
    floats = sum(p.numel() for p in prepared.teacher.parameters())
    return {
        "float_bytes": floats * FLOAT_BITS // 8,
        "weights_bytes": parameter_bits(prepared.student) / 8,
    }


def _unused_rules(config: QConfig, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What to say of layer rules that no layer's name matches."""
    return [
        f"layer rule '{rule}' matches the name of no layer"
        for rule in config.layers
        if not any(fnmatchcase(row["name"], rule.pattern) for row in rows)
    ]


def _plain(shape: Shapes) -> list:
    """A shape, or several, as lists."""
    return [side if isinstance(side, int) else list(side) for side in shape]
