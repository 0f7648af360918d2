"""Give the weights of linear layers the explicit zero point that ONNX Runtime asks for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant


def gemm_zero_points(model: ir.Model) -> int:
    """Add a zero point of zeros to each Gemm weight's DequantizeLinear; the number added.

    It changes no number. ONNX Runtime fuses a Gemm to its integer kernel only where the zero
    point is written down; of a convolution or MatMul it asks no such thing.
    """
    added = 0
    for gemm in [node for node in model.graph if node.op_type == "Gemm"]:
        dequantize = gemm.inputs[1].producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        if dequantize.inputs[0].dtype != ir.DataType.INT8:
            continue
        if len(dequantize.inputs) == 2:
            shape = tuple(dequantize.inputs[1].const_value.shape)
            dequantize.resize_inputs(3)
            dequantize.replace_input_with(2, _zeros(model.graph, shape))
            added += 1
    return added


def _zeros(graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
    name = "_".join(["int8_zeros", *map(str, shape)])
    return constant(graph, name, np.zeros(shape, np.int8))
