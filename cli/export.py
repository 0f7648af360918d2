"""`fxquant export`: another file of a finished run."""

from __future__ import annotations

from pathlib import Path

import click

from fxquant.cli.models import model_options, restore_run
from fxquant.cli.options import LAYOUT, NMS, OPSET, PROCESSOR


@click.command(short_help="Write another file of a finished run.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "pt2", "float"]),
    default="onnx",
    help="onnx; pt2, a torch.export program; float, the model before quantization as ONNX, to "
    "measure against.  [default: onnx]",
)
@click.option("--layout", type=LAYOUT, help="Of an ONNX file.  [default: runtime]")
@click.option("--opset", type=OPSET, help="Of an ONNX file.  [default: the oldest that fits]")
@PROCESSOR
@NMS
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to write.  [default: model-LAYOUT.onnx, model.pt2 or float.onnx in DIR]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@model_options
def export(
    folder: Path,
    kind: str,
    layout: str | None,
    opset: int | None,
    processor: str | None,
    nms: bool,
    output: Path | None,
    as_json: bool,
    **where,
) -> int:
    """Write the student of the finished run in DIR in another layout or format.

    DIR is the output folder of fxquant quantize. The file is run and compared with the student.
    """
    from fxquant.cli.console import line, print_json
    from fxquant.cli.outcomes import print_parity, print_program
    from fxquant.exporters.again import (
        export_again,
        export_float_again,
        export_program_again,
    )
    from fxquant.exporters.files import Form
    from fxquant.exporters.parity import require_parity
    from fxquant.run_folder import PROGRAM

    if kind != "onnx" and (layout or opset or processor or nms):
        raise click.UsageError(
            "--layout, --opset, --processor and --with-nms go with --format onnx"
        )
    run = restore_run(folder, **where)
    if kind == "float":
        path = export_float_again(run, output or folder / "float.onnx")
        print_json({"file": str(path)}) if as_json else line(f"file    {path}")
        return 0
    if kind == "pt2":
        path = output or folder / PROGRAM
        print_program(path, export_program_again(run, path), as_json=as_json)
        return 0
    form = Form(layout or "runtime", opset, nms, processor or "any")
    path = output or folder / f"model-{form.layout}{'-vnni' if processor == 'vnni' else ''}.onnx"
    parity = export_again(run, path, form)
    print_parity(path, parity, as_json=as_json)
    require_parity(parity)
    return 0
