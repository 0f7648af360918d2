"""Fold a batch norm into the convolution or linear layer before it."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.correct_biases import BATCHNORM
from fxquant.graph.ops import WEIGHTED, first_input, is_transposed, kind, module_of

logger = logging.getLogger(__name__)


def fold_batchnorm(gm: GraphModule) -> int:
    """Fold each batch norm whose input is a convolution or linear layer that nothing else reads.

    The layer's node keeps, in `meta["twin"]`, the name of the batch norm that it absorbed: the
    value of the original graph that it now computes; in `meta["batchnorm"]` mean and deviation of
    each channel, as that batch norm tells them. Where layer and batch norm are called more
    than once, always one after the other, all calls are folded. Refusals are logged with their
    reason and left in `meta["not_folded"]` of the batch norm. Returns the number of calls folded.
    """
    folded = 0
    calls = Counter(id(module_of(n)) for n in gm.graph.nodes if n.op == "call_module")
    for nodes in _calls_of_batchnorms(gm):
        reason = _refusal(nodes, calls)
        if reason:
            for bn in nodes:
                bn.meta["not_folded"] = reason
            logger.info("batch norm %s is not folded: %s", nodes[0].target, reason)
            continue
        layer = first_input(nodes[0])
        _fold(layer, module_of(nodes[0]))
        for bn in nodes:
            first_input(bn).meta[BATCHNORM] = _moments(module_of(bn))
            _take_place(first_input(bn), bn)
        folded += len(nodes)
    gm.delete_all_unused_submodules()
    return folded


def _calls_of_batchnorms(gm: GraphModule) -> list[list[Node]]:
    """The calls of each batch norm module."""
    calls: dict[int, list[Node]] = {}
    for node in gm.graph.nodes:
        if kind(node) == "batchnorm":
            calls.setdefault(id(module_of(node)), []).append(node)
    return list(calls.values())


def _take_place(layer: Node, bn: Node) -> None:
    layer.meta["twin"] = bn.name
    bn.replace_all_uses_with(layer)
    bn.graph.erase_node(bn)


def _refusal(calls_of_bn: list[Node], calls: Counter) -> str | None:
    bn = calls_of_bn[0]
    layers = [first_input(node) for node in calls_of_bn]
    if any(layer is None or kind(layer) not in WEIGHTED for layer in layers):
        return "its input is not a convolution or linear layer"
    layer = layers[0]
    if layer.op != "call_module":
        return f"the weight of {layer.name} is computed while the network runs"
    used_elsewhere = next((each for each in layers if len(each.users) > 1), None)
    if used_elsewhere is not None:
        return f"the output of {used_elsewhere.target} is also used elsewhere"
    same = all(module_of(each) is module_of(layer) for each in layers)
    if not same or calls[id(module_of(layer))] != len(layers):
        return f"{layer.target} or {bn.target} is called more than once"
    if getattr(module_of(bn), "running_mean", None) is None:
        return "it keeps no running statistics"
    if kind(layer) == "linear" and len(layer.meta.get("shape", (0, 0))) != 2:
        return f"it takes the second axis of what {layer.target} gives for channels"
    return None


def _moments(bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean beta and deviation |gamma| of each channel of what a batch norm gives."""
    zeros = torch.zeros_like(bn.running_mean)
    mean = zeros if bn.bias is None else bn.bias.detach().clone()
    return mean, zeros + 1 if bn.weight is None else bn.weight.detach().abs()


@torch.no_grad()
def _fold(node: Node, bn: nn.Module) -> None:
    """w' = w f and b' = b f + beta - mean f, with f = gamma / sqrt(var + eps) of each channel."""
    layer = module_of(node)
    factor = (bn.running_var.double() + bn.eps).rsqrt()
    factor = factor if bn.weight is None else factor * bn.weight.double()
    bias = -bn.running_mean.double() * factor
    bias = bias if bn.bias is None else bias + bn.bias.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double() * factor
    weight = layer.weight.double() * _per_output(factor, node, layer.weight)
    dtype = layer.weight.dtype
    for name, value in (("weight", weight), ("bias", bias)):
        delattr(layer, name)
        layer.register_parameter(name, nn.Parameter(value.to(dtype), requires_grad=False))


def _per_output(factor: Tensor, node: Node, weight: Tensor) -> Tensor:
    """`factor`, one number for each output channel, where the weight has that channel."""
    rest = [1] * (weight.dim() - 2)
    if not is_transposed(node):
        return factor.reshape(-1, 1, *rest)
    # (inputs, outputs / groups, ...), the inputs of one group after those of another.
    groups = module_of(node).groups
    spread = factor.reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1)
    return spread.reshape(len(weight), -1, *rest)
