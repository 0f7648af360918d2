"""Write SiLU and Hardswish as x gate(x): both parts have integer kernels, the whole has none."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.forms.nodes import call, replace
from fxquant.graph.ops import KIND, first_input, is_real, module_of

_GATES: dict[object, Callable] = {
    **dict.fromkeys((nn.SiLU, F.silu), torch.sigmoid),
    **dict.fromkeys((nn.Hardswish, F.hardswish), F.hardsigmoid),
}


def split_gated(gm: GraphModule) -> int:
    """Replace each SiLU and Hardswish of a tensor by its gate and a product; the number replaced.

    SiLU(x) = x sigmoid(x) and Hardswish(x) = x min(max(x / 6 + 1 / 2, 0), 1).
    """
    split = 0
    for node in list(gm.graph.nodes):
        gate, source = _gate_of(node), first_input(node)
        if gate is None or source is None or not is_real(source):
            continue
        with gm.graph.inserting_before(node):
            gated = call(gm.graph, node, gate, source)
            product = call(gm.graph, node, operator.mul, source, gated)
        replace(node, product)
        split += 1
    gm.delete_all_unused_submodules()
    return split


def _gate_of(node: Node) -> Callable | None:
    if KIND in node.meta:  # a user's rule says what it is
        return None
    return _GATES.get(type(module_of(node)) if node.op == "call_module" else node.target)
