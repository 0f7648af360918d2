"""Write SiLU as x sigmoid(x), for which there are integer kernels; SiLU itself has none."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.forms.nodes import call, replace
from fxquant.graph.ops import KIND, first_input, is_real, module_of


def split_silu(gm: GraphModule) -> int:
    """Replace each SiLU of a tensor by a sigmoid and a product; the number replaced."""
    split = 0
    for node in [node for node in gm.graph.nodes if _is_silu(node)]:
        source = first_input(node)
        with gm.graph.inserting_before(node):
            gate = call(gm.graph, node, torch.sigmoid, source)
            product = call(gm.graph, node, operator.mul, source, gate)
        replace(node, product)
        split += 1
    gm.delete_all_unused_submodules()
    return split


def _is_silu(node: Node) -> bool:
    if KIND in node.meta:  # a user's rule says what it is
        return False
    silu = type(module_of(node)) is nn.SiLU or node.target is F.silu
    return silu and first_input(node) is not None and is_real(first_input(node))
