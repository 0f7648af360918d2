"""What a student computes in floating point, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import Node

from fxquant.graph.ops import kind, module_of
from fxquant.graph.reasons import float_reason
from fxquant.graph.regions import all_nodes, qualify, region_of

if TYPE_CHECKING:
    from fxquant.report.layers import Layer


def float_parts(student: nn.Module, layers: Sequence[Layer]) -> list[dict[str, str]]:
    """What computes in floating point, layers first: its name, what it is, and the reason."""
    parts = [
        {"name": layer.row["name"], "what": layer.row["kind"], "reason": layer.row["float_reason"]}
        for layer in layers
        if layer.row["float_reason"]
    ]
    listed = {layer.node for layer in layers}
    for node in all_nodes(student):
        reason = float_reason(node)
        if reason and node not in listed:
            parts.append({"name": node_name(node), "what": operation(node), "reason": reason})
    return parts


def grouped(parts: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Parts gathered by what they are and why: `what`, `reason` and their `names`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        key = (str(part.get("what") or "part"), str(part.get("reason") or "no reason given"))
        groups.setdefault(key, []).append(str(part.get("name")))
    return [{"what": what, "reason": why, "names": n} for (what, why), n in groups.items()]


def node_name(node: Node) -> str:
    """Name in the whole model of the module that a node calls; else the node's in its module."""
    if node.op == "call_module":
        return qualify(region_of(node), str(node.target))
    return ".".join(part for part in (module_path(node), node.name) if part)


def module_path(node: Node) -> str:
    """Qualified name of the module whose forward has the node, '' for the model's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return qualify(region_of(node), str(stack[-1][0]) if stack else "")


def operation(node: Node) -> str:
    """What a node does, as its module's class or its function is called."""
    if kind(node) == "batchnorm":
        return "batch norm"
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))
