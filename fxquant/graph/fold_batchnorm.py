"""Fold a batch norm into the convolution or linear layer before it."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from fxquant.graph.ops import kind, module_of

logger = logging.getLogger(__name__)


def fold_batchnorm(gm: GraphModule) -> int:
    """Fold each batch norm whose input is a convolution or linear layer that nothing else reads.

    The layer's node keeps, in `meta["twin"]`, the name of the batch norm that it absorbed: the
    value of the original graph that it now computes. Refusals are logged with their reason and
    left in `meta["not_folded"]` of the batch norm.
    """
    folded = 0
    calls = Counter(id(module_of(n)) for n in gm.graph.nodes if n.op == "call_module")
    for bn in [n for n in gm.graph.nodes if kind(n) == "batchnorm"]:
        reason = _refusal(bn, calls)
        if reason:
            bn.meta["not_folded"] = reason
            logger.info("batch norm %s is not folded: %s", bn.target, reason)
            continue
        layer = bn.args[0]
        _fold(module_of(layer), module_of(bn))
        layer.meta["twin"] = bn.name
        bn.replace_all_uses_with(layer)
        gm.graph.erase_node(bn)
        folded += 1
    gm.delete_all_unused_submodules()
    return folded


def _refusal(bn: Node, calls: Counter) -> str | None:
    layer = bn.args[0]
    if not isinstance(layer, Node) or kind(layer) not in ("conv", "linear"):
        return "its input is not a convolution or linear layer"
    if layer.op != "call_module":
        return f"{layer.name} is a function, whose weight may be used elsewhere"
    if len(layer.users) > 1:
        return f"the output of {layer.target} is also used elsewhere"
    if calls[id(module_of(layer))] > 1 or calls[id(module_of(bn))] > 1:
        return f"{layer.target} or {bn.target} is called more than once"
    if getattr(module_of(bn), "running_mean", None) is None:
        return "it keeps no running statistics"
    return None


def _fold(layer: nn.Module, bn: nn.Module) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    with torch.no_grad():
        layer.weight, layer.bias = fuse(
            layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
