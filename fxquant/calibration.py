"""Calibration: set every quantizer's range from images, then adjust weights and biases."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.graph.insert_quantizers import READS_INPUT, quantized_layers
from fxquant.graph.ops import module_of, tensor_of
from fxquant.graph.regions import all_nodes, interpreted, value_name
from fxquant.inputs import Inputs, as_inputs, split
from fxquant.quantizer import Quantizer
from fxquant.ranges import RangeEstimator, reaching, search
from fxquant.rounding import round_layer

# Images are adjusted on in one batch: as many as 83 of 224 x 224 keep that within some gigabytes.
MOST_ADJUSTED_PIXELS = 1 << 22


@torch.no_grad()
def calibrate(
    student: nn.Module,
    images: Inputs,
    *,
    estimator: RangeEstimator = search,
    input_reach: float = 0.0,
    batch: int = 64,
) -> None:
    """Set the scale and zero point of each quantizer of `student`, in place.

    Ranges are those of the float network on `images`, (n, channels, height, width), or one such
    tensor for each input of the model, so a second call on the same images and weights changes
    nothing. With an `input_reach` what the first layer reads, the network's input as it is or as
    the network scales it itself, has another range, whatever the estimator: all of its values on
    `images`, and at least so many standard deviations on each side of their mean. Generated images
    need not reach as far as real ones, and what is cut off there no layer gets back.
    """
    quantizers = [m for m in student.modules() if isinstance(m, Quantizer)]
    weights = {
        module_of(n.args[1]): tensor_of(n.args[1].args[0]) for n in quantized_layers(student)
    }
    for quantizer in quantizers:
        quantizer.enabled = False
    for quantizer in quantizers:
        if quantizer in weights:
            _calibrate_weight(weights[quantizer], quantizer, estimator)
            quantizer.enabled = False
        else:
            quantizer.observe()
    for part in split(images, batch):
        student(*part)
    inputs = _input_quantizers(student) if input_reach else set()
    reach = partial(reaching, deviations=input_reach)
    for quantizer in quantizers:
        quantizer.calibrate(reach if quantizer in inputs else estimator)
        quantizer.enabled = True


def _input_quantizers(student: nn.Module) -> set[Quantizer]:
    """Those of what the whole network reads, as it is or as the network scales it first."""
    return {module_of(node) for node in all_nodes(student) if node.meta.get(READS_INPUT)}


def _calibrate_weight(weight: Tensor, quantizer: Quantizer, estimator: RangeEstimator) -> None:
    axis = quantizer.spec.channel_axis
    rows = weight.reshape(1, -1) if axis is None else weight.transpose(0, axis).flatten(1)
    quantizer.set_range(*estimator(rows, quantizer.spec))


@torch.no_grad()
def adjust_layers(
    teacher: nn.Module,
    student: nn.Module,
    images: Inputs,
    *,
    weights: bool = True,
    biases: bool = True,
) -> int:
    """Make each quantized layer's output closer to the teacher's, in closed form and in place.

    `weights`: they are rounded so that the layer's output on `images`, (n, channels, height,
    width), or one such tensor for each input, stays close (`fxquant.rounding`), and then lie on
    the grid; where there is no rule for a kind of layer its weights stay. `biases`: the empirical
    bias correction of Nagel et al. (Data-Free Quantization through Weight Equalization and Bias
    Correction, 2019, eq. 14), b += E[teacher] - E[student] per output channel. Layers are
    adjusted in order, so that each sees what the adjusted ones before it give. Returns how many
    were. A layer that is called more than once, by itself or with what it is a part of, is left
    as it is.
    """
    pixels = max(math.prod(x.shape[2:]) for x in as_inputs(images))
    images = tuple(x[: max(1, MOST_ADJUSTED_PIXELS // pixels)] for x in as_inputs(images))
    layers = quantized_layers(student)
    axes = {value_name(node): _channels_last(node) for node in layers}
    means = _channel_means(teacher, axes, images)
    calls = Counter(id(module_of(node.args[1])) for node in layers)
    once = {
        node
        for node in layers
        if calls[id(module_of(node.args[1]))] == 1 and value_name(node) in means
    }
    make = partial(_LayerAdjuster, layers=once, means=means, weights=weights, biases=biases)
    with interpreted(student, make) as adjusters:
        student(*images)
    return sum(adjuster.adjusted for adjuster in adjusters)


def _channel_means(
    model: nn.Module, channels_last: dict[str, bool], images: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Mean of each named value by channel, of those that one call of the model computes once."""
    means: dict[str, Tensor] = {}
    seen: Counter = Counter()

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            name = value_name(n)
            if name in channels_last:
                seen[name] += 1
                means[name] = _mean(value, channels_last[name])
            return value

    with interpreted(model, Recorder):
        model(*images)
    return {name: mean for name, mean in means.items() if seen[name] == 1}


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
            last = _channels_last(n)
            shift = self.means[value_name(n)] - _mean(value, last)
            tensor_of(n.args[2]).add_(shift)
            places = [-1 if i == _axis(value, last) else 1 for i in range(value.dim())]
            value = value + shift.reshape(places)
        self.adjusted += 1
        return value

    def _round(self, n: Node) -> None:
        """Round the layer's weight for the input that it gets, where there is a rule for it."""
        if n.target not in (F.linear, F.conv2d) or "same" in n.args:
            return
        weight = tensor_of(n.args[1].args[0])
        quantizer = self.module.get_submodule(n.args[1].target)
        weight.copy_(round_layer(n, self.env[n.args[0]], weight, quantizer))
        self.env[n.args[1]] = quantizer(weight)


def _channels_last(layer: Node) -> bool:
    """Whether a layer's output has its channels last, as those of linear layers, or second."""
    return layer.target is F.linear


def _axis(value: Tensor, channels_last: bool) -> int:
    return value.dim() - 1 if channels_last else 1


def _mean(value: Tensor, channels_last: bool) -> Tensor:
    axis = _axis(value, channels_last)
    return value.mean([i for i in range(value.dim()) if i != axis])
