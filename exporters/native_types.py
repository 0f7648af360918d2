"""Write integers in ONNX's own narrow types, as far as ONNX Runtime can load what comes out.

What it can't load, or computes wrongly, was measured with ONNX Runtime 1.31.1, optimisations on,
for each of these types before and after 28 operators:

- int2 and uint2: nearly every op between two quantizers is made one on integers, for which there
  is no kernel. Weights of 2 bits are stored so, and cast (`pack_weights`).
- int4 and uint4 into a layer whose weight has 8 bits: it is made one on integers, without a kernel.
- int4 and uint4 around a MaxPool, also one behind ops that only move numbers: no kernel.
- int4 and uint4 after a Clip: it throws.
- int4 and uint4 after a ReLU, where the zero point is not the grid's smallest number: the ReLU is
  dropped, and negative numbers come out.
- int8 from opset 21 on, read by MaxPool or an op that only moves numbers: a QuantizeLinear of two
  types. It is written as uint8.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import constant
from fxquant.exporters.grids import Grid, drop_clip, grids
from fxquant.exporters.sink_dequantize import MOVES
from fxquant.exporters.unsign_activations import set_zero_point, unsign

# Type, its smallest and largest number, and the first opset that has it.
WEIGHT_TYPES = (
    ("INT2", -2, 1, 25),
    ("UINT2", 0, 3, 25),
    ("INT4", -8, 7, 21),
    ("UINT4", 0, 15, 21),
)
_FOUR_BITS = {"int8": (ml_dtypes.int4, -8, 7), "uint8": (ml_dtypes.uint4, 0, 15)}
_OPSET_4_BITS = 21


def narrow_weights(model: ir.Model) -> int:
    """Store 8-bit weights of 3 and 4 bits, with their zero points, as such; the number narrowed."""
    return sum(_narrow_weight(model, node) for node in model.graph if _dequantizes_weight(node))


def narrowest(numbers: np.ndarray, opset: int) -> ir.DataType | None:
    """The narrowest type that holds 8-bit integers of that sign; None where it is their own."""
    sign = "U" if numbers.dtype == np.uint8 else "I"
    for name, low, high, since in WEIGHT_TYPES:
        fits = numbers.min() >= low and numbers.max() <= high
        if name[0] == sign and fits and opset >= since:
            return ir.DataType[name]
    return None


def narrow_activations(model: ir.Model) -> int:
    """Let activations of 4 bits be uint4 or int4, where that is safe; the number changed.

    Those of other widths keep the 8-bit type and the integer Clip behind their QuantizeLinear: ONNX
    has no Clip for 4-bit types, and a Clip in floating point before it makes OpenVINO compute
    something else. It changes no number.
    """
    opset = model.opset_imports[""]
    return sum(_narrow_activation(model.graph, grid, opset) for grid in grids(model))


def _narrow_activation(graph: ir.Graph, grid: Grid, opset: int) -> bool:
    if grid.integers.is_graph_output() or not _only_dequantized(grid.integers):
        return False
    shifted = _breaks_int8(grid, opset)
    if shifted:
        unsign(graph, grid)
        grid = Grid.of(grid.quantize)
    dtype, *ends = _FOUR_BITS[grid.zero_point.dtype.name]
    if opset >= _OPSET_4_BITS and [grid.low, grid.high] == ends and not _is_unsafe(grid):
        drop_clip(graph, grid)
        set_zero_point(graph, Grid.of(grid.quantize), grid.zero_point.astype(dtype))
        return True
    return shifted


def _dequantizes_weight(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and _is_8_bit_constant(node.inputs[0])


def _narrow_weight(model: ir.Model, node: ir.Node) -> int:
    weight = node.inputs[0]
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    numbers = weight.const_value.numpy()
    dtype = narrowest(numbers, model.opset_imports[""])
    if dtype not in (ir.DataType.INT4, ir.DataType.UINT4):
        return 0
    if offset is not None:
        narrowed = offset.const_value.numpy().astype(dtype.numpy())
        value = constant(model.graph, f"{weight.name}_zero_point.{dtype.name.lower()}", narrowed)
        for user in weight.consumers():
            user.replace_input_with(2, value)
    weight.const_value = ir.tensor(numbers.astype(dtype.numpy()), dtype=dtype, name=weight.name)
    weight.type = ir.TensorType(dtype)
    return 1


def _only_dequantized(integers: ir.Value) -> bool:
    return all(node.op_type == "DequantizeLinear" for node in integers.consumers())


def _is_unsafe(grid: Grid) -> bool:
    """Whether ONNX Runtime can't load this grid in 4 bits, or computes something else."""
    producer = grid.quantize.inputs[0].producer()
    smallest = _FOUR_BITS[grid.zero_point.dtype.name][1]
    if producer is not None and producer.op_type == "Clip":
        return True
    if producer is not None and producer.op_type == "Relu" and grid.zero_point != smallest:
        return True
    after = list(_after(grid))
    ops = {node.op_type for node in (*_before(grid.quantize), *after)}
    return "MaxPool" in ops or any(_has_8_bit_weight(node) for node in after)


def _has_8_bit_weight(node: ir.Node) -> bool:
    """Whether a layer multiplies with a constant that is dequantized from 8 bits."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    sources = [value.producer() for value in node.inputs[:2] if value is not None]
    integers = [s.inputs[0] for s in sources if s is not None and s.op_type == "DequantizeLinear"]
    # A packed weight is cast back to 8 bits, which is done when the file is loaded.
    return any(_is_cast(value) or _is_8_bit_constant(value) for value in integers)


def _is_cast(value: ir.Value) -> bool:
    return value.producer() is not None and value.producer().op_type == "Cast"


def _is_8_bit_constant(value: ir.Value) -> bool:
    constant_value = value.const_value
    return constant_value is not None and constant_value.dtype in (
        ir.DataType.INT8,
        ir.DataType.UINT8,
    )


def _breaks_int8(grid: Grid, opset: int) -> bool:
    if grid.zero_point.dtype != np.int8 or opset < _OPSET_4_BITS:
        return False
    return any(node.op_type in MOVES for node in _after(grid))


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that computed what `node` reads, back through those that only move numbers."""
    for value in node.inputs[:1]:
        producer = value.producer()
        if producer is not None:
            yield producer
            if producer.op_type in MOVES or producer.op_type == "Clip":
                yield from _before(producer)


def _after(grid: Grid) -> Iterator[ir.Node]:
    """The nodes that read dequantized numbers, on through those that only move them."""
    waiting = [value for node in grid.integers.consumers() for value in node.outputs]
    while waiting:
        for node in waiting.pop().consumers():
            yield node
            if node.op_type in MOVES:
                waiting += node.outputs
