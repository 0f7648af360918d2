"""What an engine tells, for TensorBoard: losses, learning rates, speed and generated images."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from fxquant.datafree.engine import Engine
from fxquant.datafree.watcher import Watcher
from fxquant.errors import SettingError

MOST_IMAGES = 16
PICTURES_A_PHASE = 10


class TensorBoardWatcher(Watcher):
    """Writes events into `folder`; use it as a context manager, which closes the file.

    Every curve is under its phase, its x axis the phase's steps. Raises SettingError where
    TensorBoard isn't installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(
                f"TensorBoard isn't installed: {error}", "pip install 'fxquant[tensorboard]'"
            ) from error
        self.writer = SummaryWriter(str(folder))
        self.name, self.total, self.shown = "", 0, 0
        self.newest: tuple[int, dict[str, float]] | None = None
        self.last = (0, time.monotonic())

    def __enter__(self) -> TensorBoardWatcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.writer.close()

    def phase(self, name: str, total: int) -> None:
        """A phase begins."""
        self.name, self.total, self.shown = name, total, 0
        self.last = (0, time.monotonic())

    def step(self, done: int, values: dict[str, float]) -> None:
        """Keep the newest values until the engine is between two steps."""
        self.newest = (done, values)

    def checkpoint(self, engine: Engine) -> None:
        """Write what is new."""
        if self.newest is None:
            return
        (done, values), self.newest = self.newest, None
        for name, value in values.items():
            self.writer.add_scalar(name, value, done)
        for who, rate in engine.steps.rates.items() if values else ():
            self.writer.add_scalar(f"{self.name}/rate.{who}", rate, done)
        before, then = self.last
        self.last = now = (done, time.monotonic())
        if self.total > 1 and before:
            speed = (done - before) / max(now[1] - then, 1e-9)
            self.writer.add_scalar(f"{self.name}/steps per second", speed, done)
        if values and done * PICTURES_A_PHASE >= self.shown * self.total:
            self.shown = done * PICTURES_A_PHASE // self.total + 1
            self._show(engine.steps.images, done)

    def _show(self, images: Tensor | None, done: int) -> None:
        """Images of 1 or 3 channels as they are, of others the first channel."""
        if images is None or images.dim() != 4:
            return
        images = images[:MOST_IMAGES].float().cpu()
        images = images if images.shape[1] in (1, 3) else images[:, :1]
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        pixels = (images - low) / (high - low).clamp(min=1e-12)
        self.writer.add_images(f"{self.name}/images", pixels, done)
