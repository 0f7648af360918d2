"""Write HardSigmoid as a sum on integers, for which ONNX Runtime has a kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant, scalar
from fxquant.exporters.grids import dequantize_of, only_reader, remove_unread


def sum_hard_sigmoids(model: ir.Model) -> int:
    """Make each HardSigmoid between two grids a sum and a clip; the number rewritten.

    clip(alpha x + beta, 0, 1): alpha x are the integers of x on a grid of alpha times the scale,
    and beta is 1 on a grid of scale beta. Activations are uint8 by then.
    """
    rewritten = 0
    for node in [node for node in model.graph if node.op_type == "HardSigmoid"]:
        source = dequantize_of(node.inputs[0])
        if source is None or only_reader(node, "QuantizeLinear") is None:
            continue
        alpha = np.float32(node.attributes.get_float("alpha", 0.2))
        beta = np.float32(node.attributes.get_float("beta", 0.5))
        if alpha > 0 and beta > 0:
            _rewrite(model.graph, node, source, alpha, beta)
            rewritten += 1
    return rewritten


def _rewrite(
    graph: ir.Graph, node: ir.Node, source: ir.Node, alpha: np.float32, beta: np.float32
) -> None:
    integers, scale, zero_point = source.inputs
    scaled = constant(graph, f"{scale.name}_times_{alpha:.6g}", scale.const_value.numpy() * alpha)
    offset = constant(graph, f"hard_sigmoid_offset_{beta:.6g}", beta)
    one, zero = scalar(graph, np.uint8(1)), scalar(graph, np.uint8(0))
    low, high = (constant(graph, f"float_{x:.0f}", np.float32(x)) for x in (0, 1))
    slope = ir.node("DequantizeLinear", [integers, scaled, zero_point])
    shift = ir.node("DequantizeLinear", [one, offset, zero])
    total = ir.node("Add", [slope.outputs[0], shift.outputs[0]])
    clip = ir.node("Clip", [total.outputs[0], low, high])
    output, last = node.outputs[0], clip.outputs[0]
    last.name, last.shape, last.type = output.name, output.shape, output.type
    new = [slope, shift, total, clip]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [output], [last])
    remove_unread(graph, source)
