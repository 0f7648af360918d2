"""Constants of an exported graph: made once, and shared where they are equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def share_scalars(model: ir.Model) -> int:
    """Merge equal int8 and uint8 scalars, which quantizers use by the dozen; the number merged.

    Each that stays is called by its value: `uint8_15`.
    """
    graph, merged = model.graph, 0
    for value in list(graph.initializers.values()):
        number = value.const_value.numpy()
        if number.ndim or number.dtype not in (np.uint8, np.int8):
            continue
        shared = scalar(graph, number[()])
        if shared is not value:
            value.replace_all_uses_with(shared)
            del graph.initializers[value.name]
            merged += 1
    return merged


def scalar(graph: ir.Graph, number: np.generic) -> ir.Value:
    """The graph's shared constant with this value and type, made where there is none yet."""
    return constant(graph, f"{number.dtype.name}_{int(number)}", number)


def constant(graph: ir.Graph, name: str, numbers: np.ndarray | np.generic) -> ir.Value:
    """The graph's constant of this name, made from `numbers` where there is none yet."""
    if name not in graph.initializers:
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape
        )
        graph.register_initializer(value)
    return graph.initializers[name]
