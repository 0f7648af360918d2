"""Progress on stderr: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fxquant.cli.console import PlainConsole
from fxquant.cli.together import stop_asked
from fxquant.datafree.engine import Engine
from fxquant.datafree.watcher import Watcher
from fxquant.run_folder import RunFolder

SECONDS_BETWEEN_LINES = 15.0


class ProgressWatcher(Watcher):
    """Shows an engine's phases, losses, rate and time left, and saves its checkpoints.

    Without a folder there are none to save.
    """

    def __init__(self, folder: RunFolder | None = None):
        self.folder = folder
        self.console = PlainConsole(stderr=True)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<13}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", style="dim", markup=False),
            console=self.console,
        )
        self.task = None
        self.name, self.total, self.first, self.started = "", 0, None, 0.0
        self.last_line = time.monotonic()

    def __enter__(self) -> ProgressWatcher:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def say(self, what: str) -> None:
        """Show work that has no steps to count."""
        self.phase(what, 1)

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""
        self.name, self.total, self.first, self.started = name, total, None, time.monotonic()
        if self.console.is_terminal:
            self.task = self.bar.add_task(name, total=total, rate="", losses="")
        else:
            self.console.print(f"{name} ({total} steps)" if total > 1 else name)

    def step(self, done: int, values: dict[str, float]) -> None:
        """`done` steps are done; the newest losses by curve name."""
        if self.first is None:
            self.first = done
        rate = self._rate(done)
        losses = " ".join(f"{k.split('/')[-1]} {v:.3g}" for k, v in values.items() if "." not in k)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, rate=rate, losses=losses)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.console.print(f"  {done}/{self.total} {rate} {losses}")
            self.last_line = time.monotonic()

    def checkpoint(self, engine: Engine) -> None:
        """Between two steps: save where it is time, or where somebody asked to stop."""
        stop = stop_asked(engine)
        if self.folder is not None:
            self.folder.save_checkpoint(engine, now=stop)
        if stop:
            raise KeyboardInterrupt

    def finish(self, engine: Engine) -> None:
        """Save what all the training came to, before the export."""
        if self.folder is not None:
            self.folder.save_checkpoint(engine, now=True)

    def _rate(self, done: int) -> str:
        seconds = time.monotonic() - self.started
        return f"{done / seconds:.1f}/s" if self.total > 1 and seconds > 0 else ""
