"""`fxquant quantize` under torchrun: the first process writes, the others only train along."""

from __future__ import annotations

from typing import Any

from fxquant.cli.interrupts import interrupts
from fxquant.datafree import processes
from fxquant.datafree.engine import Engine
from fxquant.datafree.watcher import Watcher
from fxquant.graph.prepare import Prepared
from fxquant.pipeline import run
from fxquant.settings import Settings

# An exchange at each step would cost more than a step that is waited for.
STEPS_BETWEEN_QUESTIONS = 20


def start_others(state: dict[str, Any] | None) -> None:
    """Tell the other processes to train, from the state where an earlier run stopped."""
    processes.agree({"state": state})


def release_others() -> None:
    """Tell the other processes that there is nothing to train."""
    processes.agree(None)


def follow(prepared: Prepared, settings: Settings) -> None:
    """Train along with the first process, once it says so."""
    start = processes.agree()
    if start is not None:
        with interrupts.deferred():
            run(prepared, settings, watcher=_Follower(), state=start["state"])


class _Follower(Watcher):
    """Stops where the first process does."""

    def checkpoint(self, engine: Engine) -> None:
        if stop_asked(engine):
            raise KeyboardInterrupt


def stop_asked(engine: Engine) -> bool:
    """Whether somebody asked to stop: any of the processes, which all say the same."""
    if processes.size() == 1:
        return interrupts.pending
    due = engine.step % STEPS_BETWEEN_QUESTIONS == 0
    return due and processes.any_of(interrupts.pending)
