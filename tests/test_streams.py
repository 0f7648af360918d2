"""Closed pipes, full redirections, missing descriptors, narrow terminals: a run outlives them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import nets
import pytest
from rich.console import Console
from small_cli import ARTIFACTS, artifacts, small_command

from fxquant.cli.log import log_to
from fxquant.cli.main import run
from fxquant.cli.progress import ProgressWatcher
from fxquant.cli.streams import SturdyStream

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nets.__file__).parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def finished(folder) -> list[str]:
    """The command line of a run that has finished, which prints its results again."""
    arguments = [*small_command(folder), str(folder / "run")]
    assert run(arguments) == 0
    assert set(artifacts(folder / "run")) == ARTIFACTS
    return arguments


def shell(redirection: str, arguments: list[str]) -> subprocess.CompletedProcess:
    """Run the command line in a shell with something done to its streams."""
    command = [sys.executable, "-m", "fxquant.cli", *arguments]
    script = f'set -o pipefail; "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *command], env=ENVIRONMENT, capture_output=True, text=True
    )


def test_a_reader_that_leaves_ends_nothing(finished):
    done = shell("| true", finished)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_results_that_find_no_room_are_told(finished):
    done = shell("--json > /dev/full", finished)
    assert done.returncode == 2
    assert "error: the results can't be printed: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">&- 2> /dev/full"])
def test_a_run_without_streams_leaves_the_same_files(redirection, finished, folder):
    """A file that is opened gets no standard stream's number, which others print to."""
    out = folder / f"run{len(redirection)}"
    done = shell(redirection, [*finished[:-1], str(out)])
    assert done.returncode == 0
    assert artifacts(out) == artifacts(folder / "run")


def test_an_encoding_that_lacks_letters_ends_nothing(finished):
    done = subprocess.run(
        [sys.executable, "-m", "fxquant.cli", *finished],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "parity passed" in done.stdout


class Broken(io.StringIO):
    """A stream that fails after some characters."""

    def __init__(self, room: int, error: Exception):
        super().__init__()
        self.room, self.failure = room, error

    def write(self, text: str) -> int:
        self.room -= len(text)
        if self.room < 0:
            raise self.failure
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (BrokenPipeError(32, "Broken pipe"), None),
        (OSError(5, "Input/output error"), None),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("I/O operation on closed file"), "I/O operation on closed file"),
    ],
)
def test_a_sturdy_stream_goes_quiet_and_keeps_the_error(error, lost):
    stream = SturdyStream(Broken(4, error))
    assert stream.lost is None
    for text in ("one ", "two ", "three"):
        assert stream.write(text) == len(text)
    stream.flush()
    assert stream.getvalue() == "one "
    assert stream.error is error
    assert stream.lost == lost


@pytest.mark.parametrize("width", [1, 10, 20, 40, 200])
def test_progress_fits_a_narrow_terminal(width):
    output = io.StringIO()
    watcher = ProgressWatcher(folder=None)
    watcher.console = Console(file=output, force_terminal=True, width=width)
    watcher.bar.live.console = watcher.console
    with watcher:
        watcher.phase("fine-tuning", 300)
        for step in range(20, 301, 20):
            watcher.step(step, {"fine-tuning/student": 1 / step, "fine-tuning/student.output": 1})
        watcher.say("export and parity")
    assert output.getvalue()


def test_progress_goes_on_where_its_stream_breaks():
    watcher = ProgressWatcher(folder=None)
    broken = SturdyStream(Broken(100, OSError(5, "Input/output error")))
    watcher.console = Console(file=broken, force_terminal=True, width=80)
    watcher.bar.live.console = watcher.console
    with watcher:
        watcher.phase("fine-tuning", 300)
        for step in range(20, 301, 20):
            watcher.step(step, {"fine-tuning/student": 1 / step})
    assert broken.error is not None


def test_redirected_progress_is_plain_lines(monkeypatch):
    output, now = io.StringIO(), [0.0]
    monkeypatch.setattr("fxquant.cli.progress.time.monotonic", lambda: now[0])
    watcher = ProgressWatcher(folder=None)
    watcher.console = Console(file=output, width=80)
    with watcher:
        watcher.phase("fine-tuning", 300)
        for now[0] in range(1, 100):
            watcher.step(int(now[0]), {"fine-tuning/student": 0.5})
    lines = output.getvalue().splitlines()
    assert lines[0] == "fine-tuning (300 steps)"
    assert 5 <= len(lines) <= 8  # one in a quarter of a minute
    assert "\x1b" not in output.getvalue()


def test_the_log_rotates_and_survives_a_full_disk(tmp_path, monkeypatch):
    import logging

    monkeypatch.setattr("fxquant.cli.log.MOST_BYTES", 2000)
    logger = logging.getLogger("fxquant.test")
    with log_to(tmp_path / "run.log"):
        for index in range(200):
            logger.info("line %d %s", index, "x" * 50)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["run.log", "run.log.1", "run.log.2", "run.log.3"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert "line 199" in (tmp_path / "run.log").read_text()
    (tmp_path / "full.log").symlink_to("/dev/full")
    with log_to(tmp_path / "full.log"):
        logger.info("nobody will read this")
