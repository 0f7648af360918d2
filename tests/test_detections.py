"""A RetinaNet's file with suppression in it finds the boxes that torchvision finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectors import SHAPE, make_detector
from exports import exported, noise
from torch import Tensor

from fxquant.calibration import calibrate
from fxquant.errors import ExportError
from fxquant.exporters.detections import DELTAS, LOGITS, OUTPUTS, add_detections
from fxquant.exporters.float_onnx import export_float
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import make_session
from fxquant.graph.detectors import DetectorNetwork
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig


def pictures(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    return [torch.rand(SHAPE, generator=rng) for _ in range(count)]


def run_file(path, images: Tensor, optimize: bool) -> list[dict[str, np.ndarray]]:
    """The detections in each image."""
    outputs = make_session(path, optimize=optimize).run(list(OUTPUTS), {"input": images.numpy()})
    for boxes, scores, labels, count in zip(*outputs, strict=True):
        assert not boxes[count:].any()
        assert not scores[count:].any()
        assert (labels[count:] == -1).all()
    return [
        {"boxes": boxes[:count], "scores": scores[:count], "labels": labels[:count]}
        for boxes, scores, labels, count in zip(*outputs, strict=True)
    ]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert len(other["boxes"]) > 3
        for key in ("labels", "scores", "boxes"):
            np.testing.assert_allclose(one[key], other[key].numpy(), rtol=1e-4, atol=1e-3)


# What torchvision's defaults are, and settings under which each limit cuts something off.
LIMITS = {
    "defaults": {},
    "few candidates": {"topk_candidates": 40},
    "few detections": {"detections_per_img": 7},
    "no score too low": {"score_thresh": 0.0, "topk_candidates": 60},
    "little overlap": {"nms_thresh": 0.1},
    "high scores": {"score_thresh": 0.56},
}


@pytest.fixture(scope="module")
def float_file(tmp_path_factory) -> Path:
    """The detector's file in floating point; its limits are in none before they are added."""
    network = DetectorNetwork(make_detector("retinanet"))
    path = tmp_path_factory.mktemp("detections") / "m.onnx"
    return export_float(network, path, input_shape=SHAPE)


@pytest.mark.parametrize("limits", LIMITS)
@torch.no_grad()
def test_the_boxes_are_those_of_torchvision(limits, float_file, tmp_path):
    detector = make_detector("retinanet")
    for name, value in LIMITS[limits].items():
        setattr(detector, name, value)
    network = DetectorNetwork(detector)
    path = Path(shutil.copy(float_file, tmp_path))
    add_detections(network, path, SHAPE)
    expected = detector(pictures(3))
    images = detector.transform(pictures(3))[0].tensors
    for optimize in (False, True):
        assert_same(run_file(path, images, optimize), expected)


@torch.no_grad()
def test_a_quantized_file_finds_what_the_student_finds(tmp_path):
    # Predictions of few bits are often equal, and either may come first: without suppression the
    # best scores are the same whichever does.
    detector = make_detector("retinanet")
    detector.nms_thresh = 1.0
    student = prepare(detector, QConfig(4, 4), SHAPE).student.eval()
    calibrate(student, noise(8, SHAPE))
    path = export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE)
    assert [value.name for value in onnx.load(path).graph.output] == [LOGITS, DELTAS]
    add_detections(student, path, SHAPE)
    model = onnx.load(path)
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    assert any(node.op_type == "NonMaxSuppression" for node in model.graph.node)
    detector = student.detector()
    images = detector.transform(pictures(2))[0].tensors
    expected = detector(pictures(2))
    for one, other in zip(run_file(path, images, optimize=True), expected, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"].numpy(), rtol=1e-4)
    # What is compared with the student are the raw predictions inside.
    parity = check_parity(student, path, noise(4, SHAPE))
    assert parity.passed
    assert parity.convolutions_integer > 0
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (entries["fxquant.parity"], entries["fxquant.detections"]) == ("passed", "nms")


def test_no_detections_at_all(float_file, tmp_path):
    detector = make_detector("retinanet")
    detector.score_thresh = 2.0
    network = DetectorNetwork(detector)
    path = Path(shutil.copy(float_file, tmp_path))
    add_detections(network, path, SHAPE)
    found = run_file(path, torch.zeros(2, *SHAPE), optimize=True)
    assert [len(one["boxes"]) for one in found] == [0, 0]


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
def test_other_detectors_are_refused(name, tmp_path):
    with pytest.raises(ExportError, match="to a RetinaNet's file, not to that of a F"):
        add_detections(DetectorNetwork(make_detector(name)), tmp_path / "m.onnx", SHAPE)


def test_what_is_no_detector_is_refused(tmp_path):
    with pytest.raises(ExportError, match="not to that of a") as caught:
        add_detections(exported("plain", 4, 4).student, tmp_path / "m.onnx", SHAPE)
    assert "--with-nms" in caught.value.hint
