"""Give int8 weights the explicit zero points that ONNX Runtime asks for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant

# Weights within leave room for sums in 16 bits: `session.x64quantprecision` lets them be.
_LOW, _HIGH = -64, 63


def weight_zero_points(model: ir.Model) -> int:
    """Add zero points of zeros to DequantizeLinear of int8 weights that need them; how many.

    It changes no number. ONNX Runtime fuses a Gemm to its integer kernel only where the zero point
    is written down, and makes Gemms of some MatMuls, of a single vector's say. Its session option
    `session.x64quantprecision` rewrites large weights with their zero points, and fails on several
    scales without zero points, and on shared ones.
    """
    linear = {n.inputs[1].producer() for n in model.graph if n.op_type in ("Gemm", "MatMul")}
    added = 0
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        weight = node.inputs[0]
        if len(node.inputs) > 2 or not _is_int8(weight):
            continue
        large = _is_large(weight)
        if large or node in linear:
            shape = tuple(node.inputs[1].const_value.shape)
            node.resize_inputs(3)
            node.replace_input_with(2, _zeros(model.graph, shape, weight.name if large else None))
            added += 1
    return added


def _is_int8(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.INT8


def _is_large(weight: ir.Value) -> bool:
    numbers = weight.const_value.numpy()
    return bool(numbers.min(initial=0) < _LOW or numbers.max(initial=0) > _HIGH)


def _zeros(graph: ir.Graph, shape: tuple[int, ...], weight: str | None) -> ir.Value:
    """Zeros of a weight's own, or shared ones."""
    shared = "_".join(["int8_zeros", *map(str, shape)])
    return constant(graph, f"{weight}_zero_point" if weight else shared, np.zeros(shape, np.int8))
