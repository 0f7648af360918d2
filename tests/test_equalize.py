"""Equalization and bias absorption: what a network computes stays, ranges come together."""

from __future__ import annotations

import logging

import pytest
import torch
from nets import ALL
from small_runs import SHAPE, snapshot
from torch import Tensor, nn

from fxquant.calibration import adjust_layers, calibrate
from fxquant.errors import SettingError
from fxquant.graph.absorb_biases import absorb_biases
from fxquant.graph.equalize import equalize
from fxquant.graph.forms.passes import one_form, plain_copy
from fxquant.graph.insert_taps import BN_TAPS, record
from fxquant.graph.passes import run_passes
from fxquant.graph.prepare import prepare
from fxquant.graph.trace import trace
from fxquant.spec import QConfig


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, with channels of very different ranges."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        wide = 12
        self.body = nn.Sequential(
            *(nn.Conv2d(3, wide, 1, bias=False), nn.BatchNorm2d(wide), activation()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), activation()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(wide, 8, 1, groups=2), activation()),
            nn.Conv2d(8, 6, 1),
        )
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def separable(activation: type[nn.Module] = nn.ReLU) -> Separable:
    torch.manual_seed(0)
    net = Separable(activation)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.bias, -1, 4)
            nn.init.uniform_(module.weight, 0.05, 1)
        elif hasattr(module, "weight"):
            shape = [-1] + [1] * (module.weight.dim() - 1)
            module.weight.data *= torch.logspace(-1.5, 1, len(module.weight)).reshape(shape)
    return net.eval()


def images(count: int = 32) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def graph_of(net: nn.Module):
    model = trace(plain_copy(net), SHAPE).model
    run_passes(model, one_form({}))
    return model


def distance(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs().max() / other.abs().max()).detach())


@torch.no_grad()
def mean_error(student: nn.Module, net: nn.Module) -> float:
    return float((student(images()) - net(images())).square().mean())


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "concat", "shared_relu"])
def test_any_network_computes_what_it_did(name):
    model = graph_of(ALL[name]())
    before = model(images())
    run_passes(model, [("equalize", equalize)])
    assert distance(model(images()), before) < 1e-5


def test_channels_of_a_chain_have_like_ranges():
    model = graph_of(separable())
    before = model(images())
    assert equalize(model) == 4
    assert distance(model(images()), before) < 1e-5
    second, third = model.get_submodule("body.7"), model.get_submodule("body.9")
    writes = second.weight.abs().amax((1, 2, 3))
    reads = third.weight.abs().amax((0, 2, 3))
    assert torch.allclose(writes, reads, rtol=1e-2)
    state = snapshot(model)
    equalize(model)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, state[name], rtol=2e-2, atol=1e-6), name


def test_a_limit_between_layers_is_a_reason(caplog):
    model = graph_of(separable(nn.ReLU6))
    with caplog.at_level(logging.INFO):
        assert equalize(model) == 1
    assert "limits what is between them" in caplog.text


def test_dead_channels_stay():
    net = separable()
    with torch.no_grad():
        net.body[7].weight[3] = 0
        net.body[7].bias[3] = 0
        net.body[9].weight[:, 5] = 0
    model = graph_of(net)
    before = model(images())
    equalize(model)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert distance(model(images()), before) < 1e-5


def test_teacher_and_student_are_equalized_alike():
    net = separable()
    plain = prepare(net, QConfig(8, 8), SHAPE)
    moved = prepare(net, QConfig(8, 8, equalize=True), SHAPE)
    assert moved.rewrites["equalize"] == 4
    assert "equalize" not in plain.rewrites
    assert distance(moved.teacher(images()), net(images())) < 1e-5
    assert distance(moved.student(images()), net(images())) < 1e-4
    with record(plain.teacher, BN_TAPS) as before, record(moved.teacher, BN_TAPS) as after:
        plain.teacher(images())
        moved.teacher(images())
    first = next(iter(before))
    assert torch.equal(before[first], after[first])


def test_it_helps_weights_of_one_scale():
    net = separable()
    errors = {}
    for on in (False, True):
        config = QConfig(4, 8, per_tensor_weights=True, equalize=on)
        p = prepare(net, config, SHAPE)
        weights = [m for n, m in p.student.named_modules() if n.endswith("weight_quantizer")]
        assert all(m.log_scale.shape == () for m in weights)
        calibrate(p.student, images())
        errors[on] = mean_error(p.student, net)
        adjust_layers(p.teacher, p.student, images())
        assert mean_error(p.student, net) <= errors[on]
    assert errors[True] < errors[False] / 1.5


def test_settings_of_both():
    assert not QConfig().equalizes
    assert QConfig(per_tensor_weights=True).equalizes
    off = QConfig(per_tensor_weights=True, equalize=False)
    assert not off.equalizes
    assert off.to_dict()["equalize"] is False
    assert "equalize" not in QConfig().to_dict()
    assert "absorb_biases" not in QConfig().to_dict()
    with pytest.raises(SettingError, match="equalize is 1; expected true or false"):
        QConfig(equalize=1)


def high_biases() -> nn.Sequential:
    """A network in which some channels are far above zero, by their batch norm."""
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Conv2d(6, 4, 3, padding=1),
    ).eval()
    for index in (1, 4):
        nn.init.uniform_(net[index].weight, 0.05, 0.1)
        nn.init.constant_(net[index].bias, 5.0)
        net[index].bias.data[::2] = -1.0
    return net


def test_absorbed_biases_change_nothing_above_them():
    net, x = high_biases(), images() * 0.1
    model = graph_of(net)
    before = model(x)
    # The last convolution pads with zeros, which are below what would be absorbed.
    assert run_passes(model, [("absorb_biases", absorb_biases)])["absorb_biases"] == 1
    assert distance(model(x), before) < 1e-5
    norm = model.get_submodule("1")
    assert float(norm.bias.max()) < 0.31
    assert torch.equal(norm.bias[::2], net[1].bias[::2])
    assert model.get_submodule("3").bias is not None
    assert run_passes(model, [("absorb_biases", absorb_biases)])["absorb_biases"] == 0


def test_absorbed_biases_make_ranges_smaller():
    net, x = high_biases(), images() * 0.1
    scales = {}
    for on in (False, True):
        p = prepare(net, QConfig(4, 4, absorb_biases=on), SHAPE)
        calibrate(p.student, x)
        read = next(n for n in p.student.graph.nodes if n.meta.get("layer") == "3").args[0]
        scales[on] = float(p.student.get_submodule(read.target).scale.detach())
    assert scales[True] < scales[False] / 2
