"""Which opset a file needs, and which ones there are to choose from."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule
from torchvision.ops import DeformConv2d, deform_conv2d

from fxquant.errors import ExportError
from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.ops import module_of
from fxquant.quantizer import Quantizer

# The IR version that onnx released along with each opset; runtimes refuse newer ones.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}
OLDEST, OPSET_DEFORMED, OPSET_4_BITS, OPSET_2_BITS = 18, 19, 21, 25
# From opset 21 on ONNX Runtime can't load int8 activations that an operator moves, and so couldn't
# say whether the file is right.
NEWEST = {"tensorrt": 20}


def choose_opset(student: nn.Module, layout: str, asked: int | None) -> int:
    """The asked one, else the oldest that has the types which the student's widths want.

    The oldest of all is 18, the first that torch exports to; 4-bit types came with 21, 2-bit ones
    with 25, which readers other than ONNX Runtime don't know yet: portable files have them only
    where it is asked for. Under an older opset integers take the next wider type that it has.
    Raises ExportError where there is no such opset.
    """
    if asked is None:
        return _oldest_that_fits(student, layout)
    newest = NEWEST.get(layout, max(IR_VERSIONS))
    if not OLDEST <= asked <= newest:
        raise ExportError(
            f"opset {asked} can't be written in layout {layout}; expected {OLDEST} to {newest}",
            "leave it out for the oldest opset that has the types needed",
        )
    return asked


def _oldest_that_fits(student: nn.Module, layout: str) -> int:
    oldest = OPSET_DEFORMED if _is_deformed(student) else OLDEST
    if layout == "tensorrt":
        return oldest
    weights = {module_of(layer.args[1]).spec.bits for layer in quantized_layers(student)}
    everywhere = {m.spec.bits for m in student.modules() if isinstance(m, Quantizer)}
    if layout == "portable":
        return OPSET_4_BITS if min(weights) <= 4 or 4 in everywhere else oldest
    if 2 in weights:
        return OPSET_2_BITS
    return OPSET_4_BITS if min(weights) <= 4 else oldest


def _is_deformed(student: nn.Module) -> bool:
    """Whether deformable convolutions are in it, an operator since opset 19."""
    graphs = [m.graph for m in student.modules() if isinstance(m, GraphModule)]
    called = any(node.target is deform_conv2d for graph in graphs for node in graph.nodes)
    return called or any(isinstance(m, DeformConv2d) for m in student.modules())
