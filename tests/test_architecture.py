"""Which part of the package may import what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fxquant
from fxquant.settings import read_toml

ROOT = Path(fxquant.__file__).parent
CORE = sorted(
    ".".join(["fxquant", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)
TRAINING = ["fxquant.pipeline", *(name for name in CORE if name.startswith("fxquant.datafree"))]


def imported_by(*names: str) -> set[str]:
    """Modules that a fresh interpreter holds after importing these."""
    code = "import importlib, json, sys\n"
    code += f"for name in {list(names)!r}: importlib.import_module(name)\n"
    code += "print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_core_is_found():
    assert {"fxquant", "fxquant.numerics", "fxquant.datafree.engine", "fxquant.models"} <= set(CORE)
    assert not any(name.startswith(("fxquant.cli", "fxquant.exporters")) for name in CORE)


def test_every_package_is_installed():
    listed = read_toml(ROOT.parent / "pyproject.toml")["tool"]["setuptools"]["packages"]
    inside = {
        name for name in CORE if (ROOT.parent / name.replace(".", "/") / "__init__.py").exists()
    }
    assert set(listed) == inside | {"fxquant.cli", "fxquant.exporters"}


def test_the_core_imports_neither_the_command_line_nor_onnx():
    modules = imported_by(*CORE)
    assert set(CORE) <= modules
    assert not modules & {"click", "rich", "onnx", "onnxruntime", "onnxscript", "onnx_ir"}
    assert not any(name.startswith(("fxquant.cli", "fxquant.exporters")) for name in modules)


@pytest.mark.parametrize("name", ["fxquant", "fxquant.cli", "fxquant.cli.main"])
def test_torch_is_not_imported_before_it_is_needed(name):
    assert not imported_by(name) & {"torch", "numpy", "onnx", "onnxruntime"}


def test_what_trains_can_not_reach_evaluation_data():
    modules = imported_by(*TRAINING)
    assert set(TRAINING) <= modules
    assert "fxquant.report.evaluate" not in modules
    assert not any(name.startswith("fxquant.report") for name in modules)


@pytest.mark.parametrize("name", fxquant.__all__)
def test_every_public_name_resolves(name):
    value = getattr(fxquant, name)
    assert value is not None
    assert name in dir(fxquant)
    if callable(value):
        assert value.__doc__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        fxquant.quantise  # noqa: B018
