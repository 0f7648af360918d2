"""`fxquant quantize`: a trained network in, a low-bit ONNX file and a report out."""

from __future__ import annotations

from pathlib import Path

import click

from fxquant.cli.options import (
    CHANNEL_VALUES,
    CONFIG,
    LAYOUT,
    LOSS,
    NETWORK,
    NMS,
    OPSET,
    PART,
    WIDTHS,
    takes,
)


@click.command(short_help="Quantize a trained network without data.")
@click.argument("model")
@takes(*WIDTHS, *NETWORK)
@click.option("--recipe", help="Method: ddaq or zeroq.  [default: ddaq]")
@click.option("--preset", help="fast, default, best or paper.  [default: default]")
@click.option("--no-finetune", is_flag=True, help="Only calibrate; leave the weights untrained.")
@click.option(
    "--without",
    type=PART,
    multiple=True,
    help="Leave out a loss of the generator (l_bn, l_adv) or a weighting (x1, x2). Repeatable.",
)
@click.option(
    "--swap",
    type=LOSS,
    multiple=True,
    help="Weigh a loss of the generator as the paper weighs the other one. Repeatable.",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--seed", type=click.IntRange(0), help="Seed of all randomness.  [default: 0]")
@CONFIG
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for all results.  [default: NAME-wBaB, made here]",
)
@click.option(
    "--eval-data",
    type=click.Path(path_type=Path),
    help="Labelled images (.npz) to measure accuracy on after training.",
)
@click.option("--eval-mean", type=CHANNEL_VALUES, default="0", help="Their mean, pixels in 0..1.")
@click.option("--eval-std", type=CHANNEL_VALUES, default="1", help="Their standard deviation.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["onnx", "pt2"]),
    multiple=True,
    help="pt2: write a torch.export program beside the ONNX file.",
)
@click.option("--layout", type=LAYOUT, help="Of the ONNX file.  [default: runtime]")
@click.option("--opset", type=OPSET, help="Of the ONNX file.  [default: the oldest that fits]")
@NMS
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def quantize(model: str, **options) -> int:
    """Quantize MODEL without data and export it.

    MODEL is a .pt file with a whole module, a .pt or .safetensors state dict with --arch, or
    torchvision:NAME, pytorchcv:NAME or timm:NAME.
    """
    from fxquant.cli.quantize_job import run_job

    return run_job(model, **options)
