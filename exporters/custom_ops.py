"""The two torch ops of a frozen student, which the exporter translates to ONNX one to one.

Each is a plain function as well, for programs that have to do without the op.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant import numerics


def quantize_dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None
) -> Tensor:
    """Round `x` to its grid: QuantizeLinear, a clip to [qmin, qmax], DequantizeLinear.

    `zero_point` is of the integer type that holds the grid; `axis` is the axis of `x` along which
    `scale` and `zero_point` run, None where they are scalars.
    """
    scale, offset = _along(scale, x, axis), _along(zero_point.float(), x, axis)
    return numerics.dequantize(numerics.quantize(x, scale, offset, qmin, qmax), scale, offset)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None) -> Tensor:
    """Real values, float32, of integers: DequantizeLinear; without a zero point it is 0."""
    scale = _along(scale, q, axis)
    offset = torch.zeros_like(scale) if zero_point is None else _along(zero_point.float(), q, axis)
    return numerics.dequantize(q.float(), scale, offset)


_quantize_dequantize = torch.library.custom_op(
    "fxquant::quantize_dequantize", quantize_dequantize, mutates_args=()
)
_dequantize = torch.library.custom_op("fxquant::dequantize", dequantize, mutates_args=())


@_quantize_dequantize.register_fake
def _(x, scale, zero_point, qmin, qmax, axis):
    return torch.empty_like(x)


@_dequantize.register_fake
def _(q, scale, zero_point, axis):
    return torch.empty_like(q, dtype=torch.float32)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    return (
        values if axis is None else values.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    )


# The ops as graphs name them.
QUANTIZE_DEQUANTIZE = torch.ops.fxquant.quantize_dequantize.default
DEQUANTIZE = torch.ops.fxquant.dequantize.default
