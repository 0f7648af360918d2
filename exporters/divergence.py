"""Where in the graph a file begins to compute something else than the student."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.exporters.external import edited_copy, load_model_without_data
from fxquant.exporters.freeze import FrozenQuantizer
from fxquant.exporters.runtime import BATCH, make_session, run_batches
from fxquant.exporters.tensor_names import quantizer_tensor
from fxquant.graph.ops import module_of
from fxquant.graph.regions import interpreted, qualify
from fxquant.inputs import Inputs, as_inputs, flatten
from fxquant.quantizer import Quantizer
from fxquant.report.closeness import sqnr_db

# How far, in steps of its grid, an integer may be from the number that it stands for: half a step,
# and a little, as sums in another order or in integers fall on the other side of a border.
FARTHEST = 0.5 + 0.05
# A few numbers may be a whole step off: tables and approximations of single operators.
MOST_MOVED = 0.002
OUTPUT = "output"


@torch.no_grad()
def first_divergence(
    student: nn.Module,
    path: Path,
    images: Inputs,
    *,
    optimize: bool,
    min_sqnr_db: float,
    precise: bool = False,
) -> str | None:
    """Name of the first activation quantizer, in graph order, that is wrong by itself.

    Student and file run on the first batch of `images`, and wherever the student quantizes an
    activation it goes on from the file's integers. So each step is compared on the same input,
    and differences that a network enlarges on their way don't count. `output` where only the
    outputs have less than `min_sqnr_db`, None where all agrees.
    """
    images = tuple(x[:BATCH] for x in as_inputs(images))
    names = [name for name, calls in _quantizers(student).items() if calls == 1]
    found, outputs = _run_file(path, names, images, optimize=optimize, precise=precise)
    wrong: list[str] = []

    class Follower(Interpreter):
        """Runs a region, and replaces what quantizers give by what those of the file do."""

        def run_node(self, n: Node):
            name = _quantizer_name(self.module, n)
            if name not in found:
                return super().run_node(n)
            quantizer, integers = module_of(n), torch.from_numpy(found[name])
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            if not _stand_for(integers, x, quantizer):
                wrong.append(name)
            return ((integers.float() - quantizer.zero_point) * quantizer.scale).to(x.dtype)

    with interpreted(student, Follower):
        expected = flatten(student(*images))
    if wrong:
        return wrong[0]
    pairs = zip(expected, outputs, strict=True)
    far = any(_sqnr(x.double().numpy(), y.astype(np.float64)) < min_sqnr_db for x, y in pairs)
    return OUTPUT if far else None


def _quantizers(student: nn.Module) -> Counter[str]:
    """Names of the activation quantizers in graph order, with the number of their calls."""
    return Counter(
        name
        for region in student.modules()
        if isinstance(region, GraphModule)
        for node in region.graph.nodes
        if (name := _quantizer_name(region, node)) is not None
    )


def _quantizer_name(region: GraphModule, node: Node) -> str | None:
    module = module_of(node)
    if isinstance(module, Quantizer | FrozenQuantizer) and module.scale.dim() == 0:
        return qualify(region, str(node.target))
    return None


def _stand_for(integers: Tensor, x: Tensor, quantizer: nn.Module) -> bool:
    """Whether integers of a file are those of the grid that `x` rounds to."""
    if integers.shape != x.shape:
        return False
    spec = getattr(quantizer, "spec", quantizer)
    exact = (x.double() / quantizer.scale.double() + quantizer.zero_point).clamp(
        spec.qmin, spec.qmax
    )
    distance = (exact - integers).abs()
    moved = int((distance > FARTHEST).sum())
    return bool(distance.max() <= 1 + FARTHEST) and moved <= MOST_MOVED * distance.numel()


def _sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    return sqnr_db(float(np.square(expected).sum()), float(np.square(expected - found).sum()))


def _run_file(
    path: Path, names: list[str], images: tuple[Tensor, ...], **how: bool
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Integers of those of the named quantizers that the file computes, and its outputs."""
    model = load_model_without_data(path)
    outputs = [value.name for value in model.graph.output]
    taken = {*outputs, *(value.name for value in model.graph.input)}
    tensors = {quantizer_tensor(name, taken): name for name in names}
    exposed = [n for node in model.graph.node for n in node.output if n in tensors]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    with edited_copy(model, path) as copy:
        session = make_session(copy, **how)
        values = next(run_batches(session, images, [*outputs, *exposed]))
    integers = {tensors[n]: v for n, v in zip(exposed, values[len(outputs) :], strict=True)}
    return integers, values[: len(outputs)]
