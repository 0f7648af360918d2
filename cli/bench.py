"""`fxquant bench`: how fast a file runs here, how large it is, where its time goes."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fxquant.cli.options import LIMITS, require_file, takes


@click.command(short_help="Measure a file's speed, size and memory here.")
@click.argument("file", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another file to measure beside it, such as the float model. Repeatable.",
)
@click.option(
    "--batch", type=click.IntRange(2), default=8, help="Images at once, beside one.  [default: 8]"
)
@click.option("--runs", type=click.IntRange(1), default=30, help="Of each file.  [default: 30]")
@takes(*LIMITS)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout.")
def bench(
    file: Path,
    against: tuple[Path, ...],
    batch: int,
    runs: int,
    time_limit: float | None,
    memory_limit: float | None,
    as_json: bool,
) -> int:
    """Measure MODEL.onnx in ONNX Runtime on this machine's processor.

    All files are measured in turns, so that they share the machine's noise: latency with one
    thread and with all, one image and several; size on disk; peak memory; and the share of time in
    integer kernels.
    """
    from fxquant.cli.outcomes import print_benchmarks
    from fxquant.exporters.figures import Benchmark
    from fxquant.exporters.sandbox import Limits, run_task

    files = [file, *against]
    for path in files:
        require_file(path)
    order = {"files": list(map(os.path.abspath, files)), "batch": batch, "runs": runs}
    found = run_task("bench", order, Limits(time_limit, memory_limit))
    named = [{**one, "file": str(path)} for one, path in zip(found, files, strict=True)]
    print_benchmarks([Benchmark.from_dict(one) for one in named], as_json=as_json)
    return 0
