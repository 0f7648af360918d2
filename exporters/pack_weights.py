"""Store each integer weight in the narrowest type that holds it."""

from __future__ import annotations

import onnx_ir as ir

from fxquant.exporters.native_types import narrowest

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def pack_weights(model: ir.Model) -> int:
    """Store weights of 4 bits or fewer packed, with a Cast back to 8 bits; the number packed.

    ONNX Runtime computes the Cast once, when it loads the model, and then sees 8-bit weights,
    for which it has kernels.
    """
    opset = model.opset_imports[""]
    weights: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and _is_8_bit_weight(node.inputs[0]):
            weights.setdefault(node.inputs[0], node)
    return sum(_pack(model.graph, value, first, opset) for value, first in weights.items())


def _is_8_bit_weight(value: ir.Value) -> bool:
    """Whether a value is a constant of bytes; a single number is none, which others may share."""
    constant = value.const_value
    return constant is not None and constant.dtype in _BYTES and len(constant.shape) > 0


def _pack(graph: ir.Graph, value: ir.Value, first_reader: ir.Node, opset: int) -> int:
    numbers, wide = value.const_value.numpy(), value.const_value.dtype
    narrow = narrowest(numbers, opset)
    if narrow is None:
        return 0
    cast = ir.node("Cast", [value], {"to": wide.value})
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    value.const_value = ir.tensor(numbers.astype(narrow.numpy()), dtype=narrow, name=value.name)
    value.type = ir.TensorType(narrow)
    graph.insert_before(first_reader, cast)
    return 1
