"""Turn a float clip before QuantizeLinear into a clip of its integers, which kernels can fuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import scalar
from fxquant.exporters.grids import only_reader

_CLIPS = ("Clip", "Max", "Min", "Relu")


def fold_clips(model: ir.Model) -> int:
    """Fold each float Clip, Max, Min or ReLU that only one QuantizeLinear reads; the number folded.

    Rounding keeps order, so quantize(clip(x, a, b)) = clip(quantize(x), quantize(a),
    quantize(b)) exactly. With the Clip of a ReLU6 in between, ONNX Runtime would leave the
    convolution before it in floating point, and so with a ReLU where the zero point is not the
    smallest number. A Clip of a value that has just been dequantized
    stays: without it ONNX Runtime would merge the two quantizers into one with a new scale.
    """
    folded = 0
    for clip in [node for node in model.graph if node.op_type in _CLIPS]:
        quantize = only_reader(clip, "QuantizeLinear")
        value, bounds = _float_bounds(clip)
        if quantize is None or bounds is None or _is_dequantized(value):
            continue
        limits = _grid_limits(quantize)
        if clip.op_type == "Relu" and quantize.inputs[2].const_value.numpy() == limits.min:
            continue
        low, high = (_quantize(bound, quantize, limits) for bound in bounds)
        quantize.replace_input_with(0, value)
        _tighten(model.graph, quantize, low, high, limits)
        model.graph.remove(clip, safe=True)
        folded += 1
    return folded


def _is_dequantized(value: ir.Value) -> bool:
    return value.producer() is not None and value.producer().op_type == "DequantizeLinear"


def _float_bounds(clip: ir.Node) -> tuple[ir.Value, tuple[float, float] | None]:
    """What is clipped, and its bounds; None for these where they are no float constants."""
    value, limits = clip.inputs[0], list(clip.inputs[1:])
    if clip.op_type in ("Max", "Min"):
        if len(clip.inputs) != 2:
            return value, None
        # Of two operands that may come in either order, with one bound.
        value, limit = sorted(clip.inputs, key=lambda v: v.const_value is not None)
        if limit.const_value is None or limit.const_value.size != 1:
            return value, None
        limits = [limit] if clip.op_type == "Max" else [None, limit]
    bounds = [0.0 if clip.op_type == "Relu" else -np.inf, np.inf]
    for i, limit in enumerate(limits):
        if limit is not None:
            if limit.const_value is None or limit.const_value.dtype != ir.DataType.FLOAT:
                return value, None
            bounds[i] = float(limit.const_value.numpy().reshape(()))
    return value, (bounds[0], bounds[1])


def _grid_limits(quantize: ir.Node) -> np.iinfo:
    return np.iinfo(quantize.inputs[2].const_value.dtype.numpy())


def _quantize(x: float, quantize: ir.Node, limits: np.iinfo) -> int:
    scale, zero_point = (value.const_value.numpy() for value in quantize.inputs[1:3])
    q = np.rint(np.float32(x) / scale) + np.float32(zero_point)
    return int(np.clip(q, limits.min, limits.max))


def _tighten(graph: ir.Graph, quantize: ir.Node, low: int, high: int, limits: np.iinfo) -> None:
    """Clip the integers of `quantize` to [low, high], in the Clip that follows or a new one."""
    clip = only_reader(quantize, "Clip")
    if clip is not None:
        low = max(low, _bound(clip, 1, limits.min))
        high = min(high, _bound(clip, 2, limits.max))
        clip.outputs[0].replace_all_uses_with(quantize.outputs[0])
        graph.remove(clip, safe=True)
    if (low, high) == (limits.min, limits.max):
        return
    ends = [
        None if value == end else scalar(graph, limits.dtype.type(value))
        for value, end in ((low, limits.min), (high, limits.max))
    ]
    new = ir.node("Clip", [quantize.outputs[0], *ends])
    quantize.outputs[0].replace_all_uses_with(new.outputs[0])
    new.replace_input_with(0, quantize.outputs[0])
    graph.insert_after(quantize, new)


def _bound(clip: ir.Node, index: int, default: int) -> int:
    value = clip.inputs[index] if len(clip.inputs) > index else None
    return default if value is None else int(value.const_value.numpy())
