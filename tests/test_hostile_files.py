"""Hostile files do nothing, fill no memory, and end in an error with exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import hostile_box
import mutants
import pytest

CASES = hostile_box.all_cases()
MOST_MEGABYTES = 250


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """What became of every case, all of them run in one other process and its forks."""
    folder = tmp_path_factory.mktemp("box")
    command = [sys.executable, hostile_box.__file__, str(folder), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_and_does_nothing(name, outcomes):
    outcome = outcomes[name]
    assert outcome["code"] == 2, outcome
    assert re.search("^error: ", outcome["error"], re.MULTILINE)
    assert "Traceback" not in outcome["error"]
    assert "weights_only" not in outcome["error"]
    assert not re.search(r"[^\n -~\u00a0-\uffff]", outcome["error"])
    assert re.search(CASES[name].says, outcome["error"]), outcome["error"]
    assert outcome["did"] == []
    assert outcome["left"] == []
    assert outcome["megabytes"] < MOST_MEGABYTES


def test_there_are_forty_and_more():
    assert len(CASES) >= 40


def test_the_box_notices_what_a_file_does(tmp_path):
    """The same hook on a program that does what the files try."""
    code = f"""
import os, sys, subprocess
sys.path.insert(0, {str(Path(hostile_box.__file__).parent)!r})
import hostile_box
import mutants
from pathlib import Path
did = []
hostile_box._watch([Path.cwd() / "out"], did)
open("ran", "w").close()
os.system("true")
subprocess.run(["true"])
import antigravity_is_not_there_but_asked_for
"""
    code = code.replace("import antigravity", "try: import antigravity").rstrip()
    code += "\nexcept ImportError: pass\nprint(did)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for sign in ("open for writing 'ran'", "os.system", "subprocess.Popen", "import antigravity"):
        assert sign in done.stdout


def run_mutants(folder: Path, count: int, seed: int) -> dict[str, int]:
    command = [sys.executable, mutants.__file__, str(folder), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert sum(figures.values()) == count
    return figures


def test_700_damaged_files_load_or_are_refused(tmp_path):
    figures = run_mutants(tmp_path, 700, seed=0)
    assert sum(n for what, n in figures.items() if what.endswith("refused")) > 300


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_10_000_damaged_files_load_or_are_refused(tmp_path, seed, figures):
    figures(f"10,000 damaged files, seed {seed}", run_mutants(tmp_path, 10_000, seed))
