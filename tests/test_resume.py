"""Runs that were stopped between two steps continue to the same bytes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small_runs import RECIPES, SHAPE, make, same, snapshot

from fxquant.datafree import engine as engine_module
from fxquant.datafree.engine import Engine
from fxquant.datafree.resume import resume
from fxquant.datafree.watcher import Watcher
from fxquant.state_files import read_state, write_state


@pytest.fixture(autouse=True)
def watched_at_every_step(monkeypatch):
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", 1)
    monkeypatch.setattr(engine_module, "HELD_BACK", 12)


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C, as it were."""


class StopsAt(Watcher):
    """Saves the state to a file and stops after the given step of the given phase."""

    def __init__(self, phase: str, step: int, folder: Path):
        self.at, self.now, self.saved = (phase, step), "", folder / "state"

    def phase(self, name: str, total: int) -> None:
        self.now = name

    def checkpoint(self, engine: Engine) -> None:
        if (self.now, engine.step) == self.at:
            write_state(engine.state_dict(), self.saved)
            raise Interrupted


@pytest.fixture(scope="module")
def uninterrupted():
    """Engines that ran through, by recipe; made when first asked for."""
    engines: dict[str, Engine] = {}

    def run(name: str) -> Engine:
        if name not in engines:
            engines[name] = make(RECIPES[name], seed=4)
            engines[name].run()
        return engines[name]

    return run


@pytest.mark.parametrize(
    ("name", "phase", "step"),
    [
        ("ddaq", "warm-up", 2),
        ("ddaq", "polish", 1),
        ("ddaq", "polish", 2),  # the first batch is finished, the second not begun
        ("ddaq", "calibration", 1),
        ("ddaq", "reconstruction", 1),
        ("ddaq", "reconstruction", 2),  # the first unit is finished, the second not begun
        ("ddaq", "fine-tuning", 3),
        ("paper", "importance", 1),
        ("paper", "fine-tuning", 1),
        ("paper", "fine-tuning", 4),
        ("paper without fine-tuning", "adversarial", 1),
        ("zeroq", "warm-up", 2),
        ("zeroq", "warm-up", 3),
        ("zeroq", "warm-up", 5),
        ("zeroq", "calibration", 1),
    ],
)
def test_a_stopped_run_continues_to_the_same_bytes(name, phase, step, uninterrupted, tmp_path):
    expected, watcher = uninterrupted(name), StopsAt(phase, step, tmp_path)
    with pytest.raises(Interrupted):
        make(RECIPES[name], seed=4, watcher=watcher).run()
    continued = make(RECIPES[name], seed=4)
    resume(continued, read_state(watcher.saved), SHAPE)
    continued.run()
    assert same(snapshot(continued.student), snapshot(expected.student))
    assert torch.equal(continued.held_back, expected.held_back)
    assert continued.history.curves == expected.history.curves
    assert continued.importance == expected.importance
    assert list(continued.seconds) == list(expected.seconds)


def test_state_dict_holds_nothing_that_training_goes_on_to_change_once_saved(tmp_path):
    """A loaded state is a copy: training the engine on leaves the state as it was."""
    watcher = StopsAt("fine-tuning", 2, tmp_path)
    with pytest.raises(Interrupted):
        make(RECIPES["ddaq"], watcher=watcher).run()
    state = read_state(watcher.saved)
    curves, student = copy.deepcopy(state["history"]["curves"]), copy.deepcopy(state["student"])
    engine = make(RECIPES["ddaq"])
    engine.load_state_dict(state)
    engine.run()
    assert same(state["history"]["curves"], curves)
    assert same(state["student"], student)
    assert state["step"] == 2
