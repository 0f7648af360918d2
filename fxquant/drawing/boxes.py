"""From a student's graph to boxes: one an op, with quantizers and taps as marks on them.

A ReLU or clip that nothing comes before joins the box of the op before it, as in the kernels, and
what does nothing in evaluation (dropout, identity) has no box.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.insert_quantizers import NARROWS
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS, Tap, is_tap
from fxquant.graph.ops import LIMITS, kind, module_of
from fxquant.graph.prepare import Prepared
from fxquant.graph.regions import REGION, all_nodes, qualify, region_of, regions
from fxquant.quantizer import Quantizer
from fxquant.report.floating import operation, reason_between
from fxquant.report.layers import Layer

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_NO_FUNCTION = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


@dataclass
class Box:
    """One op of the graph, and what is told about it.

    `sources` are the numbers of the boxes that it reads, in order; `bits` the width of the value
    that it gives, None in floating point; `limit` the ReLU or clip that it ends with; `row` the
    facts about a layer; `taps` names by group; `reason` why it computes in floating point; `path`
    the module that it belongs to.
    """

    node: Node
    path: str
    sources: list[int] = field(default_factory=list)
    bits: int | None = None
    limit: str | None = None
    row: dict[str, Any] | None = None
    reason: str | None = None
    taps: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A region of the traced model as boxes; `name` is '' for the model as a whole."""

    name: str
    boxes: list[Box]


def fold(prepared: Prepared, layers: Sequence[Layer]) -> list[Part]:
    """The boxes of each region; `layers` are those of `list_layers`."""
    row_of = {layer.node: layer.row for layer in layers if layer.node is not None}
    bn_taps = _bn_taps(prepared.teacher)
    parts = []
    for region in regions(prepared.student):
        name = region.meta.get(REGION, "")
        parts.append(Part(name, _Folder(row_of, bn_taps).fold(region)))
    return parts


def _bn_taps(teacher: nn.Module) -> dict[tuple[str, str], list[str]]:
    """Names of batch norm taps by region and the value that they record."""
    found: dict[tuple[str, str], list[str]] = {}
    for node in all_nodes(teacher):
        if is_tap(node, BN_TAPS):
            source = node.args[0]
            while isinstance(module_of(source), Tap):
                source = source.args[0]
            key = (region_of(node).meta.get(REGION, ""), source.name)
            found.setdefault(key, []).append(module_of(node).name)
    return found


class _Folder:
    """Goes down one region's graph and keeps the box of each value."""

    def __init__(self, row_of: dict[Node, dict], bn_taps: dict[tuple[str, str], list[str]]):
        self.row_of, self.bn_taps = row_of, bn_taps
        self.boxes: list[Box] = []
        self.box_of: dict[Node, int] = {}

    def fold(self, region: GraphModule) -> list[Box]:
        for node in region.graph.nodes:
            if not carries(node):
                continue
            read = [self.box_of[n] for n in node.all_input_nodes if n in self.box_of]
            if read and self._joins(node, read[0]):
                self.box_of[node] = read[0]
            else:
                self.box_of[node] = len(self.boxes)
                self.boxes.append(self._box(node, read))
            self._tap(node)
        return self.boxes

    def _joins(self, node: Node, box: int) -> bool:
        """Whether a node only marks, or is fused into, the box of the value that it reads."""
        module = module_of(node)
        if isinstance(module, Quantizer):
            if NARROWS not in node.meta:  # the layer that reads it so says so itself
                self.boxes[box].bits = module.spec.bits
            return True
        if isinstance(module, Tap):
            self.boxes[box].taps.setdefault(FEATURE_TAPS, []).append(module.name)
            return True
        source = first_argument(node)
        if isinstance(module, _NOTHING) or node.target in _NO_FUNCTION or _takes_out(node, source):
            return True
        joined = (
            kind(node) in LIMITS
            and isinstance(source, Node)
            and source is self.boxes[box].node
            and len(source.users) == 1
            and kind(source) not in ("placeholder", "move")
        )
        if joined:
            self.boxes[box].limit = "ReLU" if kind(node) == "relu" else operation(node)
        return joined

    def _box(self, node: Node, read: list[int]) -> Box:
        return Box(
            node,
            _path(node),
            sources=list(dict.fromkeys(read)),
            bits=self._bits_moved(node, read),
            row=self.row_of.get(node),
            reason=None if node in self.row_of else reason_between(node),
        )

    def _bits_moved(self, node: Node, read: list[int]) -> int | None:
        """Ops that only move numbers, or set some to zero, give back the grid that they read."""
        keeps = kind(node) in ("move", "relu") and bool(read)
        return self.boxes[read[0]].bits if keeps else None

    def _tap(self, node: Node) -> None:
        key = (region_of(node).meta.get(REGION, ""), node.name)
        if key in self.bn_taps:
            self.boxes[self.box_of[node]].taps.setdefault(BN_TAPS, []).extend(self.bn_taps[key])


def carries(node: Node) -> bool:
    """Whether a node's value is a tensor, or a tuple that tensors are taken out of."""
    if node.op == "output":
        return True
    if node.meta.get("shape") is not None:
        return True
    if isinstance(module_of(node), Quantizer) or node.op == "get_attr":
        return False
    return any(
        first_argument(user) is node and _takes_out(user, node) and carries(user)
        for user in node.users
    )


def first_argument(node: Node) -> object:
    """The first positional argument of a node; None where it has none."""
    return node.args[0] if node.args else None


def _takes_out(node: Node, source: object) -> bool:
    """Whether a node takes one tensor out of a list, tuple or dict."""
    if kind(node) == "entry":
        return True
    taken = node.target is operator.getitem and isinstance(source, Node)
    return taken and source.meta.get("shape") is None


def _path(node: Node) -> str:
    """Qualified name of the module that a node calls, or whose forward has it."""
    path = node.meta.get("layer", node.target if node.op == "call_module" else None)
    if path is None:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0] if stack else ""
    return qualify(region_of(node), str(path))
