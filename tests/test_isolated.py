"""Processes that the package starts import nothing of the folder one stands in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from exports import exported

from fxquant.exporters.isolated import command, environment
from fxquant.exporters.memory import peak_memory

TAKEN = ("json", "numpy", "onnxruntime", "subprocess", "sitecustomize", "usercustomize", "runpy")


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A working directory, also on PYTHONPATH, whose modules would leave a file."""
    for name in TAKEN:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    return tmp_path / "ran"


def test_the_trap_works(trap):
    subprocess.run([command("json")[0], "-c", "import json"], check=True)
    assert trap.exists()


def test_peak_memory_is_measured_without_the_modules_of_the_working_directory(trap):
    shapes = {"input": ([1, 3, 16, 16], "float32")}
    peak = peak_memory(os.path.relpath(exported("residual", 4, 4).path), shapes)
    assert peak > 0
    assert not trap.exists()


def test_nothing_of_python_is_handed_on(trap):
    assert not [name for name in environment() if name.startswith("PYTHON")]
