"""Write 8-bit weights so that every processor adds up what they give exactly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant
from fxquant.exporters.grids import Grid
from fxquant.exporters.saturation import dequantize_before, saturating_layers
from fxquant.exporters.unsign_activations import unsign

_SHIFT = 128


def unsign_weights(model: ir.Model) -> int:
    """Store int8 weights that could saturate as uint8 with zero point 128; the layers changed.

    It changes no number. Layers whose sums can't leave 16 bits keep int8, for which kernels are
    faster where there is VNNI. Of a product of two activations the second one is shifted.
    """
    layers = saturating_layers(model)
    for layer in layers:
        dequantize = dequantize_before(layer.inputs[1])
        weight = dequantize.inputs[0]
        if weight.const_value is None:
            _unsign_activation(model.graph, dequantize)
        elif weight.const_value.dtype == ir.DataType.INT8:  # else another call has shifted it
            _unsign_weight(model.graph, weight)
    return len(layers)


def _unsign_weight(graph: ir.Graph, weight: ir.Value) -> None:
    numbers = weight.const_value.numpy().astype(np.int16) + _SHIFT
    weight.const_value = ir.tensor(numbers.astype(np.uint8), name=weight.name)
    weight.type = ir.TensorType(ir.DataType.UINT8)
    for dequantize in weight.consumers():
        shape = tuple(dequantize.inputs[1].const_value.shape)
        dequantize.resize_inputs(3)
        dequantize.replace_input_with(2, _zero_points(graph, shape))


def _unsign_activation(graph: ir.Graph, dequantize: ir.Node) -> None:
    producer = dequantize.inputs[0].producer()
    if producer is not None and producer.op_type == "Clip":
        producer = producer.inputs[0].producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        unsign(graph, Grid.of(producer))


def _zero_points(graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
    name = "_".join([f"uint8_{_SHIFT}", *map(str, shape)])
    return constant(graph, name, np.full(shape, _SHIFT, np.uint8))
