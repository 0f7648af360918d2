"""The arithmetic of quantization as pure functions. Rounding is half to even, after a division."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integer grid values of `x`: `clamp(round(x / scale) + zero_point, qmin, qmax)`.

    Bit-equal to ONNX's QuantizeLinear. `scale` and `zero_point` broadcast against `x`.
    """
    return torch.clamp(torch.round(x / scale) + zero_point, qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of grid values: `(q - zero_point) * scale`, as ONNX's DequantizeLinear."""
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """`dequantize(quantize(x))`, differentiable in `x` and `scale`.

    Rounding is passed straight through: with v = x / scale and q = round(v) clamped,
    dy/dx = 1 inside the range and 0 outside; dy/dscale = q - v inside and q outside
    (Esser et al., Learned Step Size Quantization, 2020, eq. 3). `scale` and `zero_point` have
    a shape that broadcasts against `x`; the result has x's shape.
    """
    return _FakeQuantize.apply(x, scale, qmin - zero_point, qmax - zero_point)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization in five passes over memory, with the gradient worked out by hand.

    Only `x` is kept, which what gave it has often kept already: to compute its place on the grid
    once more costs less than to write masks and slopes down and read them again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, low, high)
        # Bounds are integers, so clamping before or after rounding gives the same.
        return _clamp(x / scale, low, high).round_().mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, scale, low, high = ctx.saved_tensors
        ratio = x / scale
        clamped = _clamp(ratio, low, high)
        outside = ratio.sub_(clamped).sgn_().square_()  # 0 or 1; a ratio may be infinite
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addcmul(grad, grad, outside, value=-1)
        if ctx.needs_input_grad[1]:
            slope = (clamped.round() - clamped).addcmul_(clamped, outside)
            grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
        return grad_x, grad_scale, None, None


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`torch.clamp`, which with tensors for bounds is several times slower on a CPU than this."""
    if x.device.type != "cpu":
        return torch.clamp(x, low, high)
    y = torch.minimum(x, high)
    return torch.maximum(y, low, out=y)


def scale_and_zero_point(
    low: Tensor, high: Tensor, qmin: int, qmax: int, *, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of a grid that covers [low, high] and holds zero exactly.

    Asymmetric (Li et al., 2022, eq. 1): scale = (high - low) / (qmax - qmin). Symmetric: the
    larger of |low| / |qmin| and high / qmax, zero point 0. The scale is positive and normal even
    for an empty range, so that a constant zero stays zero.
    """
    half = torch.finfo(low.dtype).max / 2  # so that high - low is a number
    low, high = low.clamp(-half, 0), high.clamp(0, half)
    smallest = torch.finfo(low.dtype).tiny * 2**20
    if symmetric:
        scale = torch.maximum(low / qmin, high / qmax).clamp(min=smallest)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (qmax - qmin)).clamp(min=smallest)
    return scale, torch.clamp(torch.round(qmin - low / scale), qmin, qmax)
