"""`fxquant quantize`: a trained network in, a low-bit ONNX file and a report out."""

from __future__ import annotations

from pathlib import Path

import click

from fxquant.cli.options import (
    ABLATION,
    CONFIG,
    EVALUATION,
    LAYOUT,
    MIXED,
    NETWORK,
    NMS,
    OPSET,
    PROCESSOR,
    WIDTHS,
    takes,
)


@click.command(short_help="Quantize a trained network without data.")
@click.argument("model")
@takes(*WIDTHS, *MIXED, *NETWORK)
@click.option("--recipe", help="Method: ddaq, zeroq or psaq.  [default: ddaq]")
@click.option("--preset", help="fast, default, best or paper.  [default: default]")
@click.option("--no-finetune", is_flag=True, help="Only calibrate; leave the weights untrained.")
@takes(*ABLATION)
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
@takes(*EVALUATION)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["onnx", "pt2"]),
    multiple=True,
    help="pt2: write a torch.export program beside the ONNX file.",
)
@click.option("--layout", type=LAYOUT, help="Of the ONNX file.  [default: runtime]")
@click.option("--opset", type=OPSET, help="Of the ONNX file.  [default: the oldest that fits]")
@PROCESSOR
@NMS
@click.option(
    "--tensorboard", is_flag=True, help="Write losses, rates and images for TensorBoard, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def quantize(model: str, **options) -> int:
    """Quantize MODEL without data and export it.

    MODEL is a .pt file with a whole module, a .pt or .safetensors state dict with --arch, or
    torchvision:NAME, pytorchcv:NAME or timm:NAME.
    """
    from fxquant.cli.quantize_job import run_job

    return run_job(model, **options)
