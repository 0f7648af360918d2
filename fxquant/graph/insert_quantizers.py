"""Insert fake-quant nodes for weights and activations where integer kernels can fuse them.

One quantizer per value, at its producer, after any ReLU that follows it: wherever a quantized
layer, or an op between such layers (addition, concatenation, pooling, ...), reads the value. Ops
that only move numbers of one grid get none.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.ops import (
    ARITHMETIC,
    WEIGHTED,
    consumers,
    is_redundant_relu,
    kind,
    module_of,
)
from fxquant.graph.regions import all_nodes, qualify, region_of
from fxquant.quantizer import Quantizer
from fxquant.spec import LayerBits, QConfig, QSpec

logger = logging.getLogger(__name__)

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
ACTIVATIONS = "activation_quantizers"


@dataclass(frozen=True)
class _Plan:
    """Which layers are quantized at which widths, decided before the graph is touched."""

    layers: dict[Node, LayerBits]
    preprocessing: set[Node]
    config: QConfig


def insert_quantizers(gm: GraphModule, config: QConfig, ends: Collection[str] = ()) -> int:
    """Make weights and activations of `gm` fake-quantized; the number of quantizers inserted.

    `ends` names the first and the last layer of the model, which `config` may treat apart.
    Every layer's node has the reason in `meta["float_reason"]` where it stays in floating point.
    The quantizers pass their input through until they are calibrated.
    """
    done = set(quantized_layers(gm))
    layers = [n for n in gm.graph.nodes if kind(n) in WEIGHTED and n not in done]
    chosen = _choose_layers(layers, config, ends)
    plan = _Plan(chosen, _before_layers(gm, set(layers)), config)
    activations = {node: _activation_bits(node, plan) for node in gm.graph.nodes}
    activations = {node: bits for node, bits in activations.items() if bits is not None}
    for node, bits in activations.items():
        _quantize_activation(gm, node, QSpec(bits, config.symmetric_activations))
    return len(activations) + sum(_quantize_weight(gm, node, plan) for node in plan.layers)


def layer_name(node: Node) -> str:
    """Name in the whole model of the layer that a convolution or linear node computes."""
    name = node.meta.get("layer", node.target if node.op == "call_module" else node.name)
    return qualify(region_of(node), str(name))


def first_and_last_layer(model: nn.Module) -> set[str]:
    """Names of the first and the last layer of a traced model."""
    names = [layer_name(node) for node in all_nodes(model) if kind(node) in WEIGHTED]
    return {*names[:1], *names[-1:]}


def quantized_layers(student: nn.Module) -> list[Node]:
    """Nodes of a student that compute a layer on a fake-quantized weight, in graph order."""
    return [
        node
        for node in all_nodes(student)
        if node.op == "call_function"
        and kind(node) in WEIGHTED
        and len(node.args) > 1
        and isinstance(node.args[1], Node)
        and isinstance(module_of(node.args[1]), Quantizer)
    ]


def is_activation_quantizer(node: Node) -> bool:
    """Whether a node of a student fake-quantizes an activation."""
    return node.op == "call_module" and str(node.target).startswith(f"{ACTIVATIONS}.")


def _choose_layers(
    layers: list[Node], config: QConfig, ends: Collection[str]
) -> dict[Node, LayerBits]:
    chosen: dict[Node, LayerBits] = {}
    for node in layers:
        reason = _refusal(node)
        name = layer_name(node)
        bits = None if reason else config.layer_bits(name, first_or_last=name in ends)
        if bits is None:
            node.meta["float_reason"] = reason or "a layer rule keeps it float"
            logger.info("layer %s stays float: %s", name, node.meta["float_reason"])
        else:
            chosen[node] = bits
    return chosen


def _before_layers(gm: GraphModule, layers: set[Node]) -> set[Node]:
    """The network's input, and what is computed from it before the first layer."""
    early: set[Node] = set()
    for node in gm.graph.nodes:
        parents = [p for p in node.all_input_nodes if p.op != "get_attr"]
        if node.op == "placeholder" and not node.meta.get("network_input"):
            continue
        if node not in layers and all(parent in early for parent in parents):
            early.add(node)
    return early


