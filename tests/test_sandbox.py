"""Foreign ONNX files are run in a process of their own, which nothing keeps from being stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import SHAPE, exported, noise
from hostile_onnx_claims import _loop, good
from interruptible import interruptible

from fxquant.errors import DataError, ExportError, FxQuantError, ParityError, ResourceError
from fxquant.exporters import external, sandbox
from fxquant.exporters.foreign import admit, open_model
from fxquant.exporters.limits import memory_allowed, seconds_allowed
from fxquant.exporters.onnx_bounds import count_nodes
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.runtime import run_onnx
from fxquant.exporters.sandbox import ANSWER, Limits, run_task

MINUTES = 300


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + MINUTES
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def endless(tmp_path) -> list[str]:
    """A command line that never ends by itself."""
    model = good()
    _loop(model)
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    return ["bench", str(tmp_path / "evil.onnx"), "--time-limit", "100000"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_ends_the_command_and_what_it_started(name, endless, tmp_path):
    """At once, although ONNX Runtime computes and Python there can't be asked."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fxquant.cli", *endless]
    with interruptible():
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("fxquant-*/empty/0/evil.onnx")))
    (child,) = children(process.pid)
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=MINUTES)[1]
    if name == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 3
        assert "interrupted" in said
        assert "Traceback" not in said
        assert not list(tmp_path.glob("fxquant-*"))
    wait_until(lambda: not is_running(child))


def test_nothing_of_the_working_directory_is_imported(tmp_path):
    (tmp_path / "model.onnx").write_bytes(good().SerializeToString())
    for name in ("json", "numpy", "onnxruntime", "onnx", "torch", "sitecustomize", "fxquant"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    script = Path(sys.executable).with_name("fxquant")
    command = [str(script), "bench", "model.onnx", "--runs", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)
    assert figures["file"] == "model.onnx"
    assert not (tmp_path / "ran").exists()


class Ended:
    """A process that has ended and left this answer."""

    pid = 0

    def __init__(self, code: int, answer: str | None):
        self.code, self.answer = code, answer

    def __call__(self, order: Path, place: Path) -> Ended:
        assert json.loads(order.read_text())["task"] == "bench"
        if self.answer is not None:
            (place / ANSWER).write_text(self.answer)
        return self

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def outcome(monkeypatch, code: int, answer: str | None = None) -> FxQuantError:
    monkeypatch.setattr(sandbox, "start", Ended(code, answer))
    with pytest.raises(FxQuantError) as caught:
        run_task("bench", {})
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (-signal.SIGALRM, ExportError, "takes longer"),
        (-signal.SIGXCPU, ExportError, "takes longer"),
        (128 + signal.SIGXCPU, ExportError, "takes longer"),
        (-signal.SIGKILL, ResourceError, "memory ran out"),
        (-signal.SIGSEGV, ExportError, "SIGSEGV"),
        (-signal.SIGABRT, ExportError, "SIGABRT"),
        (1, ExportError, "exit code 1"),
        (0, ExportError, "exit code 0"),
    ],
)
def test_a_process_without_an_answer(code, kind, says, monkeypatch):
    error = outcome(monkeypatch, code)
    assert type(error) is kind
    assert says in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize(
    "answer",
    [
        *("", "{", "[]", "null", '{"done": NaN}', "[" * 100_000, '{"done": 1, "x": 2}'),
        '{"kind": "ExportError"}',
        '{"kind": [], "message": "x", "hint": null}',
    ],
)
def test_an_answer_that_is_none(answer, monkeypatch):
    assert "exit code 0" in outcome(monkeypatch, 0, answer).message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("DataError", DataError), ("ParityError", ParityError), ("SystemExit", ExportError),
     ("annotations", ExportError), ("__name__", ExportError)],
)  # fmt: skip
def test_an_error_is_one_of_this_package(kind, expected, monkeypatch):
    answer = json.dumps({"kind": kind, "message": "what", "hint": "how"})
    error = outcome(monkeypatch, 0, answer)
    assert type(error) is expected
    assert (error.message, error.hint) == ("what", "how")


def test_an_answer_is_what_the_task_gave(monkeypatch):
    monkeypatch.setattr(sandbox, "start", Ended(0, '{"done": [1, {"a": 0.5}]}'))
    assert run_task("bench", {}) == [1, {"a": 0.5}]


@pytest.mark.parametrize("limits", [Limits(seconds=1.0), Limits(memory=1 << 20)])
def test_limits_that_are_too_small(limits, endless):
    order = {"files": [endless[1]], "batch": 8, "runs": 1}
    with pytest.raises(FxQuantError, match=r"takes longer|memory|alloc"):
        run_task("bench", order, limits)


def test_limits_grow_with_what_a_file_is():
    assert memory_allowed(1_200_000_000, 8 * 3 * 384 * 384 * 4) > 14_000_000_000
    assert memory_allowed(1000) < 4_000_000_000
    assert seconds_allowed(1_200_000_000, 3 * 384 * 384 * 4) > 120
    assert seconds_allowed(1000, 1000) < 30


def test_functions_are_counted_where_they_are_called():
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[n] x) => (float[n] y) { t = own.two(x) u = own.four(t) y = Relu(u) }
        <domain: "own", opset_import: ["" : 21]> two (a) => (b) { c = Relu(a) b = Relu(c) }
        <domain: "own", opset_import: ["" : 21, "own" : 1]> four (a) => (b)
        { c = own.two(a) b = own.two(c) }"""
    assert count_nodes(onnx.parser.parse_model(text)) == 2 + 4 + 1


def admitted(path: Path, folder: Path) -> Path:
    folder.mkdir()
    with open_model(path) as file:
        return admit(file, path, folder)


def test_what_is_run_is_what_was_checked(tmp_path):
    (tmp_path / "a.onnx").write_bytes(good().SerializeToString())
    (tmp_path / "b.onnx").write_bytes(b"swapped")
    with open_model(tmp_path / "a.onnx") as file:
        os.replace(tmp_path / "b.onnx", tmp_path / "a.onnx")
        (tmp_path / "place").mkdir()
        copy = admit(file, tmp_path / "a.onnx", tmp_path / "place")
    assert copy.read_bytes() == good().SerializeToString()


def test_weights_outside_come_along(tmp_path, monkeypatch):
    """Behind a link too, where they lie beside the link."""
    monkeypatch.setattr(external, "LARGEST", 2000)
    (tmp_path / "a").mkdir()
    path = tmp_path / "a/m.onnx"
    export_onnx(exported("plain", 8, 8).student, path, input_shape=SHAPE)
    copy = admitted(path, tmp_path / "copied")
    assert sorted(p.name for p in copy.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_array_equal(run_onnx(copy, noise(3)), run_onnx(path, noise(3)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/m.onnx").symlink_to(path)
    with pytest.raises(ExportError, match="no file in its folder"):
        admitted(tmp_path / "b/m.onnx", tmp_path / "without")
    (tmp_path / "b/m.onnx.data").write_bytes((tmp_path / "a/m.onnx.data").read_bytes())
    assert admitted(tmp_path / "b/m.onnx", tmp_path / "with").exists()


@pytest.mark.parametrize("name", ["net.ort", "net.json", "größe.onnx", "x", "n\x1b.onnx"])
def test_a_copy_has_the_name_of_an_onnx_file(name, tmp_path):
    (tmp_path / name).write_bytes(good().SerializeToString())
    assert admitted(tmp_path / name, tmp_path / "place").name == "model.onnx"
