"""Work on foreign files in a process of its own, which can be stopped at any moment.

The process imports what is installed and nothing that lies about, stands in an empty folder, and is
held to limits of memory and time. Orders and answers are JSON. It keeps ONNX Runtime's faults and
appetite away from this process; it is no wall against code that a fault of ONNX Runtime might run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fxquant import errors
from fxquant.errors import ExportError, FxQuantError, ResourceError
from fxquant.exporters.isolated import command, environment
from fxquant.exporters.limits import DEFAULT_SECONDS
from fxquant.files import read_regular
from fxquant.json_files import parse_json
from fxquant.schema import maybe, plain, table, text

ANSWER = "answer.json"
MOST_ANSWER = 1 << 26
_RAISE = "where you trust the file: --time-limit SECONDS, --memory-limit SIZE"
_ERROR = table({"kind": text, "message": plain, "hint": maybe(plain)})


@dataclass(frozen=True)
class Limits:
    """What a file may take at most; where a limit is None it follows from the file's size.

    `seconds` pass on the clock, one hour where it is None; `memory` is in bytes.
    """

    seconds: float | None = None
    memory: int | None = None


class Process(Protocol):
    """What is needed of a started process."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code where it has ended, without waiting for it."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it; raises TimeoutExpired."""


def run_task(task: str, arguments: dict[str, Any], limits: Limits | None = None) -> Any:
    """What a task of `fxquant.exporters.tasks` gives for these arguments, both plain values.

    Raises the FxQuantError that the task ends with, ExportError where it takes too long or is
    ended by a signal, ResourceError where memory runs out.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="fxquant-") as folder:
        order = {"task": task, "limits": asdict(limits), "parent": os.getpid(), **arguments}
        order_file = Path(folder) / "order.json"
        order_file.write_text(json.dumps(order), encoding="utf-8")
        place = Path(folder) / "empty"
        place.mkdir()
        process = start(order_file, place)
        try:
            code = process.wait(limits.seconds or DEFAULT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _too_long() from error
        finally:
            _end(process)
        return _answer(place / ANSWER, code)


def start(order: Path, place: Path) -> Process:
    """Start the process that carries out an order in its folder."""
    return subprocess.Popen(
        command("fxquant.exporters.tasks", str(order), str(place)),
        cwd=place,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: Process) -> None:
    """End it, and what it has started, where it has not ended by itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answer(path: Path, code: int) -> Any:
    try:
        answer = parse_json(read_regular(path, MOST_ANSWER))
        plain(answer, "the answer")
    except (OSError, ValueError) as error:
        raise _ended(code) from error
    if isinstance(answer, dict) and answer.keys() == {"done"}:
        return answer["done"]
    with suppress(ValueError):
        _ERROR(answer, "")
        raise _error_of(answer)
    raise _ended(code)


def _error_of(answer: dict[str, Any]) -> FxQuantError:
    kind = getattr(errors, answer["kind"], None)
    known = isinstance(kind, type) and issubclass(kind, FxQuantError)
    return (kind if known else ExportError)(str(answer["message"]), answer["hint"])


def _ended(code: int) -> FxQuantError:
    """Words for a process that ended without an answer."""
    number = -code if code < 0 else code - 128
    if number in (getattr(signal, "SIGALRM", None), getattr(signal, "SIGXCPU", None)):
        return _too_long()
    if number == signal.SIGKILL:
        return ResourceError("memory ran out while the file was run", _RAISE)
    with suppress(ValueError):
        name = signal.Signals(number).name
        return ExportError(f"ONNX Runtime broke down at the file: it ended with {name}", _RAISE)
    return ExportError(f"the process that runs the file ended with exit code {code}", _RAISE)


def _too_long() -> ExportError:
    return ExportError("the file takes longer than files of its size may", _RAISE)


def search_path() -> list[str]:
    """Where this process finds modules that a user may name, for a process that must, too."""
    return [os.path.abspath(place) for place in sys.path if place]
