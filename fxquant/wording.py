"""Text that may come out of a file, made fit to be shown: on a terminal, a page, in a log."""

from __future__ import annotations

# An error message; what a file has to say rarely takes more.
LONGEST = 4000


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
