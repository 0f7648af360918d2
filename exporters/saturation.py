"""Layers whose integer sums x86 processors without VNNI get wrong, in a file of any origin.

Such processors multiply unsigned by signed bytes with VPMADDUBSW, which adds two products in 16
bits and saturates there. ONNX Runtime's kernels use it for every layer of int8 weights but
depthwise convolutions; for uint8 weights they use an instruction that is exact. Processors with
VNNI (AVX-VNNI and AMX included) are exact for both, and so is WebAssembly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from fxquant.exporters.sink_dequantize import MOVES

_LAYERS = ("Conv", "Gemm", "MatMul")
# What a sum of two products may be at most, and what a byte may.
_MAX_SUM, _MIN_SUM = 2**15 - 1, -(2**15)
_MAX_BYTE = 255
_WEIGHT_SCALE = ".weight_scale"


def saturating_layers(model: ir.Model) -> list[ir.Node]:
    """The layers of a model in which two products may leave 16 bits, in graph order.

    Any two weights of an output channel count as neighbours, as kernels differ in their order.
    """
    return [node for node in model.graph if node.op_type in _LAYERS and _may_saturate(node)]


def saturating_names(path: str | Path) -> tuple[str, ...]:
    """The names of a file's layers in which two products may leave 16 bits, in graph order."""
    return tuple(name_of(node) for node in saturating_layers(ir.load(path)))


def name_of(layer: ir.Node) -> str:
    """The name of the module that a saturating layer was, else that of its node."""
    scale = dequantize_before(layer.inputs[1]).inputs[1].name or ""
    return scale.removesuffix(_WEIGHT_SCALE) if scale.endswith(_WEIGHT_SCALE) else str(layer.name)


def saturation_note(layers: int, *, here: bool | None = None, option: bool = True) -> str | None:
    """What a deployer must know of a file with `layers` saturating layers; None where it has none.

    `here` says whether this processor is one that saturates, None where that was not tried;
    `option` whether ONNX Runtime can run the file exactly on such a one.
    """
    if not layers:
        return None
    many = "1 layer holds" if layers == 1 else f"{layers} layers hold"
    where = {None: "", True: " (as here)", False: " (not here)"}[here]
    set_option = "set ONNX Runtime's session option session.x64quantprecision to 1 there, or "
    return (
        f"{many} 8-bit weights as int8, whose sums x86 processors without VNNI get wrong{where}: "
        f"{set_option if option else ''}export with --processor any in layout runtime or portable, "
        "whose files are right everywhere"
    )


def _may_saturate(layer: ir.Node) -> bool:
    source, other = (dequantize_before(value) for value in layer.inputs[:2])
    if source is None or other is None or _is_depthwise(layer):
        return False
    if not _reads_bytes(source) or not _reads_bytes(other):
        return False
    largest, weight = _largest(source), _constant(other.inputs[0])
    if weight is None:  # a product of two activations, or weights that are cast from fewer bits
        return _is_signed(other) and not _is_cast(other) and largest * 2 * 127 > _MAX_SUM
    if weight.dtype != ir.DataType.INT8:
        return False
    most, least = _extreme_pairs(weight.numpy(), _channel_axis(layer))
    return largest * most > _MAX_SUM or largest * least < _MIN_SUM


def dequantize_before(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives a value, also from before operators that only move it."""
    node = None if value is None else _before_moves(value).producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _before_moves(value: ir.Value) -> ir.Value:
    """What a value was before the operators that only moved it, through which kernels reach."""
    seen: set[ir.Node] = set()
    while (node := value.producer()) is not None and node.op_type in (*MOVES, "Relu"):
        if node in seen or not node.inputs or node.inputs[0] is None:
            break
        seen.add(node)
        value = node.inputs[0]
    return value


def _reads_bytes(dequantize: ir.Node) -> bool:
    """Whether it reads 8-bit integers, as far as its zero point or its input tell."""
    return _dtype(dequantize) in (ir.DataType.INT8, ir.DataType.UINT8, None)


def _is_signed(dequantize: ir.Node) -> bool:
    return _dtype(dequantize) == ir.DataType.INT8


def _dtype(dequantize: ir.Node) -> ir.DataType | None:
    zero_point = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    known = dequantize.inputs[0] if zero_point is None else zero_point
    stored = _constant(known)
    return known.dtype if stored is None else stored.dtype


def _is_cast(dequantize: ir.Node) -> bool:
    producer = dequantize.inputs[0].producer()
    return producer is not None and producer.op_type == "Cast"


def _is_depthwise(layer: ir.Node) -> bool:
    """Whether a convolution has one filter a channel, whose kernel adds up in 32 bits."""
    weight = _constant(dequantize_before(layer.inputs[1]).inputs[0])
    if layer.op_type != "Conv" or weight is None:
        return False
    group = layer.attributes.get_int("group", 1)
    return group > 1 and tuple(weight.shape)[:2] == (group, 1)


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value)


def _largest(dequantize: ir.Node) -> int:
    """The largest byte, counted from the smallest of its type, that an activation may be."""
    node = _before_moves(dequantize.inputs[0]).producer()
    if node is None or node.op_type != "Clip" or len(node.inputs) < 3 or node.inputs[2] is None:
        return _MAX_BYTE
    bound = _constant(node.inputs[2])
    if bound is None or bound.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return _MAX_BYTE
    numbers = bound.numpy()
    return int(numbers.reshape(())) - np.iinfo(numbers.dtype).min


def _channel_axis(layer: ir.Node) -> int:
    """The axis of a layer's weight that counts output channels."""
    if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0):
        return 0
    return -1


def _extreme_pairs(weight: np.ndarray, axis: int) -> tuple[int, int]:
    """The largest and the smallest sum of two weights of one output channel."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.int32)
    if rows.shape[1] < 2:
        return int(rows.max(initial=0)), int(rows.min(initial=0))
    ends = np.partition(rows, (1, -2), axis=1)
    return int((ends[:, -1] + ends[:, -2]).max()), int((ends[:, 0] + ends[:, 1]).min())
