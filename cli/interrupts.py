"""What signals do: the first asks a run to save and stop, the second stops it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# SIGHUP is what a closed terminal sends; not every system has it.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_NOTICE = b"\nstopping after this step; once more to stop at once\n"


class _Interrupts:
    """Whether somebody asked to stop while the work was one that ends between two steps."""

    def __init__(self) -> None:
        self.pending = self._deferring = False

    def install(self) -> None:
        """Take the signals over, but for those that the process was started to ignore (nohup)."""
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block the first signal only sets `pending`; after it, it interrupts."""
        self.pending, self._deferring = False, True
        try:
            yield
        finally:
            self._deferring = False
        if self.pending:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring or self.pending:
            raise KeyboardInterrupt
        self.pending = True
        with suppress(OSError):  # the terminal may be what is gone
            os.write(2, _NOTICE)


interrupts = _Interrupts()
