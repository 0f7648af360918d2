"""Detectors are quantized whole and stay detectors."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from detectors import DETECTORS, SHAPE, make_detector, photographs
from exports import noise
from nets import ALL
from small_runs import RECIPES
from torch import nn

from fxquant.calibration import calibrate
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.detectors import DetectorNetwork, is_detector
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.insert_taps import BN_TAPS, tap_names
from fxquant.graph.prepare import Prepared, prepare
from fxquant.pipeline import run
from fxquant.settings import Settings
from fxquant.spec import QConfig


@functools.cache
def prepared(name: str) -> Prepared:
    """One of the detectors made ready; not to be changed."""
    return prepare(make_detector(name), QConfig(8, 8), SHAPE)


def layers_of(model: nn.Module) -> set[str]:
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def assert_same_boxes(found: list[dict], expected: list[dict]) -> None:
    assert [sorted(one) for one in found] == [sorted(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_known_as_such(name):
    assert is_detector(make_detector(name))


def test_classifiers_are_no_detectors():
    assert not any(is_detector(make()) for make in ALL.values())


def test_the_network_predicts_what_the_detector_hears_from_its_head():
    detector, heard = make_detector("retinanet"), []
    detector.head.register_forward_hook(lambda module, inputs, output: heard.append(output))
    with torch.no_grad():
        images = detector.transform(photographs())[0].tensors
        detector(photographs())
        predicted = DetectorNetwork(detector)(images)
    for key, value in heard[0].items():
        torch.testing.assert_close(predicted[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_layer_is_quantized_under_its_name_in_the_detector(name):
    student = prepared(name).student
    assert {layer_name(node) for node in quantized_layers(student)} == layers_of(
        make_detector(name)
    )


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_quantizers_that_pass_through_change_no_box(name):
    # In double precision, where no two scores change places for their last bit.
    detector = make_detector(name).double()
    images, p = [image.double() for image in photographs()], copy.deepcopy(prepared(name))
    for network in (p.teacher.double(), p.student.double()):
        assert isinstance(network.detector(), type(detector))
        assert_same_boxes(network.detector()(images), detector(images))


def test_statistics_are_those_of_the_backbone():
    assert tap_names(prepared("retinanet").teacher, BN_TAPS) == [
        "backbone.stem.0.1",
        "backbone.stem.1.1",
        "backbone.down.1",
    ]


@pytest.mark.parametrize("name", DETECTORS)
def test_the_file_computes_what_the_student_predicts(name, tmp_path):
    student = copy.deepcopy(prepared(name).student).eval()
    calibrate(student, noise(8, SHAPE))
    export_onnx(student, tmp_path / "model.onnx", input_shape=SHAPE)
    parity = check_parity(student, tmp_path / "model.onnx", noise(4, SHAPE, seed=2))
    assert parity.passed, parity
    assert parity.convolutions_integer > 0


def test_a_run_trains_at_a_size_of_its_own_and_gives_back_a_detector():
    detector = make_detector("retinanet")
    before = copy.deepcopy(detector.state_dict())
    settings = Settings((3, 96, 64), QConfig(4, 4), RECIPES["ddaq"])
    result = run(prepare(detector, settings.config, settings.input_shape), settings)
    assert result.images.shape[1:] == (3, 96, 64)
    assert "fine-tuning/student" in result.curves
    boxes = result.model(photographs(3))
    assert [sorted(one) for one in boxes] == [["boxes", "labels", "scores"]] * 3
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
