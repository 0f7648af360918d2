"""Who looks on while an engine runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fxquant.datafree.engine import Engine


class Watcher(Protocol):
    """What an engine tells while it runs; every method may be left empty."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""

    def step(self, done: int, values: dict[str, float]) -> None:
        """`done` steps of the phase are done; the newest losses by curve name."""

    def checkpoint(self, engine: Engine) -> None:
        """The engine is between two steps, and its `state_dict` may be saved."""

    def finish(self, engine: Engine) -> None:
        """All phases are done; what is saved now spares whoever continues all of them."""


class SilentWatcher:
    """Says nothing."""

    def phase(self, name: str, total: int) -> None:
        """Nothing."""

    def step(self, done: int, values: dict[str, float]) -> None:
        """Nothing."""

    def checkpoint(self, engine: Engine) -> None:
        """Nothing."""

    def finish(self, engine: Engine) -> None:
        """Nothing."""
