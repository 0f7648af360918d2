"""`fxquant verify`: whether a file computes what the student of a run does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxquant.cli.models import model_options, restore_run
from fxquant.cli.options import EVALUATION, takes

if TYPE_CHECKING:
    from fxquant.inputs import Inputs
    from fxquant.restore import Restored

MOST_BYTES = 1 << 29  # of images in memory; check_parity copies them in double precision


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
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@model_options
def verify(
    file: Path,
    folder: Path,
    eval_data: Path | None,
    eval_mean: tuple[float, ...],
    eval_std: tuple[float, ...],
    as_json: bool,
    **where,
) -> int:
    """Run MODEL.onnx on images that the run generated and compare it with the run's student.

    Both with ONNX Runtime's graph optimisations off and on. Where the file computes something
    else, the first tensor that diverges is named and the exit code is 4. The file stays as it is.
    """
    from fxquant.cli.outcomes import print_parity
    from fxquant.errors import SettingError
    from fxquant.exporters.external import require_data_beside
    from fxquant.exporters.parity import check_parity, require_parity

    if not file.is_file():
        raise SettingError(f"there is no file '{file}'")
    require_data_beside(file)
    run = restore_run(folder, **where)
    images = _own_images(run, eval_data, eval_mean, eval_std) if eval_data else run.images
    parity = check_parity(run.student, file, images, record=False)
    print_parity(file, parity, as_json=as_json)
    require_parity(parity)
    return 0


def _own_images(
    run: Restored, path: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> Inputs:
    """The first images of a file, as many as there is room for."""
    import torch

    from fxquant.report.evaluate import EvaluationData

    data = EvaluationData(path, mean, std)
    data.check(run.settings.input_shape)
    batches, left = [], MOST_BYTES
    for images, _ in data.batches():
        batches.append(torch.from_numpy(images))
        left -= images.nbytes
        if left <= 0:
            break
    return torch.cat(batches)
