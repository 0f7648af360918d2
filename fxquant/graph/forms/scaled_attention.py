"""Take scaled dot product attention apart, so that its two products can be quantized."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.forms.nodes import call, replace
from fxquant.graph.ops import argument, is_tensor

REFUSED = "attention that is causal, grouped or drops at random is left as torch computes it"


def decompose_attention(gm: GraphModule) -> int:
    """Write `softmax(q k^T * scale + mask) v` out for each call; the number of calls.

    What can't be written so stays, with the reason in `meta["float_reason"]`.
    """
    calls = [n for n in gm.graph.nodes if n.target is F.scaled_dot_product_attention]
    refused = [node for node in calls if not _is_plain(node)]
    for node in refused:
        node.meta["float_reason"] = REFUSED
    for node in [node for node in calls if node not in refused]:
        _decompose(gm.graph, node)
    return len(calls) - len(refused)


def _is_plain(node: Node) -> bool:
    mask = argument(node, 3, "attn_mask")
    operands = [argument(node, i, name) for i, name in enumerate(("query", "key", "value"))]
    return (
        all(is_tensor(operand) for operand in operands)
        and (mask is None or (is_tensor(mask) and "dtype" in mask.meta))
        and argument(node, 4, "dropout_p", 0.0) == 0.0
        and argument(node, 5, "is_causal", False) is False
        and node.kwargs.get("enable_gqa", False) is False
    )


def _decompose(graph: Graph, node: Node) -> None:
    query, key, value = (argument(node, i, n) for i, n in enumerate(("query", "key", "value")))
    mask, scale = argument(node, 3, "attn_mask"), node.kwargs.get("scale")
    scale = 1 / math.sqrt(query.meta["shape"][-1]) if scale is None else scale
    with graph.inserting_before(node):
        # Scaled before the product, as torch does it: its numbers stay small.
        query = call(graph, node, torch.mul, query, scale)
        scores = call(
            graph, node, torch.matmul, query, call(graph, node, torch.transpose, key, -2, -1)
        )
        if mask is not None and mask.meta["dtype"] == torch.bool:
            forbidden = call(graph, node, torch.logical_not, mask)
            scores = call(graph, node, torch.masked_fill, scores, forbidden, -math.inf)
        elif mask is not None:
            scores = call(graph, node, torch.add, scores, mask)
        weights = call(graph, node, torch.softmax, scores, -1)
        replace(node, call(graph, node, torch.matmul, weights, value))
