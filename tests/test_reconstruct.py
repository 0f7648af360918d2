"""Reconstruction: what a unit is given, that its error falls, what it leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import detectors
import pytest
import torch
from nets import ALL
from small_runs import same, snapshot
from torch import Tensor

from fxquant.calibration import calibrate
from fxquant.datafree import reconstruct as module
from fxquant.datafree.recipe import Reconstruction
from fxquant.datafree.reconstruct import Reconstructor
from fxquant.datafree.unit_values import collect_values
from fxquant.errors import SettingError
from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.prepare import Prepared, prepare
from fxquant.graph.regions import region_of
from fxquant.graph.units import find_units
from fxquant.report.closeness import measure_closeness
from fxquant.spec import QConfig

SETTINGS = Reconstruction(steps=40, batch=16)


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + 0.2


def calibrated(name: str, bits: int = 3) -> tuple[Prepared, dict[str, Tensor]]:
    """A calibrated pair, and the student's weights before calibration."""
    p = prepare(ALL[name](), QConfig(bits, bits), (3, 16, 16))
    weights = copy.deepcopy(p.student.state_dict())
    calibrate(p.student, images())
    return p, weights


def make(p: Prepared, weights: dict[str, Tensor], settings=SETTINGS, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    reconstructor = Reconstructor(p.teacher, p.student, settings, weights, rng)
    reconstructor.begin(images())
    return reconstructor


def run(reconstructor: Reconstructor) -> list[float]:
    found = [reconstructor.step(index) for index in range(reconstructor.total)]
    return [float(value) for values in found for value in values.values()]


@pytest.mark.parametrize("name", ALL)
def test_the_student_comes_closer_and_lies_on_its_grids(name):
    p, weights = calibrated(name)
    teacher, before = snapshot(p.teacher), measure_closeness(p.teacher, p.student, images(96)[64:])
    run(make(p, weights))
    after = measure_closeness(p.teacher, p.student, images(96)[64:])
    assert after.output_sqnr > before.output_sqnr
    assert same(snapshot(p.teacher), teacher)
    for node in quantized_layers(p.student):
        layer = region_of(node).get_submodule(node.meta["layer"])
        on_grid = (module_of(node.args[1])(layer.weight) - layer.weight).abs().max() < 1e-6
        assert on_grid == (node.meta["layer"] != "conv" or name != "repeated_conv")


def test_each_units_error_falls():
    p, weights = calibrated("residual")
    errors = torch.tensor(run(make(p, weights, replace(SETTINGS, steps=60))))
    for unit in errors.split(60):
        assert unit[-10:].mean() < unit[:10].mean()


def test_each_weight_is_rounded_to_a_neighbour():
    p, weights = calibrated("plain")
    settings = replace(SETTINGS, scale_lr=0.0)
    run(make(p, weights, settings))
    for node in quantized_layers(p.student):
        name, quantizer = node.meta["layer"], module_of(node.args[1])
        rounded = p.student.get_submodule(name).weight.detach()
        scale = quantizer.scale.detach().reshape([-1] + [1] * (rounded.dim() - 1))
        spec = quantizer.spec
        clipped = (weights[f"{name}.weight"] / scale).clamp(spec.qmin, spec.qmax)
        assert ((rounded / scale - clipped).abs() < 1 + 1e-4).all()


def test_values_of_a_unit_are_those_of_student_and_teacher():
    p, _ = calibrated("residual")
    unit = find_units(p.student)[1]
    (values,) = collect_values(unit, p.teacher, p.student, images(10), batch=4)
    seen = {}
    p.student.get_submodule("activation_quantizers.relu").register_forward_hook(
        lambda m, a, out: seen.update(quantized=out, exact=a[0])
    )
    p.teacher.feature_taps.feature0.register_forward_hook(lambda m, a, out: seen.update(target=out))
    p.student(images(10))
    p.teacher(images(10))
    assert (values.inputs[0] - seen["quantized"]).abs().max() < 1e-5
    assert (values.targets[0] - seen["target"]).abs().max() < 1e-5
    assert values.float_inputs[0].shape == values.inputs[0].shape
    assert (values.float_inputs[0] - values.inputs[0]).abs().max() > 0


def test_a_seed_repeats_to_the_bit_and_another_differs():
    states = []
    for index, seed in enumerate((1, 1, 2)):
        torch.manual_seed(index)
        p, weights = calibrated("shared_relu")
        run(make(p, weights, replace(SETTINGS, steps=10), seed))
        states.append(snapshot(p.student))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("stop", [1, 5, 6, 11, 17])
def test_a_stopped_reconstruction_continues_to_the_same_bytes(stop):
    settings = replace(SETTINGS, steps=6)
    p, weights = calibrated("shared_relu")
    start = snapshot(p.student)
    run(make(p, weights, settings))
    expected = snapshot(p.student)
    p.student.load_state_dict(start)
    first = make(p, weights, settings)
    for index in range(stop):
        first.step(index)
    state, student = copy.deepcopy(first.state_dict()), snapshot(p.student)
    rng = first.rng.get_state()
    p.student.load_state_dict(start)
    second = make(p, weights, settings, seed=9)
    p.student.load_state_dict(student)
    second.rng.set_state(rng)
    second.load_state_dict(state, stop)
    for index in range(stop, second.total):
        second.step(index)
    assert same(snapshot(p.student), expected)


def test_a_detector_is_reconstructed_part_by_part():
    """Its parts are graphs inside its own code; what reads sizes from elsewhere is left alone."""
    p = prepare(detectors.make_detector("retinanet"), QConfig(4, 4), detectors.SHAPE)
    weights = copy.deepcopy(p.student.state_dict())
    x = torch.randn(4, *detectors.SHAPE, generator=torch.Generator().manual_seed(1))
    calibrate(p.student, x)
    teacher = snapshot(p.teacher)
    rng = torch.Generator().manual_seed(0)
    reconstructor = Reconstructor(
        p.teacher, p.student, replace(SETTINGS, steps=2, batch=4), weights, rng
    )
    reconstructor.begin(x)
    assert len({unit.region for unit in reconstructor.units}) > 1
    assert len(run(reconstructor)) == reconstructor.total
    assert same(snapshot(p.teacher), teacher)
    for unit in reconstructor.units:
        once = [n for n in unit.layers if id(module_of(n.args[1])) in reconstructor.called_once]
        for node in once:
            layer = region_of(node).get_submodule(node.meta["layer"])
            assert (module_of(node.args[1])(layer.weight) - layer.weight).abs().max() < 1e-6


def test_values_that_do_not_fit_are_cut_to_fewer_images(monkeypatch):
    monkeypatch.setattr(module, "MOST_VALUES", 3 * 16 * 16 * 8 * 10)
    p, weights = calibrated("residual")
    reconstructor = make(p, weights)
    unit = reconstructor.units[1]
    assert 1 <= len(reconstructor._images_for(unit)) < 64
    assert run(make(p, weights, replace(SETTINGS, steps=2)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_a_share_of_a_mixed_value_is_the_float_one(layout):
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, 16, 9, 9, generator=rng) for _ in range(2))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        x, y = x[:, ::2], y[:, 1::2]
    x, y = x.requires_grad_(), y.requires_grad_()
    mixed = module._mix(x, y, 0.25, rng)
    taken = mixed == y
    assert bool((taken | (mixed == x)).all())
    assert float(taken.float().mean()) == pytest.approx(0.25, abs=0.03)
    for axis in ((0, 1), (2, 3)):  # no channel, image or place is left out
        assert float(taken.float().mean(axis).max()) < 0.6
    mixed.sum().backward()
    assert torch.equal(x.grad, (~taken).float())
    assert torch.equal(y.grad, taken.float())


def test_whole_numbers_are_not_mixed():
    x = torch.arange(8)
    assert module._mix(x, x + 1, 0.5, torch.Generator()) is x


def test_no_steps_is_no_reconstruction():
    p, weights = calibrated("plain")
    reconstructor = make(p, weights, Reconstruction())
    assert reconstructor.total == 0
    assert reconstructor.state_dict() == {"images": None, "current": None}


@pytest.mark.parametrize(
    ("name", "value"), [("steps", -1), ("batch", 0), ("drop", 1.0), ("free", 1.0), ("decide", -0.1)]
)
def test_settings_that_make_no_sense_are_named(name, value):
    with pytest.raises(SettingError, match=rf"reconstruction\.{name} is {value}"):
        Reconstruction(**{name: value})
