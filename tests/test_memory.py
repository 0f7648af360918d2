"""Too little memory ends in a clear word and loses nothing; a long run takes no more and more."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_cli import artifacts, small_command
from small_runs import RECIPES, SHAPE, make, prepared

from fxquant import memory
from fxquant.cli import quantize_job
from fxquant.cli.main import run
from fxquant.datafree import engine as engine_module
from fxquant.datafree.checks import check_recipe
from fxquant.datafree.engine import Engine
from fxquant.datafree.steps import Steps
from fxquant.datafree.watcher import Watcher
from fxquant.errors import ResourceError, SettingError
from fxquant.memory import is_out_of_memory, memory_bytes

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def command(base) -> list[str]:
    return small_command(base)


@pytest.fixture(scope="module")
def expected(base, command) -> dict[str, bytes]:
    assert run([*command, str(base / "first")]) == 0
    return artifacts(base / "first")


def fail_in(monkeypatch, method: str, error: Exception, calls: int) -> None:
    """Let a method of the engine or of its steps raise at its call of this number."""
    owner = Engine if hasattr(Engine, method) else Steps
    original, count = getattr(owner, method), [0]

    def failing(self, *args, **kwargs):
        count[0] += 1
        if count[0] == calls:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, failing)


@pytest.mark.parametrize(
    ("method", "calls", "phase", "error"),
    [
        ("sampler", 2, "step 2 of 4 of the warm-up", CUDA),
        ("_calibrate", 1, "step 1 of 1 of the calibration", CPU),
        ("student", 3, "step 3 of 4 of the fine-tuning", CUDA),
        ("student", 1, "step 1 of 4 of the fine-tuning", MemoryError()),
    ],
)
def test_memory_that_runs_out_is_told_and_the_run_goes_on(
    method, calls, phase, error, command, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fxquant.run_folder.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr("fxquant.run_folder.MOST_TIME_SAVING", 1.0)
    with monkeypatch.context() as patch:
        fail_in(patch, method, error, calls)
        assert run([*command, str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"error: memory ran out on cpu in {phase}, with 6 images at a time" in said
    assert "hint: free memory and run the same command again" in said
    assert run([*command, str(tmp_path / "run")]) == 0
    assert "continuing an interrupted run" in capsys.readouterr().err
    assert artifacts(tmp_path / "run") == expected


def test_memory_that_runs_out_elsewhere_is_told(command, tmp_path, monkeypatch, capsys):
    def export(*args, **kwargs):
        raise CPU

    monkeypatch.setattr(quantize_job, "export", export)
    assert run([*command, str(tmp_path / "run")]) == 2
    assert "error: memory ran out: [enforce fail" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_it(monkeypatch):
    assert all(map(is_out_of_memory, (CUDA, CPU, MemoryError(), RuntimeError("std::bad_alloc"))))
    assert not any(map(is_out_of_memory, (RuntimeError("shape"), KeyboardInterrupt(), OSError())))
    fail_in(monkeypatch, "sampler", RuntimeError("the sizes don't match"), 1)
    with pytest.raises(RuntimeError, match="don't match") as caught:
        make(RECIPES["ddaq"]).run()
    assert not isinstance(caught.value, ResourceError)


@pytest.mark.parametrize("name", ["ddaq", "paper", "zeroq"])
def test_what_can_not_fit_is_told_before_the_run(name, monkeypatch):
    recipe, teacher = RECIPES[name], prepared().teacher
    check_recipe(recipe, teacher, SHAPE)
    monkeypatch.setattr("fxquant.datafree.checks.memory_bytes", lambda: 10_000)
    with pytest.raises(SettingError, match=r"needs \d+ GB .* and there are 0 GB of memory"):
        check_recipe(recipe, teacher, SHAPE)
    monkeypatch.setattr("fxquant.datafree.checks.memory_bytes", lambda: None)
    check_recipe(recipe, teacher, SHAPE)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    assert memory_bytes() > 1 << 28
    for text, expected in (("1000000", 1_000_000), ("max", None), ("", None)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "_CONTAINER_LIMIT", tmp_path / "memory.max")
        assert (memory_bytes() == expected) == (expected is not None)


class Meter(Watcher):
    """Notes the process's memory each time some steps of fine-tuning are done."""

    def __init__(self) -> None:
        self.now, self.megabytes = "", []

    def phase(self, name: str, total: int) -> None:
        self.now = name

    def step(self, done: int, values: dict[str, float]) -> None:
        if self.now != "fine-tuning":
            return
        gc.collect()
        with open("/proc/self/status") as lines:
            size = next(line for line in lines if line.startswith("VmRSS"))
        self.megabytes.append(int(size.split()[1]) / 1000)


def measure(name: str, steps: int, every: int, monkeypatch) -> list[float]:
    """Megabytes after each `every` steps of fine-tuning."""
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", every)
    recipe = RECIPES[name]
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=steps))
    engine = make(recipe)
    engine.watcher = Meter()
    engine.run()
    assert len(engine.watcher.megabytes) == steps // every
    return engine.watcher.megabytes


def test_400_steps_take_no_more_and_more_memory(monkeypatch):
    sizes = measure("paper", 400, 50, monkeypatch)
    assert sizes[-1] - sizes[len(sizes) // 2] < 4


@pytest.mark.soak
@pytest.mark.parametrize("name", ["ddaq", "paper"])
def test_5000_iterations_take_no_more_and_more_memory(name, monkeypatch, figures):
    sizes = measure(name, 5000, 500, monkeypatch)
    shown = {f"after {500 * (i + 1)}": f"{size:.1f} MB" for i, size in enumerate(sizes)}
    figures(f"memory of 5,000 iterations, {name}", shown)
    assert sizes[-1] - sizes[1] < 8
