"""What is done with foreign files, in the process that `fxquant.exporters.sandbox` starts."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fxquant.errors import ExportError, FxQuantError, ParityError, ResourceError
from fxquant.exporters.foreign import admit, open_model
from fxquant.exporters.latency import benchmark, input_shapes, make_inputs
from fxquant.exporters.limits import (
    DEFAULT_SECONDS,
    end_with_parent,
    hold_clock,
    hold_memory,
    hold_processor,
    memory_allowed,
    seconds_allowed,
)
from fxquant.exporters.runtime import BATCH, call, make_session, run_batches
from fxquant.exporters.sandbox import ANSWER
from fxquant.files import write_text
from fxquant.memory import is_out_of_memory
from fxquant.wording import shown

_SIDES = ("unoptimized", "optimized")
_MORE = "where you trust the file: --memory-limit SIZE"


def bench(order: dict[str, Any], place: Path) -> list[dict[str, Any]]:
    """Measure files side by side; the figures of each as plain values."""
    paths = [Path(path) for path in order["files"]]
    holder = _Holder(order["limits"])
    copies = [holder.admit(path, place / str(i)) for i, path in enumerate(paths)]
    for copy in copies:
        session = holder.load(copy, order["batch"])
        holder.first_call(session, make_inputs(session, 1))
    holder.rest()
    found = benchmark(copies, batches=(1, order["batch"]), runs=order["runs"])
    return [{**one.to_dict(), "file": str(path)} for one, path in zip(found, paths, strict=True)]


def verify(order: dict[str, Any], place: Path) -> dict[str, Any]:
    """Compare a file with the student of a run; the outcome as plain values."""
    from fxquant.exporters.parity import check_parity

    with _as_called(order):
        run, images = _restored(order)
    holder = _Holder(order["limits"])
    holder.student_bytes = sum(p.nbytes for p in run.student.parameters())
    copy = holder.admit(Path(order["file"]), place / "0")
    session = holder.load(copy, min(len(images), BATCH), images[:BATCH].nbytes)
    _require_numbers(holder.first_call(session, images[:1].numpy()), 1)
    holder.rest(processor=True)
    parity = check_parity(run.student, copy, images, record=False).to_dict()
    _require_finite(parity)
    return parity


# Where the copies are, and where the files were.
_copies: dict[str, str] = {}

TASKS: dict[str, Callable[[dict[str, Any], Path], Any]] = {"bench": bench, "verify": verify}


def _restored(order: dict[str, Any]) -> tuple:
    """The run, and the images to compare on."""
    from fxquant.exporters.own_images import own_images
    from fxquant.restore import find_model, restore

    folder = Path(order["folder"])
    how = {key: order[key] for key in ("source", "arch", "trust_classes")}
    run = restore(folder, find_model(folder, **how))
    own = order["own_images"]
    if own is None:
        return run, run.images
    return run, own_images(run, Path(own["path"]), tuple(own["mean"]), tuple(own["std"]))


@contextmanager
def _as_called(order: dict[str, Any]) -> Iterator[None]:
    """Stand where the command was called, and find what it finds, behind what is installed.

    Paths of a run are relative to there, and so is code that the user names.
    """
    here, before = os.getcwd(), list(sys.path)
    os.chdir(order["called_in"])
    sys.path += [place for place in order["search_path"] if place not in before]
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = before


class _Holder:
    """Holds this process to what its files may take, step by step."""

    def __init__(self, limits: dict[str, Any]):
        self.seconds, self.memory = limits["seconds"], limits["memory"]
        self.bytes = self.student_bytes = self.batch_bytes = self.image_bytes = 0

    def admit(self, path: Path, folder: Path) -> Path:
        """A checked copy of a file in a new folder."""
        with open_model(path) as file:
            self.bytes += os.fstat(file.fileno()).st_size
            self._hold()
            folder.mkdir()
            copy = admit(file, path, folder)
        _copies[str(copy)] = str(path)
        self.bytes += sum(part.stat().st_size for part in folder.iterdir() if part != copy)
        self._hold()
        return copy

    def load(self, copy: Path, images: int, batch_bytes: int | None = None) -> ort.InferenceSession:
        """A session, and from here on the memory for so many images at once."""
        session = make_session(copy)
        if batch_bytes is None:
            shapes = input_shapes(session, images).values()
            batch_bytes = sum(int(np.prod(s)) * np.dtype(d).itemsize for s, d in shapes)
        self.batch_bytes = max(self.batch_bytes, batch_bytes)
        self.image_bytes = max(self.image_bytes, batch_bytes // max(images, 1))
        self._hold()
        return session

    def first_call(self, session: ort.InferenceSession, feed: Any) -> list[np.ndarray]:
        """What a session gives for one image, within the time for that."""
        if isinstance(feed, dict):
            return call(session, feed)
        return next(run_batches(session, feed))

    def rest(self, *, processor: bool = False) -> None:
        """From here on time counts for all that is left, which the process that waits looks at."""
        hold_clock(None)
        if processor:
            hold_processor((self.seconds or DEFAULT_SECONDS) * (os.cpu_count() or 1))

    def _hold(self) -> None:
        sizes = (self.bytes, self.batch_bytes, self.student_bytes)
        hold_memory(self.memory or memory_allowed(*sizes))
        hold_clock(self.seconds or seconds_allowed(self.bytes, self.image_bytes))


def _require_numbers(outputs: Sequence[Any], images: int) -> None:
    """Raise ExportError where an output is no array of numbers with one row for each image."""
    for output in outputs:
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
            raise ExportError("an output of the file is no array of numbers")
        if not output.ndim or len(output) != images or not output.size:
            raise ExportError(
                f"an output of the file has the shape {list(output.shape)[:9]} for {images} image; "
                "the student gives a row for each image"
            )


def _require_finite(parity: dict[str, Any]) -> None:
    """Raise ParityError where outputs are so far off that there is no number for it."""
    numbers = [parity[side][key] for side in _SIDES for key in ("sqnr_db", "max_difference")]
    if not all(map(math.isfinite, numbers)):
        raise ParityError(
            "the file does not compute what the student does: its outputs hold values that are "
            "not finite"
        )


def main(order_file: str, place: str) -> None:
    """Carry out an order and leave the answer in a file."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    end_with_parent(order["parent"])
    try:
        answer = {"done": TASKS[order["task"]](order, Path(place))}
    except FxQuantError as error:
        answer = _told(error)
    except Exception as error:
        if is_out_of_memory(error):
            error = ResourceError("memory ran out while the file was run", _MORE)
        else:
            reason = f"{type(error).__name__}: {error}"
            error = ExportError(f"the file can't be run: {shown(reason, 500)}")
        answer = _told(error)
    write_text(Path(place) / ANSWER, json.dumps(answer, allow_nan=False))


def _told(error: FxQuantError) -> dict[str, Any]:
    """An error as plain values, in which copies are called what the files were."""
    message = error.message
    for copy, path in _copies.items():
        message = message.replace(copy, path)
    return {"kind": type(error).__name__, "message": shown(message, 2000), "hint": error.hint}


if __name__ == "__main__":
    main(*sys.argv[1:])
