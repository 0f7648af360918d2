"""`fxquant export` and `fxquant verify`: other files of a finished run, checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from small_runs import shrunk

from fxquant.cli.main import run
from fxquant.exporters.runtime import run_onnx
from fxquant.restore import find_model, restore
from fxquant.settings import Settings, read_settings, to_toml

ARCH = "nets:Residual"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run, beside the state dict that it quantized."""
    here = tmp_path_factory.mktemp("again")
    torch.save(nets.ALL["residual"]().state_dict(), here / "net.pt")
    settings = Settings((3, 16, 16), recipe=shrunk("ddaq", "default"))
    (here / "small.toml").write_text(to_toml(settings.to_dict()))
    arguments = ["quantize", str(here / "net.pt"), "--arch", ARCH, "--bits", "3"]
    arguments += ["--config", str(here / "small.toml"), "--output", str(here / "run")]
    assert run(arguments) == 0
    return here / "run"


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def broken(finished: Path, tmp_path: Path) -> Path:
    model = onnx.load(finished / "model.onnx")
    (scale,) = [t for t in model.graph.initializer if t.name == "relu_1.scale"]
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def refused(capsys, *arguments: str) -> str:
    assert run(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_the_same_file_comes_out_again(finished, tmp_path, capsys):
    path = tmp_path / "again.onnx"
    assert run(["export", str(finished), "--arch", ARCH, "--output", str(path)]) == 0
    assert path.read_bytes() == (finished / "model.onnx").read_bytes()
    assert "parity  passed" in capsys.readouterr().out


def test_another_layout_and_opset(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    arguments = ["--layout", "portable", "--opset", "23", "--json"]
    assert run(["export", str(folder), "--arch", ARCH, *arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"]
    assert facts["file"] == str(folder / "model-portable.onnx")
    said, before = properties(folder / "model-portable.onnx"), properties(folder / "model.onnx")
    assert said["fxquant.layout"] == "portable"
    assert said["fxquant.parity"] == "passed"
    assert {k: v for k, v in said.items() if k != "fxquant.layout"} == {
        k: v for k, v in before.items() if k != "fxquant.layout"
    }
    assert onnx.load(folder / "model-portable.onnx").opset_import[0].version == 23
    assert run(["verify", facts["file"], "--against", str(folder), "--arch", ARCH]) == 0


def test_the_restored_student_is_the_one_that_was_trained(finished):
    restored = restore(finished, find_model(finished, arch=ARCH))
    images = restored.images
    assert images.shape[1:] == (3, 16, 16)
    assert len(images) > 2
    found = run_onnx(finished / "model.onnx", images)
    np.testing.assert_allclose(found, restored.student(images).numpy(), atol=1e-4)


def test_verify_on_images_of_your_own(finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.zeros(70, dtype=np.int64))
    command = ["verify", str(finished / "model.onnx"), "--against", str(finished), "--arch", ARCH]
    normalised = ["--eval-mean", "0.5", "--eval-std", "0.25"]
    own = ["--eval-data", str(tmp_path / "own.npz")]
    assert run([*command, *own, *normalised, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*command, *own, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["images"] == second["images"] == 70
    assert first["optimized"] != second["optimized"]
    np.savez(tmp_path / "own.npz", images=images[:, :8], labels=np.zeros(70, dtype=np.int64))
    assert "(n, 16, 16, 3)" in refused(capsys, *command[:4], *own, *command[4:])


def test_verify_names_the_first_tensor_that_diverges(finished, tmp_path, capsys):
    path = broken(finished, tmp_path)
    before = path.read_bytes()
    assert run(["verify", str(path), "--against", str(finished), "--arch", ARCH]) == 4
    output = capsys.readouterr()
    assert "parity  FAILED" in output.out
    assert "the first tensor that diverges is activation_quantizers.relu_1" in output.err
    assert path.read_bytes() == before


def test_layout_and_opset_of_the_first_file(finished, tmp_path, capsys):
    arguments = ["quantize", str(finished.parent / "net.pt"), "--arch", ARCH]
    arguments += [
        "--config",
        str(finished.parent / "small.toml"),
        "--output",
        str(tmp_path / "run"),
    ]
    arguments += ["--layout", "portable", "--opset", "24", "--no-finetune"]
    arguments += ["--format", "pt2"]
    assert run(arguments) == 0
    assert (tmp_path / "run" / "model.pt2").exists()
    model = onnx.load(tmp_path / "run" / "model.onnx")
    assert model.opset_import[0].version == 24
    assert properties(tmp_path / "run" / "model.onnx")["fxquant.layout"] == "portable"
    capsys.readouterr()
    assert run(arguments) == 0
    assert "for another file of it: fxquant export" in capsys.readouterr().err


def test_a_run_for_tensorrt_has_symmetric_activations(finished, tmp_path):
    arguments = ["quantize", str(finished.parent / "net.pt"), "--arch", ARCH, "--no-finetune"]
    arguments += ["--config", str(finished.parent / "small.toml"), "--bits", "8"]
    assert run([*arguments, "--layout", "tensorrt", "--output", str(tmp_path / "run")]) == 0
    assert read_settings(tmp_path / "run" / "recipe.toml").config.symmetric_activations
    said = properties(tmp_path / "run" / "model.onnx")
    assert (said["fxquant.layout"], said["fxquant.parity"]) == ("tensorrt", "passed")


def test_the_network_before_quantization(finished, tmp_path):
    path = tmp_path / "float.onnx"
    assert (
        run(["export", str(finished), "--arch", ARCH, "--format", "float", "--output", str(path)])
        == 0
    )
    images = restore(finished, find_model(finished, arch=ARCH)).images
    expected = nets.ALL["residual"]()(images).detach().numpy()
    np.testing.assert_allclose(run_onnx(path, images), expected, atol=1e-4)


def test_detections_are_for_detectors(finished, tmp_path, capsys):
    output = ["--output", str(tmp_path / "m.onnx")]
    error = refused(capsys, "export", str(finished), "--arch", ARCH, "--with-nms", *output)
    assert "detections can be added to a RetinaNet's file" in error
    assert not (tmp_path / "m.onnx").exists()


def test_a_program_for_torch(finished, tmp_path, capsys):
    path = tmp_path / "m.pt2"
    arguments = [
        "export",
        str(finished),
        "--arch",
        ARCH,
        "--format",
        "pt2",
        "--output",
        str(path),
        "--json",
    ]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["sqnr_db"] > 90
    restored = restore(finished, find_model(finished, arch=ARCH))
    found = torch.export.load(path).module()(restored.images)
    torch.testing.assert_close(found, restored.student(restored.images))


def test_what_is_no_finished_run_is_refused(finished, tmp_path, capsys):
    assert "holds no finished run" in refused(capsys, "export", str(tmp_path))
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "report.json").unlink()
    assert "there is no report.json" in refused(capsys, "export", str(folder))


def test_another_model_is_refused(finished, tmp_path, capsys):
    other = tmp_path / "other.pt"
    torch.save(nets.settle_batchnorm(nets.Residual()).state_dict(), other)
    where = ["--model", str(other), "--arch", ARCH]
    error = refused(capsys, "export", str(finished), *where, "--output", str(tmp_path / "m.onnx"))
    assert "was made from another model" in error
    assert not (tmp_path / "m.onnx").exists()


def test_a_damaged_student_is_refused(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "student.safetensors").write_bytes(b"no")
    error = refused(capsys, "export", str(folder), "--arch", ARCH)
    assert "student.safetensors can't be read" in error


def test_code_that_a_folder_names_is_not_run_unasked(finished, tmp_path, capsys, monkeypatch):
    """Somebody else's folder could name any function of any module that is installed, or in it."""
    error = refused(capsys, "export", str(finished))
    assert "built by 'nets:Residual', and what a folder names is not run unasked" in error
    assert "--arch nets:Residual" in error
    folder = shutil.copytree(finished, tmp_path / "run")
    text = (folder / "recipe.toml").read_text()
    source = f'source = "{finished.parent / "net.pt"}"'
    assert source in text
    (folder / "recipe.toml").write_text(text.replace(source, 'source = "canary_of_a_folder:run"'))
    (folder / "canary_of_a_folder.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(folder)
    error = refused(capsys, "verify", "model.onnx", "--against", ".", "--arch", ARCH)
    assert "built by 'canary_of_a_folder:run'" in error
    assert "--model canary_of_a_folder:run" in error


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"other": torch.zeros(4, 3, 16, 16)}, "holds no images"),
        ({"images": torch.zeros(0, 3, 16, 16)}, "holds no images"),
        ({"images": torch.full((4, 3, 16, 16), torch.nan)}, "holds no images"),
        ({"images": torch.zeros(4, 1, 16, 16)}, "have the shape (1, 16, 16), and the run's"),
    ],
)
def test_images_that_are_not_the_runs_are_refused(images, expected, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    save_file(images, folder / "images.safetensors")
    assert expected in refused(capsys, "export", str(folder), "--arch", ARCH)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--opset", "17"], "18<=x<=25"),
        (["--layout", "tiny"], "is not one of"),
        (["--format", "pt2", "--opset", "20"], "go with --format onnx"),
        (["--output", "nowhere/m.onnx"], "there is no folder 'nowhere'"),
        (["--model", "nowhere.pt"], "there is no file 'nowhere.pt'"),
    ],
)
def test_wrong_options(finished, capsys, extra, expected):
    arch = [] if "--model" in extra else ["--arch", ARCH]
    assert expected in refused(capsys, "export", str(finished), *arch, *extra)


def test_verify_of_no_file(finished, capsys):
    error = refused(capsys, "verify", "nowhere.onnx", "--against", str(finished))
    assert "there is no file 'nowhere.onnx'" in error
