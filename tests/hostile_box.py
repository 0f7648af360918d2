"""Runs `fxquant` on hostile files, each in a process of its own that tells what it did.

    python tests/hostile_box.py FOLDER NAME...

Prints what became of each named case as JSON. Every case runs in a fork that may not grow by more
than a gigabyte and in which an audit hook notes whatever a file could have made Python do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GROWTH = 1 << 30
SECONDS = 120

# Whatever happens under these names has no place in reading a file.
_ACTS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.kill"),
    *("subprocess.", "pty.", "socket.", "urllib.", "ftplib.", "smtplib.", "http.", "webbrowser."),
    *("ctypes.dlopen", "code.__new__", "os.putenv", "os.unsetenv", "shutil.", "winreg."),
)
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PACKAGES = {"torch", "torchvision", "pytorchcv", "timm", "numpy", "safetensors", "fxquant"}


@dataclass(frozen=True)
class Case:
    """A hostile file: `make` writes it into a folder and returns what follows the command.

    The command must end with exit code 2 and `says`, a pattern, in its error.
    """

    make: Callable[[Path], list[str]]
    says: str
    command: str = "quantize"


def all_cases() -> dict[str, Case]:
    """Every case by name."""
    import hostile_archives
    import hostile_modules
    import hostile_onnx
    import hostile_onnx_claims
    import hostile_onnx_files
    import hostile_others
    import hostile_pickles
    import hostile_runs
    import hostile_states

    modules = (
        *(hostile_pickles, hostile_modules, hostile_archives),
        *(hostile_others, hostile_onnx, hostile_onnx_claims, hostile_onnx_files, hostile_runs),
        hostile_states,
    )
    return {name: case for module in modules for name, case in module.CASES.items()}


def main(folder: Path, names: list[str]) -> None:
    """Make and run the named cases; print name to outcome."""
    cases = all_cases()
    _warm_up(folder)
    outcomes = {}
    for name in names:
        place = folder / name.replace(" ", "-").replace("/", "-")
        place.mkdir(parents=True)
        os.chdir(place)
        arguments = cases[name].make(place)
        outcomes[name] = _in_a_fork(place, [cases[name].command, *arguments])
        os.chdir(folder)
    print(json.dumps(outcomes))


def _warm_up(folder: Path) -> None:
    """Import all that a run imports late, so that a case's own imports stand out."""
    import torch
    from hostile_modules import plain_net

    import fxquant.exporters.tasks  # noqa: F401
    from fxquant.cli.main import run
    from fxquant.exporters import sandbox

    torch.set_num_threads(1)  # a fork would wait forever for threads that only its parent has
    torch.save(plain_net(), folder / "plain.pt")
    small = ["--input-shape", "3,8,8", "--recipe", "zeroq", "--preset", "fast"]
    with contextlib.redirect_stderr(io.StringIO()) as error:
        code = run(["quantize", str(folder / "plain.pt"), *small, "--device", "none"])
    assert code == 2, error.getvalue()
    assert "unknown device" in error.getvalue()
    sandbox.start = Fork


class Fork:
    """Stands for the process that carries out an order of the sandbox: a fork, as quick to start.

    It notes what it does in the same way; `did` says that for all of them.
    """

    did: list[str] = []  # noqa: RUF012, of the process that a case is

    def __init__(self, order: Path, place: Path):
        self.code: int | None = None
        self.place, known = place, len(self.did)
        self.pid = os.fork()
        del self.did[known:]  # that one is ours
        if not self.pid:
            self._carry_out(order)

    def _carry_out(self, order: Path) -> None:
        from fxquant.exporters import tasks

        os.setsid()
        os.chdir(self.place)
        del self.did[:]
        code = 1
        with contextlib.suppress(Exception):
            tasks.main(str(order), str(self.place))
            (self.place / "did").write_text("\n".join(self.did))
            code = 0
        os._exit(code)

    def poll(self) -> int | None:
        """How it ended, once somebody has waited."""
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """How it ended; its own clock is the one that it is held to."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            with contextlib.suppress(FileNotFoundError):
                self.did += (self.place / "did").read_text().splitlines()
        return self.code


def _in_a_fork(place: Path, arguments: list[str]) -> dict:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        outcome = _run_case(place, arguments)
        os.write(write, json.dumps(outcome).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(content) if content else {"code": f"died: {status}", "error": "", "did": []}


def _run_case(place: Path, arguments: list[str]) -> dict:
    from fxquant.cli.main import run

    signal.alarm(SECONDS)
    before = set(place.rglob("*"))
    environment, path = dict(os.environ), list(sys.path)
    did = Fork.did
    at_start = _status("VmRSS")
    limit = _status("VmSize") + GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    scratch = place.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    _watch((place / "out", scratch), did)
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            code: int | str = run(arguments)
    except BaseException:
        code = traceback.format_exc()
    new = [p for p in place.rglob("*") if p not in before and place / "out" not in (p, *p.parents)]
    changed = [] if (dict(os.environ), sys.path) == (environment, path) else ["environment"]
    return {
        "code": code,
        "error": error.getvalue(),
        "did": did[:20] + changed,
        "left": [str(path) for path in new],
        "megabytes": (_status("VmHWM") - at_start) / 1e6,
    }


def _watch(places: Sequence[Path], did: list[str]) -> None:
    """Note in `did` what is done from here on, but for writing in these places."""
    known = {name.partition(".")[0] for name in sys.modules} | _PACKAGES

    def hook(event: str, args: tuple) -> None:
        if event.startswith("shutil.") and args and _inside(args[0], places):
            return
        if event == "ctypes.dlopen" and args[0] is None:  # the program itself
            return
        if event.startswith(_ACTS):
            did.append(f"{event} {args!r:.200}")
        elif event == "open" and (args[2] or 0) & _WRITES and not _inside(args[0], places):
            did.append(f"open for writing {args[0]!r}")
        elif event in _CHANGES and not _inside(_found(args), places):
            did.append(f"{event} {args[0]!r}")
        elif event == "import" and args[0].partition(".")[0] not in known:
            did.append(f"import {args[0]}")

    sys.addaudithook(hook)


def _found(args: tuple) -> object:
    """The path that a change is made at, which may be relative to an open folder."""
    folder = args[-1]
    return (
        f"/proc/self/fd/{folder}/{args[0]}" if isinstance(folder, int) and folder > 2 else args[0]
    )


def _inside(path: object, folders: Sequence[Path]) -> bool:
    if isinstance(path, int):  # a descriptor that was opened, and noted, before
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == os.devnull or any(f"{real}/".startswith(f"{f}/") for f in folders)


def _status(field: str) -> int:
    """Bytes of this process's memory by a field of /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