def _refusal(node: Node) -> str | None:
    if node.op != "call_module":
        return "its weight is an argument of a function call, not of a layer module"
    module = module_of(node)
    if nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrized"
    return None


def _quantize_activation(gm: GraphModule, node: Node, spec: QSpec) -> None:
    name = f"{ACTIVATIONS}.{node.name}"
    gm.add_submodule(name, Quantizer(spec))
    with gm.graph.inserting_after(node):
        quantized = gm.graph.call_module(name, (node,))
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
    quantized.meta.update(twin=_twin(node), shape=node.meta.get("shape"))


def _activation_bits(node: Node, plan: _Plan) -> int | None:
    """Width of the quantizer at this value; None where there is none."""
    if kind(node) in ("move", "output", "get_attr") or "shape" not in node.meta:
        return None
    if is_redundant_relu(node) or _relu_follows(node):
        return None
    if isinstance(module_of(node), Quantizer):
        return None
    readers = [user for _, user in consumers(node)]
    wanted = [plan.layers[user].activation for user in readers if user in plan.layers]
    if node in plan.preprocessing:
        return plan.config.input_bits if wanted else None
    if wanted:
        return max(wanted)
    fed_to_arithmetic = any(kind(user) in ARITHMETIC for user in readers)
    return plan.config.sum_bits if fed_to_arithmetic or _ends_convolution(node, plan) else None


def _relu_follows(node: Node) -> bool:
    """Whether all that reads the value is one ReLU, which integer kernels fuse."""
    users = list(node.users)
    return (
        len(users) == 1
        and kind(users[0]) == "relu"
        and not is_redundant_relu(users[0])
        and kind(node) not in ("placeholder", "entry")
    )


def _ends_convolution(node: Node, plan: _Plan) -> bool:
    """Whether the value is a quantized convolution's, directly or through its ReLU.

    Such a kernel writes integers, also where only the output or an unknown op reads them.
    """
    source = node.all_input_nodes[0] if kind(node) == "relu" else node
    return source in plan.layers and kind(source) == "conv"


def _twin(node: Node) -> str:
    return node.meta.get("twin", node.name)


def _quantize_weight(gm: GraphModule, node: Node, plan: _Plan) -> int:
    """Replace the layer's module call by a function call on its fake-quantized weight."""
    module, name = module_of(node), str(node.target)
    new = not isinstance(getattr(module, "weight_quantizer", None), Quantizer)
    if new:
        spec = QSpec(plan.layers[node].weight, signed=True, channel_axis=0)
        module.weight_quantizer = Quantizer(spec, module.weight.shape[0])
    with gm.graph.inserting_before(node):
        weight = gm.graph.get_attr(f"{name}.weight")
        quantized = gm.graph.call_module(f"{name}.weight_quantizer", (weight,))
        bias = None if module.bias is None else gm.graph.get_attr(f"{name}.bias")
        function, args = _call(gm, node, module, quantized, bias)
        call = gm.graph.call_function(function, args)
    call.meta.update(node.meta, layer=name, twin=_twin(node))
    node.replace_all_uses_with(call)
    gm.graph.erase_node(node)
    call.name = node.name
    return int(new)


def _call(gm: GraphModule, node: Node, module: nn.Module, weight: Node, bias: Node | None):
    x = node.args[0] if node.args else node.kwargs["input"]
    if isinstance(module, nn.Linear):
        return F.linear, (x, weight, bias)
    function = next(f for base, f in _CONVOLUTIONS.items() if isinstance(module, base))
    padding = module.padding
    if module.padding_mode != "zeros":
        pads = (x, list(module._reversed_padding_repeated_twice), module.padding_mode)
        x, padding = gm.graph.call_function(F.pad, pads), 0
    return function, (x, weight, bias, module.stride, padding, module.dilation, module.groups)
