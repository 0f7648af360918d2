"""Pieces of messages: text out of files, made fit to be shown, and words that messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# An error message; what a file has to say rarely takes more.
LONGEST = 4000
# A name of a class, a tensor or a file.
LONGEST_NAME = 200


def shown(text: object, longest: int | None = None) -> str:
    """Text as one line in which nothing steers a terminal, turns around, hides or forges a line.

    That is: control and format characters, those that turn the direction of writing among them,
    line ends, and what stands for no character at all come out as Python would escape them. Text
    of more than `longest` characters is cut.
    """
    text = str(text)
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}..."
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown_lines(text: object, longest: int = LONGEST) -> str:
    """The same of text of several lines, each after the first set in, so that none forges one."""
    text = str(text)
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "\n  ".join(map(shown, text.split("\n")))


def reason_of(error: BaseException) -> str:
    """What an exception says, on one line: its type and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """The first `limit` items, fit to be shown, and how many more there are."""
    names = ", ".join(shown(item, LONGEST_NAME) for item in items[:limit])
    return names if len(items) <= limit else f"{names} and {len(items) - limit} more"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known names close to `name`, as a question; None where nothing is close."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else None
