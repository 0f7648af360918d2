"""What commands print: results to stdout, status to stderr; the one way to a terminal.

Text may come out of a file. Nothing here takes markup, and all of it goes through `shown`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxquant.wording import shown, shown_lines


class PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji codes, nothing that steers."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a line, a title or a cell."""
        return super().render_str(shown(text), **options)


def line(text: object, *, err: bool = False) -> None:
    """One line of text, to stdout or stderr."""
    click.echo(shown(text), err=err)


def status(text: str) -> None:
    """One line about what is going on, to stderr."""
    line(text, err=True)


def complain(label: str, text: object) -> None:
    """What is wrong, or what to do about it, to stderr, within bounds."""
    styled = click.style(f"{label}:", fg="red" if label == "error" else "yellow", bold=True)
    click.echo(f"{styled} {shown_lines(text)}", err=True)


def print_json(values: dict[str, Any]) -> None:
    """Plain values as JSON, to stdout."""
    click.echo(json.dumps(values, indent=1))


def print_summary(report: dict[str, Any], folder: Path) -> None:
    """One table of what came out, and where it lies, to stdout."""
    table = Table(title=f"{report['model']['name']}, {_widths(report)}", title_justify="left")
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("quantized", justify="right")
    for row in _rows(report):
        table.add_row(*row)
    console = PlainConsole()
    console.print(table)
    for note in _notes(report):
        console.print(note, soft_wrap=True)
    console.print(f"model   {folder / 'model.onnx'}", soft_wrap=True)
    console.print(f"report  {folder / 'report.html'}", soft_wrap=True)


def _widths(report: dict[str, Any]) -> str:
    config, mixed = report["settings"]["config"], report.get("mixed")
    weights = f"{mixed['chosen']['average_bits']:.2g}" if mixed else config["weight_bits"]
    kind = ", mixed" if mixed else ""
    recipe = report["settings"]["recipe"]["name"]
    return f"W{weights}A{config['act_bits']}{kind}, {recipe}"


def _rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    size, bitops = report["size"], report["bitops"]
    rows = [
        ("weights", megabytes(size["float_bytes"]), megabytes(size["weights_bytes"])),
        ("ONNX file", "", megabytes(size["onnx_bytes"])),
        ("BitOps", f"{bitops['float'] / 1e9:.3g} G", f"{bitops['quantized'] / 1e9:.3g} G"),
    ]
    quality = report["quality"]
    if quality["agreement"] is not None:
        rows.append(("same decision, generated images", "", f"{quality['agreement']:.1f} %"))
    rows.append(("SQNR of the output, generated images", "", f"{quality['output_sqnr_db']:.1f} dB"))
    if quality.get("trust"):
        rows.append(("trust, as far as can be told without data", "", quality["trust"]["level"]))
    accuracy = report["accuracy"]
    if accuracy:
        what = f"accuracy on {accuracy['data']}"
        rows.append((what, f"{accuracy['teacher']:.2f} %", f"{accuracy['student']:.2f} %"))
        rows.append(("accuracy of the ONNX file", "", f"{accuracy['onnx']:.2f} %"))
    return rows


def _notes(report: dict[str, Any]) -> list[str]:
    summary, parity = report["summary"], report["parity"]
    lines = [
        f"{summary['layers_quantized']} layers quantized, {summary['layers_float']} left float"
    ]
    if report.get("mixed"):
        lines.append(_mixed(report["mixed"]))
    for part in report["float"][:5]:
        lines.append(f"  float: {part['name']} ({part['what']}): {part['reason']}")
    if len(report["float"]) > 5:
        lines.append(f"  and {len(report['float']) - 5} more: see the report")
    word = "passed" if parity["passed"] else "FAILED"
    lines.append(
        f"parity {word}: {parity['convolutions_integer']} of {parity['convolutions']} convolutions "
        f"in integer kernels of ONNX Runtime"
    )
    if parity.get("processor_note"):
        lines.append(f"note: {parity['processor_note']}")
    return lines


def _mixed(mixed: dict[str, Any]) -> str:
    """How many layers have which width, and what the budget was."""
    counts = Counter(layer["bits"] for layer in mixed["layers"])
    widths = ", ".join(f"{count} at {bits}" for bits, count in sorted(counts.items()))
    budget = mixed["budget"]
    text = megabytes(budget) if mixed["measure"] == "size" else f"{budget / 1e9:.3g} G BitOps"
    return f"bits of layers' weights, chosen for {text}: {widths}"


def megabytes(count: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
