"""`fxquant inspect`: what quantizing a network would do to it, in seconds and without training."""

from __future__ import annotations

from pathlib import Path

import click

from fxquant.cli.options import CONFIG, NETWORK, WIDTHS, takes


@click.command(short_help="Show what would be quantized, without training.")
@click.argument("model")
@takes(*WIDTHS, *NETWORK, CONFIG)
@click.option(
    "--graph",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw the quantized graph to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all facts as JSON on stdout.")
def inspect(model: str, **options) -> int:
    """Show what quantizing MODEL would do: layers, widths, integer kernels, what stays float.

    MODEL is what `fxquant quantize` takes. A zoo's network is looked at without its pretrained
    weights, so that nothing is downloaded.
    """
    from fxquant.cli.inspect_job import run_job

    return run_job(model, **options)
