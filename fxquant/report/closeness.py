"""How close a student stays to its teacher on given images, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from fxquant.datafree.losses import output_divergence
from fxquant.graph.regions import interpreted, value_name
from fxquant.inputs import flatten

MOST_DB = 200.0


@dataclass(frozen=True)
class Closeness:
    """Signal-to-quantization-noise ratios in dB, and the share of equal decisions in percent.

    `layer_sqnr` is by the name of the value in the traced graph, as the student computes it.
    `divergence` is KL(teacher || student) in nats, mean over the images. It and `agreement` are
    None where the output is not logits (n, classes).
    """

    layer_sqnr: dict[str, float]
    output_sqnr: float
    agreement: float | None
    divergence: float | None = None


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies; at most 200 dB, which also stands for no noise.

    Numbers that are not finite are as far off as can be: -200 dB.
    """
    if not math.isfinite(noise):
        return -MOST_DB
    if noise <= 0:
        return MOST_DB
    return min(MOST_DB, 10 * math.log10(max(signal, 1e-300) / noise))


@torch.no_grad()
def measure_closeness(
    teacher: nn.Module, student: nn.Module, images: Tensor, *, batch: int = 32
) -> Closeness:
    """Compare every value that both graphs compute on `images`, (n, channels, height, width)."""
    energies: dict[str, list[float]] = {}
    agreed = decided = 0
    divergence = 0.0
    for part in images.split(batch):
        expected, truth = _values(teacher, part)
        found, output = _values(student, part)
        expected["output"], found["output"] = _join(truth), _join(output)
        for name in found.keys() & expected.keys():
            energy = energies.setdefault(name, [0.0, 0.0])
            energy[0] += float(expected[name].double().square().sum())
            energy[1] += float((expected[name] - found[name]).double().square().sum())
        if isinstance(truth, Tensor) and truth.dim() == 2:
            agreed += int((truth.argmax(1) == output.argmax(1)).sum())
            decided += len(truth)
            divergence += len(truth) * float(output_divergence(output, truth, temperature=1.0))
    ratios = {name: sqnr_db(*energy) for name, energy in energies.items()}
    agreement = 100 * agreed / decided if decided else None
    divergence = max(divergence, 0.0) / decided if decided else None
    return Closeness(ratios, ratios.pop("output"), agreement, divergence)


def _values(model: nn.Module, images: Tensor):
    """Tensors by the name of the value in the traced graph, and the output.

    Where a value and its quantized form share a name, the later, quantized one counts.
    """
    values: dict[str, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op not in ("get_attr", "output"):
                values[value_name(n)] = value
            return value

    with interpreted(model, Recorder):
        output = model(images)
    return values, output


def _join(output) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in flatten(output)])
