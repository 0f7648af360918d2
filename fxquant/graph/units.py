"""Units of a student's graph: the stretches that are reconstructed one after the other.

A unit ends where a single value carries all that the rest of its region reads: after a residual
block, after a gate, after a layer of a plain chain. So units are residual blocks where there are
some and single layers where there are none, and no graph needs to be told which.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from fxquant.graph.insert_quantizers import NARROWS, quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import module_of
from fxquant.graph.regions import regions, value_name
from fxquant.quantizer import Quantizer

logger = logging.getLogger(__name__)

# Of densely connected stretches, where each value is read far away, a unit is a part.
MOST_LAYERS = 12


@dataclass(frozen=True)
class Unit:
    """Consecutive nodes of one region, what they read from before them and what is read later."""

    region: GraphModule
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    layers: tuple[Node, ...]


def find_units(student: nn.Module) -> list[Unit]:
    """The units of all regions with a quantized layer, in graph order.

    A unit that reads something that is no tensor, such as a size, is left out: its layers can
    be run on their own neither in another batch nor at another size.
    """
    layers = set(quantized_layers(student))
    groups = [group for region in regions(student) for group in _groups(region, layers)]
    units = [_unit(group, layers) for group in groups]
    for unit in units:
        if not _is_closed(unit):
            logger.info("layers %s read a value that is no tensor: left as they are", unit.layers)
    return [unit for unit in units if _is_closed(unit)]


def tapped_name(node: Node) -> str:
    """Name in the whole model of a value, also where a tap or a narrower grid passes it on."""
    while isinstance(module_of(node), Tap) or node.meta.get(NARROWS):
        node = node.args[0]
    return value_name(node)


def _groups(region: GraphModule, layers: set[Node]) -> list[list[Node]]:
    """The region's nodes in stretches that hold a layer each, of MOST_LAYERS at most."""
    nodes = [node for node in region.graph.nodes if node.op != "output"]
    crossing = _crossing(nodes)
    stretches: list[list[Node]] = [[]]
    for node, count in zip(nodes, crossing, strict=True):
        stretches[-1].append(node)
        if count == 1 and "shape" in node.meta:
            stretches.append([])
    groups: list[list[Node]] = [[]]
    for stretch in stretches:
        if _holds(groups[-1], layers) and _holds(stretch, layers):
            groups.append([])
        groups[-1] += stretch
    counts = dict(zip(nodes, crossing, strict=True))
    parts = [part for group in groups for part in _halved(group, counts, layers)]
    return [part for part in parts if _holds(part, layers)]


def _crossing(nodes: list[Node]) -> list[int]:
    """After each node, how many values computed so far are still to be read in the region."""
    place = {node: index for index, node in enumerate(nodes)}
    counts = [0] * len(nodes)
    for node in nodes:
        last = max((place[user] for user in node.users if user in place), default=place[node])
        for index in range(place[node], last) if _is_value(node) else ():
            counts[index] += 1
    return counts


def _is_value(node: Node) -> bool:
    """Whether a node computes with activations; weights are read where they are used."""
    return node.op != "get_attr" and not _is_weight(node)


def _is_weight(node: Node) -> bool:
    quantizes = isinstance(module_of(node), Quantizer)
    return quantizes and isinstance(node.args[0], Node) and node.args[0].op == "get_attr"


def _holds(nodes: Iterable[Node], layers: set[Node]) -> bool:
    return any(node in layers for node in nodes)


def _halved(group: list[Node], crossing: dict[Node, int], layers: set[Node]) -> list[list[Node]]:
    """The group, or parts of it of MOST_LAYERS at most, cut in the middle."""
    total = sum(node in layers for node in group)
    if total <= MOST_LAYERS:
        return [group]
    best, seen = None, 0
    for index, node in enumerate(group[:-1]):
        seen += node in layers
        if 0 < seen < total and "shape" in node.meta:
            rank = (abs(2 * seen - total), crossing[node], -index)
            best = min(best or (rank, index), (rank, index))
    if best is None:
        return [group]
    cut = best[1] + 1
    return [part for half in (group[:cut], group[cut:]) for part in _halved(half, crossing, layers)]


def _unit(group: list[Node], layers: set[Node]) -> Unit:
    inside = {node for node in group if node.op != "placeholder"}
    read = dict.fromkeys(p for node in group if node in inside for p in node.all_input_nodes)
    outputs = [n for n in group if _is_value(n) and any(user not in inside for user in n.users)]
    return Unit(
        region=group[0].graph.owning_module,
        nodes=tuple(node for node in group if node in inside),
        inputs=tuple(node for node in read if node not in inside),
        outputs=tuple(node for node in outputs if node in inside and "shape" in node.meta),
        layers=tuple(node for node in group if node in layers),
    )


def _is_closed(unit: Unit) -> bool:
    read = unit.inputs
    return bool(read and unit.outputs) and all("shape" in node.meta for node in read)
