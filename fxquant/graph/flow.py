"""How numbers flow through a graph: who reads them, and which can't be negative.

Each function goes over the graph once, whatever its branches.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from fxquant.graph.kinds import NON_NEGATIVE
from fxquant.graph.ops import (
    LIMITS,
    first_input,
    kind,
    limits,
    module_of,
    tensor_inputs,
)


def non_negative(graph: Graph) -> set[Node]:
    """Nodes whose value can be shown to hold no negative number."""
    found: set[Node] = set()
    for node in graph.nodes:
        if _gives_no_negative(node, found):
            found.add(node)
    return found


def _gives_no_negative(node: Node, found: set[Node]) -> bool:
    name = kind(node)
    if name in LIMITS:
        low, high = limits(node)
        return low >= 0 or (high >= 0 and first_input(node) in found)
    if name in ("activation", "elementwise", "normalization"):
        target = type(module_of(node)) if node.op == "call_module" else node.target
        return target in NON_NEGATIVE
    if name == "move":
        return first_input(node) in found
    if name in ("add", "mul") and _has_negative_number(node):
        return False
    if name in ("add", "mul", "average", "concat"):
        inputs = tensor_inputs(node)
        return bool(inputs) and all(value in found for value in inputs)
    return False


def _has_negative_number(node: Node) -> bool:
    """Whether a plain number, as in `x - 1` written as `x + (-1)`, may bring in a sign."""
    numbers = (*node.args, *node.kwargs.values())
    return any(isinstance(number, int | float) and number < 0 for number in numbers)


def redundant_limits(graph: Graph) -> set[Node]:
    """ReLUs and clips that change nothing: they let through what can't be negative."""
    positive = non_negative(graph)
    return {
        node
        for node in graph.nodes
        if kind(node) in LIMITS
        and first_input(node) in positive
        and limits(node)[0] <= 0
        and limits(node)[1] == float("inf")
    }


def readers(graph: Graph) -> dict[Node, list[Node]]:
    """For each node the ops that compute with its numbers.

    Ops that only move numbers, and ReLUs and clips that change nothing, are looked through.
    """
    redundant = redundant_limits(graph)
    found: dict[Node, dict[Node, None]] = {}
    for node in reversed(graph.nodes):
        found[node] = {}
        for user in node.users:
            if kind(user) != "move" and user not in redundant:
                found[node][user] = None
            elif first_input(user) is node:
                found[node] |= found[user]
    return {node: list(users) for node, users in found.items()}
