"""Remove what nothing reads, such as attention weights that are computed beside the output."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from fxquant.graph.forms.out_of_place import may_write


def drop_dead_code(gm: GraphModule) -> int:
    """Remove nodes whose value nothing reads and that change no other; the number removed."""
    before = len(gm.graph.nodes)
    gm.graph.eliminate_dead_code(is_impure_node=_has_effects)
    gm.delete_all_unused_submodules()
    return before - len(gm.graph.nodes)


def _has_effects(node: Node) -> bool:
    return node.is_impure() or may_write(node)
