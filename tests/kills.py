"""Kills runs at random moments and looks at what they leave."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from fork_server import ForkServer
from small_cli import ARTIFACTS, artifacts, others, small_command

from fxquant.files import is_leftover
from fxquant.run_folder import CHECKPOINT, REPORT
from fxquant.state_files import read_state


def kill_often(folder: Path, kills: int, seed: int, steps: int) -> dict[str, int | float]:
    """Kill runs `kills` times with SIGKILL, let each end, and compare; the figures.

    Each run is killed one to three times at a moment picked evenly from the time that it takes.
    """
    rng, figures = random.Random(seed), Counter()
    command = small_command(folder, steps)
    with ForkServer() as server:
        start = time.monotonic()
        assert _run_through(server, folder, [*command, str(folder / "whole")]) == 0
        duration = time.monotonic() - start
        expected = artifacts(folder / "whole")
        assert set(expected) == ARTIFACTS
        while figures["kills"] < kills:
            out = folder / "run"
            for _ in range(rng.randint(1, 3)):
                said = _kill_once(server, folder, [*command, str(out)], rng.uniform(0, duration))
                if said is not None:
                    figures["kills"] += 1
                    figures[_look_at(out, expected, said)] += 1
            assert _run_through(server, folder, [*command, str(out)]) == 0
            assert artifacts(out) == expected
            assert not others(out)
            assert not any(is_leftover(path) for path in out.iterdir())
            figures["runs that ended with the same bytes"] += 1
            shutil.rmtree(out)
    return {**figures, "seconds of a run": round(duration, 1)}


def _run_through(server: ForkServer, folder: Path, arguments: list[str]) -> int:
    return server.start(arguments, folder / "log", seconds_between_checkpoints=0.2).wait()


def _kill_once(server: ForkServer, folder: Path, arguments: list[str], after: float) -> str | None:
    """What the run had said when it was killed; None where it had ended by itself."""
    (folder / "killed").unlink(missing_ok=True)
    run = server.start(arguments, folder / "killed", seconds_between_checkpoints=0.2)
    if run.wait_at_most(after) is not None:
        return None
    run.signal(signal.SIGKILL)
    return run.text() if run.wait() == -signal.SIGKILL else None


def _look_at(out: Path, expected: dict[str, bytes], said: str) -> str:
    """Check that nothing looks finished and isn't; where the kill fell."""
    if not out.exists():
        return "killed before there was a folder"
    found = artifacts(out)
    assert all(content == expected[name] for name, content in found.items()), found.keys()
    assert not others(out)
    if REPORT in found:
        assert found == expected
        return "killed when all was written"
    if (out / CHECKPOINT).exists():
        read_state(out / CHECKPOINT)  # whole, and with its checksum right
    if "export and parity" in said:
        return "killed in the export"
    return "killed in the training" if "warm-up" in said else "killed before the training"
