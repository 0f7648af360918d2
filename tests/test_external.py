"""Models whose weights don't fit into one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import SHAPE, exported, noise

from fxquant.errors import ExportError, OutputError
from fxquant.exporters import external
from fxquant.exporters.external import data_file, size_on_disk
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import run_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a file that is over the limit, which is lowered for it."""
    student = exported("plain", 8, 8).student  # whose own file is under it
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "LARGEST", 2000)
        export_onnx(student, folder / "m.onnx", input_shape=SHAPE)
    return folder


@pytest.fixture
def large(folder, tmp_path, monkeypatch):
    """A copy of that file and of what is beside it, and its student; the limit stays lowered."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(external, "LARGEST", 2000)
    return exported("plain", 8, 8).student, tmp_path / "m.onnx"


def test_weights_go_to_a_file_beside_the_model(large):
    student, path = large
    data = data_file(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
    outside = student.get_parameter("classifier.1.weight").numel()
    assert data.stat().st_size >= outside
    assert path.stat().st_size < exported("plain", 8, 8).path.stat().st_size - outside + 1000
    assert size_on_disk(path) == path.stat().st_size + data.stat().st_size
    found = run_onnx(path, noise(8))
    np.testing.assert_array_equal(found, run_onnx(exported("plain", 8, 8).path, noise(8)))


def test_parity_works_and_leaves_the_weights_outside(large):
    student, path = large
    parity = check_parity(student, path, noise(32))
    assert parity.passed
    assert parity.file_bytes == size_on_disk(path)
    assert {e.key: e.value for e in onnx.load(path).metadata_props}["fxquant.parity"] == "passed"
    assert path.stat().st_size < parity.file_bytes / 2


def test_divergence_is_found_there_too(large):
    student, path = large
    model = onnx.load(path, load_external_data=False)
    (scale,) = [t for t in model.graph.initializer if t.name == "features_6.scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(9), scale.name))
    onnx.save(model, path)
    assert check_parity(student, path, noise(32)).diverges_at == "activation_quantizers.features_6"


def test_a_smaller_model_takes_the_old_weights_away(large, monkeypatch):
    student, path = large
    monkeypatch.setattr(external, "LARGEST", 1 << 30)
    export_onnx(student, path, input_shape=SHAPE)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_export_leaves_nothing(large, monkeypatch):
    student, path = large
    before = {p: p.read_bytes() for p in path.parent.iterdir()}

    def refuse(*_, **__):
        raise onnx.checker.ValidationError("no")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match="no valid ONNX"):
        export_onnx(student, path, input_shape=SHAPE)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"can't write .*nowhere"):
        export_onnx(
            exported("plain", 8, 8).student, tmp_path / "nowhere" / "m.onnx", input_shape=SHAPE
        )
