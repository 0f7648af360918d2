"""The folder of a run: whose it is, what stands in it, and where an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from fxquant import __version__
from fxquant.errors import OutputError, SettingError
from fxquant.files import write_atomic, write_text
from fxquant.settings import Settings, read_toml, to_toml

MODEL, REPORT, PAGE = "model.onnx", "report.json", "report.html"
RECIPE, STUDENT, LOG = "recipe.toml", "student.safetensors", "run.log"
IMAGES, PROGRAM = "images.safetensors", "model.pt2"
CHECKPOINT, LOCK = "checkpoint.pt", ".lock"

SECONDS_BETWEEN_CHECKPOINTS = 30.0


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class RunFolder:
    """An output folder that belongs to one run; use it as a context manager, which locks it.

    Entering raises OutputError where the folder holds another run or anything else, where
    another process works in it, or where it can't be written.
    """

    def __init__(self, path: Path, settings: Settings, model: dict[str, Any]):
        self.path = path
        self.identity = {"fxquant": __version__, "model": model, **settings.to_dict()}
        self._lock = FileLock(path / LOCK)
        self._last_checkpoint = time.monotonic()

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"another fxquant works in {self.path}", "wait, or use --output"
            ) from error
        except OSError as error:
            raise OutputError(f"can't write to {self.path}: {error.strerror}") from error
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
        (self.path / LOCK).unlink(missing_ok=True)

    def _claim(self) -> None:
        recipe = self.path / RECIPE
        if recipe.exists():
            self._require_same_run(recipe)
            return
        # What a killed process had not finished writing is nobody's.
        ours = (p for p in self.path.iterdir() if p.suffix != ".part" and p.name not in (LOCK, LOG))
        others = sorted(p.name for p in ours)
        if others:
            raise OutputError(
                f"{self.path} is not empty: it holds {', '.join(others[:3])}",
                "choose a new or empty folder with --output",
            )
        write_text(recipe, to_toml(self.identity))

    def _require_same_run(self, recipe: Path) -> None:
        hint = "choose another folder with --output, or remove this one"
        try:
            found = read_toml(recipe)
        except SettingError as error:
            raise OutputError(f"{self.path} holds another run: {error.message}", hint) from error
        wanted = json.loads(json.dumps(self.identity))
        different = first_difference(found, wanted)
        if different:
            raise OutputError(f"{self.path} holds another run: {different}", hint)

    @property
    def finished(self) -> bool:
        """Whether the run has left its report, which is written last."""
        return (self.path / REPORT).exists()

    def read_report(self) -> dict[str, Any]:
        """The finished run's report."""
        return json.loads((self.path / REPORT).read_text(encoding="utf-8"))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """State of the engine where an earlier process stopped, or None."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise OutputError(f"checkpoint {path} can't be read: {error}", "remove it") from error

    def save_checkpoint(self, engine: Any, *, now: bool = False) -> None:
        """Save the engine's state, unless the last time was less than half a minute ago."""
        if not now and time.monotonic() - self._last_checkpoint < SECONDS_BETWEEN_CHECKPOINTS:
            return
        write_atomic(self.path / CHECKPOINT, lambda file: torch.save(engine.state_dict(), file))
        self._last_checkpoint = time.monotonic()

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a run that has finished."""
        (self.path / CHECKPOINT).unlink(missing_ok=True)


def first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    """Words for the first place where two plain structures differ, or None."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            name = f"{where}.{key}" if where else key
            difference = first_difference(found.get(key), wanted.get(key), name)
            if difference:
                return difference
        return None
    return None if found == wanted else f"its {where} is {found!r}, not {wanted!r}"
