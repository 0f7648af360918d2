"""`fxquant verify`: whether a file computes what the student of a run does."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fxquant.cli.models import model_options
from fxquant.cli.options import EVALUATION, LIMITS, require_file, takes


@click.command(short_help="Compare an ONNX file with the student it was made from.")
@click.argument("file", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--against",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Output folder of the run that made it.",
)
@click.option(
    "--eval-data",
    type=click.Path(path_type=Path),
    help="Images of your own (.npz) to compare on, as for fxquant quantize.",
)
@takes(*EVALUATION)
@takes(*LIMITS)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@model_options
def verify(
    file: Path,
    folder: Path,
    eval_data: Path | None,
    eval_mean: tuple[float, ...],
    eval_std: tuple[float, ...],
    time_limit: float | None,
    memory_limit: float | None,
    as_json: bool,
    **where,
) -> int:
    """Run MODEL.onnx on images that the run generated and compare it with the run's student.

    Both with ONNX Runtime's graph optimisations off and on. Where the file computes something
    else, the first tensor that diverges is named and the exit code is 4. The file stays as it is.
    """
    from fxquant.exporters.sandbox import Limits, run_task, search_path

    require_file(file)
    own = {"path": str(eval_data), "mean": eval_mean, "std": eval_std} if eval_data else None
    order = {
        **{"file": os.path.abspath(file), "folder": str(folder), "own_images": own, **where},
        **{"called_in": os.getcwd(), "search_path": search_path()},
    }
    found = run_task("verify", order, Limits(time_limit, memory_limit))

    from fxquant.cli.outcomes import print_parity
    from fxquant.exporters.parity import Parity, require_parity

    parity = Parity.from_dict(found)
    print_parity(file, parity, as_json=as_json)
    require_parity(parity)
    return 0
