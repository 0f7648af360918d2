"""Runs of the command line that can be killed and start at once: forks of a process that waits.

A fork has everything imported, so that a moment picked at random falls into the run itself.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ForkServer:
    """Starts `fxquant` in forks of one process; a context manager."""

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        seconds_between_checkpoints: float = 0.0,
        file_bytes: int | None = None,
        ignore: Sequence[str] = (),
        terminal: str | None = None,
    ) -> Run:
        """Start a run whose output goes to `log`, or to a terminal; it leads its own session.

        No file that it writes may be larger than `file_bytes`; signals in `ignore` are ignored
        from the start, as nohup does.
        """
        order = {"arguments": list(arguments), "log": str(log), "terminal": terminal}
        order |= {"file_bytes": file_bytes, "ignore": list(ignore)}
        order |= {"seconds": seconds_between_checkpoints}
        return Run(self, self._ask(order)["pid"], log)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Run:
    """One run in a fork."""

    def __init__(self, server: ForkServer, pid: int, log: Path):
        self.server, self.pid, self.log = server, pid, log

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it."""
        return self.server._ask({"wait": self.pid, "seconds": None})["code"]

    def wait_at_most(self, seconds: float) -> int | None:
        """The same, None where it has not ended by then."""
        return self.server._ask({"wait": self.pid, "seconds": seconds})["code"]

    def wait_until(self, condition, seconds: float = 1200) -> None:
        """Poll until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text()
            time.sleep(0.005)

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text() if self.log.exists() else ""


def _serve() -> None:
    _import_all()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = {"code": _wait(order["wait"], order["seconds"])}
        else:
            pid = os.fork()
            if not pid:
                _run(order)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _wait(pid: int, seconds: float | None) -> int | None:
    """How a fork ended; None where it has not within the seconds."""
    if seconds is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def _import_all() -> None:
    """Also what an export imports when it begins, by exporting nothing much."""
    import nets  # noqa: F401
    import torch
    from fast_exports import remember_translations

    import fxquant.cli.quantize_job  # noqa: F401
    from fxquant.exporters.capture import capture

    torch.set_num_threads(1)
    remember_translations()
    with torch.no_grad():
        capture(torch.fx.symbolic_trace(torch.nn.Flatten()), (3, 4), 21)


def _run(order: dict[str, Any]) -> None:
    from fxquant import run_folder
    from fxquant.cli.main import main

    code: object = 99
    try:
        os.setsid()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # The first terminal that the leader of a session opens becomes the session's own.
        place = os.open(
            order["terminal"] or order["log"], os.O_RDWR if order["terminal"] else flags
        )
        os.dup2(place, 1)
        os.dup2(place, 2)
        # What runs in the background of a script is started without them.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for name in order["ignore"]:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        if order["file_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
        run_folder.SECONDS_BETWEEN_CHECKPOINTS = order["seconds"]
        run_folder.MOST_TIME_SAVING = 1.0
        main(order["arguments"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        with open(order["log"], "a") as log:
            traceback.print_exc(file=log)
    os._exit(code if isinstance(code, int) else 98)


if __name__ == "__main__":
    _serve()
