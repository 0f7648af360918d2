"""What a student computes in floating point, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import Node

from fxquant.graph.insert_quantizers import layer_name
from fxquant.graph.ops import kind, module_of
from fxquant.graph.reasons import float_reason
from fxquant.graph.regions import all_nodes
from fxquant.report.kernels import is_fused

if TYPE_CHECKING:
    from fxquant.report.layers import Layer


def float_parts(student: nn.Module, layers: Sequence[Layer]) -> list[dict[str, str]]:
    """What computes in floating point, layers first: its name, what it is, and the reason."""
    rows = [layer.row for layer in layers]
    parts = [
        {"name": row["name"], "what": row["kind"], "reason": row["kernel_reason"]}
        for row in rows
        if row["kernel_reason"]
    ]
    listed = {layer.node for layer in layers}
    for node in all_nodes(student):
        reason = reason_between(node)
        if reason and node not in listed:
            parts.append({"name": layer_name(node), "what": operation(node), "reason": reason})
    return parts


def reason_between(node: Node) -> str | None:
    """Why an op between the layers computes in floating point; None where it does not."""
    return None if is_fused(node) else float_reason(node)


def grouped(parts: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Parts gathered by what they are and why: `what`, `reason` and their `names`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        key = (str(part.get("what") or "part"), str(part.get("reason") or "no reason given"))
        groups.setdefault(key, []).append(str(part.get("name")))
    return [{"what": what, "reason": why, "names": n} for (what, why), n in groups.items()]


def operation(node: Node) -> str:
    """What a node does, as its module's class or its function is called."""
    if kind(node) == "batchnorm":
        return "batch norm"
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))
