"""Decide, before a graph is touched, which layers and values are quantized and at which width."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.flow import readers, redundant_limits
from fxquant.graph.ops import (
    ARITHMETIC,
    DIVISIONS,
    LIMITS,
    first_input,
    has_number,
    is_real,
    is_transposed,
    kind,
    module_of,
    tensor_inputs,
)
from fxquant.graph.regions import qualify, region_of
from fxquant.quantizer import Quantizer
from fxquant.spec import LayerBits, QConfig

logger = logging.getLogger(__name__)

RULE = "a layer rule keeps it float"
COMPUTED_WEIGHT = "its weight is computed while the network runs"


@dataclass(frozen=True)
class Plan:
    """Layers with their widths, and values that get a quantizer with theirs, in graph order.

    `inputs`: those of `values` that are the network's input, or computed from it before its first
    layer. `narrowed`: values that some layers or products read at a lower width than they have
    otherwise, with that width and those readers.
    """

    layers: dict[Node, LayerBits]
    values: dict[Node, int]
    inputs: set[Node]
    narrowed: dict[tuple[Node, int], list[Node]]


def plan_quantizers(
    gm: GraphModule, layers: list[Node], config: QConfig, ends: Collection[str]
) -> Plan:
    """Choose which of `layers`, and which values of the graph, are quantized.

    `ends` names the first and the last layer of the model. Layers and products that stay in
    floating point have the reason in `meta["float_reason"]`.
    """
    chosen = _choose_layers(layers, config, ends)
    products = [node for node in gm.graph.nodes if kind(node) == "matmul"]
    widths = {node: bits.activation for node, bits in chosen.items()}
    widths |= _choose_products(products, config)
    early = _before_layers(gm.graph, {*layers, *products})
    view = _View(widths, early, readers(gm.graph), redundant_limits(gm.graph), config)
    found = {node: view.width(node) for node in gm.graph.nodes}
    values = {node: bits for node, bits in found.items() if bits is not None}
    inputs = {node for node in values if node in early and node.op != "get_attr"}
    return Plan(chosen, values, inputs, view.narrowed(values))


def layer_name(node: Node) -> str:
    """Name in the whole model of the layer or product that a node computes.

    Without a module of its own it is called like its value, inside the module that computes it.
    """
    name = node.meta.get("layer", node.target if node.op == "call_module" else None)
    if name is None:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        name = ".".join(part for part in (stack[-1][0] if stack else "", node.name) if part)
    return qualify(region_of(node), str(name))


def _choose_layers(
    layers: list[Node], config: QConfig, ends: Collection[str]
) -> dict[Node, LayerBits]:
    chosen: dict[Node, LayerBits] = {}
    for node in layers:
        reason = _refusal(node)
        name = layer_name(node)
        bits = None if reason else config.layer_bits(name, first_or_last=name in ends)
        if bits is None:
            _keep_float(node, reason or RULE)
        else:
            chosen[node] = bits
    return chosen


def _choose_products(products: list[Node], config: QConfig) -> dict[Node, int]:
    chosen: dict[Node, int] = {}
    for node in products:
        bits = config.layer_bits(layer_name(node))
        if bits is None:
            _keep_float(node, RULE)
        elif len(tensor_inputs(node)) > 1 and all(map(is_real, tensor_inputs(node))):
            chosen[node] = bits.activation
    return chosen


def _keep_float(node: Node, reason: str) -> None:
    node.meta["float_reason"] = reason
    logger.info("%s stays float: %s", layer_name(node), reason)


def _refusal(node: Node) -> str | None:
    if node.op != "call_module":
        return COMPUTED_WEIGHT
    module = module_of(node)
    if nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks that run when it is called"
    if is_transposed(node) and (len(node.args) > 1 or node.kwargs.get("output_size")):
        return "it is called with an output size"
    return None


def _before_layers(graph: Graph, layers: set[Node]) -> set[Node]:
    """The network's input, and what is computed from it before the first layer."""
    early: set[Node] = set()
    for node in graph.nodes:
        parents = [p for p in node.all_input_nodes if p.op != "get_attr"]
        if node.op == "placeholder" and not node.meta.get("network_input"):
            continue
        if node not in layers and all(parent in early for parent in parents):
            early.add(node)
    return early


@dataclass(frozen=True)
class _View:
    """What decides about a value: `widths` are those that layers and products ask of theirs."""

    widths: dict[Node, int]
    early: set[Node]
    readers: dict[Node, list[Node]]
    redundant: set[Node]
    config: QConfig

    def width(self, node: Node) -> int | None:
        """Width of the quantizer at this value; None where there is none."""
        if kind(node) in ("move", "output") or not is_real(node):
            return None
        if isinstance(module_of(node), Quantizer) or node in self.redundant:
            return None
        if self._is_limited_next(node) or self._meets_a_number_next(node):
            return None
        if self._only_divides(node):
            return None
        wanted = [self.widths[user] for user in self.readers[node] if user in self.widths]
        if node.op != "get_attr" and node in self.early:
            return self.config.input_bits if wanted else None
        if node.op == "get_attr":
            return max(wanted, default=None)
        feeds_arithmetic = any(kind(user) in ARITHMETIC for user in self.readers[node])
        if feeds_arithmetic or (self._ends_convolution(node) and not wanted):
            wanted.append(self.config.sum_bits)
        return max(wanted, default=None)

    def narrowed(self, values: dict[Node, int]) -> dict[tuple[Node, int], list[Node]]:
        """What layers and products read of `values` with more bits than they ask for.

        It's theirs alone to lose: a shortcut keeps all of its bits. The network's input has its own
        width for any reader.
        """
        found: dict[tuple[Node, int], list[Node]] = {}
        for reader, bits in self.widths.items():
            for value in filter(is_real, tensor_inputs(reader)):
                source = self._source(value)
                if source not in self.early and values.get(source, 0) > bits:
                    found.setdefault((value, bits), []).append(reader)
        return found

    def _source(self, node: Node) -> Node | None:
        """The value whose numbers this one has, where ops only move them or change nothing."""
        while node is not None and (kind(node) == "move" or node in self.redundant):
            node = first_input(node)
        return node

    def _is_limited_next(self, node: Node) -> bool:
        """Whether all that reads the value is one ReLU or clip, which integer kernels fuse."""
        users = list(node.users)
        return (
            len(users) == 1
            and kind(users[0]) in LIMITS
            and users[0] not in self.redundant
            and kind(node) not in ("placeholder", "entry")
        )

    def _meets_a_number_next(self, node: Node) -> bool:
        """Whether all that reads the value is arithmetic with plain numbers.

        Its result is quantized instead. A convolution's kernel writes integers of its own.
        """
        users = list(node.users)
        return (
            len(users) == 1
            and has_number(users[0])
            and kind(node) not in ("placeholder", "entry")
            and not self._ends_convolution(node)
        )

    def _only_divides(self, node: Node) -> bool:
        """Whether all that reads the value divides by it: where it is small, a grid has only 0."""
        users = list(node.users)
        divided = [n for n in users if n.target in DIVISIONS and n.args[1:2] == (node,)]
        alone = all(n.args[0] is not node for n in divided)
        return (
            bool(users)
            and len(divided) == len(users)
            and alone
            and not self._ends_convolution(node)
        )

    def _ends_convolution(self, node: Node) -> bool:
        """Whether the value is a quantized convolution's, directly or through its ReLU.

        Such a kernel writes integers, also where only the output or an unknown op reads them.
        """
        source = first_input(node) if kind(node) in LIMITS else node
        return source in self.widths and kind(source) == "conv" and not is_transposed(source)
