"""What the commands that run a file print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fxquant.cli.console import megabytes
from fxquant.exporters.parity import Difference, Parity


def print_parity(path: Path, parity: Parity, *, as_json: bool) -> None:
    """How close a file is to its student, to stdout."""
    if as_json:
        facts = {"file": str(path), **parity.to_dict()}
        click.echo(json.dumps(facts, indent=1, allow_nan=False))
        return
    table = Table(title=f"{path.name} against its student, {parity.images} images")
    for name in ("", "SQNR", "max |difference|", "same decision"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("graph optimisations off", *_cells(parity.unoptimized))
    table.add_row("graph optimisations on", *_cells(parity.optimized))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{parity.convolutions_integer} of {parity.convolutions} convolutions and "
        f"{parity.linears_integer} of {parity.linears} linear layers in integer kernels"
    )
    console.print(f"file    {path} ({megabytes(parity.file_bytes)})", soft_wrap=True)
    console.print(f"parity  {'passed' if parity.passed else 'FAILED'}")


def print_program(path: Path, difference: Difference, *, as_json: bool) -> None:
    """How close a torch.export program is to its student, to stdout."""
    if as_json:
        facts = {"file": str(path), "passed": difference.passed, **asdict(difference)}
        click.echo(json.dumps(facts, indent=1, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"file    {path} ({megabytes(path.stat().st_size)})", soft_wrap=True)
    console.print(f"parity  passed, SQNR {difference.sqnr_db:.1f} dB")


def _cells(difference: Difference) -> tuple[str, str, str]:
    same = difference.agreement
    return (
        f"{difference.sqnr_db:.1f} dB",
        f"{difference.max_difference:.2g}",
        "" if same is None else f"{100 * same:.1f} %",
    )
