"""A file that computes something else is found out, and where it begins to."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from exports import array, exported, noise
from onnx import numpy_helper
from torchvision.ops import DeformConv2d

from fxquant.calibration import calibrate
from fxquant.errors import ExportError, ParityError
from fxquant.exporters.divergence import first_divergence
from fxquant.exporters.freeze import freeze
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import (
    MIN_SQNR_DB,
    Difference,
    Parity,
    check_parity,
    compare,
    require_parity,
)
from fxquant.exporters.runtime import run_onnx
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

IMAGES = noise(96)


def entry(path, key: str) -> str | None:
    return {e.key: e.value for e in onnx.load(path).metadata_props}.get(key)


def broken(tmp_path, initializer: str, change) -> tuple[torch.fx.GraphModule, str]:
    """A copy of a good file in which one constant was changed."""
    good = exported("residual", 4, 4)
    model = good.model
    (tensor,) = [t for t in model.graph.initializer if t.name == initializer]
    numbers = array(tensor)
    changed = np.asarray(change(numbers)).astype(numbers.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, initializer))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    return good.student, path


def test_a_good_file_passes_and_says_so(tmp_path):
    good = exported("residual", 8, 8)
    path = shutil.copy(good.path, tmp_path / "m.onnx")
    assert entry(path, "fxquant.parity") is None
    parity = check_parity(good.student, path, IMAGES)
    require_parity(parity)
    assert entry(path, "fxquant.parity") == "passed"
    assert entry(path, "fxquant.recipe") == "none"
    facts = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert facts["passed"]
    assert facts["diverges_at"] is None
    assert facts["images"] == 96
    assert facts["file_bytes"] == path.stat().st_size
    assert facts["optimized"].keys() >= {"max_difference", "sqnr_db", "agreement"}


def test_the_frozen_student_will_do(tmp_path):
    good = exported("residual", 4, 4)
    path = shutil.copy(good.path, tmp_path / "m.onnx")
    assert check_parity(freeze(good.student), path, IMAGES).passed


@pytest.mark.parametrize(
    ("initializer", "change", "where"),
    [
        ("relu_1.scale", lambda x: 1.5 * x, "relu_1"),
        ("layer1.conv2.weight", lambda x: x[::-1], "layer1_conv2"),
        ("layer2.conv1.bias", lambda x: -x, "relu_3"),
        ("linear.weight_scale", lambda x: 0.8 * x, "output"),
        ("linear.bias", lambda x: 0 * x + 7, "output"),
    ],
)
def test_a_broken_file_fails_and_the_first_wrong_tensor_is_named(
    tmp_path, initializer, change, where
):
    student, path = broken(tmp_path, initializer, change)
    parity = check_parity(student, path, IMAGES)
    assert not parity.passed
    assert parity.diverges_at.removeprefix("activation_quantizers.") == where
    assert entry(path, "fxquant.parity") == "failed"
    with pytest.raises(ParityError, match=where) as caught:
        require_parity(parity)
    assert caught.value.exit_code == 4
    assert caught.value.hint is None


def test_a_failure_says_how_far_off_the_file_is():
    same = Difference(0.0, 200.0, 1.0, 0.0, 96)
    off = Difference(1.0, 12.0, 0.7, 0.2, 96)
    parity = Parity(same, off, 1, 1, 0, 0, 1000, 8, "activation_quantizers.relu")
    with pytest.raises(ParityError, match=r"12\.0 dB .* 20\.0% of decisions changed"):
        require_parity(parity)


def test_differences_are_what_they_say():
    expected = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 2.99]], np.float32)
    found = np.array([[1.0, 0.0], [1.0, 0.0], [2.98, 3.0]], np.float32)
    difference = compare([expected], [found])
    noise_energy = 2 + 0.02**2 + 0.01**2
    assert difference.max_difference == 1.0
    assert difference.sqnr_db == pytest.approx(10 * np.log10((2 + 9 + 2.99**2) / noise_energy))
    assert difference.agreement == pytest.approx(1 / 3)
    assert difference.decisions_changed == pytest.approx(1 / 3)  # the third is a tie
    assert not difference.passed


def test_one_bad_image_among_many_fails():
    expected = np.tile(np.array([[10.0, 0.0]], np.float32), (100, 1))
    found = expected.copy()
    found[7] = [0.0, 1.0]
    difference = compare([expected], [found])
    assert difference.decisions_changed == 0.01
    assert not difference.passed


def test_outputs_that_are_no_decisions_are_compared_by_sqnr_alone():
    expected = np.ones((2, 3, 4, 4), np.float32)
    difference = compare([expected], [expected * 1.01])
    assert difference.agreement is None
    assert difference.sqnr_db == pytest.approx(40, abs=0.01)
    assert difference.passed
    assert not compare([expected], [expected * (1 + 2 * 10 ** (-MIN_SQNR_DB / 20))]).passed


def test_run_onnx_gives_the_first_output_for_any_number_of_images():
    file = exported("plain", 8, 8)
    for optimize in (False, True):
        out = run_onnx(file.path, IMAGES.numpy(), optimize=optimize)
        assert out.shape == (96, 10)
        np.testing.assert_allclose(out, file.student(IMAGES).numpy(), atol=0.05)


def test_a_file_that_onnx_runtime_refuses_is_an_export_error(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"can't load .*m\.onnx"):
        run_onnx(path, IMAGES)


def test_what_a_network_enlarges_is_no_fault_of_the_file(tmp_path, monkeypatch):
    good = exported("residual", 8, 8)
    path = shutil.copy(good.path, tmp_path / "m.onnx")
    # As where single roundings grow until the outputs are far apart.
    monkeypatch.setattr(Difference, "passed", False)
    parity = check_parity(good.student, path, IMAGES)
    assert parity.amplified
    assert parity.passed
    assert parity.diverges_at is None
    assert entry(path, "fxquant.parity") == "passed"
    assert Parity.from_dict(parity.to_dict()) == parity


@pytest.mark.parametrize(("factor", "where"), [(1 + 1e-5, None), (1.02, "relu_1")])
def test_only_integers_off_their_border_count(tmp_path, factor, where):
    student, path = broken(tmp_path, "relu_1.scale", lambda x: factor * x)
    found = first_divergence(student, path, IMAGES, optimize=False, min_sqnr_db=20)
    assert found == (where and f"activation_quantizers.{where}")


class Single(torch.nn.Module):
    """Makes numbers in single precision whatever its weights have; bends its convolution."""

    def __init__(self):
        super().__init__()
        self.bend, self.conv = torch.nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 4, 3)
        self.head = torch.nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = x + torch.linspace(0, 1, 16, dtype=torch.float32)
        offsets = self.bend(x.float())[..., 1:-1, 1:-1]
        return self.head(torch.relu(self.conv(x.float(), offsets))).mean((2, 3))


def test_a_network_bound_to_single_precision_is_compared_in_it(tmp_path):
    torch.manual_seed(0)
    prepared = prepare(Single(), QConfig(8, 8), (3, 16, 16))
    calibrate(prepared.student, noise(16))
    with pytest.raises(RuntimeError):
        copy.deepcopy(prepared.student).double()(noise(2).double())
    path = export_onnx(prepared.student, tmp_path / "m.onnx", input_shape=(3, 16, 16))
    assert onnx.load(path).opset_import[0].version == 19
    assert check_parity(prepared.student, path, noise(8)).passed
