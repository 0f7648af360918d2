"""Analytic bias correction: what rounding a weight adds to its layer's mean output is taken back.

Nagel et al., 2019, section 4.2 and appendix C: E[W_q x] - E[W x] = (W_q - W) E[x], with E[x] told
by the batch norm before the layer: a channel of mean beta and deviation gamma, taken for normal,
clipped to [a, b] has the mean
gamma (phi(A) - phi(B)) + beta (Phi(B) - Phi(A)) + a Phi(A) + b (1 - Phi(B)), with
A = (a - beta) / gamma and B = (b - beta) / gamma. No images are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import first_input, is_transposed, kind, limits, module_of, tensor_of
from fxquant.quantizer import Quantizer

# What fold_batchnorm leaves at the layer: beta and |gamma| of the batch norm that it absorbed.
BATCHNORM = "batchnorm"


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel of a value, double."""

    mean: Tensor
    variance: Tensor


@torch.no_grad()
def correct_biases(gm: GraphModule) -> int:
    """Correct the bias of each quantized layer of a calibrated student whose input is known.

    Known are values that batch norms folded into layers tell of, through ReLUs and clips, sums,
    average pooling and flattening of single positions. The number of layers corrected.
    """
    known: dict[Node, Moments] = {}
    for node in gm.graph.nodes:
        moments = _moments(node, known)
        if moments is not None:
            known[node] = moments
    layers = [node for node in gm.graph.nodes if node in set(quantized_layers(gm))]
    return sum(_correct(node, known.get(node.args[0])) for node in layers)


def _moments(node: Node, known: dict[Node, Moments]) -> Moments | None:
    """What is known of a node's value, from what is known of those that it reads."""
    if BATCHNORM in node.meta:
        mean, deviation = node.meta[BATCHNORM]
        return Moments(mean.double(), deviation.double().square())
    if kind(node) == "add":
        parts = [known.get(value) for value in node.args if isinstance(value, Node)]
        if len(parts) != 2 or None in parts or len({len(p.mean) for p in parts}) > 1:
            return None
        return Moments(sum(p.mean for p in parts), sum(p.variance for p in parts))
    source = known.get(first_input(node)) if node.args else None
    if source is None:
        return None
    if kind(node) in ("relu", "clip"):
        bounds = limits(node)
        return clipped(source, *bounds) if bounds else None
    if isinstance(module_of(node), Quantizer | Tap) or kind(node) == "average":
        return source if _keeps_channels(node, source) else None
    return source if _flattens_points(node) else None


def _keeps_channels(node: Node, source: Moments) -> bool:
    shape = node.meta.get("shape", ())
    return len(shape) in (2, 4) and shape[1] == len(source.mean)


def _flattens_points(node: Node) -> bool:
    """Whether a node only drops axes of size 1 behind the channels."""
    before, after = first_input(node).meta.get("shape"), node.meta.get("shape")
    return (
        kind(node) == "move"
        and before is not None
        and after is not None
        and len(after) == 2
        and tuple(before[:2]) == tuple(after)
        and math.prod(before[2:]) == 1
    )


def clipped(value: Moments, low: float, high: float) -> Moments:
    """Moments of normal values that are clipped to [low, high], which may be infinite."""
    mean, deviation = value.mean, value.variance.sqrt().clamp(min=1e-12)
    normal = torch.distributions.Normal(0.0, 1.0)
    a, b = (low - mean) / deviation, (high - mean) / deviation
    below, above = normal.cdf(a), 1 - normal.cdf(b)
    inside = 1 - below - above
    left, right = normal.log_prob(a).exp(), normal.log_prob(b).exp()
    first = mean * inside + deviation * (left - right)
    ends_left = torch.where(a.isfinite(), a, 0) * left
    ends_right = torch.where(b.isfinite(), b, 0) * right
    # Second moment: E[x^2; inside] = (m^2 + s^2) P + 2 m s (phi(a) - phi(b)) + s^2 (a phi(a) - ...)
    second = (mean.square() + deviation.square()) * inside
    second = second + 2 * mean * deviation * (left - right)
    second = second + deviation.square() * (ends_left - ends_right)
    for end, share in ((low, below), (high, above)):
        if math.isfinite(end):
            first, second = first + end * share, second + end**2 * share
    return Moments(first, (second - first.square()).clamp(min=0))


def _correct(layer: Node, moments: Moments | None) -> int:
    """b -= (W_q - W) E[x], summed over the places of a kernel: borders count as the middle does."""
    if moments is None or layer.args[2] is None or is_transposed(layer):
        return 0
    weight, quantizer = tensor_of(layer.args[1].args[0]), module_of(layer.args[1])
    error = (quantizer(weight) - weight).double()
    error = error.flatten(2).sum(2) if error.dim() > 2 else error
    groups = 1 if kind(layer) == "linear" else layer.args[6]
    if len(moments.mean) != groups * error.shape[1]:
        return 0
    rows = error.reshape(groups, len(error) // groups, -1)
    shift = (rows @ moments.mean.reshape(groups, -1, 1)).flatten()
    tensor_of(layer.args[2]).sub_(shift)
    return 1
