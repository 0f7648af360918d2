"""Calibration: set every quantizer's range from images, then adjust weights and biases."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.regions import interpreted, value_name
from fxquant.quantizer import Quantizer
from fxquant.ranges import RangeEstimator, search
from fxquant.rounding import input_curvature, round_weights

# Images are adjusted on in one batch: as many as 83 of 224 x 224 keep that within some gigabytes.
MOST_ADJUSTED_PIXELS = 1 << 22


@torch.no_grad()
def calibrate(
    student: nn.Module, images: Tensor, *, estimator: RangeEstimator = search, batch: int = 64
) -> None:
    """Set the scale and zero point of each quantizer of `student`, in place.

    Ranges are those of the float network on `images`, (n, channels, height, width), so a second
    call on the same images and weights changes nothing.
    """
    quantizers = [m for m in student.modules() if isinstance(m, Quantizer)]
    for quantizer in quantizers:
        quantizer.enabled = False
    for name, module in student.named_modules():
        if isinstance(module, Quantizer) and module.spec.channel_axis is not None:
            _calibrate_weight(student, name, module, estimator)
            module.enabled = False
        elif isinstance(module, Quantizer):
            module.observe()
    for part in images.split(batch):
        student(part)
    for quantizer in quantizers:
        quantizer.calibrate(estimator)
        quantizer.enabled = True


def _calibrate_weight(
    student: nn.Module, name: str, quantizer: Quantizer, estimator: RangeEstimator
) -> None:
    layer = student.get_submodule(name.rpartition(".")[0])
    weight = layer.weight.transpose(0, quantizer.spec.channel_axis).flatten(1)
    quantizer.set_range(*estimator(weight, quantizer.spec))


@torch.no_grad()
def adjust_layers(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    *,
    weights: bool = True,
    biases: bool = True,
) -> int:
    """Make each quantized layer's output closer to the teacher's, in closed form and in place.

    `weights`: they are rounded so that the layer's output on `images`, (n, channels, height,
    width), stays close (`fxquant.rounding`), and then lie on the grid. `biases`: the empirical
    bias correction of Nagel et al. (Data-Free Quantization through Weight Equalization and Bias
    Correction, 2019, eq. 14), b += E[teacher] - E[student] per output channel. Layers are
    adjusted in order, so that each sees what the adjusted ones before it give. Returns how many
    were. A layer that is called more than once is left as it is.
    """
    images = images[: max(1, MOST_ADJUSTED_PIXELS // math.prod(images.shape[2:]))]
    layers = quantized_layers(student)
    means = _channel_means(teacher, {value_name(node) for node in layers}, images)
    calls = Counter(id(module_of(node.args[1])) for node in layers)
    once = {node for node in layers if calls[id(module_of(node.args[1]))] == 1}
    make = partial(_LayerAdjuster, layers=once, means=means, weights=weights, biases=biases)
    with interpreted(student, make) as adjusters:
        student(images)
    return sum(adjuster.adjusted for adjuster in adjusters)


def _channel_means(model: nn.Module, names: set[str], images: Tensor) -> dict[str, Tensor]:
    means: dict[str, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if value_name(n) in names:
                means[value_name(n)] = _mean(value, n)
            return value

    with interpreted(model, Recorder):
        model(images)
    return means


class _LayerAdjuster(Interpreter):
    """Runs a region of the student and adjusts each layer before its result goes on."""

    def __init__(
        self,
        region: GraphModule,
        layers: set[Node],
        means: dict[str, Tensor],
        weights: bool,
        biases: bool,
    ):
        super().__init__(region)
        self.layers, self.means, self.adjusted = layers, means, 0
        self.weights, self.biases = weights, biases

    def run_node(self, n: Node):
        if n not in self.layers:
            return super().run_node(n)
        if self.weights:
            self._round(n)
        value = super().run_node(n)
        if self.biases and n.args[2] is not None:
            shift = self.means[value_name(n)] - _mean(value, n)
            _attribute(self.module, n.args[2]).add_(shift)
            places = [-1 if i == _axis(value, n) else 1 for i in range(value.dim())]
            value = value + shift.reshape(places)
        self.adjusted += 1
        return value

    def _round(self, n: Node) -> None:
        """Round the layer's weight for the input that it gets, where there is a rule for it."""
        if n.target not in (F.linear, F.conv2d) or "same" in n.args:
            return
        weight = _attribute(self.module, n.args[1].args[0])
        quantizer = self.module.get_submodule(n.args[1].target)
        curvature = input_curvature(n, self.env[n.args[0]], weight)
        grouped = weight.reshape(len(curvature), -1, curvature.shape[-1])
        rounded = round_weights(grouped, curvature, quantizer).reshape(weight.shape)
        weight.copy_(rounded)
        self.env[n.args[1]] = quantizer(weight)


def _attribute(module: GraphModule, node: Node) -> Tensor:
    """The parameter that a get_attr node reads."""
    owner, _, name = node.target.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _axis(value: Tensor, node: Node) -> int:
    """Channels are last after a linear layer, second after a convolution."""
    return value.dim() - 1 if node.target is F.linear else 1


def _mean(value: Tensor, node: Node) -> Tensor:
    axis = _axis(value, node)
    return value.mean([i for i in range(value.dim()) if i != axis])
