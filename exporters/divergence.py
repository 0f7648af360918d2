"""Where in the graph a file begins to compute something else than the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from fxquant.exporters.freeze import FrozenQuantizer
from fxquant.exporters.runtime import BATCH, make_session, run_batches
from fxquant.exporters.tensor_names import quantizer_tensor
from fxquant.graph.ops import module_of
from fxquant.graph.regions import interpreted, qualify
from fxquant.inputs import Inputs, as_inputs
from fxquant.quantizer import Quantizer
from fxquant.report.closeness import sqnr_db


@torch.no_grad()
def first_divergence(
    student: nn.Module, path: Path, images: Inputs, *, optimize: bool, min_sqnr_db: float
) -> str:
    """Name of the first activation quantizer, in graph order, whose integers are too far off.

    Compares what student and file compute for the first batch of `images`; `output` where every
    quantizer's integers have at least `min_sqnr_db`.
    """
    images = tuple(x[:BATCH] for x in as_inputs(images))
    expected = _student_integers(student, images)
    found = _file_integers(path, set(expected), images, optimize)
    for name, integers in expected.items():
        other = found.get(name)
        if other is not None and _closeness(integers, other) < min_sqnr_db:
            return name
    return "output"


def _closeness(expected: np.ndarray, found: np.ndarray) -> float:
    # Around the middle of what is expected: a constant offset is no signal.
    signal = expected - expected.mean()
    noise = expected - found.astype(np.float64)
    return sqnr_db(float(np.square(signal).sum()), float(np.square(noise).sum()))


def _student_integers(student: nn.Module, images: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Integers of each activation quantizer, by its module name, in graph order."""
    integers: dict[str, np.ndarray] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            module = module_of(n)
            if isinstance(module, Quantizer | FrozenQuantizer) and module.scale.dim() == 0:
                integers[qualify(self.module, n.target)] = _to_integers(value, module)
            return value

    with interpreted(student, Recorder):
        student(*images)
    return integers


def _to_integers(value: Tensor, quantizer: nn.Module) -> np.ndarray:
    grid = torch.round(value / quantizer.scale) + quantizer.zero_point
    return grid.double().numpy()


def _file_integers(
    path: Path, names: set[str], images: tuple[Tensor, ...], optimize: bool
) -> dict[str, np.ndarray]:
    """Values of those of the named quantizers that the file computes."""
    model = onnx.load(path)
    outputs = {value.name for value in model.graph.output}
    taken = outputs | {value.name for value in model.graph.input}
    tensors = {quantizer_tensor(name, taken): name for name in names}
    exposed = [n for node in model.graph.node for n in node.output if n in tensors]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    session = make_session(model.SerializeToString(), optimize=optimize)
    parts = list(run_batches(session, images, exposed))
    return {
        tensors[name]: np.concatenate(part)
        for name, part in zip(exposed, zip(*parts, strict=True), strict=True)
    }
