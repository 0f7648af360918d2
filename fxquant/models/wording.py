"""Pieces of sentences that the messages of this package share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def reason_of(error: BaseException) -> str:
    """What an exception says, on one line: its type and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """The first `limit` items, fit to be shown, and how many more there are."""
    shown = ", ".join(map(fit_to_show, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def fit_to_show(text: str, longest: int = 200) -> str:
    """Text out of a file as one line: of bounded length, nothing in it that steers a terminal."""
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known names close to `name`, as a question; None where nothing is close."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else None
