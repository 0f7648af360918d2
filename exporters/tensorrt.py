"""The layout that TensorRT reads: int8 around zero, nothing else.

TensorRT takes QuantizeLinear and DequantizeLinear in pairs, of int8 with a zero point of 0: one
scale a tensor for activations, one a channel for the weights of layers; biases in floating point.
It can't be run everywhere, so the structure is checked instead.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.exporters.constants import constant, scalar
from fxquant.exporters.grids import Grid, drop_clip, grids

_LOW, _HIGH = -128, 127
_HINT = (
    "quantize with --layout tensorrt, which makes activations symmetric, or with at most 7 bits "
    "for all of them"
)


def center_activations(model: ir.Model) -> int:
    """Let the integers of activations be int8 with zero point 0; the number changed.

    It changes no number: integers are shifted by the zero point. Raises ExportError where they
    leave int8.
    """
    found = grids(model)
    for grid in found:
        _center(model.graph, grid)
    return len(found)


def float_biases(model: ir.Model) -> int:
    """Store int32 biases as the numbers that they are dequantized to; the number stored so."""
    stored = 0
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        bias = node.inputs[0].const_value
        if bias is None or bias.dtype != ir.DataType.INT32:
            continue
        numbers = bias.numpy().astype(np.float32) * node.inputs[1].const_value.numpy()
        value = constant(model.graph, f"{node.inputs[0].name}.float", numbers)
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        stored += 1
    return stored


def require_tensorrt(model: ir.Model) -> int:
    """Raise ExportError at the first node that TensorRT wouldn't take; the number looked at."""
    for node in model.graph:
        wrong = _what_is_wrong(node)
        if wrong:
            raise ExportError(f"TensorRT does not take node '{node.name}': {wrong}", _HINT)
    return len(model.graph)


def _center(graph: ir.Graph, grid: Grid) -> None:
    name = grid.quantize.inputs[1].name.removesuffix(".scale")
    low, high = (end - int(grid.zero_point) for end in (grid.low, grid.high))
    if low < _LOW or high > _HIGH:
        raise ExportError(
            f"activation quantizer '{name}' has {low} to {high} steps around zero; TensorRT's "
            f"integers go from {_LOW} to {_HIGH}",
            _HINT,
        )
    drop_clip(graph, grid)
    for node in (*grid.quantize.outputs[0].consumers(), grid.quantize):
        node.replace_input_with(2, scalar(graph, np.int8(0)))
    _clip_in_float(graph, Grid(grid.quantize, None, low, high))


def _clip_in_float(graph: ir.Graph, grid: Grid) -> None:
    """Put a Clip before QuantizeLinear, to the numbers at the ends of the grid."""
    bounds = [
        None if bound == end else _bound(graph, grid, bound, what)
        for bound, end, what in (
            (grid.low, _LOW, "low"),
            (grid.high, _HIGH, "high"),
        )
    ]
    clip = ir.node("Clip", [grid.quantize.inputs[0], *bounds])
    graph.insert_before(grid.quantize, clip)
    grid.quantize.replace_input_with(0, clip.outputs[0])


def _bound(graph: ir.Graph, grid: Grid, bound: int, what: str) -> ir.Value:
    number = (np.float32(bound) - grid.zero_point.astype(np.float32)) * grid.scale
    return constant(graph, f"{grid.quantize.inputs[1].name}.{what}", np.float32(number))


def _what_is_wrong(node: ir.Node) -> str | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        integers = {ir.DataType.INT4, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32}
        constants = [v.const_value for v in node.inputs if v is not None and v.const_value]
        found = next((c.dtype.name for c in constants if c.dtype in integers), None)
        return f"it reads {found}" if found else None
    zero_point = node.inputs[2].const_value if len(node.inputs) > 2 else None
    if zero_point is not None and (
        zero_point.dtype != ir.DataType.INT8 or zero_point.numpy().any()
    ):
        return "its zero point is not an int8 zero"
    if node.op_type == "QuantizeLinear":
        readers = {user.op_type for user in node.outputs[0].consumers()}
        return None if readers == {"DequantizeLinear"} else "no DequantizeLinear follows it"
    return _wrong_dequantize(node)


def _wrong_dequantize(node: ir.Node) -> str | None:
    source, scale = node.inputs[0], node.inputs[1].const_value.numpy()
    if source.const_value is not None:
        dtype = source.const_value.dtype
        return None if dtype == ir.DataType.INT8 else f"its weight is {dtype.name}"
    if source.producer() is None or source.producer().op_type != "QuantizeLinear":
        return "no QuantizeLinear precedes it"
    return "an activation has a scale for each channel" if scale.ndim else None
