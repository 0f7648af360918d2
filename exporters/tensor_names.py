"""Name the tensors of an exported model after the modules they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

from fxquant.graph.insert_quantizers import ACTIVATIONS

_LAYERS = ("Conv", "Gemm", "MatMul")


def name_tensors(model: ir.Model) -> int:
    """Name what quantizers and layers compute; returns how many were named.

    The integers of activation quantizer `activation_quantizers.relu_1` are called `relu_1` and
    its scale `relu_1.scale`; a node that computes a layer is called like the layer, whose
    constants have that name already. Everything else gets a short number: names would take up
    a fifth of a small file of 4-bit weights.
    """
    taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    _number_everything(model.graph, taken)
    named = 0
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[1].name.endswith(".scale"):
            named += _name_quantizer(node, taken)
        elif node.op_type in _LAYERS:
            named += _name_layer(node)
    return named


def quantizer_tensor(module_name: str, taken: Collection[str] = ()) -> str:
    """Name in the file of the integers of the activation quantizer with this module name.

    `taken` are the names of inputs and outputs, which no other tensor may have.
    """
    name = module_name.replace(f"{ACTIVATIONS}.", "", 1)
    return f"{name}.quantized" if name in taken else name


def _number_everything(graph: ir.Graph, fixed: Collection[str]) -> None:
    seen: Counter = Counter()
    for i, value in enumerate(v for node in graph for v in node.outputs):
        if value.name not in fixed:
            value.name = f"v{i}"
    for node in graph:
        node.name = f"{node.op_type}_{seen[node.op_type]}"
        seen[node.op_type] += 1


def _name_quantizer(node: ir.Node, taken: Collection[str]) -> int:
    scale, q = node.inputs[1], node.outputs[0]
    readers = list(q.consumers())
    if len(readers) == 1 and readers[0].op_type == "Clip":
        q = readers[0].outputs[0]
    q.name = quantizer_tensor(scale.name.removesuffix(".scale"), taken)
    scale.name = f"{q.name}.scale"
    return 1


def _name_layer(node: ir.Node) -> int:
    """Name the node after the constant that its weight is dequantized from."""
    weight = node.inputs[1]
    while weight is not None and weight.producer() is not None:
        weight = weight.producer().inputs[0]
    if weight is None or not str(weight.name).endswith(".weight"):
        return 0
    node.name = weight.name.removesuffix(".weight")
    return 1
