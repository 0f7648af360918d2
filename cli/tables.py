"""Tables and lists on stdout: rich ones in a terminal, plain text that lacks nothing elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fxquant.cli.console import PlainConsole, line
from fxquant.wording import shown

FEW = 8  # names of a list that a terminal shows
GAP, NARROWEST = 2, 16


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, whether it holds numbers, and whether it may be folded."""

    title: str
    right: bool = False
    fold: bool = False


class Page:
    """Prints to stdout as wide as the terminal is; elsewhere nothing is wrapped or left out."""

    def __init__(self) -> None:
        self._console = PlainConsole()
        self.is_terminal = self._console.is_terminal
        self._began = False

    def title(self, text: str) -> None:
        """A line that heads what follows, with space between it and what came before."""
        if self._began:
            line("")
        self._began = True
        if self.is_terminal:
            self._console.print(text, style="bold")
        else:
            line(text)

    def text(self, text: str, indent: int = 0) -> None:
        """A paragraph, wrapped between words in a terminal."""
        pad = " " * indent
        if not self.is_terminal:
            line(pad + text)
            return
        lines = textwrap.wrap(
            shown(text),
            max(self._console.width, 20),
            initial_indent=pad,
            subsequent_indent=pad,
            break_on_hyphens=False,
        )
        for wrapped in lines:
            self._console.print(wrapped, soft_wrap=True)

    def names(self, names: Sequence[str], indent: int = 0) -> None:
        """A list of names: the first few in a terminal, every one elsewhere."""
        shown = list(names)
        if self.is_terminal and len(shown) > FEW:
            shown = [*shown[: FEW - 1], f"and {len(shown) - FEW + 1} more"]
        self.text(", ".join(shown), indent)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Rows of cells, under titles where a column has one."""
        rows = [[shown(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            for aligned in _aligned(columns, rows):
                line(aligned)
            return
        titled = any(column.title for column in columns)
        table = Table(box=None, show_header=titled, pad_edge=False, padding=(0, GAP, 0, 0))
        for column in columns:
            side = "right" if column.right else "left"
            table.add_column(column.title, justify=side, no_wrap=not column.fold)
        room = self._room(columns, rows)
        for row in rows:
            cells = zip(row, columns, strict=True)
            table.add_row(*(Text(fold(cell, room)) if c.fold else cell for cell, c in cells))
        self._console.print(table)

    def _room(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
        """How wide the column that may be folded can be."""
        taken = sum(
            width + GAP
            for width, column in zip(_widths(columns, rows), columns, strict=True)
            if not column.fold
        )
        return max(self._console.width - taken, NARROWEST)


def fold(text: str, width: int) -> str:
    """Lines of at most `width` characters, broken after a dot or an underscore where there is one.

    All but the first begin with a space.
    """
    lines = []
    while len(text) > width:
        cut = max(text.rfind(mark, 1, width) for mark in "._") + 1 or width
        lines.append(text[:cut])
        text = f" {text[cut:]}"
    return "\n".join([*lines, text])


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    table = [[column.title for column in columns], *rows]
    return [max(len(row[i]) for row in table) for i in range(len(columns))]


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells padded to the widest of each column, two spaces between columns."""
    titles = [column.title for column in columns]
    table = [titles, *rows] if any(titles) else list(rows)
    widths = _widths(columns, rows)
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in table
    ]
