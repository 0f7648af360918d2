"""Processes that can be interrupted, also where these tests can't be."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let processes that are started inside take SIGINT, which a shell's background jobs ignore."""
    mine = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, mine)
