"""Tables 3 to 5 and Fig. 4 of Li et al. (2022): their rows, their figures, and ours beside them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TextIO


@dataclass(frozen=True, order=True)
class Variant:
    """One run but for its seed: what is left out, what is swapped, and the width."""

    without: tuple[str, ...] = ()
    swap: tuple[str, ...] = ()
    bits: int = 4
    finetune: bool = True

    @classmethod
    def of(cls, row: dict[str, Any]) -> Variant:
        """The variant that a line of results is of."""
        return cls(tuple(row["without"]), tuple(row["swap"]), row["bits"], row["finetune"])

    def words(self) -> str:
        parts = [f"W{self.bits}A{self.bits}", *(f"without {part}" for part in self.without)]
        parts += [f"{part} swapped" for part in self.swap]
        return ", ".join([*parts, "fine-tuned" if self.finetune else "not fine-tuned"])


@dataclass(frozen=True)
class Row:
    """A row of a table: its first cells, its variant, and the paper's top-1 without and with
    fine-tuning, of ResNet-18 on ImageNet at W4A4."""

    cells: tuple[str, ...]
    variant: Variant
    paper: tuple[float | None, float | None]

    def of(self, finetune: bool) -> Variant:
        return replace(self.variant, finetune=finetune)


FIGURE = "fig4"
_YES, _NO = "yes", "-"
TABLES = {
    "3": (
        "Table 3: losses of the generator",
        ("L_bn", "L_adv"),
        (
            Row((_NO, _NO), Variant(("l_bn", "l_adv")), (22.11, 25.39)),
            Row((_YES, _NO), Variant(("l_adv",)), (42.82, 58.98)),
            Row((_NO, _YES), Variant(("l_bn",)), (35.76, 61.62)),
            Row((_YES, _YES), Variant(), (58.44, 62.91)),
        ),
    ),
    "4": (
        "Table 4: layer importance",
        ("X1", "X2"),
        (
            Row((_NO, _NO), Variant(("x1", "x2")), (55.65, 61.82)),
            Row((_YES, _NO), Variant(("x2",)), (56.72, 62.22)),
            Row((_NO, _YES), Variant(("x1",)), (57.05, 62.37)),
            Row((_YES, _YES), Variant(), (58.44, 62.91)),
        ),
    ),
    "5": (
        "Table 5: styles of weighting, those of the other loss where primed",
        ("D1", "D2"),
        (
            Row(("L'_bn", "L'_adv"), Variant(swap=("l_bn", "l_adv")), (57.30, 62.29)),
            Row(("L'_bn", "L_adv"), Variant(swap=("l_bn",)), (57.51, 62.56)),
            Row(("L_bn", "L'_adv"), Variant(swap=("l_adv",)), (58.12, 62.72)),
            Row(("L_bn", "L_adv"), Variant(), (58.44, 62.91)),
        ),
    ),
    # Of the figure's points only the one at 4 bits is printed as a number.
    FIGURE: (
        "Fig. 4: widths",
        ("width",),
        (
            Row(("W2A2",), Variant(bits=2), (None, None)),
            Row(("W4A4",), Variant(), (58.44, 62.91)),
            Row(("W6A6",), Variant(bits=6), (None, None)),
            Row(("W8A8",), Variant(bits=8), (None, None)),
        ),
    ),
}
FLOAT_BY_PAPER = 71.47


def variants(tables: Iterable[str]) -> list[Variant]:
    """Every run that these tables need, each once."""
    rows = [row for table in tables for row in TABLES[table][2]]
    return list(dict.fromkeys(row.of(tuned) for row in rows for tuned in (False, True)))


def print_tables(results: list[dict[str, Any]], tables: Iterable[str], file: TextIO) -> None:
    """Markdown: top-1 in percent, mean ± standard deviation over seeds, the paper's beside it."""
    found: dict[Variant, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(Variant.of(result), []).append(result)
    for table in tables:
        title, heads, rows = TABLES[table]
        columns = [*heads, "no FT", "FT", "no FT, paper", "FT, paper"]
        print(f"\n{title}\n", file=file)
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", file=file)
        for row in rows:
            ours = [_spread(found.get(row.of(tuned), [])) for tuned in (False, True)]
            theirs = ["" if value is None else f"{value:.2f}" for value in row.paper]
            print(f"| {' | '.join([*row.cells, *ours, *theirs])} |", file=file)
    if results:
        _print_notes(results, file)


def _spread(results: list[dict[str, Any]]) -> str:
    values = [result["top1"] for result in results]
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _print_notes(results: list[dict[str, Any]], file: TextIO) -> None:
    seeds = sorted({result["seed"] for result in results})
    minutes = sum(result["seconds"] for result in results) / 60
    print(
        f"\n{results[0]['name']}, float {results[0]['float_top1']:.2f} %, preset "
        f"{results[0]['preset']}, W4A4 where nothing else is said, last iteration; mean ± standard "
        f"deviation over seeds {', '.join(map(str, seeds))}; {minutes:.0f} minutes in all. The "
        f"paper's: ResNet-18 on ImageNet, float {FLOAT_BY_PAPER} %.",
        file=file,
    )
    for line in sorted({result["machine"] for result in results}):
        print(f"Machine: {line}.", file=file)
