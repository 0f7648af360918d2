"""run.log: what the package logs during a run, in files of bounded size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fxquant.wording import shown_lines

MOST_BYTES, OLD_FILES = 1_000_000, 3


class _QuietHandler(RotatingFileHandler):
    """A run goes on where its log can't be written, and no traceback lands on the screen."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        """Nothing."""


class _PlainFormatter(logging.Formatter):
    """Lines that a terminal may be shown, whatever is in them."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line, or as lines that are set in."""
        return shown_lines(super().format(record))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file while the block runs, the last million bytes of it.

    Older ones are in `run.log.1` to `run.log.3`.
    """
    handler = _QuietHandler(
        path, maxBytes=MOST_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True
    )
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("fxquant")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        with suppress(OSError, ValueError):  # what is left in its buffer may find no room either
            handler.close()
