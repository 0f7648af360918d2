"""Full disks, read-only folders, signals, closed terminals: nothing that was done is lost.

Each run is stopped by a fault and started again without it; it must end with the same bytes as
one that nothing happened to.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fork_server import ForkServer, Run
from small_cli import ARTIFACTS, artifacts, others, small_command

from fxquant.run_folder import CHECKPOINT, REPORT


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def command(base) -> list[str]:
    return small_command(base, steps=30)


@pytest.fixture(scope="module")
def expected(server, base, command) -> dict[str, bytes]:
    """The artifacts of a run that nothing happened to."""
    run = server.start([*command, str(base / "whole")], base / "log")
    assert run.wait() == 0, run.text()
    found = artifacts(base / "whole")
    assert set(found) == ARTIFACTS
    return found


@pytest.fixture
def start(server, command, tmp_path) -> Callable[..., Run]:
    """Starts the run in `out`."""
    return lambda out, **how: server.start([*command, str(out)], tmp_path / "log", **how)


def ends_with_the_same_bytes(start, out: Path, expected: dict[str, bytes]) -> None:
    run = start(out)
    assert run.wait() == 0, run.text()
    assert artifacts(out) == expected
    assert not others(out)
    assert not (out / CHECKPOINT).exists()


@contextmanager
def disk_of(size: str, place: Path) -> Iterator[Callable[[str], None]]:
    """A file system of this size at `place`; what it yields changes its mount options."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", ["16k", "300k"])
def test_a_full_disk_costs_nothing_that_was_done(size, start, expected, tmp_path):
    """Full before the first checkpoint, and in one."""
    with disk_of(size, tmp_path / "disk") as remount:
        out = tmp_path / "disk" / "run"
        stopped_by_a_full_disk(start(out), out, expected)
        remount("size=100m")
        ends_with_the_same_bytes(start, out, expected)


def test_a_disk_that_is_full_when_the_results_are_written(start, expected, tmp_path):
    with disk_of("2m", tmp_path / "disk"):
        out, ballast = tmp_path / "disk" / "run", tmp_path / "disk" / "ballast"
        run = start(out)
        run.wait_until(lambda: "export and parity" in run.text())
        with suppress(OSError):
            ballast.write_bytes(bytes(3_000_000))
        stopped_by_a_full_disk(run, out, expected)
        assert (out / CHECKPOINT).exists()
        ballast.unlink()
        ends_with_the_same_bytes(start, out, expected)


def stopped_by_a_full_disk(run: Run, out: Path, expected: dict[str, bytes]) -> None:
    assert run.wait() == 2, run.text()
    assert "No space left on device" in run.text()
    assert "hint: once it can be written, the same command goes on" in run.text()
    assert "Traceback" not in run.text()
    assert REPORT not in artifacts(out)
    assert all(expected[name] == content for name, content in artifacts(out).items())


@pytest.mark.parametrize("largest", [3_000, 100_000])
def test_files_that_may_not_grow(largest, start, expected, tmp_path):
    run = start(tmp_path / "run", file_bytes=largest)
    assert run.wait() == 2, run.text()
    assert "File too large" in run.text()
    assert "Traceback" not in run.text()
    ends_with_the_same_bytes(start, tmp_path / "run", expected)


def test_a_read_only_folder_is_told_before_the_run(start, expected, tmp_path):
    with disk_of("100m", tmp_path / "disk") as remount:
        (tmp_path / "disk" / "run").mkdir()
        remount("ro")
        run = start(tmp_path / "disk" / "run")
        assert run.wait() == 2
        assert "Read-only file system" in run.text()
        assert "choose another folder" in run.text()
        remount("rw")
        ends_with_the_same_bytes(start, tmp_path / "disk" / "run", expected)


def test_a_folder_that_becomes_read_only_costs_nothing(start, expected, tmp_path):
    with disk_of("100m", tmp_path / "disk") as remount:
        out = tmp_path / "disk" / "run"
        run = start(out)
        run.wait_until(lambda: (out / CHECKPOINT).exists())
        run.signal(signal.SIGSTOP)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=False)
        run.signal(signal.SIGCONT)
        code = run.wait()  # 0 where the log was open, which keeps a file system writable
        assert code in (0, 2), run.text()
        assert "Traceback" not in run.text()
        remount("rw")
        ends_with_the_same_bytes(start, out, expected)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_stops(name, start, expected, tmp_path):
    out = tmp_path / "run"
    run = start(out, seconds_between_checkpoints=1e6)
    run.wait_until(lambda: "warm-up" in run.text())
    run.signal(getattr(signal, name))
    assert run.wait() == 3, run.text()
    assert "stopping after this step" in run.text()
    assert "run the same command again" in run.text()
    assert "Traceback" not in run.text()
    assert (out / CHECKPOINT).exists()  # although it was not yet time for one
    assert set(artifacts(out)) == {"recipe.toml"}
    ends_with_the_same_bytes(start, out, expected)


def test_nohup_outlives_the_terminal(start, expected, tmp_path):
    run = start(tmp_path / "run", ignore=["SIGHUP"])
    run.wait_until(lambda: "warm-up" in run.text())
    run.signal(signal.SIGHUP)
    assert run.wait() == 0, run.text()
    assert artifacts(tmp_path / "run") == expected


@pytest.mark.parametrize("ignore", [[], ["SIGHUP"]])
def test_a_terminal_that_closes(ignore, start, expected, tmp_path):
    """The run saves and stops, or goes on without it where it was started with nohup."""
    out = tmp_path / "run"
    controller, terminal = pty.openpty()
    run = start(out, ignore=ignore, terminal=os.ttyname(terminal))
    seen = b""
    while b"warm-up" not in seen:
        seen += os.read(controller, 1000)
    os.close(terminal)
    os.close(controller)
    assert run.wait() == (0 if ignore else 3)
    ends_with_the_same_bytes(start, out, expected)


def test_a_second_process_is_refused_and_a_dead_one_locks_nobody_out(start, expected, tmp_path):
    first = start(tmp_path / "run")
    first.wait_until(lambda: (tmp_path / "run" / CHECKPOINT).exists())
    first.signal(signal.SIGSTOP)
    second = start(tmp_path / "run")
    assert second.wait() == 2
    assert "another fxquant works in" in second.text()
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    ends_with_the_same_bytes(start, tmp_path / "run", expected)
