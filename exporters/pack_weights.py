"""Store each integer weight in the narrowest type that holds it."""

from __future__ import annotations

import onnx_ir as ir

# Type, its largest value, and the first opset that has it.
_NARROW = (("INT2", 1, 25), ("INT4", 7, 21))


def pack_weights(model: ir.Model) -> int:
    """Store int8 weights of 4 bits or fewer packed, with a Cast back to int8; the number packed.

    ONNX Runtime computes the Cast once, when it loads the model, and then sees int8 weights,
    for which it has kernels.
    """
    opset = model.opset_imports[""]
    weights: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and _is_int8_constant(node.inputs[0]):
            weights.setdefault(node.inputs[0], node)
    return sum(_pack(model.graph, value, first, opset) for value, first in weights.items())


def _is_int8_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.INT8


def _pack(graph: ir.Graph, value: ir.Value, first_reader: ir.Node, opset: int) -> int:
    numbers, name = value.const_value.numpy(), value.name
    for type_name, largest, since in _NARROW:
        if opset >= since and numbers.max() <= largest and numbers.min() >= -largest - 1:
            dtype = ir.DataType[type_name]
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT8.value})
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            value.const_value = ir.tensor(numbers.astype(dtype.numpy()), dtype=dtype, name=name)
            value.type = ir.TensorType(dtype)
            graph.insert_before(first_reader, cast)
            return 1
    return 0
