"""Round a layer's weights so that its output, not each weight, stays close."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fxquant.numerics import fake_quantize
from fxquant.quantizer import Quantizer

# Share of the mean curvature that is added to each direction: inputs that were hardly seen
# must not be trusted to absorb errors.
DAMPING = 0.01
BLOCK = 128
# A gigabyte of float32.
MOST_PATCH_VALUES = 1 << 28
# Inputs of a layer that are weighed against each other, 512 channels of 3 x 3: a square of so many
# doubles is 170 MB, and rounding holds a handful of them.
MOST_INPUTS = 4608


def round_layer(layer: Node, x: Tensor, weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Grid values for the weight of a layer that reads `x`, with little change of its output.

    Arguments are those of `input_curvature`. A layer of more than MOST_INPUTS inputs per output is
    rounded part by part, each as if the others were exact.
    """
    groups = 1 if layer.target is F.linear else layer.args[6]
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    rounded = []
    for start in range(0, rows.shape[2], MOST_INPUTS):
        part = slice(start, start + MOST_INPUTS)
        curvature = input_curvature(layer, x, weight, part)
        rounded.append(round_weights(rows[:, :, part], curvature, quantizer))
    return torch.cat(rounded, 2).reshape(weight.shape)


def input_curvature(layer: Node, x: Tensor, weight: Tensor, part: slice = slice(None)) -> Tensor:
    """E[u u^T] of the inputs u that each output of a layer reads, (groups, k, k), k = fan-in.

    Of those inputs, in the order of the weight's, `part` counts alone.

    `layer` is a call of F.linear or F.conv2d with (x, weight, bias, stride, padding, dilation,
    groups); `x` its input, (n, channels, height, width) or (n, ..., features).
    """
    if layer.target is F.linear:
        rows = x.reshape(1, -1, x.shape[-1])[:, :, part].double()
        return rows.transpose(1, 2) @ rows / rows.shape[1]
    total, count = 0, 0
    for images in x.split(_images_at_once(x, weight)):
        columns = _patches(layer, images, weight)[:, part]
        total = total + (columns @ columns.transpose(1, 2)).double()
        count += columns.shape[2]
    return total / count


def _patches(layer: Node, x: Tensor, weight: Tensor) -> Tensor:
    """The patches that a convolution reads from `x` as columns, (groups, k, n * positions)."""
    stride, padding, dilation, groups = layer.args[3:7]
    columns = F.unfold(x, weight.shape[2:], dilation, padding, stride)
    n, _, places = columns.shape
    columns = columns.reshape(n, groups, -1, places).transpose(0, 1)
    return columns.transpose(1, 2).reshape(groups, -1, n * places)


def _images_at_once(x: Tensor, weight: Tensor) -> int:
    """How many images' patches fit into MOST_PATCH_VALUES."""
    patch_values = x[0].numel() * math.prod(weight.shape[2:])
    return max(1, MOST_PATCH_VALUES // patch_values)


def round_weights(weight: Tensor, curvature: Tensor, quantizer: Quantizer) -> Tensor:
    """Grid values W' of `weight`, (groups, outputs, k), with little E|(W - W') u|^2.

    Columns are rounded one after the other, and what rounding one adds to the output is taken
    back by those not yet rounded: optimal brain quantization in GPTQ's order (Frantar et al.,
    2023, eq. 2 and 3), with U the upper Cholesky factor of the inverse of `curvature`,
    (groups, k, k).
    """
    groups, outputs, k = weight.shape
    if not bool(curvature.isfinite().all()):  # inputs whose squares overflow say nothing
        return quantizer(weight.reshape(-1, k)).reshape(weight.shape)
    order = curvature.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    upper = _inverse_factor(curvature, order).to(weight.dtype)
    rest = weight.gather(2, order[:, None].expand_as(weight)).clone()
    scale = quantizer.scale.detach().expand(groups * outputs).reshape(groups, outputs)
    spec, zero = quantizer.spec, torch.zeros((), device=weight.device)
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        errors = torch.empty_like(rest[:, :, start:end])
        for i in range(start, end):
            column = rest[:, :, i].clone()
            rounded = fake_quantize(column, scale, zero, spec.qmin, spec.qmax)
            error = (column - rounded) / upper[:, i, i, None]
            rest[:, :, i:end] -= error[:, :, None] * upper[:, None, i, i:end]
            rest[:, :, i] = rounded
            errors[:, :, i - start] = error
        rest[:, :, end:] -= errors @ upper[:, start:end, end:]
    return torch.empty_like(rest).scatter_(2, order[:, None].expand_as(rest), rest)


def _inverse_factor(curvature: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped, reordered curvature.

    The curvature counts up to a factor; one near 1 keeps the inverse of tiny ones finite.
    """
    mean = curvature.diagonal(dim1=1, dim2=2).mean(1)
    factor = torch.ldexp(torch.ones_like(mean), mean.frexp().exponent // 2 * 2)
    curvature, mean = curvature / factor[:, None, None], mean / factor
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    damping = torch.where(mean > 0, DAMPING * mean, 1.0)
    h = curvature + torch.diag_embed(damping[:, None].expand_as(diagonal))
    h = h.gather(1, order[:, :, None].expand_as(h)).gather(2, order[:, None].expand_as(h))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)
