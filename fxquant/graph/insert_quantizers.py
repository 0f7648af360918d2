"""Insert fake-quant nodes for weights and activations where integer kernels can fuse them.

One quantizer per value, at its producer, after any ReLU or clip that follows it: wherever a
quantized layer, a product of two values, or an op between those (addition, concatenation,
pooling, ...), reads the value. Ops that only move numbers of one grid get none. A layer that takes
fewer bits than others read of the same value, of a shortcut say, has a second one before it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.ops import WEIGHTED, first_input, is_transposed, kind, module_of
from fxquant.graph.placement import layer_name, plan_quantizers
from fxquant.graph.regions import all_nodes
from fxquant.quantizer import Quantizer
from fxquant.spec import QConfig, QSpec

__all__ = [
    "ACTIVATIONS",
    "NARROWS",
    "READS_INPUT",
    "insert_quantizers",
    "layer_name",
    "quantized_layers",
]

ACTIVATIONS = "activation_quantizers"
# Mark of a quantizer that layers read a value through which others read at more bits.
NARROWS = "narrows"
# Mark of a quantizer of the network's input, or of what is computed from it before any layer.
READS_INPUT = "reads_input"
_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS = {
    nn.Conv1d: (F.conv1d, _CONV),
    nn.Conv2d: (F.conv2d, _CONV),
    nn.Conv3d: (F.conv3d, _CONV),
    nn.ConvTranspose1d: (F.conv_transpose1d, _TRANSPOSED),
    nn.ConvTranspose2d: (F.conv_transpose2d, _TRANSPOSED),
    nn.ConvTranspose3d: (F.conv_transpose3d, _TRANSPOSED),
}


def insert_quantizers(gm: GraphModule, config: QConfig, ends: Collection[str] = ()) -> int:
    """Make weights and activations of `gm` fake-quantized; the number of quantizers inserted.

    `ends` names the first and the last layer of the model, which `config` may treat apart.
    Every layer's node has the reason in `meta["float_reason"]` where it stays in floating point.
    Layers that share a weight share its quantizer. The quantizers pass their input through until
    they are calibrated.
    """
    done = set(quantized_layers(gm))
    layers = [n for n in gm.graph.nodes if kind(n) in WEIGHTED and n not in done]
    plan = plan_quantizers(gm, layers, config, ends)
    grids = {}
    for node, bits in plan.values.items():
        grids[node] = _quantize_activation(gm, node, QSpec(bits, config.symmetric_activations))
        grids[node].meta[READS_INPUT] = node in plan.inputs
    for (node, bits), readers in plan.narrowed.items():
        spec = QSpec(bits, config.symmetric_activations)
        _narrow(gm, grids.get(node, node), f"{node.name}_{bits}_bits", spec, readers)
    bits_of: dict[tuple, int] = {}
    for node, bits in plan.layers.items():
        bits_of[_grid_of(node)] = max(bits.weight, bits_of.get(_grid_of(node), 0))
    made: dict[tuple, Quantizer] = {}
    for node in plan.layers:
        _quantize_weight(gm, node, bits_of, made, per_tensor=config.per_tensor_weights)
    return len(plan.values) + len(plan.narrowed) + len(made)


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


def _quantize_activation(gm: GraphModule, node: Node, spec: QSpec) -> Node:
    # A value may be called `to` or `half`, which a module's children may not.
    taken = hasattr(nn.Module(), node.name)
    quantized = _add_quantizer(gm, node, f"{node.name}{'_value' if taken else ''}", spec)
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
    quantized.meta["twin"] = _twin(node)
    return quantized


def _narrow(gm: GraphModule, node: Node, name: str, spec: QSpec, readers: list[Node]) -> None:
    """Let these readers of a value that is on a grid already have it on one of fewer bits."""
    narrow = _add_quantizer(gm, node, name, spec)
    for reader in readers:
        reader.replace_input_with(node, narrow)
    narrow.meta[NARROWS] = True


def _add_quantizer(gm: GraphModule, node: Node, name: str, spec: QSpec) -> Node:
    target = f"{ACTIVATIONS}.{name}"
    gm.add_submodule(target, Quantizer(spec))
    with gm.graph.inserting_after(node):
        quantized = gm.graph.call_module(target, (node,))
    quantized.meta |= {key: node.meta[key] for key in ("shape", "dtype") if key in node.meta}
    return quantized


def _twin(node: Node) -> str:
    return node.meta.get("twin", node.name)


def _grid_of(node: Node) -> tuple[int, int]:
    """What two layers must agree on to share a weight's quantizer: the weight and its axis."""
    return id(module_of(node).weight), _channel_axis(node)


def _channel_axis(layer: Node) -> int:
    """Axis of a layer's weight along which its output channels, and so its scales, run.

    A transposed convolution has them second, within each group of inputs; with groups of one
    output each they are the groups themselves.
    """
    module = module_of(layer)
    if not is_transposed(layer):
        return 0
    return 0 if module.groups > 1 and module.weight.shape[1] == 1 else 1


def _quantize_weight(
    gm: GraphModule,
    node: Node,
    bits_of: dict[tuple, int],
    made: dict[tuple, Quantizer],
    *,
    per_tensor: bool,
) -> None:
    """Replace the layer's module call by a function call on its fake-quantized weight."""
    module, name, grid = module_of(node), str(node.target), _grid_of(node)
    if not isinstance(getattr(module, "weight_quantizer", None), Quantizer):
        spec = QSpec(bits_of[grid], signed=True, channel_axis=None if per_tensor else grid[1])
        if grid not in made:
            made[grid] = Quantizer(spec, None if per_tensor else module.weight.shape[grid[1]])
        module.weight_quantizer = made[grid]
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


def _call(gm: GraphModule, node: Node, module: nn.Module, weight: Node, bias: Node | None):
    x = first_input(node)
    if isinstance(module, nn.Linear):
        return F.linear, (x, weight, bias)
    function, names = next(v for base, v in _CONVOLUTIONS.items() if isinstance(module, base))
    settings = {name: getattr(module, name) for name in names}
    if module.padding_mode != "zeros":
        pads = (x, list(module._reversed_padding_repeated_twice), module.padding_mode)
        x, settings["padding"] = gm.graph.call_function(F.pad, pads), 0
    return function, (x, weight, bias, *settings.values())
