"""What a student computes in floating point, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.graph.ops import kind, module_of
from fxquant.graph.regions import all_nodes, qualify, region_of

# What is computed in floating point although numbers of a grid go in and come out.
_FLOAT_KINDS = {
    "activation": "an activation that integer kernels don't fuse",
    "other": "an operation without a known integer form",
}


def float_parts(student: nn.Module, layers: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What computes in floating point, layers first: its name, what it is, and the reason."""
    parts = [
        {"name": layer["name"], "what": layer["kind"], "reason": layer["float_reason"]}
        for layer in layers
        if layer["float_reason"]
    ]
    for node in all_nodes(student):
        reason = float_reason(node)
        if reason:
            parts.append({"name": node_name(node), "what": operation(node), "reason": reason})
    return parts


def grouped(parts: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Parts gathered by what they are and why: `what`, `reason` and their `names`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        key = (str(part.get("what") or "part"), str(part.get("reason") or "no reason given"))
        groups.setdefault(key, []).append(str(part.get("name")))
    return [{"what": what, "reason": why, "names": n} for (what, why), n in groups.items()]


def float_reason(node: Node) -> str | None:
    """Why an op between the layers computes in floating point; None where it does not."""
    if kind(node) == "batchnorm":
        return node.meta.get("not_folded", "it was not folded")
    return _FLOAT_KINDS.get(kind(node)) if _computes(node) else None


def node_name(node: Node) -> str:
    """Name in the whole model of the module that a node calls, or of the node itself."""
    return qualify(region_of(node), str(node.target) if node.op == "call_module" else node.name)


def operation(node: Node) -> str:
    """What a node does, as its module's class or its function is called."""
    if kind(node) == "batchnorm":
        return "batch norm"
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))


def _computes(node: Node) -> bool:
    module = module_of(node)
    ours = type(module).__module__.startswith("fxquant.")
    clips = isinstance(module, nn.Hardtanh) or node.target in (F.relu6, F.hardtanh)
    return "shape" in node.meta and not ours and not clips
