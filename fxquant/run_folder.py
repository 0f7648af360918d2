"""The folder of a run: whose it is, what stands in it, and where an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from torch import nn

from fxquant import __version__
from fxquant.errors import ModelLoadError, OutputError, SettingError
from fxquant.files import is_leftover, remove_leftovers, write_atomic, write_text
from fxquant.models.archives import open_archive
from fxquant.models.pickles import read_pickle
from fxquant.settings import Settings, read_toml, to_toml

MODEL, REPORT, PAGE = "model.onnx", "report.json", "report.html"
RECIPE, STUDENT, LOG = "recipe.toml", "student.safetensors", "run.log"
IMAGES, PROGRAM = "images.safetensors", "model.pt2"
CHECKPOINT, LOCK, TIMING = "checkpoint.pt", ".lock", "timing.json"
EVENTS = "tensorboard"
_RESULTS = (MODEL, PROGRAM, IMAGES, REPORT, PAGE, RECIPE, STUDENT)
_OURS = (*_RESULTS, LOG, CHECKPOINT, LOCK, TIMING, EVENTS)

SECONDS_BETWEEN_CHECKPOINTS = 30.0
# Saving may take one part in fifty of the time, however large the checkpoint.
MOST_TIME_SAVING = 0.02

REPORT_KEYS = ("model", "settings", "summary", "size", "bitops", "quality", "float", "parity")


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

    The lock ends with the process, however that ends; its file stays. Entering raises OutputError
    where the folder holds another run or anything else, where another process works in it, or
    where it can't be written.
    """

    def __init__(self, path: Path, settings: Settings, model: dict[str, Any]):
        self.path = path
        self.identity = {"fxquant": __version__, "model": model, **settings.to_dict()}
        self._lock = FileLock(path / LOCK)
        self._next_checkpoint = time.monotonic() + SECONDS_BETWEEN_CHECKPOINTS

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_links()
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"another fxquant works in {self.path}", "wait, or use --output"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"can't write to {self.path}: {reason}", "choose another folder with --output"
            ) from error
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _refuse_links(self) -> None:
        """A link in a folder from elsewhere could lead what is written to any other file."""
        links = [name for name in _OURS if (self.path / name).is_symlink()]
        if links:
            raise OutputError(
                f"{self.path / links[0]} is a link, which would be written through",
                "choose another folder with --output",
            )

    def _claim(self) -> None:
        recipe = self.path / RECIPE
        if recipe.exists():
            self._require_same_run(recipe)
            remove_leftovers(self.path)
            return
        # What a killed process had not finished writing is nobody's.
        others = sorted(
            path.name
            for path in self.path.iterdir()
            if not is_leftover(path) and path.name != LOCK and not path.name.startswith(LOG)
        )
        if others:
            raise OutputError(
                f"{self.path} is not empty: it holds {', '.join(others[:3])}",
                "choose a new or empty folder with --output",
            )
        remove_leftovers(self.path)
        write_text(recipe, to_toml(self.identity))

    def _require_same_run(self, recipe: Path) -> None:
        hint = "choose another folder with --output, or remove this one"
        try:
            found = read_toml(recipe)
        except SettingError as error:
            raise OutputError(f"{self.path} holds another run: {error.message}", hint) from error
        wanted = json.loads(json.dumps(self.identity))
        _adopt_chosen_widths(found, wanted)
        different = first_difference(found, wanted)
        if different:
            raise OutputError(f"{self.path} holds another run: {different}", hint)

    @property
    def finished(self) -> bool:
        """Whether the run has left its report, which is written last."""
        return (self.path / REPORT).exists()

    def read_report(self) -> dict[str, Any]:
        """The finished run's report; raises OutputError where it is damaged."""
        path = self.path / REPORT
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in REPORT_KEYS if key not in report]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _damaged(path, error) from error
        if missing or not isinstance(report, dict):
            raise _damaged(path, f"it has no '{missing[0] if missing else 'report'}'")
        return report

    def load_checkpoint(self) -> dict[str, Any] | None:
        """State of the engine where an earlier process stopped, or None."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            with path.open("rb") as file:
                archive = open_archive(file, path, "a checkpoint that fxquant wrote")
                return read_pickle(path, archive)
        except (ModelLoadError, OSError) as error:
            raise _damaged(path, error) from error

    def save_checkpoint(self, engine: Any, *, now: bool = False) -> None:
        """Save the engine's state, unless the last time was less than half a minute ago."""
        start = time.monotonic()
        if not now and start < self._next_checkpoint:
            return
        write_atomic(self.path / CHECKPOINT, lambda file: _save(engine.state_dict(), file))
        end = time.monotonic()
        pause = max(SECONDS_BETWEEN_CHECKPOINTS, (end - start) / MOST_TIME_SAVING)
        self._next_checkpoint = end + pause

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a run that has finished."""
        (self.path / CHECKPOINT).unlink(missing_ok=True)


class _Recorder:
    """A file that torch.save writes to, which keeps the error that torch.save hides."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        recorder = _Recorder(file)
        try:
            torch.save(state, recorder)
        except RuntimeError as error:
            raise recorder.error or error from error


def _damaged(path: Path, reason: Exception | str) -> OutputError:
    text = getattr(reason, "message", reason)
    return OutputError(
        f"{path} can't be read: {text or type(reason).__name__}",
        "remove it, and the same command does again what it stands for",
    )


def _adopt_chosen_widths(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Let a run that is to choose widths be the one that has chosen them already."""
    there, asked = found.get("mixed"), wanted.get("mixed")
    if isinstance(there, dict) and isinstance(asked, dict) and not asked["layers"]:
        asked["layers"] = there.get("layers", [])


def first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    """Words for the first place where two plain structures differ, or None."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            name = f"{where}.{key}" if where else key
            difference = first_difference(found.get(key), wanted.get(key), name)
            if difference:
                return difference
        return None
    return None if found == wanted else f"its {where} is {_shown(found)}, not {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
