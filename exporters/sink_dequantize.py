"""Move DequantizeLinear behind ops that only move numbers, which then work on integers."""

from __future__ import annotations

import onnx_ir as ir

from fxquant.exporters.constants import scalar
from fxquant.exporters.grids import dequantize_of, remove_unread

# Ops that give back numbers of their first input, and take uint8 in ONNX Runtime.
MOVES = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
    }
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def sink_dequantize(model: ir.Model) -> int:
    """Let ops that only move numbers read integers, and dequantize what they give.

    `move(dequantize(q)) = dequantize(move(q))` exactly. A layer or sum behind such an op then
    reads a DequantizeLinear, without which ONNX Runtime runs it in floating point. A ReLU of a
    grid whose zero point is 0 does nothing and goes. Returns the number of ops changed.
    """
    sunk = 0
    for node in list(model.graph):
        if node.op_type == "Concat":
            sunk += _sink_under_concat(model.graph, node)
            continue
        source = _dequantize_before(node)
        if source is None:
            continue
        if node.op_type == "Relu" and _zero_point(source) == 0:
            node.outputs[0].replace_all_uses_with(source.outputs[0])
            model.graph.remove(node, safe=True)
        elif node.op_type == "Resize" or node.op_type in MOVES:
            if not _can_move_integers(node):
                continue
            _sink(model.graph, node, source)
        else:
            continue
        sunk += 1
        remove_unread(model.graph, source)
    return sunk


def _sink_under_concat(graph: ir.Graph, concat: ir.Node) -> int:
    """Concatenate integers where all parts are on one grid, as a roll or a shuffle of one value."""
    sources = [dequantize_of(value) for value in concat.inputs]
    if any(v.is_graph_output() for v in concat.outputs) or not _share_a_grid(sources):
        return 0
    for index, source in enumerate(sources):
        concat.replace_input_with(index, source.inputs[0])
    _dequantize_after(graph, concat, sources[0])
    for source in dict.fromkeys(sources):
        remove_unread(graph, source)
    return 1


def _share_a_grid(sources: list[ir.Node | None]) -> bool:
    if any(source is None for source in sources):
        return False
    grids = [[v.const_value and v.const_value.numpy() for v in s.inputs[1:]] for s in sources]
    if any(part is None or part.ndim for grid in grids for part in grid):
        return False
    return all(a == b for grid in grids for a, b in zip(grid, grids[0], strict=True))


def _dequantize_before(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of an activation that gives the node's first input."""
    if not node.inputs or node.inputs[0] is None or any(v.is_graph_output() for v in node.outputs):
        return None
    return dequantize_of(node.inputs[0])


def _zero_point(dequantize: ir.Node) -> int:
    return int(dequantize.inputs[2].const_value.numpy())


def _can_move_integers(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or (value.const_value is not None and not value.const_value.numpy())
    return True


def _sink(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    node.replace_input_with(0, source.inputs[0])
    if node.op_type == "Pad":
        _pad_with(graph, node, source.inputs[2])
    _dequantize_after(graph, node, source)


def _dequantize_after(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    """Dequantize what `node` gives by the grid of `source`."""
    _, scale, zero_point = source.inputs
    for value in node.outputs:
        dequantize = ir.node("DequantizeLinear", [value, scale, zero_point])
        value.replace_all_uses_with(dequantize.outputs[0])
        dequantize.replace_input_with(0, value)
        graph.insert_after(node, dequantize)


def _pad_with(graph: ir.Graph, node: ir.Node, zero_point: ir.Value) -> None:
    """Real zeros are the zero point on the grid."""
    value = scalar(graph, zero_point.const_value.numpy()[()])
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
