"""The student as a torch.export program: the same numbers, wherever torch is."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import SHAPE, exported, noise
from torch import nn

from fxquant.errors import ExportError, ParityError
from fxquant.exporters.pt2 import FACTS, check_pt2, export_pt2

# Stands in the way of every import of fxquant, then runs the program on saved images.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fxquant":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
torch.ones(1)
program = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2])
torch.save([program(images[:n]) for n in (1, 5)], sys.argv[3])
assert not any(name.partition(".")[0] == "fxquant" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return exported("inverted_residual", 4, 4).student


@pytest.fixture(scope="module")
def program(student, tmp_path_factory) -> Path:
    """Its program, which is only read."""
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    return export_pt2(student, path, input_shape=SHAPE, metadata={"name": "net"})


def test_it_runs_where_fxquant_is_not_installed(student, program, tmp_path):
    images, found = tmp_path / "images.pt", tmp_path / "found.pt"
    torch.save(noise(5), images)
    subprocess.run([sys.executable, "-c", ALONE, program, images, found], check=True, cwd=tmp_path)
    for n, outputs in zip((1, 5), torch.load(found), strict=True):
        torch.testing.assert_close(outputs, student(noise(5)[:n]), rtol=1e-5, atol=1e-6)


def test_its_weights_are_the_integers_of_the_student(student, program):
    state = torch.export.load(program).state_dict
    name = "features.1.body.0.0.weight"
    expected = student.get_submodule("features.1.body.0.0.weight_quantizer").quantize(
        student.get_parameter(name)
    )
    assert state[name].dtype == torch.int8
    assert torch.equal(state[name].int(), expected)
    assert not any(v.is_floating_point() and v.numel() > 64 for v in state.values())


def test_it_says_what_it_is_and_nothing_of_the_machine(program):
    facts = {FACTS: ""}
    torch.export.load(program, extra_files=facts)
    assert json.loads(facts[FACTS]) == {"name": "net"}
    with zipfile.ZipFile(program) as archive:
        assert not any(b"site-packages" in archive.read(name) for name in archive.namelist())


def test_it_is_compared_with_the_student(student, program):
    assert check_pt2(student, program, noise(70)).max_difference < 1e-5
    with pytest.raises(ParityError, match="does not compute what the student does"):
        check_pt2(exported("inverted_residual", 2, 3).student, program, noise(70))


def test_what_is_no_program_is_refused(student, tmp_path):
    path = tmp_path / "m.pt2"
    np.save(path.open("wb"), np.zeros(3))
    with pytest.raises(ExportError, match=r"can't load '.*m\.pt2'"):
        check_pt2(student, path, noise(2))
