"""Quantize a RetinaNet with ResNet-50 whole, without data, and show what comes out.

usage: retinanet.py [--output DIR] [--input-shape 3,320,320] [--bits 4] [--batch 2] [--steps 4]

Weights are random and batch norm statistics those of noise, as no trained detector comes with a
package: what is measured is what was quantized, its size, how close it stays to its teacher, that
the file computes the same, and that a detector comes back. The recipe is DDAQ, cut to a few steps
of a small batch. result.json and all that fxquant writes are in --output (runs/retinanet).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn_v2

import fxquant
from fxquant.datafree.recipe import Recipe
from fxquant.report.facts import describe_machine


def random_retinanet(seed: int) -> nn.Module:
    """A RetinaNet whose batch norms hold the statistics of what noise gives at their input."""
    torch.manual_seed(seed)
    detector = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)
    norms = [m for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for _ in range(2):
            detector.backbone.train()(torch.randn(2, 3, 224, 224))
    return detector.eval()


def short_recipe(batch: int, steps: int) -> Recipe:
    """DDAQ with all of its phases, each a few steps long."""
    recipe = fxquant.find_recipe("ddaq", "fast")
    return replace(
        recipe,
        schedule=replace(
            recipe.schedule,
            batch=batch,
            warmup=steps,
            steps=steps,
            sampler_every=2,
            replay=8 * batch,
            calibration_images=4 * batch,
        ),
        polish=replace(recipe.polish, steps=steps, batches=2, batch=4 * batch),
        reconstruction=replace(recipe.reconstruction, steps=steps, batch=batch),
        importance=replace(recipe.importance, probes=2, images=batch),
    )


def measure(shape: tuple[int, ...], bits: int, batch: int, steps: int, folder: Path) -> dict:
    """Quantize, export, and run the detector that comes back; the figures."""
    detector = random_retinanet(seed=0)
    config = fxquant.QConfig(weight_bits=bits, act_bits=bits)
    start = time.perf_counter()
    prepared = fxquant.prepare(detector, config, shape)
    seconds = {"trace and insert": time.perf_counter() - start}
    settings = fxquant.Settings(shape, config, short_recipe(batch, steps))
    result = fxquant.run(prepared, settings)
    report = fxquant.export(result, folder)
    with torch.no_grad():
        found = result.model([torch.rand(3, 300, 400), torch.rand(3, 480, 360)])
    parameters = sum(p.numel() for p in detector.parameters())
    return {
        "shape": shape,
        "bits": bits,
        "parameters": parameters,
        "layers": report["summary"],
        "float": report["float"],
        "onnx_bytes": report["size"]["onnx_bytes"],
        "bytes_of_float_parameters": 4 * parameters,
        "share_of_float": report["size"]["onnx_bytes"] / (4 * parameters),
        "parity": report["parity"],
        "quality": report["quality"],
        "detections": [{key: list(value.shape) for key, value in one.items()} for one in found],
        "seconds": seconds | result.seconds,
        "machine": describe_machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/retinanet"))
    parser.add_argument("--input-shape", default="3,320,320")
    for name, value in (("bits", 4), ("batch", 2), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    shape = tuple(int(side) for side in given.input_shape.split(","))
    found = measure(shape, given.bits, given.batch, given.steps, given.output)
    text = json.dumps(found, indent=1)
    (given.output / "result.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
