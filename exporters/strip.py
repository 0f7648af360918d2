"""Remove from an exported model what no runtime needs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes


def strip(model: ir.Model) -> int:
    """Remove stack traces, attributes at their default, unused constants; the number of removals.

    Shapes of intermediate values go too: runtimes infer them.
    """
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    before = len(model.graph.initializers)
    passes.RemoveUnusedNodesPass()(model)
    removed = before - len(model.graph.initializers)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        removed += _drop_default_attributes(node, model.opset_imports[""])
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    return removed


def _drop_default_attributes(node: ir.Node, opset: int) -> int:
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    defaults = {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    dropped = [n for n, a in node.attributes.items() if n in defaults and _same(a, defaults[n])]
    for name in dropped:
        del node.attributes[name]
    return len(dropped)


def _same(attribute: ir.Attr, default: object) -> bool:
    value = attribute.value
    if isinstance(default, bytes):
        default = default.decode()
    return type(value) is type(default) and value == default
