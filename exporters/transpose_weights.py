"""Store the weights of linear layers on sequences the way they are multiplied."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def transpose_weights(model: ir.Model) -> int:
    """Transpose integer weights in the file where it would be done on the fly; the number of them.

    ONNX Runtime otherwise makes one float operator of a Transpose and the MatMul that reads it,
    before it looks for integer kernels.
    """
    done = 0
    for dequantize in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        readers = [use.node for use in dequantize.outputs[0].uses()]
        if not readers or not _is_matrix(dequantize) or not all(map(_is_transpose, readers)):
            continue
        weight = dequantize.inputs[0]
        numbers = np.ascontiguousarray(weight.const_value.numpy().T)
        weight.const_value = ir.tensor(numbers, name=weight.name)
        weight.shape = ir.Shape(numbers.shape)
        if dequantize.inputs[1].const_value.numpy().ndim:
            axis = dequantize.attributes.get_int("axis", 1)
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 1 - axis % 2)
        for transpose in dict.fromkeys(readers):
            transpose.outputs[0].replace_all_uses_with(dequantize.outputs[0])
            model.graph.remove(transpose, safe=True)
        dequantize.outputs[0].shape = weight.shape
        done += 1
    return done


def _is_matrix(dequantize: ir.Node) -> bool:
    """Whether it dequantizes stored integers of two axes that nothing else reads."""
    weight = dequantize.inputs[0]
    if weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    return weight.is_initializer() and len(weight.uses()) == 1


def _is_transpose(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.outputs[0].is_graph_output():
        return False
    return list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]
