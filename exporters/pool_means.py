"""Write means over whole feature maps as the pooling that ONNX Runtime has integer kernels for."""

from __future__ import annotations

import onnx_ir as ir


def pool_means(model: ir.Model) -> int:
    """Make each ReduceMean over height and width a GlobalAveragePool; the number rewritten.

    It computes the same mean. Where the result has no height and width any more, a Squeeze takes
    them away.
    """
    rewritten = 0
    for node in [node for node in model.graph if node.op_type == "ReduceMean"]:
        if not _is_over_height_and_width(node):
            continue
        output, axes = node.outputs[0], node.inputs[1]
        pool = ir.node("GlobalAveragePool", [node.inputs[0]])
        new = [pool]
        if not node.attributes.get_int("keepdims", 1):
            new.append(ir.node("Squeeze", [pool.outputs[0], axes]))
        last = new[-1].outputs[0]
        last.name, last.shape, last.type = output.name, output.shape, output.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, [output], [last])
        rewritten += 1
    return rewritten


def _is_over_height_and_width(node: ir.Node) -> bool:
    shape = node.inputs[0].shape
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    if shape is None or len(shape) != 4 or axes is None:
        return False
    return {int(axis) % 4 for axis in axes.numpy().reshape(-1)} == {2, 3}
