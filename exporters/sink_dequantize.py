"""Move DequantizeLinear behind ops that only move numbers, which then work on integers."""

from __future__ import annotations

import onnx_ir as ir

from fxquant.exporters.constants import scalar

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
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            model.graph.remove(source, safe=True)
    return sunk


def _dequantize_before(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of an activation that gives the node's first input."""
    if not node.inputs or node.inputs[0] is None or any(v.is_graph_output() for v in node.outputs):
        return None
    source = node.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) < 3:
        return None
    return None if source.inputs[0].is_initializer() else source


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
    q, scale, zero_point = source.inputs
    node.replace_input_with(0, q)
    if node.op_type == "Pad":
        _pad_with(graph, node, zero_point)
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
