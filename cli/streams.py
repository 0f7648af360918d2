"""Standard streams that a run outlives: closed pipes and terminals, full disks, odd encodings."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class SturdyStream:
    """A text stream that goes quiet where it can't be written, and keeps the error."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    @property
    def lost(self) -> str | None:
        """Why something was not written, where nobody chose that: a reader may leave."""
        if self.error is None or getattr(self.error, "errno", None) in (errno.EPIPE, errno.EIO):
            return None
        return getattr(self.error, "strerror", None) or str(self.error)

    def _give_up(self, error: OSError | ValueError) -> None:
        self.error = error
        with suppress(OSError, ValueError):
            # What is still in the buffer must not fail again when the process ends.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_missing_streams() -> None:
    """Open what the process was started without: files would get the numbers 0, 1 and 2."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, as long as the process


def make_streams_sturdy() -> None:
    """Let stdout and stderr survive whatever is at their other end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, SturdyStream):
            continue
        with suppress(AttributeError, OSError, ValueError):
            # A name that the terminal can't show is no failure.
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, SturdyStream(stream))
