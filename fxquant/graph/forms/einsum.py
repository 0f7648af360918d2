"""Write einsum over two values as a product of matrices, for which there are integer kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from fxquant.graph.forms.nodes import call, replace
from fxquant.graph.ops import is_tensor


@dataclass(frozen=True)
class _Axes:
    """The letters of an equation of two operands by their part in it."""

    left: str
    right: str
    output: str

    @classmethod
    def parse(cls, equation: str) -> _Axes | None:
        """None for an equation that is no product of two matrices, however wrapped."""
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        operands = inputs.split(",")
        if not arrow or len(operands) != 2 or "." in equation:
            return None
        axes = cls(*operands, output)
        once = all(len(set(letters)) == len(letters) for letters in (*operands, output))
        return axes if once and axes.summed and set(output) == set(axes.kept) else None

    @property
    def batch(self) -> str:
        return "".join(a for a in self.left if a in self.right and a in self.output)

    @property
    def summed(self) -> str:
        return "".join(a for a in self.left if a in self.right and a not in self.output)

    @property
    def rows(self) -> str:
        return "".join(a for a in self.left if a not in self.right)

    @property
    def columns(self) -> str:
        return "".join(a for a in self.right if a not in self.left)

    @property
    def kept(self) -> str:
        return self.batch + self.rows + self.columns


def matmul_einsums(gm: GraphModule) -> int:
    """Replace each einsum that multiplies two matrices, or batches of them; the number replaced."""
    replaced = 0
    for node in [n for n in gm.graph.nodes if n.target is torch.einsum]:
        axes = _Axes.parse(node.args[0]) if isinstance(node.args[0], str) else None
        operands = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        if axes is not None and len(operands) == 2 and all(map(is_tensor, operands)):
            _replace(gm.graph, node, axes, *operands)
            replaced += 1
    return replaced


def _replace(graph: Graph, node: Node, axes: _Axes, left: Node, right: Node) -> None:
    groups = (axes.batch, axes.rows, axes.columns)
    with graph.inserting_before(node):
        product = call(
            graph,
            node,
            torch.matmul,
            _matrix(graph, node, left, axes.left, axes.batch, (axes.rows, axes.summed)),
            _matrix(graph, node, right, axes.right, axes.batch, (axes.summed, axes.columns)),
        )
        value = product
        for operand, letters, group, axis in (
            (right, axes.right, axes.columns, -1),
            (left, axes.left, axes.rows, len(axes.batch)),
        ):
            value = _take_apart(graph, node, value, operand, letters, group, axis)
        value = _permute(graph, node, value, "".join(groups), axes.output)
    if value is product:
        replace(node, value)
    else:
        # The product has the name: it is what can be quantized.
        name = node.name
        replace(node, value)
        value.name, product.name = f"{name}_out", name


def _matrix(
    graph: Graph, node: Node, x: Node, letters: str, batch: str, groups: tuple[str, str]
) -> Node:
    """`x` with its axes in the order of the batch and two groups, each group made one axis."""
    x = _permute(graph, node, x, letters, batch + "".join(groups))
    first = len(batch)
    for group in groups:
        if len(group) > 1:
            x = call(graph, node, torch.flatten, x, first, first + len(group) - 1)
        elif not group:
            x = call(graph, node, torch.unsqueeze, x, first)
        first += 1
    return x


def _take_apart(
    graph: Graph, node: Node, x: Node, operand: Node, letters: str, group: str, axis: int
) -> Node:
    """`x` with the axis that stands for a group of an operand's axes made those again."""
    if not group:
        return call(graph, node, torch.squeeze, x, axis)
    if len(group) == 1:
        return x
    sizes = dict(zip(letters, operand.meta["shape"], strict=True))
    # The first axis of a value, its batch, may have any size.
    free = letters[0] if letters[0] in group else group[0]
    wanted = tuple(-1 if letter == free else sizes[letter] for letter in group)
    return call(graph, node, torch.unflatten, x, axis, wanted)


def _permute(graph: Graph, node: Node, x: Node, letters: str, wanted: str) -> Node:
    if letters == wanted:
        return x
    return call(graph, node, torch.permute, x, tuple(letters.index(a) for a in wanted))
