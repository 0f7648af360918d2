"""Files that are opened once: what is told by its looks, checked, hashed and loaded is one file."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fxquant.errors import ModelLoadError
from fxquant.files import open_regular
from fxquant.wording import did_you_mean, reason_of

_CHUNK = 1 << 20


@contextmanager
def opened(path: Path, expected: str) -> Iterator[BinaryIO]:
    """A regular file, open for reading; raises ModelLoadError for anything else.

    `expected` says what can be given instead. What is no regular file is not opened: opening
    alone may wait for ever, or act.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise _missing(path, expected) from error
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise ModelLoadError(f"'{path}' can't be opened as a model: {reason}", expected) from error
    with file:
        yield file


class Digest:
    """The SHA-256 of an open file, taken in a thread while the file is read; a context manager.

    It stops where the context ends, before the file is closed. Where no thread can be had, or
    none could read without moving the file's position, it is taken when it is asked for.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._sum = file, hashlib.sha256()
        self._error: OSError | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        if hasattr(os, "pread"):
            with suppress(RuntimeError):  # no memory for a thread
                self._thread.start()

    def __enter__(self) -> Digest:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped = True
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            place = 0
            while chunk := os.pread(self._file.fileno(), _CHUNK, place):
                self._sum.update(chunk)
                place += len(chunk)
                if self._stopped:
                    return
        except OSError as error:
            self._error = error

    def wait(self) -> str:
        """The digest in hexadecimal digits; raises OSError where the file can't be read."""
        if self._thread.ident is None:
            self._file.seek(0)
            while chunk := self._file.read(_CHUNK):
                self._sum.update(chunk)
            return self._sum.hexdigest()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._sum.hexdigest()


def _missing(path: Path, expected: str) -> ModelLoadError:
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        siblings = []
    close = did_you_mean(path.name, siblings)
    return ModelLoadError(f"there is no file '{path}'", close or expected)
