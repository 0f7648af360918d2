"""Calibration: set every quantizer's range from images, then correct the biases."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.quantizer import Quantizer
from fxquant.ranges import RangeEstimator, search


@torch.no_grad()
def calibrate(
    student: GraphModule, images: Tensor, *, estimator: RangeEstimator = search, batch: int = 64
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
    student: GraphModule, name: str, quantizer: Quantizer, estimator: RangeEstimator
) -> None:
    layer = student.get_submodule(name.rpartition(".")[0])
    weight = layer.weight.transpose(0, quantizer.spec.channel_axis).flatten(1)
    quantizer.set_range(*estimator(weight, quantizer.spec))


@torch.no_grad()
def correct_biases(teacher: GraphModule, student: GraphModule, images: Tensor) -> int:
    """Shift each quantized layer's bias so that its outputs keep the teacher's channel means.

    The empirical form of bias correction (Nagel et al., Data-Free Quantization through Weight
    Equalization and Bias Correction, 2019, eq. 14): b += E[teacher] - E[student] per output
    channel on `images`, (n, channels, height, width), layer by layer, so that each sees what the
    corrected ones before it give. A layer that is called more than once, with different
    means, keeps its bias. Returns the number of biases shifted.
    """
    layers = _called_once(quantized_layers(student))
    means = _channel_means(teacher, {node.meta["twin"] for node in layers}, images)
    corrector = _BiasCorrector(student, layers, means)
    corrector.run(images)
    return corrector.corrected


def _called_once(layers: list[Node]) -> list[Node]:
    calls = Counter(node.meta["layer"] for node in layers)
    return [node for node in layers if calls[node.meta["layer"]] == 1]


def _channel_means(gm: GraphModule, names: set[str], images: Tensor) -> dict[str, Tensor]:
    means: dict[str, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if n.name in names:
                means[n.name] = _mean(value, n)
            return value

    Recorder(gm).run(images)
    return means


class _BiasCorrector(Interpreter):
    """Runs the student and corrects each layer before its result goes on."""

    def __init__(self, student: GraphModule, layers: list[Node], means: dict[str, Tensor]):
        super().__init__(student)
        self.layers, self.means, self.corrected = set(layers), means, 0

    def run_node(self, n: Node):
        value = super().run_node(n)
        if n not in self.layers:
            return value
        bias = _bias(self.module, n)
        target = self.means.get(n.meta["twin"])
        if bias is None or target is None:
            return value
        shift = target - _mean(value, n)
        bias += shift
        self.corrected += 1
        return value + shift.reshape(
            [-1 if i == _axis(value, n) else 1 for i in range(value.dim())]
        )


def _bias(module: nn.Module, node: Node) -> Tensor | None:
    argument = node.args[2]
    if argument is None:
        return None
    name, _, attribute = argument.target.rpartition(".")
    return getattr(module.get_submodule(name), attribute)


def _axis(value: Tensor, node: Node) -> int:
    """Channels are last after a linear layer, second after a convolution."""
    return value.dim() - 1 if node.target is torch.nn.functional.linear else 1


def _mean(value: Tensor, node: Node) -> Tensor:
    axis = _axis(value, node)
    return value.mean([i for i in range(value.dim()) if i != axis])
