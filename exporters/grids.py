"""The grid of an activation in an exported model: its QuantizeLinear and the Clip behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Grid:
    """A QuantizeLinear to an 8-bit type, the integer Clip that follows it or None, and its ends."""

    quantize: ir.Node
    clip: ir.Node | None
    low: int
    high: int

    @classmethod
    def of(cls, quantize: ir.Node) -> Grid:
        clip = only_reader(quantize, "Clip")
        limits = np.iinfo(quantize.inputs[2].const_value.dtype.numpy())
        bounds = [limits.min, limits.max]
        for i, value in enumerate(clip.inputs[1:3] if clip is not None else ()):
            if value is not None:
                bounds[i] = int(value.const_value.numpy())
        return cls(quantize, clip, *bounds)

    @property
    def integers(self) -> ir.Value:
        """The value that holds the grid's integers."""
        return (self.clip or self.quantize).outputs[0]

    @property
    def scale(self) -> np.ndarray:
        return self.quantize.inputs[1].const_value.numpy()

    @property
    def zero_point(self) -> np.ndarray:
        """A scalar of the grid's 8-bit type."""
        return self.quantize.inputs[2].const_value.numpy()


def grids(model: ir.Model) -> list[Grid]:
    """The grids of all activations whose integers have 8 bits, in graph order."""
    return [
        Grid.of(node)
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[2].const_value.dtype in (ir.DataType.UINT8, ir.DataType.INT8)
    ]


def only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node's only reader if it is of this kind, and the value isn't the model's output."""
    output = node.outputs[0]
    readers = list(output.consumers())
    if output.is_graph_output() or len(readers) != 1 or readers[0].op_type != op_type:
        return None
    return readers[0]


def drop_clip(graph: ir.Graph, grid: Grid) -> None:
    """Remove the integer Clip of a grid, if it has one."""
    if grid.clip is not None:
        grid.clip.outputs[0].replace_all_uses_with(grid.quantize.outputs[0])
        graph.remove(grid.clip, safe=True)


def dequantize_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of an activation that gives this value."""
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) < 3:
        return None
    return None if source.inputs[0].is_initializer() else source


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose output nothing reads."""
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph.remove(node, safe=True)
