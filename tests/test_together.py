"""Two processes with half a batch each against one with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from small_cli import small_command
from small_runs import make
from together import VARIANTS

from fxquant.cli.main import run
from fxquant.datafree import processes
from fxquant.errors import ResourceError, SettingError

HERE = Path(__file__).parent
SEEDS = (8, 7, 5, 9)
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def call(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[int], tuple[dict, dict]]:
    """What one process finds with a seed, and what two do."""
    folder = tmp_path_factory.mktemp("together")

    @cache
    def train(seed: int) -> tuple[dict, dict]:
        found = []
        for name, python in (("one.pt", [sys.executable]), ("two.pt", TWO)):
            done = call([*python, str(HERE / "together.py"), str(folder / name), str(seed)])
            assert done.returncode == 0, done.stderr[-3000:]
            found.append(torch.load(folder / name))
        return tuple(found)

    return train


@pytest.mark.parametrize("name", VARIANTS)
def test_two_halves_are_one_whole(name, trained):
    """Where a value lies at a grid's edge they round it apart and go ways of their own.

    A seed with which no value does shows that they compute the same; chance can't.
    """
    complaints = []
    for seed in SEEDS:
        one, two = (found[name] for found in trained(seed))
        complaints.append(difference(one, two))
        assert torch.isfinite(two["images"]).all()
        if complaints[-1] is None:
            return
    pytest.fail(f"seeds {SEEDS}: {complaints}")


def difference(one: dict, two: dict) -> str | None:
    """The first thing in which two runs differ by more than sums in another order do."""
    for what in ("gradients", "curves", "student"):
        assert one[what].keys() == two[what].keys()
    largest = max((float(g.abs().max()) for g in one["gradients"].values()), default=0.0)
    for key, gradient in one["gradients"].items():
        size = max(float(gradient.abs().max()), 1e-3 * largest)  # a later norm leaves noise alone
        if (gradient - two["gradients"][key]).abs().max() >= 1e-2 * size:
            return f"gradient {key}"
    for key, curve in one["curves"].items():
        if curve != pytest.approx(two["curves"][key], rel=1e-2, abs=1e-6):
            return f"curve {key}"
    if (one["images"] - two["images"]).abs().max() >= 1e-3:
        return "images"
    for key, value in one["student"].items():
        if value.is_floating_point() and (value - two["student"][key]).abs().max() >= 1e-3:
            return f"student {key}"
    return None


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    return small_command(tmp_path_factory.mktemp("net"))


def test_torchrun_writes_one_result_and_goes_on_from_a_checkpoint(command, tmp_path, monkeypatch):
    def save_and_stop(self, engine) -> None:
        if engine.recipe.schedule.steps and engine.optimizer.state and engine.step == 2:
            self.folder.save_checkpoint(engine, now=True)
            raise KeyboardInterrupt

    out = tmp_path / "run"
    assert run([*command, str(tmp_path / "alone")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("fxquant.cli.progress.ProgressWatcher.checkpoint", save_and_stop)
        assert run([*command, str(out)]) == 3
    done = call([*TWO, "-m", "fxquant.cli", *command, str(out), "--json"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("continuing an interrupted run") == 1
    report = json.loads(done.stdout)  # printed once
    assert report == json.loads((out / "report.json").read_text())
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["parity"]["passed"]
    assert report["settings"] == alone["settings"]
    for name, curve in alone["curves"].items():
        assert curve == pytest.approx(report["curves"][name], rel=2e-2, abs=1e-6), name
    again = call([*TWO, "-m", "fxquant.cli", *command, str(out)])
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("already finished") == 1


def test_an_error_is_told_once(command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    done = call([*TWO, "-m", "fxquant.cli", *command, str(tmp_path / "full")])
    assert done.returncode != 0
    assert done.stderr.count("is not empty: it holds mine.txt") == 1


def test_a_process_that_has_lost_the_others_says_so(monkeypatch):
    def lost(*args) -> None:
        raise RuntimeError("[pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(processes._group, "size", 2)
    for name in ("all_reduce", "all_gather", "broadcast", "broadcast_object_list"):
        monkeypatch.setattr(f"torch.distributed.{name}", lost)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    x = torch.ones(2)
    for call in (
        *(lambda: processes.average(x), lambda: processes.gather(x), processes.agree),
        *(lambda: processes.share(torch.nn.Linear(1, 1)), lambda: processes.any_of(True)),
    ):
        with pytest.raises(ResourceError, match="process 0 of 2 lost the others"):
            call()


def test_batches_that_can_not_be_shared_out_are_refused(monkeypatch):
    monkeypatch.setattr(processes._group, "size", 4)
    with pytest.raises(SettingError, match=r"schedule.batch is 6, which 4 processes can't share"):
        make(VARIANTS["paper"])


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:1", "can't share device 'cuda:1'"), ("cuda", "more processes than GPUs")],
)
def test_processes_that_find_no_gpu_each_are_refused(device, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1000")
    with pytest.raises(SettingError, match=message), processes.joined(device):
        pass


def test_alone_everything_stays_what_it_is(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.ones(3, requires_grad=True)
    with processes.joined("cpu"):
        for function in (*(processes.part, processes.gather, processes.agree), processes.average):
            assert function(x) is x
        assert processes.average_loss(x) is x
        assert (processes.rank(), processes.size(), processes.any_of(True)) == (0, 1, True)
