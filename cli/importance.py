"""`fxquant importance`: how much each layer of a network matters, measured without data."""

from __future__ import annotations

from pathlib import Path

import click

from fxquant.cli.options import NETWORK, takes


@click.command(short_help="Measure how important each layer is.")
@click.argument("model")
@takes(*NETWORK)
@click.option(
    "--method",
    "methods",
    type=click.Choice(["gauss-newton", "hessian"]),
    multiple=True,
    help="hessian: of the cross-entropy, for classifiers. Repeatable.  [default: both]",
)
@click.option("--probes", type=click.IntRange(2), default=50, help="Of the trace.  [default: 50]")
@click.option("--images", type=click.IntRange(1), default=64, help="Generated.  [default: 64]")
@click.option("--preset", default="default", help="Whose warm-up the generator gets.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--seed", type=click.IntRange(0), default=0, help="[default: 0]")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it to this .svg or .png.",
)
@click.option("--no-cache", is_flag=True, help="Measure anew, and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout.")
def importance(model: str, **options) -> int:
    """Measure the average Hessian trace of each layer of MODEL, with its standard error.

    On images that are generated to match MODEL's batch norm statistics. MODEL is what
    `fxquant quantize` takes. Measurements are kept in the user's cache, by the model's weights.
    """
    from fxquant.cli.importance_job import run_job

    return run_job(model, **options)
