"""Calibration of a whole student, and the adjustment of its weights and biases."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import ALL, settle_batchnorm
from torch import Tensor, nn

from fxquant.calibration import adjust_layers, calibrate
from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.prepare import Prepared, prepare
from fxquant.quantizer import Quantizer
from fxquant.ranges import min_max, search
from fxquant.report.closeness import measure_closeness
from fxquant.spec import QConfig


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def prepared(name: str, bits: int = 4, **options) -> Prepared:
    return prepare(ALL[name](), QConfig(bits, bits, **options), (3, 16, 16))


def quantizers(student: nn.Module) -> dict[str, Quantizer]:
    return {n: m for n, m in student.named_modules() if isinstance(m, Quantizer)}


@pytest.mark.parametrize("name", ALL)
def test_calibrate_enables_every_quantizer_and_keeps_the_function(name):
    p = prepared(name, bits=8)
    calibrate(p.student, images(), estimator=min_max)
    assert all(q.enabled for q in quantizers(p.student).values())
    assert all(not torch.all(q.log_scale == 0) for q in quantizers(p.student).values())
    assert measure_closeness(p.teacher, p.student, images()).output_sqnr > 25


def test_ranges_are_those_of_the_float_network():
    p = prepared("residual", bits=2, sum_bits=2)
    calibrate(p.student, images(), estimator=min_max, batch=7)
    seen = {}
    expected = quantizers(p.student)["activation_quantizers.relu_2"]
    module = p.teacher.feature_taps.feature0
    module.register_forward_hook(lambda _, args, out: seen.update(high=out.max()))
    p.teacher(images())
    assert module.name == "relu_2"
    assert abs(expected.scale.item() - seen["high"].item() / 3) < 1e-5


def test_weights_are_calibrated_channel_by_channel():
    p = prepared("plain")
    calibrate(p.student, images())
    layer = p.student.get_submodule("features.4")
    spec = layer.weight_quantizer.spec
    low, high = search(layer.weight.flatten(1), spec)
    expected = torch.maximum(low / spec.qmin, high / spec.qmax)
    assert (layer.weight_quantizer.scale - expected).abs().max() < 1e-6


def test_a_second_calibration_changes_nothing():
    p = prepared("repeated_conv")
    calibrate(p.student, images())
    before = copy.deepcopy(p.student.state_dict())
    calibrate(p.student, images())
    after = p.student.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["residual", "concat", "shared_relu"])
def test_an_input_reach_widens_the_range_of_the_input_alone(name):
    """Pictures of a brightness that no image had must not be cut off."""
    narrow, wide = prepared(name), prepared(name)
    dull = images().clamp(-0.5, 0.5)
    calibrate(narrow.student, dull)
    calibrate(wide.student, dull, input_reach=4.0)
    before, after = quantizers(narrow.student), quantizers(wide.student)
    changed = [n for n, q in after.items() if not torch.equal(q.scale, before[n].scale)]
    (name,) = changed
    ends = (torch.tensor([0.0, 255.0]) - after[name].zero_point) * after[name].scale
    reach = 4 * dull.std()
    assert ends[0] < dull.mean() - 0.98 * reach
    assert ends[1] > dull.mean() + 0.98 * reach


class ScalesItsInput(nn.Module):
    """Takes pixels from 0 to 1 and brings them to a mean and a deviation itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1))

    def forward(self, x):
        return self.layers((x - self.mean) / 0.25)


def test_an_input_reach_widens_what_a_network_makes_of_its_input():
    p = prepare(ScalesItsInput(), QConfig(4, 4), (3, 16, 16))
    dull = images().clamp(-0.1, 0.1) + 0.5
    calibrate(p.student, dull)
    before = {name: quantizer.scale for name, quantizer in quantizers(p.student).items()}
    calibrate(p.student, dull, input_reach=12.0)
    after = quantizers(p.student)
    changed = [name for name, q in after.items() if not torch.equal(q.scale, before[name])]
    assert changed == ["activation_quantizers.truediv"]
    scaled = (dull - p.student.mean) / 0.25
    assert 255 * after[changed[0]].scale > 1.9 * 12 * scaled.std()


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "concat", "shared_relu"])
def test_corrected_biases_keep_the_teachers_channel_means(name):
    p, x = prepared(name, bits=3), images()
    calibrate(p.student, x, estimator=min_max)
    assert channel_shift(p, x) > 0.01
    weights = {n: p.clone() for n, p in p.student.named_parameters() if n.endswith("weight")}
    assert adjust_layers(p.teacher, p.student, x, weights=False) == len(quantized_layers(p.student))
    assert channel_shift(p, x) < 1e-4
    assert all(torch.equal(p.student.get_parameter(n), weight) for n, weight in weights.items())


def channel_shift(p: Prepared, x: Tensor) -> float:
    """The largest difference of a channel's mean at a layer's output, teacher against student."""
    teacher, student = values(p.teacher, x), values(p.student, x)
    layers = [n for n in quantized_layers(p.student) if n.args[2] is not None]
    return max(
        (mean(student[n.name]) - mean(teacher[n.meta["twin"]])).abs().max().item() for n in layers
    )


def mean(value: Tensor) -> Tensor:
    return value.mean([i for i in range(value.dim()) if i != 1])


def values(gm: torch.fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    found = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Recorder(gm).run(x)
    return found


class RepeatedConvWithBias(nn.Module):
    """One convolution with a bias, called twice: no one shift fits both calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.conv(F.relu(self.conv(x))))
        return self.head(x.mean((2, 3)))


def test_a_layer_that_is_called_twice_is_left_as_it_is():
    p = prepare(settle_batchnorm(RepeatedConvWithBias()), QConfig(3, 3), (3, 16, 16))
    calibrate(p.student, images(), estimator=min_max)
    before = copy.deepcopy(p.student.conv.state_dict())
    assert adjust_layers(p.teacher, p.student, images()) == 2
    assert all(torch.equal(v, before[k]) for k, v in p.student.conv.state_dict().items())


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "plain", "pre_activation"])
def test_adjusted_weights_lie_on_the_grid_and_bring_the_output_closer(name):
    p, x = prepare(ALL[name](), QConfig(3, 8), (3, 16, 16)), images(64)
    calibrate(p.student, x, estimator=min_max)
    before = measure_closeness(p.teacher, p.student, x).output_sqnr
    biases = {n: p.clone() for n, p in p.student.named_parameters() if n.endswith("bias")}
    assert adjust_layers(p.teacher, p.student, x, biases=False) == len(quantized_layers(p.student))
    for node in quantized_layers(p.student):
        layer = p.student.get_submodule(node.meta["layer"])
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)
    assert all(torch.equal(p.student.get_parameter(n), bias) for n, bias in biases.items())
    assert measure_closeness(p.teacher, p.student, x).output_sqnr > before + 2
