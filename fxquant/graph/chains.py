"""Layers that follow each other channel by channel, so that a channel's scale can move between.

Between the two is what multiplies with a positive factor as its input does: a batch norm, which
the first layer absorbs when it is folded, then ReLUs and pooling, each read by nothing else.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.ops import WEIGHTED, first_input, is_transposed, kind, limits, module_of

logger = logging.getLogger(__name__)

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_FUNCTIONS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)


@dataclass(frozen=True)
class Chain:
    """Two layers, the batch norm after the first or None, and what lies between them."""

    first: Node
    batchnorm: Node | None
    between: tuple[Node, ...]
    second: Node


def find_chains(gm: GraphModule) -> list[Chain]:
    """The chains of a graph with its batch norms, in graph order.

    Refusals of layers that are followed by another are logged with their reason.
    """
    calls = Counter(id(module_of(node)) for node in gm.graph.nodes if node.op == "call_module")
    weights = Counter(
        id(module_of(node).weight)
        for node in gm.graph.nodes
        if kind(node) in WEIGHTED and node.op == "call_module"
    )
    chains = []
    for node in gm.graph.nodes:
        if kind(node) not in WEIGHTED or not list(_following(node)):
            continue
        *between, last = _following(node)
        if kind(last) not in WEIGHTED:
            continue
        batchnorm = between.pop(0) if between and kind(between[0]) == "batchnorm" else None
        chain = Chain(node, batchnorm, tuple(between), last)
        reason = _refusal(chain, calls, weights)
        if reason is None:
            chains.append(chain)
        else:
            logger.info("%s and %s are not equalized: %s", node.target, last.target, reason)
    return chains


def _following(node: Node) -> Iterator[Node]:
    """What reads a value, and that one's only reader, up to the next layer."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node
        if kind(node) in WEIGHTED:
            return


def _refusal(chain: Chain, calls: Counter, weights: Counter) -> str | None:
    for node in (chain.first, chain.second):
        if node.op != "call_module":
            return f"the weight of {node.name} is computed while the network runs"
        module = module_of(node)
        if calls[id(module)] > 1 or weights[id(module.weight)] > 1:
            return f"{node.target} is called more than once, or shares its weight"
        if is_transposed(node):
            return f"{node.target} is a transposed convolution"
        if nn.utils.parametrize.is_parametrized(module):
            return f"the weight of {node.target} is parametrized"
        if first_input(node) is None or getattr(module, "padding_mode", "zeros") != "zeros":
            return f"{node.target} is called in another way, or pads with other than zeros"
    if kind(chain.first) != kind(chain.second):
        return "one is a convolution and the other a linear layer"
    if chain.batchnorm is not None:
        module = module_of(chain.batchnorm)
        if module is None or getattr(module, "running_mean", None) is None:
            return "the batch norm between them keeps no running statistics"
        if module.weight is None or calls[id(module)] > 1:
            return "the batch norm between them has no scale of its own"
        if kind(chain.first) == "linear" and len(chain.first.meta.get("shape", (0, 0))) != 2:
            return "the batch norm between them takes another axis for channels"
    return next((reason for node in chain.between if (reason := _changes_scale(node))), None)


def _changes_scale(node: Node) -> str | None:
    """Why f(s x) is not s f(x) for positive s by channel; None where it is."""
    module = module_of(node)
    if isinstance(module, (*_POOLS, *_DROPOUTS, nn.LeakyReLU)) or node.target in _FUNCTIONS:
        return None
    if kind(node) in ("relu", "clip"):
        bounds = limits(node)
        return None if bounds == (0, math.inf) else f"{node.name} limits what is between them"
    return f"{node.name} between them is no ReLU or pooling"


def folded_weight(layer: Node, batchnorm: Node | None) -> Tensor:
    """The weight that the layer has once its batch norm is folded, double, its own shape."""
    module = module_of(layer)
    weight = module.weight.detach().double()
    if batchnorm is None:
        return weight
    bn = module_of(batchnorm)
    factor = bn.weight.detach().double() * (bn.running_var.double() + bn.eps).rsqrt()
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def groups_of(layer: Node) -> int:
    """Number of groups of a convolution; a linear layer is one."""
    return getattr(module_of(layer), "groups", 1)
