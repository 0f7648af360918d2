"""What the commands that run a file print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from fxquant.cli.console import PlainConsole, megabytes, print_json

if TYPE_CHECKING:
    from fxquant.exporters.figures import Benchmark, Latency
    from fxquant.exporters.parity import Difference, Parity


def print_parity(path: Path, parity: Parity, *, as_json: bool) -> None:
    """How close a file is to its student, to stdout."""
    if as_json:
        facts = {"file": str(path), **parity.to_dict()}
        print_json(facts)
        return
    table = Table(title=f"{path.name} against its student, {parity.images} images")
    for name in ("", "SQNR", "max |difference|", "same decision"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("graph optimisations off", *_cells(parity.unoptimized))
    table.add_row("graph optimisations on", *_cells(parity.optimized))
    if parity.precise:
        table.add_row("on, session.x64quantprecision", *_cells(parity.precise))
    console = PlainConsole()
    console.print(table)
    console.print(
        f"{parity.convolutions_integer} of {parity.convolutions} convolutions and "
        f"{parity.linears_integer} of {parity.linears} linear layers in integer kernels"
    )
    console.print(f"file    {path} ({megabytes(parity.file_bytes)})", soft_wrap=True)
    console.print(f"parity  {'passed' if parity.passed else 'FAILED'}")
    if parity.processor_note:
        console.print(f"note    {parity.processor_note}", soft_wrap=True)


def print_program(path: Path, difference: Difference, *, as_json: bool) -> None:
    """How close a torch.export program is to its student, to stdout."""
    if as_json:
        facts = {"file": str(path), "passed": difference.passed, **asdict(difference)}
        print_json(facts)
        return
    console = PlainConsole()
    console.print(f"file    {path} ({megabytes(path.stat().st_size)})", soft_wrap=True)
    console.print(f"parity  passed, SQNR {difference.sqnr_db:.1f} dB")


def print_benchmarks(benchmarks: list[Benchmark], *, as_json: bool) -> None:
    """Figures of files that were measured side by side, the first one's column first, to stdout."""
    if as_json:
        print_json([one.to_dict() for one in benchmarks])
        return
    table = Table(title="ONNX Runtime on this processor, median and quartiles")
    table.add_column("", no_wrap=True)
    for one in benchmarks:
        table.add_column(Path(one.file).name, justify="right", overflow="fold")
    if len(benchmarks) == 2:
        table.add_column("ratio", justify="right")
    for name, cells, numbers in _measured(benchmarks):
        ratio = [f"{numbers[1] / numbers[0]:.2f}"] if len(numbers) == 2 and all(numbers) else []
        table.add_row(name, *cells, *ratio)
    console = PlainConsole()
    console.print(table)
    for one in benchmarks:
        if one.processor_note:
            console.print(f"{Path(one.file).name}: {one.processor_note}", soft_wrap=True)


def _measured(
    benchmarks: list[Benchmark],
) -> Iterator[tuple[str, list[str], list[float]]]:
    """Rows: a name, a cell for each file, and the numbers that a ratio can be made of."""
    for rows in zip(*(one.latencies for one in benchmarks), strict=True):
        first = rows[0]
        name = f"{_count(first.threads, 'thread')}, {_count(first.images, 'image')}"
        yield name, [_latency(row) for row in rows], [row.median_ms for row in rows]
    sizes = [one.size_bytes for one in benchmarks]
    yield "size on disk", [megabytes(size) for size in sizes], sizes
    memory = [one.peak_memory_bytes for one in benchmarks]
    yield "peak memory", [megabytes(m) if m else "?" for m in memory], [m or 0 for m in memory]
    yield "time in integer kernels", [f"{one.integer_share:.1%}" for one in benchmarks], []
    yield "time in conversions", [f"{one.conversion_share:.1%}" for one in benchmarks], []
    yield "time in float kernels", [_float_ops(one) for one in benchmarks], []


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _latency(row: Latency) -> str:
    return f"{row.median_ms:.3g} ms ({row.lower_quartile_ms:.3g} to {row.upper_quartile_ms:.3g})"


def _float_ops(one: Benchmark) -> str:
    """The share, and the operators that take most of it."""
    largest = [f"{op} {share:.1%}" for op, share in list(one.float_ops.items())[:3] if share > 0.01]
    return f"{sum(one.float_ops.values()):.1%}" + (f" ({', '.join(largest)})" if largest else "")


def _cells(difference: Difference) -> tuple[str, str, str]:
    same = difference.agreement
    return (
        f"{difference.sqnr_db:.1f} dB",
        f"{difference.max_difference:.2g}",
        "" if same is None else f"{100 * same:.1f} %",
    )
