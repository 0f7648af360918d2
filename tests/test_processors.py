"""The same file on other processors: x86 without VNNI, emulated or this one, and WebAssembly."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import SHAPE, exported, make_student, noise
from nets import ALL

from fxquant.exporters import parity as parities
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import Parity, check_parity, require_parity
from fxquant.exporters.processor import saturates
from fxquant.exporters.runtime import run_onnx
from fxquant.spec import QConfig

IMAGES = noise(256)
HERE = Path(__file__).parent
# Made by `make test`, where there is a Node.
BROWSER = Path(sys.prefix) / "browser"
# The last x86 processors of servers that had AVX2 and not AVX-512.
EMULATOR = ["qemu-x86_64", "-cpu", "Haswell"]


def sqnr(truth: np.ndarray, found: np.ndarray) -> float:
    noise_energy = np.square(truth - found, dtype=np.float64).sum()
    return 10 * np.log10(np.square(truth, dtype=np.float64).sum() / max(noise_energy, 1e-30))


@pytest.fixture(scope="module")
def for_vnni(tmp_path_factory):
    """A student of 8 bits and its file with int8 weights."""
    student = make_student(ALL["residual"](), QConfig(8, 8))
    path = tmp_path_factory.mktemp("vnni") / "vnni.onnx"
    return student, export_onnx(student, path, input_shape=SHAPE, processor="vnni")


def test_a_file_for_every_processor_is_exact_on_this_one():
    file = exported("residual", 8, 8)
    parity = check_parity(file.student, file.path, IMAGES, record=False)
    assert parity.passed
    assert parity.optimized.sqnr_db > 50
    assert (parity.saturating_layers, parity.saturates_here, parity.precise) == (0, False, None)
    assert parity.processor_note is None


def test_a_file_for_vnni_passes_everywhere_and_says_where_it_is_wrong(for_vnni):
    student, file = for_vnni
    parity = check_parity(student, file, IMAGES, record=False)
    require_parity(parity)
    assert parity.precise.sqnr_db > 50
    assert parity.saturating_layers == len(file.saturating) == 6
    assert parity.saturates_here == saturates()
    assert "session.x64quantprecision" in parity.processor_note
    assert "--processor any" in parity.processor_note
    fast, exact = (run_onnx(file, IMAGES, precise=precise) for precise in (False, True))
    if saturates():  # the kernels that the note warns of
        assert sqnr(exact, fast) < 40
        assert "(as here)" in parity.processor_note
    else:
        np.testing.assert_array_equal(fast, exact)
        assert "(not here)" in parity.processor_note
    assert Parity.from_dict(parity.to_dict()) == parity


def as_if_saturating(monkeypatch, *, right: bool) -> None:
    """Let this processor be one that saturates: integer kernels give noise without the option.

    With it they give what they do here, where `right`, else noise as well.
    """
    real = parities._file_outputs

    def outputs(path, images, **how):
        found = real(path, images, **how)
        if how.get("optimize", True) and not (how.get("precise") and right):
            return [y + np.random.default_rng(0).normal(0, np.std(y), y.shape) for y in found]
        return found

    monkeypatch.setattr(parities, "_file_outputs", outputs)
    monkeypatch.setattr(parities, "saturates", lambda: True)


def test_what_the_processor_gets_wrong_is_no_fault_of_the_file(for_vnni, monkeypatch):
    student, file = for_vnni
    as_if_saturating(monkeypatch, right=True)
    parity = check_parity(student, file, IMAGES, record=False)
    assert parity.optimized.sqnr_db < 5
    assert parity.passed
    assert parity.saturates_here
    assert parity.diverges_at is None
    require_parity(parity)


@pytest.mark.parametrize("processor", ["any", "vnni"])
def test_a_wrong_file_fails_on_every_processor(for_vnni, monkeypatch, processor):
    student, file = for_vnni
    if processor == "any":
        file = exported("residual", 8, 8).path
    as_if_saturating(monkeypatch, right=processor == "any")
    monkeypatch.setattr(parities, "first_divergence", lambda *args, **how: "output")
    parity = check_parity(student, file, IMAGES, record=False)
    assert not parity.passed
    assert parity.diverges_at == "output"


def test_where_the_option_fails_the_file_is_judged_without_its_kernels(monkeypatch, tmp_path):
    """Of a weight that two layers share ONNX Runtime makes two of one name."""
    student = make_student(ALL["repeated_conv"](), QConfig(8, 8))
    file = export_onnx(student, tmp_path / "m.onnx", input_shape=SHAPE, processor="vnni")
    as_if_saturating(monkeypatch, right=True)
    parity = check_parity(student, file, IMAGES, record=False)
    assert parity.precise is None
    assert parity.passed
    assert "session.x64quantprecision" not in parity.processor_note
    assert "--processor any" in parity.processor_note


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which(EMULATOR[0]) is None,
    reason="there is no qemu-x86_64 (Debian's qemu-user) to be another processor",
)
def test_a_processor_without_vnni_computes_the_same(for_vnni, tmp_path):
    files = {bits: exported("residual", bits, bits).path for bits in (4, 8)}
    vnni = for_vnni[1]
    truth = run_onnx(files[8], IMAGES)
    np.save(tmp_path / "images.npy", IMAGES.numpy())

    def emulate(*arguments: str) -> dict[str, np.ndarray]:
        command = [*EMULATOR, sys.executable, str(HERE / "emulated.py")]
        outputs = [str(tmp_path / "images.npy"), str(tmp_path / "outputs.npz")]
        subprocess.run([*command, *outputs, *arguments], check=True, capture_output=True)
        return dict(np.load(tmp_path / "outputs.npz"))

    found = emulate(str(files[4]), str(files[8]), str(vnni.path))
    for bits, path in files.items():
        expected = run_onnx(path, IMAGES)
        assert (found[path.stem].argmax(1) == expected.argmax(1)).all(), bits
        assert sqnr(expected, found[path.stem]) > 60
    assert sqnr(truth, found["vnni"]) < 40  # what the emulator is here to show
    assert sqnr(truth, emulate("--precise", str(vnni.path))["vnni"]) > 60


@pytest.mark.skipif(
    shutil.which("node") is None or not BROWSER.is_dir(),
    reason="there is no Node with onnxruntime-web, which 'make test' installs where npm is",
)
@pytest.mark.parametrize("bits", [4, 8])
def test_webassembly_decides_the_same(bits, tmp_path):
    path = exported("residual", bits, bits).path
    images, output = tmp_path / "images.bin", tmp_path / "output.bin"
    IMAGES.numpy().tofile(images)
    command = ["node", HERE / "browser" / "run.mjs", BROWSER, path, images, *SHAPE, output]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = run_onnx(path, IMAGES)
    found = np.fromfile(output, np.float32).reshape(expected.shape)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert sqnr(expected, found) > 40
