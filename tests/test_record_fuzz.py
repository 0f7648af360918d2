"""Random records are refused or built, and nothing is called for it but the reader's functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import record_fuzz

MOST_MEGABYTES = 500
MOST_SECONDS = 10


def run_records(count: int, seed: int) -> dict[str, float]:
    command = [sys.executable, record_fuzz.__file__, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["built"] + figures["refused"] == count
    assert figures["megabytes"] < MOST_MEGABYTES
    return figures


def test_300_records_call_nothing():
    figures = run_records(300, seed=0)
    assert figures["built"] > 30
    assert figures["refused"] > 100


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_10_000_records_call_nothing(seed, figures):
    found = run_records(10_000, seed)
    figures(f"10,000 records, seed {seed}", found)
    assert found["seconds"] < MOST_SECONDS


def test_the_watch_notices_what_is_called():
    """The same watch on calls of torch's own ways to make tensors and layers, and of more."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(record_fuzz.__file__).parent)!r})
import record_fuzz, torch
from torch import nn
watch = record_fuzz.Watch()
with watch:
    nn.Linear(1, 1)
    torch._utils._rebuild_tensor_v2
    torch._utils._rebuild_parameter(torch.ones(1), False, {{}})
    nn.Module().__setstate__({{}})
    exec("1")
    open("/dev/null").close()
    nn.Parameter(torch.ones(1))
print("\\n".join(watch.seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    signs = ("linear.py:__init__", "_utils.py:_rebuild_parameter", "module.py:__setstate__")
    for sign in (*signs, "builtin <built-in function exec>", "open ('/dev/null'"):
        assert sign in done.stdout
    assert "parameter.py:__new__" not in done.stdout
