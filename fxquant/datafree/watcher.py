"""Who looks on while an engine runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxquant.datafree.engine import Engine


class Watcher:
    """What an engine tells while it runs: override what is of interest.

    What a method raises ends the run. None may change what it is given.
    """

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""

    def step(self, done: int, values: dict[str, float]) -> None:
        """`done` steps of the phase are done; the newest losses by curve name."""

    def checkpoint(self, engine: Engine) -> None:
        """The engine is between two steps, and its `state_dict` may be saved."""

    def finish(self, engine: Engine) -> None:
        """All phases are done; what is saved now spares whoever continues all of them."""


class Watchers(Watcher):
    """Several watchers, each told in turn."""

    def __init__(self, *watchers: Watcher):
        self.watchers = watchers

    def phase(self, name: str, total: int) -> None:
        for watcher in self.watchers:
            watcher.phase(name, total)

    def step(self, done: int, values: dict[str, float]) -> None:
        for watcher in self.watchers:
            watcher.step(done, values)

    def checkpoint(self, engine: Engine) -> None:
        for watcher in self.watchers:
            watcher.checkpoint(engine)

    def finish(self, engine: Engine) -> None:
        for watcher in self.watchers:
            watcher.finish(engine)
