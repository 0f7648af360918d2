"""Keep ONNX Runtime from quantizing the layers that stay in floating point."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant

_LAYERS = ("Conv", "Gemm")


def shield_float(model: ir.Model) -> int:
    """Dequantize what float layers read by equal scales, one a channel; the number shielded.

    It changes no number. Between a scalar DequantizeLinear and a QuantizeLinear ONNX Runtime
    would round a float layer's weights to 8 bits of its own, on one scale for the whole tensor.
    """
    shielded = 0
    for layer in [node for node in model.graph if node.op_type in _LAYERS]:
        source = layer.inputs[0].producer()
        if not _has_float_weight(layer) or not _is_scalar_dequantize(source):
            continue
        grid = [
            _repeat(model.graph, value, layer, name)
            for value, name in zip(source.inputs[1:], ("scale", "zero_point"), strict=True)
        ]
        wide = ir.node("DequantizeLinear", [source.inputs[0], *grid])
        model.graph.insert_before(layer, wide)
        layer.replace_input_with(0, wide.outputs[0])
        if not source.outputs[0].uses() and not source.outputs[0].is_graph_output():
            model.graph.remove(source, safe=True)
        shielded += 1
    return shielded


def _has_float_weight(layer: ir.Node) -> bool:
    weight = layer.inputs[1].const_value
    return weight is not None and weight.dtype == ir.DataType.FLOAT


def _is_scalar_dequantize(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return False
    return node.inputs[1].const_value is not None and not node.inputs[1].const_value.numpy().ndim


def _repeat(graph: ir.Graph, value: ir.Value, layer: ir.Node, what: str) -> ir.Value:
    """The scalar constant `value` for each channel that the layer reads."""
    weight = layer.inputs[1].const_value.shape
    if layer.op_type == "Conv":
        channels = weight[1] * layer.attributes.get_int("group", 1)
    else:
        channels = weight[1 if layer.attributes.get_int("transB", 0) else 0]
    name = f"{layer.inputs[1].name}.input_{what}"
    return constant(graph, name, np.full(channels, value.const_value.numpy()))
